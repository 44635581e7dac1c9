"""Values that a model writes as plain text, as the JSON that a tool's schema asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenth.api.tool_json import JsonValue, escaped, is_scalar
from tenth.api.tool_outlet import SPACE

Schema = Mapping[str, Any]

ALL = frozenset("string integer number boolean array object null".split())
_DEEPEST = 16  # references and alternatives within each other
_WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}


def kinds_of(schema: object, root: Schema, depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema allows: by type, const, enum, alternatives and references within `root`."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return ALL
    found = ALL
    if "$ref" in schema:
        found &= kinds_of(resolved(schema["$ref"], root), root, depth + 1)
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        found &= (ALL & {one for one in types if isinstance(one, str)}) or ALL
    for values in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
        if isinstance(values, list):
            found &= frozenset(map(_kind, values))
    for name in ("anyOf", "oneOf"):
        if isinstance(schema.get(name), list) and schema[name]:
            found &= frozenset().union(*(kinds_of(one, root, depth + 1) for one in schema[name]))
    if isinstance(schema.get("allOf"), list):
        for one in schema["allOf"]:
            found &= kinds_of(one, root, depth + 1)
    return found or ALL


def resolved(reference: object, root: Schema) -> object:
    """What `#/a/b` points at in `root`, None where there is nothing."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    place: object = root
    for name in reference[1:].split("/")[1:]:
        key = name.replace("~1", "/").replace("~0", "~")
        if not isinstance(place, Mapping) or key not in place:
            return None
        place = place[key]
    return place


def _kind(value: object) -> str:
    named = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return named.get(type(value), "null")


def value_json(text: str, kinds: frozenset[str]) -> str:
    """A value as JSON: the first that fits of null, boolean, number, array, object; text where nothing else does."""
    bare = text.strip(SPACE)
    word = _WORDS.get(bare.lower()) if len(bare) < 6 else None
    if word is not None and ("null" if word == "null" else "boolean") in kinds:
        return word
    if kinds & {"integer", "number"} and is_scalar(bare) and bare not in _WORDS:
        return _number(bare, kinds)
    if kinds & {"array", "object"} and bare[:1] in ("[", "{") and ("array" if bare[0] == "[" else "object") in kinds:
        inner = JsonValue()
        at, found = inner.take(bare, 0)
        if inner.done and at == len(bare):
            return found
    return f'"{escaped(text)}"'


def _number(text: str, kinds: frozenset[str]) -> str:
    """5.0 is an integer where only integers are allowed."""
    whole, point, rest = text.partition(".")
    return whole if "number" not in kinds and point and not rest.strip("0") else text


class ParameterValue:
    """The text of one parameter on its way into JSON: text is passed on as it comes, all else when it is whole."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self._kinds = kinds
        self._held = ""
        self._streams = kinds == {"string"}
        self._begun = False

    def take(self, text: str) -> str:
        """What may be passed on."""
        if self._begun:
            return escaped(text)
        self._held += text
        words = self._kinds <= {"string", "boolean", "null"} and "string" in self._kinds
        if self._streams or (words and not _may_be_word(self._held)):
            self._begun = True
            return f'"{escaped(self._held)}'
        return ""

    def end(self) -> str:
        """The rest of a value that has come to its end."""
        if self._streams and not self._begun:
            return '""'
        return '"' if self._begun else value_json(self._held, self._kinds)

    def close(self) -> str | None:
        """What makes whole JSON where the value breaks off; None where nothing was passed on."""
        return '"' if self._begun else None

    @property
    def held(self) -> str:
        """What came and was not passed on."""
        return "" if self._begun else self._held

    @property
    def in_string(self) -> bool:
        """Whether this is JSON within a string: no tag can stand there."""
        if self._begun or self._held.lstrip(SPACE)[:1] not in ("[", "{") or not self._kinds & {"array", "object"}:
            return False
        value = JsonValue()
        value.take(self._held.lstrip(SPACE), 0)
        return value.in_string


def _may_be_word(text: str) -> bool:
    bare = text.strip(SPACE).lower()
    return any(word.startswith(bare) for word in _WORDS)
