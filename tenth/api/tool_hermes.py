"""Calls as Hermes and Qwen3 write them: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

Whether a tag is one is for JSON to say: within a string it is text.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from tenth.api.tool_events import ToolEvent
from tenth.api.tool_json import JsonValue
from tenth.api.tool_outlet import SPACE, Outlet, held_back

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesParser:
    """A `ToolParser`. A call begins with its arguments; what fails before is content, and read again behind `<`."""

    def __init__(self, names: Collection[str], most: int | None = None) -> None:
        self._names, self._outlet = frozenset(names), Outlet(most)
        self._text = ""  # what is not consumed yet
        self._behind = False  # a call, whose closing tag may come
        self._call: _Call | None = None

    @property
    def calls(self) -> int:
        """Calls begun so far."""
        return self._outlet.calls

    @property
    def complete(self) -> bool:
        """Whether the answer has as many calls as it may."""
        return self._outlet.complete

    def push(self, text: str) -> list[ToolEvent]:
        """What this text adds."""
        self._text += text
        self._run(final=False)
        return self._outlet.drain()

    def finish(self) -> list[ToolEvent]:
        """What was held back."""
        self._run(final=True)
        self._outlet.finish()
        return self._outlet.drain()

    def _run(self, *, final: bool) -> None:
        while not self.complete:
            if self._call is not None:
                going = self._in_call(self._call, final=final)
            else:
                going = self._between(final=final) if self._behind else self._content(final=final)
            if not going:
                return

    def _content(self, *, final: bool) -> bool:
        found = self._text.find(OPEN)
        if found >= 0:
            self._give(found)
            self._call, self._text = _Call(self._names, OPEN), self._text[len(OPEN) :]
            return True
        self._give(len(self._text) - (0 if final else held_back(self._text, (OPEN,))))
        return False

    def _between(self, *, final: bool) -> bool:
        """Behind a call: white space, the closing tag; or another object without one."""
        self._give(len(self._text) - len(self._text.lstrip(SPACE)))
        if not final and (not self._text or (CLOSE.startswith(self._text) and self._text != CLOSE)):
            return False
        self._behind = False
        if self._text.startswith(CLOSE):
            self._outlet.drop_space()
            self._text = self._text[len(CLOSE) :]
        elif self._text.startswith("{"):
            self._call = _Call(self._names, "")
        return bool(self._text) or not final

    def _give(self, count: int) -> None:
        self._outlet.content(self._text[:count])
        self._text = self._text[count:]

    def _in_call(self, call: _Call, *, final: bool) -> bool:
        at = call.take(self._text)
        self._text = self._text[at:]
        if call.ready and not call.begun:
            call.begun = True
            self._outlet.begin(call.name or "")
        if call.begun:
            self._outlet.arguments(call.drain())
        if call.done or call.failed or final:
            self._leave(call, final=final)
            return True
        return False

    def _leave(self, call: _Call, *, final: bool) -> None:
        self._call = None
        if not call.begun:
            self._text = call.raw + self._text
            self._give(1)
            return
        self._outlet.arguments(call.close())
        self._outlet.end(whole=call.whole)
        self._behind = True
        self._text = self._text if call.done else call.held + self._text if call.failed else ""


class _Call:
    """The object of a call: its name, and its arguments as they come.

    `ready` when both are known to be there, `done` behind its last bracket, `failed` where it is none of the form:
    then `held` is what was read behind the last piece of the arguments.
    """

    def __init__(self, names: frozenset[str], raw: str) -> None:
        self._names = names
        self.raw = raw
        self.begun = self.done = self.failed = self.whole = False
        self.name: str | None = None
        self.held = ""
        self._arguments: str | None = None  # not passed on yet
        self._streamed: JsonValue | None = None
        self._key, self._value = "", JsonValue()
        self._collected = ""
        self._expect = "{"

    @property
    def ready(self) -> bool:
        """Whether it is certain to be a call."""
        return self.name is not None and (self._arguments is not None or self.done)

    def take(self, text: str) -> int:
        """Read on; how far it came."""
        at = 0
        while at < len(text) and not self.done and not self.failed:
            if text[at] in SPACE and not self._value.kind:
                end = at + 1
                self.held += text[at]
            elif self._expect in ("key", "value"):
                end = self._part(text, at)
            else:
                end = self._mark(text, at)
            if not self.ready:
                self.raw += text[at:end]
            if end == at:
                break
            at = end
        return at

    def drain(self) -> str:
        """The arguments that have come since the last time."""
        piece, self._arguments = self._arguments or "", ""
        return piece

    def close(self) -> str:
        """What makes whole JSON of the arguments that were passed on."""
        if self._streamed is None:
            return ""
        return "" if self._streamed.done else self._streamed.close()

    def _mark(self, text: str, at: int) -> int:
        letter, expect = text[at], self._expect
        if expect == letter and letter in "{:":
            self._expect = "key" if letter == "{" else "value"
        elif expect == "," and letter == ",":
            self._expect = "key"
        elif expect == "," and letter == "}":
            self._end()
            if self.failed:
                return at
        else:
            self.failed = True
            return at
        self.held += letter
        return at + 1

    def _end(self) -> None:
        if self.name is None:
            self.failed = True
            return
        self.done = self.whole = True
        if self._arguments is None:
            self._arguments = "{}"

    def _part(self, text: str, at: int) -> int:
        """A key, or the value of one."""
        value = self._value
        if self._expect == "key" and not value.kind and text[at] == "}":  # behind a comma too many
            self._expect = ","
            return at
        end, piece = value.take(text, at)
        if self._expect == "value" and self._key == "arguments" and value.kind == "{":
            self._stream(value, piece)
        else:
            self._collected += piece
            self.held += text[at:end]
        if value.failed or (self._expect == "key" and value.kind not in ("", '"')):
            self.failed = True
        elif value.done:
            self._found(json.loads(self._collected or "null"))
            self._value, self._collected = JsonValue(), ""
        return end

    def _stream(self, value: JsonValue, piece: str) -> None:
        self._streamed = value
        self._arguments = (self._arguments or "") + piece
        self.held = value.held
        self.whole = value.done

    def _found(self, value: object) -> None:
        """A key, or a value that is not passed on while it comes."""
        if self._expect == "key":
            assert isinstance(value, str)
            known = {"name": self.name, "arguments": self._arguments}
            self._key, self._expect, self.failed = value, ":", known.get(value) is not None
            return
        self._expect = ","
        if self._key == "name":
            self.name = value if isinstance(value, str) else None
            self.failed = self.name not in self._names
        elif self._key == "arguments" and self._streamed is None:
            self._arguments = _object(value)
            self.failed, self.whole = self._arguments is None, True


def _object(value: object) -> str | None:
    """Arguments that are none, or JSON within a string; None for what is no object."""
    text = value.strip(SPACE) if isinstance(value, str) else value
    if text in (None, ""):
        return "{}"
    if not isinstance(text, str) or not text.startswith("{"):
        return None
    inner = JsonValue()
    at, found = inner.take(text, 0)
    return found if inner.done and at == len(text) else None
