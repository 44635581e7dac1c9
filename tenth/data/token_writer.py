"""Writes a token file document by document; it appears under its name whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from tenth.data.token_file import ALIGNMENT, HEADER_BYTES, MOST_DOMAINS, Header
from tenth.errors import MachineError, RequestError, TextError

_BUFFER = 4 << 20  # bytes


def sweep(folder: Path) -> None:
    """Remove what writers of `NAME.tokens` that were killed left; only for one who knows that none is at work."""
    for left in folder.glob(".*.tokens.*"):
        left.unlink(missing_ok=True)


class TokenWriter:
    """A context in which documents are added; `finish` gives the file its name, leaving without it removes all.

    Memory: 4 MB, and 10 bytes a document. MachineError where the disk refuses. An existing file is replaced.
    """

    def __init__(self, path: Path, vocab_size: int, *, tokenizer: str | None = None, end: int | None = None) -> None:
        if not 1 <= vocab_size <= 1 << 32:
            raise RequestError(f"{path}: vocab_size is {vocab_size}, it must be 1 to {1 << 32}")
        if end is not None and not 0 <= end < vocab_size:
            raise RequestError(f"{path}: the end token's id is {end}, it must be below {vocab_size}")
        self.path = path
        self._blank = Header(vocab_size, 0, 0, 0, tokenizer, end)
        self._dtype = np.dtype(f"<u{np.dtype(self._blank.dtype).itemsize}")
        self._bounds, self._domains = array("q", [0]), array("H")
        self._names: dict[str, int] = {}
        self._digest = hashlib.blake2b(digest_size=16)
        self._place = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._place.open("wb", buffering=_BUFFER)
            self._file.write(bytes(HEADER_BYTES))
        except OSError as error:
            raise self._refused(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as refusal:  # what is buffered cannot be written either
            if error is None:
                raise self._refused(refusal) from None
        finally:
            self._place.unlink(missing_ok=True)

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return self._bounds[-1]

    @property
    def documents(self) -> int:
        """Documents so far."""
        return len(self._domains)

    def add(self, ids: Sequence[int] | NDArray[Any], domain: str) -> None:
        """Append a document; RequestError where it is empty, or has an id that is not in the vocabulary."""
        ids_T = np.asarray(ids)
        if ids_T.ndim != 1 or not len(ids_T) or ids_T.dtype.kind not in "iu":
            raise RequestError(f"{self.path}: document {self.documents} must be one or more ids of tokens")
        low, high = int(ids_T.min()), int(ids_T.max())
        if low < 0 or high >= self._blank.vocab_size:
            wrong = low if low < 0 else high
            raise RequestError(f"{self.path}: document {self.documents} has the id {wrong}, "
                               f"which is not below the vocabulary's {self._blank.vocab_size}")  # fmt: skip
        number = self._names.setdefault(domain, len(self._names))
        if number >= MOST_DOMAINS:
            raise RequestError(f"{self.path}: document {self.documents} would bring domain {MOST_DOMAINS + 1}, "
                               f"{MOST_DOMAINS} is the most")  # fmt: skip
        self._write(ids_T.astype(self._dtype).tobytes())
        self._bounds.append(self._bounds[-1] + len(ids_T))
        self._domains.append(number)

    def finish(self) -> None:
        """Write the rest and the header, and give the file its name; TextError where there is no document."""
        if not self.documents:
            raise TextError(f"{self.path}: there is no document to write")
        names = json.dumps(list(self._names)).encode()
        self._pad(self.tokens * self._dtype.itemsize)
        for part, dtype in ((self._bounds, "<i8"), (self._domains, "<u2")):
            data = np.frombuffer(part, part.typecode).astype(dtype, copy=False)
            self._write(data.tobytes())
            self._pad(data.nbytes)
        self._write(names)
        blank = self._blank
        header = Header(blank.vocab_size, self.tokens, self.documents, len(names), blank.tokenizer, blank.end)
        try:
            self._file.seek(0)
            self._file.write(header.to_bytes(header.checksum(self._digest.digest())))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._place.replace(self.path)
        except OSError as error:
            raise self._refused(error) from None

    def _pad(self, size: int) -> None:
        self._write(bytes(-size % ALIGNMENT))

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> MachineError:
        return MachineError(f"{self.path}: cannot be written: {error.strerror}")
