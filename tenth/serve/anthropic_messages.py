"""Messages of Anthropic's API, made of blocks, as messages of a chat: texts, calls of tools, and their results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tenth.errors import RequestError

Json = dict[str, Any]


def chat_messages(messages: object) -> list[Json]:
    """The messages in OpenAI's form; RequestError with the place of what cannot be.

    Results of tools become messages of their own, in the order of the calls that the turn before them asked for.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of at least one message")
    found: list[Json] = []
    waiting: list[str] = []
    for n, message in enumerate(messages):
        where = f"messages[{n}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("user", "assistant", "system"):
            raise RequestError(f"{where} must be an object whose role is user or assistant")
        content = message.get("content")
        if role == "assistant":
            _check_answered(waiting, where)
            made, waiting = _assistant(content, where)
            found.append(made)
        elif role == "system":
            found.append({"role": "system", "content": joined_text(content, f"{where}.content")})
        else:
            found += _user(content, waiting, where)
            waiting = []
    if found[-1]["role"] == "assistant":
        raise RequestError("messages must end with the user's turn: an answer's beginning cannot be given")
    return found


def joined_text(content: object, where: str) -> str:
    """A text, or blocks of text."""
    if isinstance(content, str):
        return content
    return "\n".join(_text(block, f"{where}[{n}]") for n, block in enumerate(_blocks(content, where)))


def _blocks(content: object, where: str) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a text or a list of blocks, not {type(content).__name__}")
    for n, block in enumerate(content):
        if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
            raise RequestError(f"{where}[{n}] must be an object with a type")
    return content


def _text(block: Mapping[str, Any], where: str) -> str:
    """The text of a block; a document may be one too."""
    source = block.get("source")
    if block["type"] == "document" and isinstance(source, Mapping) and source.get("type") == "text":
        block = {"type": "text", "text": source.get("data")}
    if block["type"] != "text":
        raise RequestError(f"{where} is of type {block['type']!r:.40}; this model reads text only")
    if not isinstance(block.get("text"), str):
        raise RequestError(f"{where}.text must be a text")
    text: str = block["text"]
    return text


def _assistant(content: object, where: str) -> tuple[Json, list[str]]:
    """An answer as it was given before, and the ids of its calls."""
    texts, thoughts, calls = list[str](), list[str](), list[Json]()
    for n, block in enumerate(_blocks(content, f"{where}.content")):
        place = f"{where}.content[{n}]"
        if block["type"] == "thinking":
            thoughts.append(_string(block, "thinking", place))
        elif block["type"] == "tool_use":
            calls.append(_call(block, place))
        elif block["type"] != "redacted_thinking":
            texts.append(_text(block, place))
    message: Json = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    message |= {"reasoning_content": "\n".join(thoughts)} if any(thoughts) else {}
    ids = [call["id"] for call in calls]
    for n, name in enumerate(ids):
        if name in ids[:n]:
            raise RequestError(f"{where}.content has the tool_use id {name!r:.80} twice")
    return message | ({"tool_calls": calls} if calls else {}), ids


def _call(block: Mapping[str, Any], where: str) -> Json:
    if not isinstance(block.get("input"), Mapping):
        raise RequestError(f"{where}.input must be an object")
    function = {"name": _string(block, "name", where), "arguments": block["input"]}
    return {"id": _string(block, "id", where), "type": "function", "function": function}


def _user(content: object, waiting: list[str], where: str) -> list[Json]:
    """A user's turn: results first, as the calls were asked for, then what the user says."""
    results, texts = dict[str, Json](), list[Json]()
    for n, block in enumerate(_blocks(content, f"{where}.content")):
        place = f"{where}.content[{n}]"
        if block["type"] != "tool_result":
            texts.append({"type": "text", "text": _text(block, place)})
            continue
        name = _string(block, "tool_use_id", place)
        if name not in waiting:
            raise RequestError(f"{place}.tool_use_id {name!r:.80} is no tool_use of the message before it")
        if name in results:
            raise RequestError(f"{place} is a second result of {name!r:.80}")
        results[name] = {"role": "tool", "tool_call_id": name, "content": _result(block, place)}
    _check_answered([name for name in waiting if name not in results], where)
    said = texts[0]["text"] if len(texts) == 1 else texts
    return [results[name] for name in waiting] + ([{"role": "user", "content": said}] if texts or not results else [])


def _result(block: Mapping[str, Any], where: str) -> str:
    """A tool's result as text; one that is an error says so."""
    text = joined_text(block.get("content") or "", f"{where}.content")
    return f"Error: {text}" if block.get("is_error") else text


def _check_answered(waiting: list[str], where: str) -> None:
    if waiting:
        raise RequestError(f"{where} must have a tool_result for the tool_use {waiting[0]!r:.80} of the message before")


def _string(block: Mapping[str, Any], name: str, where: str) -> str:
    value = block.get(name)
    if not isinstance(value, str) or (not value and name != "thinking"):
        raise RequestError(f"{where}.{name} must be a text")
    return value
