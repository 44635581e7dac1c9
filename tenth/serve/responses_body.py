"""A body of `/v1/responses` as the body of a chat: items become messages; tools and formats get their other form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tenth.errors import RequestError

Json = dict[str, Any]

# what both APIs call by the same name
_SAME = set(
    "model temperature top_p top_k min_p seed stop stream parallel_tool_calls top_logprobs user metadata store "
    "service_tier safety_identifier prompt_cache_key prompt_cache_retention repetition_penalty presence_penalty "
    "frequency_penalty logit_bias enable_thinking chat_template_kwargs thinking_token_budget cache".split()
)
_OWN = set("input instructions max_output_tokens reasoning text tools tool_choice include truncation".split())
_STATE = ("previous_response_id", "conversation", "background", "prompt", "max_tool_calls")
_INCLUDE = ("message.output_text.logprobs", "reasoning.encrypted_content")
_TEXTS = ("input_text", "output_text", "text", "refusal")


def chat_body(body: Mapping[str, Any]) -> Json:
    """The chat that a body asks for; RequestError where it asks for what a server without a memory cannot do."""
    given = {name: value for name, value in body.items() if value is not None}
    for name in _STATE:
        if given.get(name):
            raise RequestError(
                f"{name} is not to be had: this server keeps no responses; send all of the input each time"
            )
    for name in given:
        if name not in _SAME | _OWN and name not in _STATE:
            known = ", ".join(sorted(_SAME | _OWN))
            raise RequestError(f"no field of a response is named {name!r:.40} (there are: {known})")
    chat: Json = {name: given[name] for name in _SAME & given.keys()}
    chat["messages"] = [*_instructions(given), *_messages(given.get("input"))]
    if given.get("truncation", "disabled") != "disabled":
        raise RequestError(f"truncation is {given['truncation']!r:.40}, it must be disabled: inputs are not cut here")
    if "max_output_tokens" in given:
        chat["max_completion_tokens"] = given["max_output_tokens"]
    chat |= _reasoning(given) | _format(given) | _tools(given)
    included = _strings(given, "include", _INCLUDE)
    if "message.output_text.logprobs" in included or chat.get("top_logprobs"):
        chat["logprobs"] = True
    return chat


def _instructions(given: Json) -> list[Json]:
    return [{"role": "system", "content": given["instructions"]}] if given.get("instructions") else []


def _messages(items: object) -> list[Json]:
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise RequestError("input must be a text, or a list of at least one item")
    messages = list[Json]()
    for number, item in enumerate(items):
        where = f"input[{number}]"
        if not isinstance(item, dict):
            raise RequestError(f"{where} must be an object, not {type(item).__name__}")
        kind = item.get("type", "message")
        read = _ITEMS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise RequestError(f"{where} is of type {kind!r:.40}, it must be one of {', '.join(_ITEMS)}")
        _add(messages, read(item, where))
    return messages


def _add(messages: list[Json], message: Json) -> None:
    """Thinking, text and calls of one turn are items of their own there, and one message here."""
    last = messages[-1] if messages else {}
    turn = message["role"] == "assistant" and last.get("role") == "assistant"
    if not turn or ("content" in message and (last.get("content") is not None or "tool_calls" in last)):
        messages.append(message)
        return
    calls = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
    last |= message | ({"tool_calls": calls} if calls else {})


def _message(item: Json, where: str) -> Json:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise RequestError(f"{where}.role is {role!r:.40}, it must be user, assistant, system or developer")
    return {"role": role, "content": _text(item.get("content"), f"{where}.content")}


def _call(item: Json, where: str) -> Json:
    function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
    call = {"id": item.get("call_id"), "type": "function", "function": function}
    if not all(isinstance(value, str) for value in (call["id"], *function.values())):
        raise RequestError(f"{where} needs call_id, name and arguments, which are texts")
    return {"role": "assistant", "tool_calls": [call]}


def _result(item: Json, where: str) -> Json:
    return {
        "role": "tool",
        "tool_call_id": item.get("call_id"),
        "content": _text(item.get("output"), f"{where}.output"),
    }


def _thought(item: Json, where: str) -> Json:
    text = _text(item.get("content") or [], f"{where}.content", ("reasoning_text", "text"))
    return {"role": "assistant", "reasoning_content": text} if text else {"role": "assistant"}


_ITEMS: dict[str, Callable[[Json, str], Json]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _result,
    "reasoning": _thought,
}


def _text(content: object, where: str, kinds: tuple[str, ...] = _TEXTS) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a text or a list of parts, not {type(content).__name__}")
    found = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in kinds or not isinstance(text, str):
            raise RequestError(f"{where}[{number}] is of type {kind!r:.60}; this model reads text parts only")
        found.append(text)
    return "\n".join(found)


def _reasoning(given: Json) -> Json:
    asked = _object(given, "reasoning", ("effort", "summary", "generate_summary"))
    return {"reasoning_effort": asked["effort"]} if asked.get("effort") is not None else {}


def _format(given: Json) -> Json:
    asked = _object(given, "text", ("format", "verbosity"))
    form = asked.get("format")
    if form is None:
        return {}
    if not isinstance(form, dict):
        raise RequestError(f"text.format is {form!r:.40}, it must be an object")
    if form.get("type") != "json_schema":
        return {"response_format": form}
    return {"response_format": {"type": "json_schema", "json_schema": {k: v for k, v in form.items() if k != "type"}}}


def _tools(given: Json) -> Json:
    found: Json = {}
    tools, choice = given.get("tools"), given.get("tool_choice")
    if tools is not None:
        if not isinstance(tools, list):
            raise RequestError("tools must be a list of objects")
        found["tools"] = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    if isinstance(choice, dict) and choice.get("type") == "function":
        found["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    elif choice is not None:
        found["tool_choice"] = choice
    return found


def _tool(tool: object, where: str) -> Json:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, dict) else type(tool).__name__
        raise RequestError(f"{where} is of type {kind!r:.40}; there are functions only, the client calls them")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _object(given: Json, name: str, known: tuple[str, ...]) -> Json:
    value = given.get(name, {})
    if not isinstance(value, dict) or not value.keys() <= set(known):
        raise RequestError(f"{name} must be an object with {', '.join(known)}")
    return value


def _strings(given: Json, name: str, known: tuple[str, ...]) -> list[str]:
    value = given.get(name, [])
    if not isinstance(value, list) or not all(one in known for one in value):
        raise RequestError(f"{name} must be a list of {', '.join(known)}")
    return value
