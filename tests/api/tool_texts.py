"""Texts of models that call tools, and how to read them in any cut."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from tenth.api.tool_events import ArgumentsText, CallBegin, CallEnd, ContentText, ToolEvent, ToolParser

Found = list[tuple[Any, ...]]
"""Content as ("text", ...), calls as ("call", name, arguments as text, whole)."""


def found(events: Iterable[ToolEvent]) -> Found:
    """Events joined; asserts that they come in an order that a client can follow, and that arguments are JSON."""
    out: Found = []
    opened: list[Any] | None = None
    ids = set()
    for event in events:
        match event:
            case ContentText(text):
                assert opened is None
                assert text
                out[-1:] = (
                    [("text", out[-1][1] + text)] if out and out[-1][0] == "text" else [*out[-1:], ("text", text)]
                )
            case CallBegin(index, name_of_call, name):
                assert opened is None
                assert index == sum(one[0] == "call" for one in out)
                assert name_of_call not in ids
                ids.add(name_of_call)
                opened = [index, name, ""]
            case ArgumentsText(index, text):
                assert opened is not None
                assert opened[0] == index
                assert text
                opened[2] += text
            case CallEnd(index, whole):
                assert opened is not None
                assert opened[0] == index
                assert isinstance(json.loads(opened[2]), dict)
                out.append(("call", opened[1], opened[2], whole))
                opened = None
    assert opened is None
    return out


def read(parser: ToolParser, pieces: Iterable[str]) -> Found:
    events: list[ToolEvent] = []
    for piece in pieces:
        events += parser.push(piece)
    return found([*events, *parser.finish()])


def every_cut(make: Callable[[], ToolParser], text: str) -> Found:
    """What a text comes to, the same in every cut into two, and byte by byte and character by character."""
    whole = read(make(), [text])
    for at in range(1, len(text)):
        assert read(make(), [text[:at], text[at:]]) == whole, text[:at]
    decoder = codecs.getincrementaldecoder("utf-8")()
    assert read(make(), text) == whole
    assert read(make(), [decoder.decode(bytes([byte])) for byte in text.encode()]) == whole
    return whole


def cut(text: str, places: Sequence[int]) -> list[str]:
    """A text cut at these places."""
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]
