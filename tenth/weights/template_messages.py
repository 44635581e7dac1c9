"""Messages as templates expect them: checked, plain JSON, and with a stranger's control tokens made inert."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tenth.errors import RequestError
from tenth.weights.tokenizer import Tokenizer

Json = dict[str, Any]
_DEEPEST = 64
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")  # templates build tokens from roles: '<|' + role + '|>'
_REASONING = ("reasoning_content", "thinking", "reasoning")
_OWN_WORDS = frozenset({"content", *_REASONING})  # what an assistant's message says in the model's own words

# Words that templates look up or compare with. Marking them would hide them from the template; being plain words, they
# are no part of a token unless the template itself puts brackets around them.
_STRUCTURE = frozenset(
    "role content name tool_calls tool_call_id tool_plan id type function arguments index refusal text citations "
    "description parameters strict return returns response documents title reasoning_content reasoning thinking "
    "properties required items prefixItems enum const default format pattern additionalProperties anyOf oneOf allOf "
    "not minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength minItems maxItems "
    "uniqueItems nullable examples $ref $defs definitions object array string integer number boolean null any".split()
)


def plain(value: object, where: str, depth: int = 0) -> Any:
    """Copy `value` as plain JSON. A RequestError names what is not JSON, or nested more than 64 deep."""
    if depth > _DEEPEST:
        raise RequestError(f"{where} is nested more than {_DEEPEST} deep")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise RequestError(f"{where} has a key that is not a string")
        return {key: plain(item, f"{where}.{key:.40}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{n}]", depth + 1) for n, item in enumerate(value)]
    raise RequestError(f"{where} must be JSON, not {type(value).__name__}")


def normal_messages(messages: object) -> list[Json]:
    """Bring messages into the form that published templates work with. Raises RequestError.

    `content` is a string, or None where the assistant or a tool said nothing; parts of text are joined by line breaks;
    arguments of tool calls are objects where their JSON can be read; reasoning goes by all of its names; other fields
    that are None are left out.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise RequestError("messages must be a list of at least one message")
    return [_message(message, f"messages[{n}]") for n, message in enumerate(messages)]


def _message(message: object, where: str) -> Json:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} must be an object with role and content, not {type(message).__name__}")
    copy = plain(message, where)
    role = copy.get("role")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise RequestError(f"{where}.role must be a word such as 'user', not {role!r:.80}")
    kept = {key: value for key, value in copy.items() if value is not None}
    kept["content"] = _content(copy.get("content"), role, f"{where}.content")
    if not kept.get("tool_calls", True):
        del kept["tool_calls"]
    if "tool_calls" in kept:
        kept["tool_calls"] = _tool_calls(kept["tool_calls"], f"{where}.tool_calls")
    reasoning = next((kept[name] for name in _REASONING if name in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def _content(content: Any, role: str, where: str) -> str | None:
    if isinstance(content, str):
        return content
    if content is None and role not in ("user", "system", "developer"):
        return None
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list of text parts, not {type(content).__name__}")
    for n, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RequestError(f"{where}[{n}] is of type {kind!r:.60}; this model reads text parts only")
    return "\n".join(part["text"] for part in content)


def _tool_calls(calls: Any, where: str) -> list[Json]:
    if not isinstance(calls, list):
        raise RequestError(f"{where} must be a list, not {type(calls).__name__}")
    for n, call in enumerate(calls):
        if not isinstance(call, dict) or not isinstance(call.get("function", {}), dict):
            raise RequestError(f"{where}[{n}] must be an object with a function")
        target = call.get("function", call)
        target["arguments"] = _arguments(target.get("arguments"), f"{where}[{n}].arguments")
    return calls


def _arguments(arguments: Any, where: str) -> Any:
    """Read arguments that are JSON in a string; what a model has garbled stays as it is, or no turn could follow it."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        read = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return plain(read, where) if isinstance(read, dict) else arguments


def normal_tools(tools: object) -> list[Json] | None:
    """Check a list of tool definitions; an empty one is none at all. Raises RequestError."""
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RequestError("tools must be a list of objects")
    return [plain(tool, f"tools[{n}]") for n, tool in enumerate(tools)] or None


def mark_context(context: Json, trusted: frozenset[str], tokenizer: Tokenizer, marker: str) -> Json:
    """Mark every string of a template's context, but for the names in `trusted`, that people or tools have written."""

    def strict(text: str) -> str:
        return text if text in _STRUCTURE else tokenizer.strict_marking.mark(text, marker)

    def lenient(text: str) -> str:
        return tokenizer.lenient_marking.mark(text, marker)

    def message(fields: Json) -> Json:
        own = (
            {} if fields["role"] != "assistant" else {k: _map(v, lenient) for k, v in fields.items() if k in _OWN_WORDS}
        )
        marked: Json = _map(fields, strict)
        return marked | own | {"role": fields["role"]}

    marked = {name: value if name in trusted else _map(value, strict) for name, value in context.items()}
    return marked | {"messages": [message(fields) for fields in context["messages"]]}


def _map(value: Any, change: Callable[[str], str]) -> Any:
    """Apply `change` to every string in `value`, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _map(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map(item, change) for item in value]
    return value
