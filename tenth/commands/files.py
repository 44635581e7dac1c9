"""Text that the user names on the command line: a file, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from tenth.errors import RequestError


def read_prompt(prompt: str) -> str:
    """The prompt itself, or with `-` all of standard input; RequestError where that is not UTF-8 text."""
    return _decoded(sys.stdin.buffer.read(), "standard input") if prompt == "-" else prompt


def read_text(path: Path) -> str:
    """A UTF-8 file; RequestError where it cannot be read."""
    try:
        return _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{where}: is not UTF-8 text (byte {error.start})") from None
