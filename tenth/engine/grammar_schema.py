"""What of JSON schema is enforced, and the refusal of everything else by name.

llguidance refuses most of what it does not enforce; this list is stricter, so that nothing that a schema demands is
passed over in silence: an unknown keyword is an error that names it, but for annotations and names that begin with
`x-`. Formats of dates are replaced by patterns that know how long each month is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tenth.errors import RequestError

DEEPEST = 64  # schemas within schemas
MOST_PROPERTIES = 1000  # of one object: the work grows with their square
_EXACT = 1 << 53  # numbers are compared as float64

_ONE = frozenset("additionalItems additionalProperties items".split())
_LIST = frozenset("allOf anyOf oneOf prefixItems items".split())
_MAP = frozenset("properties patternProperties $defs definitions".split())
_VALUES = frozenset(
    "$ref const enum type minItems maxItems required minProperties maxProperties minLength maxLength pattern format "
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf uniqueItems".split()
)
_ANNOTATIONS = frozenset(
    "$anchor $schema $id id $comment title description default readOnly writeOnly examples example deprecated "
    "discriminator contentMediaType contentEncoding".split()
)
_NUMBERS = frozenset("const enum minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split())
_INSTEAD = {
    "nullable": 'say "type": [..., "null"]',
    "x-guidance": "it would switch checks off",
    "if": "say anyOf",
    "then": "say anyOf",
    "else": "say anyOf",
}

_MONTHS = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_FOURTHS = "(?:0[48]|[2468][048]|[13579][26])"
_DATE = f"(?:{_YEAR}-{_MONTHS}|(?:[0-9]{{2}}{_FOURTHS}|{_FOURTHS}00)-02-29)"
_HOUR = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_HOUR})"
_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
_FORMATS = frozenset("email hostname ipv4 ipv6 uuid uri duration".split())

Schema = bool | dict[str, Any]


def checked_schema(text: str) -> dict[str, Any]:
    """The schema as llguidance shall compile it; RequestError with the place of what is malformed or not enforced."""
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise RequestError(f"the schema is no JSON: {error}") from None
    except RecursionError:
        raise RequestError(f"the schema is nested more than {DEEPEST} deep") from None
    checked = _schema(schema, "#", 0)
    if checked is False:
        raise RequestError("the schema is false: no text fits it")
    return {} if checked is True else checked


def _schema(schema: object, place: str, depth: int) -> Schema:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise RequestError(f"schema {place:.120} must be an object or a boolean, not {_kind(schema)}")
    if depth > DEEPEST:
        raise RequestError(f"the schema is nested more than {DEEPEST} deep")
    done: dict[str, Any] = {key: _value(key, value, place, depth) for key, value in schema.items()}
    _check_counts(done, place)
    return _dated(done) if done.get("format") in _PATTERNS else done


def _value(key: str, value: object, place: str, depth: int) -> object:
    below: Callable[[object, str], Schema] = lambda one, name: _schema(one, f"{place}/{name}", depth + 1)  # noqa: E731
    if key in _LIST and isinstance(value, list):
        return [below(one, f"{key}/{n}") for n, one in enumerate(value)]
    if key == "properties" and isinstance(value, dict) and len(value) > MOST_PROPERTIES:
        raise RequestError(f"schema {place:.120} has {len(value)} properties, it may have {MOST_PROPERTIES}")
    if key in _MAP and isinstance(value, dict):
        return {name: below(one, f"{key}/{name}") for name, one in value.items()}
    if key in _ONE:
        return below(value, key)
    if key in _LIST | _MAP:
        wanted = "a list of schemas" if key in _LIST else "an object of schemas"
        raise RequestError(f"{key} of schema {place:.120} must be {wanted}, not {_kind(value)}")
    if key in _VALUES:
        _check_value(key, value, place)
    elif key not in _ANNOTATIONS and (key in _INSTEAD or not key.startswith("x-")):
        hint = f": {_INSTEAD[key]}" if key in _INSTEAD else ""
        raise RequestError(f"{key!r:.60} of schema {place:.120} is not enforced here, so it is refused{hint}")
    return value


def _check_value(key: str, value: object, place: str) -> None:
    if key == "uniqueItems" and value is not False:
        raise RequestError(f"'uniqueItems' of schema {place:.120} is not enforced here, so it is refused")
    if key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
        raise RequestError(f"$ref {value!r:.80} of schema {place:.120} must stay in the schema: it begins with #")
    if key == "format" and (not isinstance(value, str) or value not in _FORMATS | _PATTERNS.keys()):
        known = ", ".join(sorted(_FORMATS | _PATTERNS.keys()))
        raise RequestError(f"format {value!r:.60} of schema {place:.120} is not enforced here; these are: {known}")
    if key in _NUMBERS and not _exact(value, 0):
        raise RequestError(f"{key} of schema {place:.120} has a number beyond 2^53, which would not be met exactly")


def _check_counts(schema: dict[str, Any], place: str) -> None:
    """Keys that no property names may come twice in an object; then two of them are one."""
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    if isinstance(least, int) and isinstance(required, list) and least - len(set(map(str, required))) > 1:
        raise RequestError(
            f"minProperties {least} of schema {place:.120} is not enforced here beyond required + 1, so it is refused"
        )


def _exact(value: object, depth: int) -> bool:
    if isinstance(value, (list, dict)):
        if depth > DEEPEST:
            raise RequestError(f"a value in the schema is nested more than {DEEPEST} deep")
        return all(_exact(one, depth + 1) for one in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) <= _EXACT


def _dated(schema: dict[str, Any]) -> dict[str, Any]:
    """The same with a pattern in place of a format."""
    pattern = _PATTERNS[schema["format"]]
    rest = {key: value for key, value in schema.items() if key != "format"}
    if "pattern" not in rest:
        return rest | {"pattern": pattern}
    return rest | {"allOf": [*rest.get("allOf", []), {"pattern": pattern}]}


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "text", type(None): "null"}.get(type(value), "a number")
