"""Messages with calls of tools and their results: checked, and brought into the order that templates count on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tenth.errors import RequestError

Message = Mapping[str, Any]


def tool_messages(messages: object) -> object:
    """The same messages with the results of calls behind them in the calls' order; RequestError for what does not fit.

    Templates write results without ids, so their order alone says which is whose. Everything that has nothing to do
    with tools is left for `weights/template_messages.py` to judge.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        return messages
    done: list[object] = []
    at = 0
    while at < len(messages):
        message, where = messages[at], f"messages[{at}]"
        if _role(message) == "tool":
            raise RequestError(f"{where} is a tool's result, but no message before it has calls that wait for one")
        done.append(message)
        at += 1
        if _role(message) == "assistant" and message.get("tool_calls"):
            calls = _calls(message["tool_calls"], f"{where}.tool_calls")
            end = next((n for n in range(at, len(messages)) if _role(messages[n]) != "tool"), len(messages))
            results = [(messages[n], f"messages[{n}]") for n in range(at, end)]
            done += _in_order(calls, results, last=end == len(messages), where=where)
            at = end
    return done


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, Mapping) else None


def _calls(calls: object, where: str) -> list[str | None]:
    """The ids of an assistant's calls, None where one has none."""
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise RequestError(f"{where} must be a list, not {type(calls).__name__}")
    found: list[str | None] = []
    for n, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RequestError(f"{where}[{n}] must be an object with a function that has a name")
        if not isinstance(function.get("arguments"), str | Mapping | None):
            raise RequestError(f"{where}[{n}].function.arguments must be JSON in a string, or an object")
        name = call.get("id")
        if name is not None and not isinstance(name, str):
            raise RequestError(f"{where}[{n}].id must be text")
        if name is not None and name in found:
            raise RequestError(f"{where}[{n}].id {name!r:.80} comes twice; ids of calls must differ")
        found.append(name)
    return found


def _in_order(calls: list[str | None], results: list[tuple[Message, str]], *, last: bool, where: str) -> list[Message]:
    """Results by the calls they name; those without ids stay where they are."""
    if not results and last:
        return []
    named: list[str | None] = [_named(result, place, calls) for result, place in results]
    if None in named or None in calls:
        if len(results) > len(calls):
            raise RequestError(f"{results[len(calls)][1]} is one result too many: {where} has {len(calls)} calls")
        return [result for result, _ in results]
    for n, name in enumerate(named):
        if name in named[:n]:
            raise RequestError(f"{results[n][1]} is a second result of the call {name!r:.80}")
    missing = [name for name in calls if name not in named]
    if missing:
        raise RequestError(f"the call {missing[0]!r:.80} of {where} has no result: a message of role tool must follow")
    by_name = {name: result for name, (result, _) in zip(named, results, strict=True)}
    return [by_name[name] for name in calls]


def _named(result: Message, where: str, calls: list[str | None]) -> str | None:
    name = result.get("tool_call_id")
    if name is not None and not isinstance(name, str):
        raise RequestError(f"{where}.tool_call_id must be text")
    if name is not None and None not in calls and name not in calls:
        known = ", ".join(map(str, calls))
        raise RequestError(f"{where}.tool_call_id {name!r:.80} is none of the calls before it ({known:.200})")
    return name
