"""A document: its text or its messages, its domain, and where it was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenth.errors import FileFormatError


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages and tools in OpenAI's form, which a model's template makes tokens of."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `where` names file and line for errors, `read` is how many bytes of the file were needed so far.

    Of a `chat` the text is what its messages say, without their roles.
    """

    text: str
    domain: str
    where: str = ""
    read: int = 0
    chat: Chat | None = None


def valid_text(value: object, key: str, where: str) -> str:
    """`value` itself; FileFormatError where it is no string, or has half a surrogate pair."""
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise FileFormatError(f"{where}: {key!r} is {kind}, it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FileFormatError(f"{where}: {key!r} has half a surrogate pair at character {error.start}") from None
    return value
