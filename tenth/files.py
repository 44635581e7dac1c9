"""What all parts need of files and of names that strangers wrote in them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tenth.errors import MachineError, RequestError


def check_new_file(path: Path) -> None:
    """Before any work: RequestError where the file exists, MachineError where it cannot be made."""
    if path.exists():
        raise RequestError(f"{path}: exists; choose another name or remove it first")
    check_place(path)


def check_place(path: Path) -> None:
    """Before any work: MachineError where `path`, a file or a folder, is in no folder that may be written to."""
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise MachineError(f"{path}: cannot be written: {nearest} is no folder that may be written to")


def check_page(path: Path) -> None:
    """As `check_place`, for a file that is replaced: MachineError where it is a folder."""
    if path.is_dir():
        raise MachineError(f"{path}: cannot be written: it is a folder")
    check_place(path)


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
