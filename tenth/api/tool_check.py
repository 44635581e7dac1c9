"""The tools of a request, as OpenAI's API has them: checked, and as templates are given them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tenth.errors import RequestError
from tenth.weights.template_messages import plain

MOST_TOOLS = 512
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_NO_PARAMETERS = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call: its name, the schema of its arguments, and what the template is given."""

    name: str
    parameters: Mapping[str, Any]
    shown: Mapping[str, Any]


def checked_tools(tools: object) -> list[Tool]:
    """The tools of a body; RequestError for what is none, a name that comes twice, a schema that is no object's."""
    if tools is None:
        return []
    if not isinstance(tools, list | tuple):
        raise RequestError(f"tools must be a list, not {type(tools).__name__}")
    if len(tools) > MOST_TOOLS:
        raise RequestError(f"tools has {len(tools)} of them, there may be {MOST_TOOLS}")
    found = [_tool(tool, f"tools[{n}]") for n, tool in enumerate(tools)]
    seen: set[str] = set()
    for n, tool in enumerate(found):
        if tool.name in seen:
            raise RequestError(f"tools[{n}].function.name {tool.name!r} comes twice; names must differ")
        seen.add(tool.name)
    return found


def _tool(tool: object, where: str) -> Tool:
    if not isinstance(tool, Mapping):
        raise RequestError(f"{where} must be an object, not {type(tool).__name__}")
    kind, function = tool.get("type", "function"), tool.get("function")
    if kind != "function":
        raise RequestError(f"{where}.type is {kind!r:.40}, it must be 'function'")
    if not isinstance(function, Mapping):
        raise RequestError(f"{where}.function must be an object with a name, not {type(function).__name__}")
    where = f"{where}.function"
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"{where}.name is {name!r:.150}, it must be 1 to 128 of A-Z a-z 0-9 _ - . : /")
    if not isinstance(function.get("description", ""), str | None):
        raise RequestError(f"{where}.description must be text")
    parameters = _parameters(function.get("parameters"), f"{where}.parameters")
    kept = {key: value for key, value in function.items() if value is not None and key != "strict"}
    shown = {"type": "function", "function": plain({**kept, "parameters": parameters}, where)}
    return Tool(name, shown["function"]["parameters"], shown)


def _parameters(schema: object, where: str) -> Mapping[str, Any]:
    if schema is None or schema == {}:
        return _NO_PARAMETERS
    if not isinstance(schema, Mapping):
        raise RequestError(f"{where} must be a JSON schema of an object, not {type(schema).__name__}")
    kind = schema.get("type", "object")
    if kind != "object":
        raise RequestError(f"{where}.type is {kind!r:.40}, it must be 'object': arguments have names")
    if not isinstance(schema.get("properties", {}), Mapping):
        given = type(schema["properties"]).__name__
        raise RequestError(f"{where}.properties must be an object of schemas, not {given}")
    return schema if "type" in schema else {"type": "object", **schema}
