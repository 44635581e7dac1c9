"""Grammars that force calls: the form that the template teaches, arguments by the schema of the tool that is called."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tenth.api.tool_check import Tool
from tenth.api.tool_values import resolved
from tenth.api.tool_xml import CLOSE, END_FUNCTION, END_PARAMETER, FUNCTION, OPEN, PARAMETER
from tenth.engine.grammar import Grammar
from tenth.engine.grammar_schema import checked_schema
from tenth.errors import RequestError

Schema = Mapping[str, Any]

_PATTERNS = ("pattern", "format")
_DEFINITIONS = ("$defs", "definitions")
_NOTES = ("title", "description", "default", "examples", "deprecated")
_DEEPEST = 16
_JSON = {"x-guidance": {"whitespace_pattern": r" |\n[ \t]{0,60}"}}  # bounded, as in all JSON here


def calls_grammar(form: str, tools: Sequence[Tool], specials: Collection[str], *, several: bool) -> Grammar:
    """One call of one of these tools, or `several` of any; RequestError for a schema that would not be enforced.

    White space may come before the first call: behind a thought it does. `specials` are the vocabulary's tokens that
    no text spells; a tag that is none of them is text. Arguments that a schema does not name do not come.
    """
    opened, closed = (tag if tag in specials else _quoted(tag) for tag in (OPEN, CLOSE))
    more = r"(/\n?/ call)*" if several else ""
    rules = [
        f"start: /\\n{{0,2}}/ call {more}",
        f'call: {opened} "\\n" ({" | ".join(f"call_{n}" for n in range(len(tools)))}) "\\n" {closed}',
    ]
    for n, tool in enumerate(tools):
        try:
            schema = checked_schema(json.dumps({"additionalProperties": False, **tool.parameters}))
            rules += _hermes(n, tool.name, schema) if form == "hermes" else _Xml(n, schema).rules(tool.name)
        except RequestError as error:
            raise RequestError(f"a call of {tool.name} cannot be forced: {error}") from None
    return Grammar.calls("\n".join(rules))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Schema) -> str:
    return f"%json {json.dumps({**schema, **_JSON}, ensure_ascii=False)}"


def _hermes(n: int, name: str, schema: Schema) -> list[str]:
    head = f'{{"name": {json.dumps(name)}, "arguments": '
    return [f'call_{n}: {_quoted(head)} arguments_{n} "}}"', f"arguments_{n}: {_json(schema)}"]


class _Xml:
    """The rules of one tool: its parameters in the schema's order, each with its closing tag."""

    def __init__(self, number: int, schema: Schema) -> None:
        self._number, self._root = number, schema
        self._made: list[str] = []

    def rules(self, name: str) -> list[str]:
        properties, required = self._root.get("properties", {}), self._root.get("required", [])
        _check_list(required, "required")
        unknown = [key for key in self._root if key in ("anyOf", "oneOf", "allOf", "$ref", "minProperties")]
        unknown += [key for key in required if key not in properties]
        if unknown:
            raise RequestError(f"{unknown[0]!r:.60} of the parameters themselves is not enforced in this form")
        parts = []
        for at, (key, schema) in enumerate(properties.items()):
            if re.search(r"[<>\n]", key) or key != key.strip() or not key:
                raise RequestError(f"a parameter cannot be named {key!r:.60} in this form")
            rule = f"parameter_{self._number}_{at}"
            head, alternatives = _quoted(f"{PARAMETER}{key}>\n"), " | ".join(self._values(schema, key, 0))
            self._made.append(f'{rule}: {head} ({alternatives}) "\\n"')
            parts.append(rule if key in required else f"{rule}?")
        head, tail = _quoted(f"{FUNCTION}{name}>\n"), _quoted(END_FUNCTION)
        made = [f"call_{self._number}: {head} {' '.join(parts)} {tail}", *self._made]
        return made

    def _values(self, schema: object, key: str, depth: int) -> list[str]:
        """What may stand for a value, closing tag and all: bare text, one of some texts, or JSON."""
        if schema is True or schema == {}:
            return [self._text({}, key)]
        if not isinstance(schema, Mapping) or depth > _DEEPEST:
            raise RequestError(f"the schema of {key!r:.60} is not enforced in this form")
        for name in ("$ref", "anyOf", "oneOf", "allOf"):
            if name in schema:
                _refuse_beside(name, schema, key)
                inner = [resolved(schema[name], self._root)] if name == "$ref" else schema[name]
                if name == "allOf" and len(inner) != 1:
                    raise RequestError(f"'allOf' of {key!r:.60} is not enforced in this form")
                each = [self._values(one, key, depth + 1) for one in inner]
                return list(dict.fromkeys(one for values in each for one in values))
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values is not None:
            if not isinstance(values, list) or not values:
                raise RequestError(f"enum of {key!r:.60} must be a list of one value at least")
            return [_literal(value) for value in values]
        types = schema.get("type", ["string", "number", "boolean", "array", "object", "null"])
        types = [types] if isinstance(types, str) else types
        _check_list(types, f"type of {key!r:.60}")
        found = [self._text(schema, key)] if "string" in types else []
        others = [one for one in types if one != "string"]
        return found + ([self._value({**schema, "type": others})] if others else [])

    def _text(self, schema: Schema, key: str) -> str:
        for name in _PATTERNS:
            if name in schema:
                raise RequestError(f"{name} of the text {key!r:.60} is not enforced in this form")
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        if not least and most == "":
            rule = f"text_{self._number}"
            made = f"{rule}[lazy]: /(?s:.*)<\\/parameter>/"
        else:
            rule = f"TEXT_{self._number}_{len(self._made)}"
            free = f"/(?s:.{{{least},{most}}})/ & ~/(?s:.*)<\\/parameter>(?s:.*)/"
            made = f'{rule}: ({free}) "\\n{END_PARAMETER}"'
        if made not in self._made:
            self._made.append(made)
        return rule

    def _value(self, schema: Schema) -> str:
        text = json.dumps(schema)
        for place in re.findall(r'"\$ref": "([^"]*)"', text):
            if not place.startswith(("#/$defs/", "#/definitions/")):
                raise RequestError(f"$ref {place!r:.60} is not enforced in this form: it must lead to $defs")
        definitions = {name: self._root[name] for name in _DEFINITIONS if name in self._root}
        rule = f"json_{self._number}_{len(self._made)}"
        self._made.append(f"{rule}: {_json({**definitions, **schema})}")
        return f'({rule} "\\n{END_PARAMETER}")'


def _check_list(names: object, where: str) -> None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RequestError(f"{where} must be a list of names, not {names!r:.60}")


def _refuse_beside(name: str, schema: Schema, key: str) -> None:
    """Whatever stands beside alternatives or a reference must be a note."""
    wrong = [one for one in schema if one not in (name, *_NOTES)]
    if wrong:
        raise RequestError(f"{wrong[0]!r:.60} beside {name} of {key!r:.60} is not enforced in this form")


def _literal(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and END_PARAMETER in value:
        raise RequestError(f"a value that holds {END_PARAMETER} cannot be written in this form")
    return _quoted(f"{text}\n{END_PARAMETER}")
