"""A body of Anthropic's Messages API as the chat body that this server reads.

Every error names the place in the body that was sent. Content that is no text is refused; marks for caches are passed
over, since every prompt's beginning is looked for in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenth.errors import RequestError
from tenth.serve.anthropic_messages import chat_messages, joined_text

Json = dict[str, Any]

_SAME = ("model", "temperature", "top_p", "top_k", "stream", "cache")
_HINTS = ("metadata", "service_tier", "cache_control", "inference_geo", "diagnostics")  # they change nothing here
_READ = ("messages", "max_tokens", "system", "stop_sequences", "tools", "tool_choice", "thinking", "output_config")
_TOOL_HINTS = ("cache_control", "eager_input_streaming", "strict", "allowed_callers", "type")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_body(body: Mapping[str, Any], *, thinks: bool, counting: bool = False) -> Json:
    """The same request in OpenAI's form; RequestError for what cannot be.

    `thinks` says whether the model has tags of thinking: a budget asks nothing of one without. With `counting` the
    length of an answer need not be said.
    """
    for name in body:
        if name not in (*_SAME, *_HINTS, *_READ):
            known = ", ".join(sorted((*_SAME, *_HINTS, *_READ)))
            raise RequestError(f"no field of a message is named {name!r:.40} (there are: {known})")
    given = {name: value for name, value in body.items() if value is not None}
    found = {name: given[name] for name in _SAME if name in given}
    found["messages"] = _system(given.get("system")) + chat_messages(given.get("messages"))
    if not counting or "max_tokens" in given:
        found["max_tokens"] = _length(given)
    if "stop_sequences" in given:
        found["stop"] = _stops(given["stop_sequences"])
    return found | _tools(given) | _thinking(given, thinks=thinks) | _output(given, thinks=thinks)


def _system(system: object) -> list[Json]:
    if system is None or system in ("", []):
        return []
    return [{"role": "system", "content": joined_text(system, "system")}]


def _length(given: Mapping[str, Any]) -> int:
    length = given.get("max_tokens")
    if type(length) is not int or length < 1:
        raise RequestError(f"max_tokens is {length!r:.40}, it must be a whole number of at least 1")
    return length


def _stops(stops: object) -> list[str]:
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop.strip() for stop in stops):
        raise RequestError("stop_sequences must be a list of texts, each with more than white space")
    return stops


def _tools(given: Mapping[str, Any]) -> Json:
    tools, choice = given.get("tools", []), given.get("tool_choice")
    if not isinstance(tools, list):
        raise RequestError(f"tools must be a list, not {type(tools).__name__}")
    found: Json = {"tools": [_tool(tool, f"tools[{n}]") for n, tool in enumerate(tools)]} if tools else {}
    if choice is None:
        return found
    if not isinstance(choice, Mapping) or choice.get("type") not in (*_CHOICES, "tool"):
        raise RequestError(f"tool_choice is {choice!r:.60}, its type must be auto, any, tool or none")
    alone = choice.get("disable_parallel_tool_use", False)
    if type(alone) is not bool:
        raise RequestError(f"tool_choice.disable_parallel_tool_use is {alone!r:.40}, it must be true or false")
    named = {"type": "function", "function": {"name": choice.get("name")}}
    asked = _CHOICES.get(choice["type"], named)
    return found | {"tool_choice": asked} | ({"parallel_tool_calls": False} if alone else {})


def _tool(tool: object, where: str) -> Json:
    if not isinstance(tool, Mapping):
        raise RequestError(f"{where} must be an object, not {type(tool).__name__}")
    if tool.get("type") not in (None, "custom"):
        raise RequestError(f"{where}.type is {tool['type']!r:.60}: there are only tools of the client's own, 'custom'")
    for name in tool:
        if name not in ("name", "description", "input_schema", "input_examples", *_TOOL_HINTS):
            raise RequestError(f"{where} has {name!r:.40}, which is not done here")
    schema = tool.get("input_schema")
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise RequestError(f"{where}.input_schema must be a JSON schema whose type is 'object'")
    function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": schema}
    return {"type": "function", "function": function}


def _thinking(given: Mapping[str, Any], *, thinks: bool) -> Json:
    """Thinking is off where nobody asks for it; a model that thinks all the same does it unseen."""
    thinking = given.get("thinking", {"type": "disabled"})
    kind = thinking.get("type") if isinstance(thinking, Mapping) else None
    if kind not in ("enabled", "adaptive", "disabled"):
        raise RequestError(f"thinking is {thinking!r:.60}, its type must be enabled, adaptive or disabled")
    if kind == "disabled":
        return {"enable_thinking": False, "include_reasoning": False}
    found: Json = {"enable_thinking": True, "include_reasoning": thinking.get("display") != "omitted"}
    if kind == "enabled":
        budget = thinking.get("budget_tokens")
        if type(budget) is not int or budget < 1:
            raise RequestError(f"thinking.budget_tokens is {budget!r:.40}, it must be a whole number of at least 1")
        if budget >= given.get("max_tokens", budget + 1):
            raise RequestError(f"thinking.budget_tokens is {budget}, it must be less than max_tokens")
        found |= {"thinking_token_budget": budget} if thinks else {}
    return found


def _output(given: Mapping[str, Any], *, thinks: bool) -> Json:
    config = given.get("output_config", {})
    if not isinstance(config, Mapping) or not config.keys() <= {"effort", "format"}:
        raise RequestError("output_config must be an object with effort, format or both")
    found: Json = {}
    form, effort = config.get("format"), config.get("effort")
    if form is not None:
        if not isinstance(form, Mapping) or form.get("type") != "json_schema" or "schema" not in form:
            raise RequestError('output_config.format must be {"type": "json_schema", "schema": ...}')
        found["response_format"] = {"type": "json_schema", "json_schema": {"schema": form["schema"]}}
    adaptive = isinstance(given.get("thinking"), Mapping) and given["thinking"].get("type") == "adaptive"
    if effort is not None:
        if effort not in ("low", "medium", "high", "xhigh", "max"):
            raise RequestError(f"output_config.effort is {effort!r:.40}, it must be low, medium, high, xhigh or max")
        found |= {"reasoning_effort": effort} if adaptive and thinks else {}
    return found
