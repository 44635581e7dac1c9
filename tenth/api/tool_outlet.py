"""Where a parser of tool calls puts what it finds; the white space around calls, which belongs to their form."""

from __future__ import annotations

from tenth.api.tool_events import ArgumentsText, CallBegin, CallEnd, ContentText, ToolEvent, new_call_id

SPACE = " \t\r\n"


class Outlet:
    """Events in order. White space alone between calls is none of the content, nor is one new line before a call."""

    def __init__(self, most: int | None = None) -> None:
        self.calls = 0
        self._most = most
        self._events: list[ToolEvent] = []
        self._pending = ""  # content that may turn out to belong to a call
        self._blank = True  # no content but white space since the beginning, or the last call
        self._ended = 0

    @property
    def complete(self) -> bool:
        """Whether there are as many calls as there may be."""
        return self._most is not None and self._ended >= self._most

    def content(self, text: str) -> None:
        """Text that is no call."""
        self._pending += text
        if self._blank and not self._pending.strip(SPACE):
            return
        self._blank = False
        kept = "\n" if self._pending.endswith("\n") else ""
        self._emit(self._pending[: len(self._pending) - len(kept)])
        self._pending = kept

    def drop_space(self) -> None:
        """What was held back belongs to a call."""
        self._pending = ""

    def begin(self, name: str) -> None:
        """A call."""
        self.drop_space()
        self._events.append(CallBegin(self.calls, new_call_id(), name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """A piece of the last call's arguments."""
        if text:
            self._events.append(ArgumentsText(self.calls - 1, text))

    def end(self, *, whole: bool) -> None:
        """The end of the last call."""
        self._events.append(CallEnd(self.calls - 1, whole))
        self._blank = True
        self._ended += 1

    def finish(self) -> None:
        """Nothing more comes."""
        if not (self._blank and self.calls):
            self._emit(self._pending)
        self._pending = ""

    def drain(self) -> list[ToolEvent]:
        """What has come since the last time."""
        events, self._events = self._events, []
        return events

    def _emit(self, text: str) -> None:
        if text:
            self._events.append(ContentText(text))


def held_back(text: str, tags: tuple[str, ...]) -> int:
    """How many characters at the end of a text may be the beginning of a tag."""
    longest = min(len(text), max(map(len, tags)) - 1)
    return next((n for n in range(longest, 0, -1) if any(tag.startswith(text[-n:]) for tag in tags)), 0)
