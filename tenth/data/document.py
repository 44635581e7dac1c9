"""A document: its text, its domain, and where it was found."""

from __future__ import annotations

from dataclasses import dataclass

from tenth.errors import FileFormatError


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `where` names file and line for errors, `read` is how many bytes of the file were needed so far."""

    text: str
    domain: str
    where: str = ""
    read: int = 0


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
