"""A packed token file: tokens of many documents end to end, memory-mapped, with bounds and a domain for each document.

The layout is in docs/data.md. T tokens of the file, S documents, B bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenth.errors import FileFormatError, RequestError

MAGIC = b"TENTHTOK"
VERSION = 1
HEADER_BYTES = 4096  # tokens begin here
ALIGNMENT = 64
MOST_DOMAINS = 1 << 16
_BLOCK = 1 << 20  # documents or tokens looked at in one go
_FIELDS = {"version", "vocab_size", "dtype", "tokens", "documents", "names_bytes", "tokenizer", "end", "checksum"}

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True, slots=True)
class Header:
    """What a token file says of itself; the places of its parts follow from the counts."""

    vocab_size: int
    tokens: int
    documents: int
    names_bytes: int
    tokenizer: str | None
    end: int | None

    @property
    def dtype(self) -> str:
        """`uint16` where every id fits, else `uint32`."""
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Begin and end, in bytes, of tokens, bounds, domains and names; the last end is the file's size."""
        sizes = (self.tokens * np.dtype(self.dtype).itemsize, (self.documents + 1) * 8, self.documents * 2)
        places, at = [], HEADER_BYTES
        for size in (*sizes, self.names_bytes):
            places.append((at, at + size))
            at += size + -size % ALIGNMENT
        return tuple(places)

    def checksum(self, data: bytes) -> str:
        """The file's hash, from the BLAKE2b digest of all bytes behind the header."""
        return hashlib.blake2b(_canonical(self.fields()) + data, digest_size=16).hexdigest()

    def fields(self) -> dict[str, Any]:
        """As JSON has them, without the checksum."""
        return asdict(self) | {"version": VERSION, "dtype": self.dtype}

    def to_bytes(self, checksum: str) -> bytes:
        """The first HEADER_BYTES of the file."""
        text = _canonical(self.fields() | {"checksum": checksum})
        return (MAGIC + len(text).to_bytes(8, "little") + text).ljust(HEADER_BYTES, b"\0")


def is_token_file(path: Path) -> bool:
    """Whether the file begins as a token file does; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class TokenFile:
    """A token file, mapped into memory: opening reads its header, bounds and domains, and no token.

    FileFormatError where it is truncated, not a token file, or contradicts itself; RequestError where there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        raw_B = _map(path)
        self.header, self.checksum = _read_header(path, raw_B[:HEADER_BYTES].tobytes(), len(raw_B))
        tokens, bounds, domains, names = (raw_B[begin:end] for begin, end in self.header.places)
        self._raw_B = raw_B
        self.tokens_T: NDArray[Any] = tokens.view(f"<u{np.dtype(self.header.dtype).itemsize}")
        self.bounds: NDArray[np.int64] = bounds.view("<i8")  # S + 1
        self.domains_S: NDArray[np.uint16] = domains.view("<u2")
        self.domains = _read_names(path, names.tobytes())
        _check_documents(self)

    @property
    def vocab_size(self) -> int:
        """Every id in the file is below it."""
        return self.header.vocab_size

    @property
    def tokenizer(self) -> str | None:
        """The fingerprint of the tokenizer that made the ids, where the writer knew it."""
        return self.header.tokenizer

    @property
    def documents(self) -> int:
        """The number of documents, S."""
        return self.header.documents

    def __len__(self) -> int:
        """The number of tokens, T."""
        return self.header.tokens

    def document(self, index: int) -> NDArray[Any]:
        """The ids of a document: a view of the mapped file."""
        return self.tokens_T[self.bounds[index] : self.bounds[index + 1]]

    def check_made_for(self, vocab_size: int, tokenizer: str | None) -> None:
        """RequestError where ids may lie outside this vocabulary, or another tokenizer is known to have made them.

        `tokenizer` is the fingerprint of the model's; None where that has none.
        """
        if self.vocab_size > vocab_size:
            raise RequestError(f"{self.path}: has a vocabulary of {self.vocab_size}, the model's is {vocab_size}")
        if None not in (tokenizer, self.tokenizer) and tokenizer != self.tokenizer:
            raise RequestError(
                f"{self.path}: was made with another tokenizer than the model's; make it again with that"
            )

    def verify(self, progress: Progress | None = None) -> None:
        """Read everything: FileFormatError where the checksum differs or a token is not below `vocab_size`."""
        digest = hashlib.blake2b(digest_size=16)
        total = len(self._raw_B)
        for at in range(HEADER_BYTES, total, _BLOCK):
            digest.update(self._raw_B[at : at + _BLOCK].data)
            if progress is not None:
                progress(min(at + _BLOCK, total), total)
        if self.header.checksum(digest.digest()) != self.checksum:
            raise FileFormatError(f"{self.path}: its bytes do not agree with its checksum: copy or write it again")
        for at in range(0, len(self), _BLOCK):
            self.check_ids(at, min(at + _BLOCK, len(self)))

    def check_ids(self, start: int, stop: int) -> None:
        """FileFormatError where a token of `start:stop` is not below `vocab_size`, naming it and its document."""
        wrong = np.flatnonzero(self.tokens_T[start:stop] >= self.vocab_size)
        if len(wrong):
            at = start + int(wrong[0])
            document = int(np.searchsorted(self.bounds, at, side="right")) - 1
            raise FileFormatError(
                f"{self.path}: token {at} (in document {document}) is {self.tokens_T[at]}, "
                f"not below the vocabulary's {self.vocab_size}"
            )


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        if path.is_dir():
            raise RequestError(f"{path}: is a folder, a token file is needed")
        if path.stat().st_size < HEADER_BYTES:
            raise FileFormatError(f"{path}: is no token file: it has {path.stat().st_size} bytes")
        return np.asarray(np.memmap(path, np.uint8, "r"))
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None


def _read_header(path: Path, head: bytes, size: int) -> tuple[Header, str]:
    length = int.from_bytes(head[8:16], "little")
    if not head.startswith(MAGIC):
        raise FileFormatError(f"{path}: is no token file; `tenth tokenize` writes one")
    if not 0 < length <= HEADER_BYTES - 16:
        raise FileFormatError(f"{path}: its header says it has {length} bytes, {HEADER_BYTES - 16} is the most")
    try:
        raw = json.loads(head[16 : 16 + length])
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: its header is not JSON: {str(error)[:100]}") from None
    if not isinstance(raw, dict) or raw.get("version") != VERSION:
        version = raw.get("version") if isinstance(raw, dict) else None
        raise FileFormatError(f"{path}: is of version {str(version)[:20]}; this program reads version {VERSION}")
    header, checksum = _checked(path, raw)
    if header.places[-1][1] != size:
        raise FileFormatError(
            f"{path}: has {size:,} bytes, but {header.tokens:,} tokens in {header.documents:,} documents "
            f"need {header.places[-1][1]:,}: it is truncated or not whole"
        )
    return header, checksum


def _checked(path: Path, raw: dict[str, Any]) -> tuple[Header, str]:
    if raw.keys() != _FIELDS:
        odd = sorted(raw.keys() ^ _FIELDS)[0]
        raise FileFormatError(f"{path}: its header's key {odd[:40]!r} is {'unknown' if odd in raw else 'missing'}")
    counts = [
        ("vocab_size", 1, 1 << 32),
        ("tokens", 1, 1 << 48),
        ("documents", 1, 1 << 40),
        ("names_bytes", 1, 1 << 30),
    ]
    for key, least, most in counts:
        if type(raw[key]) is not int or not least <= raw[key] <= most:
            raise FileFormatError(f"{path}: its header's {key} is {str(raw[key])[:40]}, it must be {least} to {most}")
    for key in ("tokenizer", "checksum"):
        if not isinstance(raw[key], str) and not (key == "tokenizer" and raw[key] is None):
            raise FileFormatError(f"{path}: its header's {key} is {str(raw[key])[:40]}, it must be a string")
    end = raw["end"]
    if end is not None and (type(end) is not int or not 0 <= end < raw["vocab_size"]):
        raise FileFormatError(f"{path}: its header's end is {str(end)[:40]}, which is no id of the vocabulary")
    names = ("vocab_size", "tokens", "documents", "names_bytes", "tokenizer", "end")
    header = Header(**{name: raw[name] for name in names})
    if raw["dtype"] != header.dtype:
        raise FileFormatError(f"{path}: its dtype is {str(raw['dtype'])[:20]!r}, {header.dtype} fits its vocabulary")
    return header, raw["checksum"]


def _read_names(path: Path, data: bytes) -> tuple[str, ...]:
    try:
        names = json.loads(data)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) != len(names):
        raise FileFormatError(f"{path}: the names of its domains are not a JSON list of different strings")
    return tuple(names)


def _check_documents(file: TokenFile) -> None:
    bounds, path = file.bounds, file.path
    if bounds[0] != 0 or bounds[-1] != len(file):
        raise FileFormatError(f"{path}: documents reach from {bounds[0]} to {bounds[-1]}, not from 0 to {len(file)}")
    for at in range(0, file.documents, _BLOCK):
        falls = np.flatnonzero(np.diff(bounds[at : at + _BLOCK + 1]) <= 0)
        if len(falls):
            raise FileFormatError(f"{path}: the bounds of documents do not rise at document {at + int(falls[0])}")
        most = int(file.domains_S[at : at + _BLOCK].max())
        if most >= len(file.domains):
            raise FileFormatError(f"{path}: a document's domain is {most}, but there are {len(file.domains)} domains")
