"""What all parts need of files and of names that strangers wrote in them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tenth.errors import MachineError


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file, all or nothing: one that is there is replaced. MachineError where the disk refuses."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):  # its folder may be none
            beside.unlink()
        raise MachineError(f"{path}: cannot be written: {error.strerror}") from None


def printable(name: str, most: int = 200) -> str:
    """A name from a file, fit to be shown: no control characters, and not endless."""
    plain = "".join(letter if letter.isprintable() else "�" for letter in name)
    return plain if len(plain) <= most else plain[: most - 1] + "…"
