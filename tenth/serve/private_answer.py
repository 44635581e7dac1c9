"""The privacy filter over an answer's events: held back, masked, or ended where nothing of a find may be shown."""

from __future__ import annotations

from collections.abc import Mapping

from tenth.api.answer_events import Event, Finish, ReasoningText
from tenth.api.tool_events import ArgumentsText, CallBegin, CallEnd, ContentText
from tenth.serve.privacy import Privacy
from tenth.serve.privacy_text import PrivacyRefused

_TEXTS: dict[type[Event], str] = {ReasoningText: "reasoning", ContentText: "content"}


class PrivateEvents:
    """One answer's events as they may be shown. Text that is held back comes before what follows it, never behind.

    Where finds are refused, the arguments of a call come when it is whole: half of them would be no JSON.
    """

    def __init__(self, privacy: Privacy) -> None:
        self._masks, self._wait = privacy.answer(), privacy.mode == "refuse"
        self._kind: type[ReasoningText | ContentText] | None = None  # of the text that is open
        self._call: int | None = None
        self._arguments = ""
        self.refused = False

    @property
    def finds(self) -> Mapping[str, int]:
        """How many of each kind were found so far."""
        return self._masks.finds

    def take(self, events: list[Event]) -> list[Event]:
        """What may be shown of them now; behind a refusal, nothing more."""
        shown = list[Event]()
        for event in events:
            if self.refused:
                break
            try:
                shown += self._taken(event)
            except PrivacyRefused as refused:
                self.refused = True
                before = self._text(refused.shown) if self._kind is not None else []
                shown += [*before, *self._cut_call(), Finish("content_filter")]
        return shown

    def _taken(self, event: Event) -> list[Event]:
        match event:
            case ReasoningText() | ContentText():
                held = [] if self._kind is type(event) else self._end_text()
                self._kind = type(event)
                return held + self._text(self._masks.push(_TEXTS[self._kind], event.text))
            case CallBegin(index):
                held, self._call, self._arguments = self._end_text(), index, ""
                return [*held, event]
            case ArgumentsText(index, text):
                return self._argued(index, self._masks.push_json(index, text))
            case CallEnd(index):
                arguments = self._arguments + self._masks.finish(index)
                self._call = None
                return [*([ArgumentsText(index, arguments)] if arguments else []), event]
        return [*self._end_text(), event]

    def _argued(self, index: int, text: str) -> list[Event]:
        if self._wait:
            self._arguments += text
            return []
        return [ArgumentsText(index, text)] if text else []

    def _end_text(self) -> list[Event]:
        if self._kind is None:
            return []
        found = self._text(self._masks.finish(_TEXTS[self._kind]))
        self._kind = None
        return found

    def _text(self, text: str) -> list[Event]:
        assert self._kind is not None
        return [self._kind(text)] if text else []

    def _cut_call(self) -> list[Event]:
        """A call that has begun is one without arguments: clients read it as JSON."""
        if self._call is None:
            return []
        return [ArgumentsText(self._call, "{}"), CallEnd(self._call, False)]
