"""What a parser of tool calls finds in an answer's text: content, and calls piece by piece."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ContentText:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """Call number `index` of the answer, from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsText:
    """A piece of a call's arguments: joined they are one JSON object, wherever the text breaks off."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """Nothing more comes of this call. Not `whole`: its text broke off or was malformed, and its JSON was closed."""

    index: int
    whole: bool


ToolEvent = ContentText | CallBegin | ArgumentsText | CallEnd


class ToolParser(Protocol):
    """Takes the text of one answer in any cut. What comes, joined, depends on the text alone."""

    @property
    def calls(self) -> int:
        """Calls begun so far."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the answer has as many calls as it may: it is over."""
        ...

    def push(self, text: str) -> list[ToolEvent]:
        """What this text adds."""
        ...

    def finish(self) -> list[ToolEvent]:
        """What was held back, now that no more text will come."""
        ...


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(slots=True)
class ToolAnswer:
    """A whole answer, of its events."""

    content: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """As a message has them, arguments as text."""

    def take(self, events: list[ToolEvent]) -> None:
        """Add what came."""
        for event in events:
            match event:
                case ContentText(text):
                    self.content = (self.content or "") + text
                case CallBegin(_, name_of_call, name):
                    function = {"name": name, "arguments": ""}
                    self.tool_calls.append({"id": name_of_call, "type": "function", "function": function})
                case ArgumentsText(index, text):
                    self.tool_calls[index]["function"]["arguments"] += text
                case CallEnd():
                    pass
