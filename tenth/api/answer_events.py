"""An answer as it comes, in events: thinking, text, tool calls, its end. Every API's stream is made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tenth.api.answer_text import AnswerText, Piece
from tenth.api.tool_events import ArgumentsText, CallBegin, CallEnd, ContentText, ToolAnswer, ToolParser
from tenth.engine.sampler import Drawn
from tenth.engine.stream import FinishReason

EndReason = Literal["stop", "length", "tool_calls", "content_filter", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """Thinking ahead of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Tokens with their log-probabilities, where they were asked for; the text that they are comes behind.

    Those of a stop string are among them, though its text is cut: what is drawn decides it, not what came with it.
    """

    drawn: tuple[Drawn, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of an answer, by a stop string where `stopped_by` has one."""

    reason: EndReason
    stopped_by: str | None = None


Event = ReasoningText | ContentText | CallBegin | ArgumentsText | CallEnd | Logprobs | Finish


@dataclass(frozen=True, slots=True)
class Said:
    """An event of one of the answers."""

    choice: int
    event: Event


class AnswerEvents:
    """Turns the tokens of one answer into events.

    `tools` finds calls in the text; with `logprobs` tokens are told too, without `reasoning` thinking is not. Line
    breaks around a thought belong to its tags: templates put them back. With `first`, the first token of a prompt whose
    tokens are scored, these are told ahead of the answer's. One that is not `shown` has an end and no text: what was
    asked for is the prompt.
    """

    def __init__(
        self,
        text: AnswerText,
        tools: ToolParser | None = None,
        *,
        logprobs: bool = False,
        reasoning: bool = True,
        first: int | None = None,
        shown: bool = True,
    ) -> None:
        self._text, self._tools, self._logprobs, self._reasoning = text, tools, logprobs, reasoning
        self._first, self._shown = first, shown
        self._thought, self._told, self._begun, self._breaks = False, False, False, ""

    @property
    def over(self) -> bool:
        """Whether a stop string, or the end of the only call, has ended it: the engine may stop."""
        return self._text.stopped is not None or (self._tools is not None and self._tools.complete)

    def push(self, drawn: Sequence[Drawn], prompt: Sequence[Drawn] = ()) -> list[Event]:
        """What new tokens say; nothing once it is over. `prompt` has the scores of the prompt's behind the first."""
        if self.over or not drawn:
            return []
        told: list[Event] = []
        if self._first is not None:
            told, self._first = [Logprobs((Drawn(self._first), *prompt))], None
        if not self._shown:
            return told
        piece = self._text.push(one.token for one in drawn)
        told += [Logprobs(tuple(drawn[: piece.taken]))] if self._logprobs else []
        return told + self._events(piece)

    def finish(self, reason: FinishReason) -> list[Event]:
        """What was held back, and the end; `reason` is the engine's."""
        if not self._shown:
            return [Finish("length" if reason == "stop" else reason)]
        events = self._events(self._text.finish())
        events += [] if self._tools is None else self._tools.finish()
        calls = 0 if self._tools is None else self._tools.calls
        ended: EndReason = "stop" if self.over else reason
        if calls and ended == "stop":
            ended = "tool_calls"
        return [*events, Finish(ended, self._text.stopped)]

    def _events(self, piece: Piece) -> list[Event]:
        thought, content = self._thought_text(piece.reasoning), piece.content
        found: list[Event] = [ReasoningText(thought)] if thought and self._reasoning else []
        if self._thought and not self._begun:
            content = content.lstrip("\n")
        if not content:
            return found
        self._begun = True
        return found + (list[Event](self._tools.push(content)) if self._tools is not None else [ContentText(content)])

    def _thought_text(self, text: str) -> str:
        """A thought without line breaks at its beginning and end."""
        if not text:
            return ""
        self._thought = True
        whole = self._breaks + text if self._told else text.lstrip("\n")
        shown = whole.rstrip("\n")
        self._told = self._told or bool(shown)
        self._breaks = whole[len(shown) :]
        return shown


@dataclass(slots=True)
class Whole:
    """An answer put together from its events."""

    reasoning: str = ""
    drawn: list[Drawn] = field(default_factory=list)
    finish: Finish | None = None
    _said: ToolAnswer = field(default_factory=ToolAnswer)

    def take(self, event: Event) -> None:
        """Add what has come."""
        if isinstance(event, ReasoningText):
            self.reasoning += event.text
        elif isinstance(event, Logprobs):
            self.drawn += event.drawn
        elif isinstance(event, Finish):
            self.finish = event
        else:
            self._said.take([event])

    @property
    def content(self) -> str | None:
        """The text; None beside calls without any."""
        return self._said.content or (None if self.tool_calls else "")

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """Calls of tools in OpenAI's form."""
        return self._said.tool_calls


def whole_of(events: Sequence[Event]) -> Whole:
    """An answer from all its events."""
    found = Whole()
    for event in events:
        found.take(event)
    return found
