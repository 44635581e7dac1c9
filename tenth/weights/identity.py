"""Which files a model was read from, so that what is kept of its answers is never given as another's."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_SMALL = 1 << 20  # bytes of a file that is read; larger ones are told apart by size and time of their last change


def files_identity(path: Path) -> str:
    """A hash of a model's file or folder; OSError where it cannot be read.

    Weights are not read: a copy of a model elsewhere, or one that was touched, counts as another model.
    """
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    told = [str(path.resolve()), *(_told(file) for file in files)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _told(file: Path) -> list[str | int]:
    stat = file.stat()
    if stat.st_size <= _SMALL:
        return [file.name, hashlib.sha256(file.read_bytes()).hexdigest()]
    return [file.name, stat.st_size, stat.st_mtime_ns, stat.st_ino]
