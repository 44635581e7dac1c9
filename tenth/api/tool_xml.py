"""Calls as Qwen3-Coder writes them: `<tool_call><function=F><parameter=K>value</parameter>...</function></tool_call>`.

Values are bare text, so a literal `</parameter>` in one is told from the tag by what follows: it closes only where the
form goes on behind it, with a parameter that may still come or with the end of the call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tenth.api.tool_events import ToolEvent
from tenth.api.tool_outlet import SPACE, Outlet, held_back
from tenth.api.tool_values import ALL, ParameterValue, kinds_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, PARAMETER = "<function=", "<parameter="
END_PARAMETER, END_FUNCTION = "</parameter>", "</function>"
_NAME = re.compile(r"[^<>\n]{0,200}")


class _MoreError(Exception):
    """What follows cannot be told yet."""


def _space(text: str, at: int) -> int:
    while at < len(text) and text[at] in SPACE:
        at += 1
    return at


def _tag(text: str, at: int, tag: str) -> int | None:
    """Where a tag that begins here ends."""
    if text.startswith(tag, at):
        return at + len(tag)
    if tag.startswith(text[at:]):
        raise _MoreError
    return None


def _name(text: str, at: int) -> tuple[str, int] | None:
    """A name up to `>`, or to the end of its line, and where it ends."""
    found = _NAME.match(text, at)
    assert found is not None
    if found.end() == len(text) and len(found.group()) < 200:
        raise _MoreError
    name = found.group().strip(SPACE)
    if not name or text[found.end() : found.end() + 1] not in (">", "\n"):
        return None
    return name, found.end() + (text[found.end()] == ">")


class XmlParser:
    """A `ToolParser`. `schemas` are the parameters of each tool by its name.

    A call begins with its first parameter or its end; what fails before that is content, and read again behind `<`.
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]], most: int | None = None) -> None:
        self._schemas, self._outlet = schemas, Outlet(most)
        self._text = ""  # what is not consumed yet
        self._step = self._content
        self._wrapped = False  # in <tool_call>
        self._schema: Mapping[str, Any] = {}
        self._given: set[str] = set()
        self._value: ParameterValue | None = None
        self._lead = ""  # goes out with the next value
        self._literal = 0  # so much of the text is known to be value

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
        if self._value is not None or self._step == self._parts:
            self._break_off()
        self._outlet.finish()
        return self._outlet.drain()

    def _run(self, *, final: bool) -> None:
        while not self.complete and self._step(final=final):
            pass

    def _give(self, count: int) -> None:
        self._outlet.content(self._text[:count])
        self._text = self._text[count:]

    def _content(self, *, final: bool) -> bool:
        starts = [self._text.find(tag) for tag in (OPEN, FUNCTION)]
        found = min((start for start in starts if start >= 0), default=-1)
        if found < 0:
            self._give(len(self._text) - (0 if final else held_back(self._text, (OPEN, FUNCTION))))
            return False
        self._give(found)
        return self._head(final=final)

    def _head(self, *, final: bool) -> bool:
        """The beginning of a call, or of text that looks like one."""
        try:
            wrapped = _tag(self._text, 0, OPEN)
            call = self._function(wrapped or 0)
        except _MoreError:
            if not final:
                return False
            call = None
        if call is None:
            self._give(1)
            return True
        self._wrapped = wrapped is not None
        self._begin(*call)
        return True

    def _function(self, at: int) -> tuple[str, int] | None:
        """The name of a call whose function begins here, and where its parts begin."""
        tag = _tag(self._text, _space(self._text, at), FUNCTION)
        found = _name(self._text, tag) if tag is not None else None
        if found is None or found[0] not in self._schemas:
            return None
        name, at = found
        at = _space(self._text, at)
        parameter = _tag(self._text, at, PARAMETER)
        if parameter is not None:
            return (name, at) if _name(self._text, parameter) else None
        return (name, at) if _tag(self._text, at, END_FUNCTION) is not None else None

    def _begin(self, name: str, at: int) -> None:
        self._outlet.begin(name)
        self._schema, self._given, self._lead = self._schemas[name], set(), "{"
        self._text, self._step = self._text[at:], self._parts

    def _parts(self, *, final: bool) -> bool:
        """Between parameters: what comes was looked at before, but for what a last text lacks."""
        self._text = self._text.lstrip(SPACE)
        try:
            if _tag(self._text, 0, END_FUNCTION) is not None:
                self._end(len(END_FUNCTION), whole=True)
                return True
            if self._wrapped and _tag(self._text, 0, CLOSE) is not None:
                self._end(0, whole=True)
                return True
            tag = _tag(self._text, 0, PARAMETER)
            found = _name(self._text, tag) if tag is not None else None
        except _MoreError:
            return False
        assert found is not None, "a parameter was seen here"
        return self._parameter(*found, final=final)

    def _end(self, count: int, *, whole: bool) -> None:
        self._outlet.arguments("{}" if self._lead == "{" else "}")
        self._outlet.end(whole=whole)
        self._text, self._step = self._text[count:], self._behind

    def _parameter(self, key: str, at: int, *, final: bool) -> bool:
        if len(self._text) == at and not final:
            return False
        at += self._text.startswith("\n", at)
        properties = self._schema.get("properties")
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        kinds = kinds_of(schema, self._schema) if schema is not None else ALL
        self._given.add(key)
        self._lead += f"{json.dumps(key, ensure_ascii=False)}: "
        self._value, self._literal = ParameterValue(kinds), 0
        self._text, self._step = self._text[at:], self._inside
        return True

    def _inside(self, *, final: bool) -> bool:
        """A value, up to the tag that closes it."""
        assert self._value is not None
        found = self._text.find(END_PARAMETER, self._literal)
        if found < 0:
            back = 0 if final else held_back(self._text, (END_PARAMETER, f"\n{END_PARAMETER}"))
            self._take(max(len(self._text) - back, self._literal))
            return False
        line = found > 0 and self._text[found - 1] == "\n"  # which stands in no string of JSON
        self._take(found - line)
        found = self._text.find(END_PARAMETER)
        behind = found + len(END_PARAMETER)
        try:
            closes = (line or not self._value.in_string) and self._closes(behind)
        except _MoreError:
            closes = final
            if not final:
                return False
        if closes:
            self._passed(self._value.end())
            self._value, self._lead, self._step = None, ", ", self._parts
            self._text = self._text[behind:]
        else:
            self._literal = behind
        return True

    def _take(self, count: int) -> None:
        """So much of the text is the value's."""
        assert self._value is not None
        self._passed(self._value.take(self._text[:count]) if count else "")
        self._text, self._literal = self._text[count:], max(0, self._literal - count)

    def _passed(self, piece: str) -> None:
        if piece:
            self._outlet.arguments(self._lead + piece)
            self._lead = ""

    def _closes(self, at: int) -> bool:
        """Whether the form goes on here, behind `</parameter>`."""
        text, at = self._text, _space(self._text, at)
        tag = _tag(text, at, PARAMETER)
        if tag is not None:
            found = _name(text, tag)
            return found is not None and self._admits(found[0])
        ends = _tag(text, at, END_FUNCTION)
        if ends is not None:
            return not self._wrapped or self._over(_space(text, ends))
        close = _tag(text, at, CLOSE) if self._wrapped else None
        if close is None:
            return False
        at = _space(text, close)  # </function> is missing: then nothing but calls may follow
        if at == len(text):
            raise _MoreError
        return _tag(text, at, OPEN) is not None

    def _over(self, at: int) -> bool:
        """Whether a call is over here, behind `</function>`."""
        if at == len(self._text):
            raise _MoreError
        if _tag(self._text, at, FUNCTION) is not None:
            return self._function(at) is not None
        return any(_tag(self._text, at, tag) is not None for tag in (CLOSE, OPEN))

    def _admits(self, key: str) -> bool:
        """Whether a parameter of this name may still come."""
        properties = self._schema.get("properties")
        closed = self._schema.get("additionalProperties") is False
        known = isinstance(properties, Mapping) and key in properties
        return key not in self._given and (known or not closed)

    def _behind(self, *, final: bool) -> bool:
        """Behind a call: white space, the closing tag, or another function."""
        self._give(_space(self._text, 0))
        try:
            if _tag(self._text, 0, CLOSE) is not None:
                self._outlet.drop_space()
                self._text, self._step = self._text[len(CLOSE) :], self._content
                return True
            call = self._function(0)
        except _MoreError:
            if not final:
                return False
            call = None
        if call is None:
            self._step = self._content
        else:
            self._begin(*call)
        return True

    def _break_off(self) -> None:
        """The text has ended in a call: its JSON is closed; a value that was not passed on is dropped."""
        closing = self._value.close() if self._value is not None else None
        self._outlet.arguments((closing or "") + ("{}" if self._lead.startswith("{") else "}"))
        self._outlet.end(whole=False)
        self._value = None
