"""What all files of weights share: a tensor's entry, reading its rows into place, and the source protocol.

Nothing is mapped: bytes go by `preadv` from the file into the memory of the tensor that is returned, so a process
holds what it asked for and no more. Every number below was read from a file by somebody else's code, so callers
check it against the file's size before it arrives here; a file that shrinks afterwards is noticed by the short read.
"""

import os
import reprlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from tenth.errors import FileFormatError, MachineError, TensorError, WeightsError

__all__ = ["DTYPES", "HEADER_LIMIT", "OpenFile", "TensorInfo", "TensorSource", "empty_bytes", "quoted", "read_plain"]

HEADER_LIMIT = 100_000_000
"""Bytes that a header may have, of any format: the limit of safetensors. The largest real ones are near 20 MB."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Kinds of tensor whose bytes are a torch type's own (both formats are little-endian, as are our machines)."""

_READ_BYTES = 1 << 30  # one call moves less than 2 GiB on Linux


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file.

    `shape` is in torch's order, outermost first; `kind` the file's name for the element or block type ("F32",
    "Q4_K"); `where` the file or shard that holds it; `offset` its first byte there, counted from the file's start.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    nbytes: int
    where: Path
    offset: int

    def __str__(self) -> str:
        """The place to name in an error."""
        return f"{self.where}: tensor {quoted(self.name)}"

    def rows(self, start: int = 0, stop: int | None = None) -> "TensorInfo":
        """Rows start:stop of the first dimension, as the entry of a smaller tensor.

        Raises TensorError unless 0 <= start <= stop <= shape[0]; a tensor without dimensions is only read whole.
        """
        if not self.shape and (start, stop) == (0, None):
            return self
        count = self.shape[0] if self.shape else 1
        stop = count if stop is None else stop
        if not self.shape or not 0 <= start <= stop <= count:
            raise TensorError(f"{self}: rows {start}:{stop} asked for, its shape is {self.shape}")
        begin, end = (self.nbytes * row // max(count, 1) for row in (start, stop))
        shape = (stop - start, *self.shape[1:])
        return TensorInfo(self.name, shape, self.kind, end - begin, self.where, self.offset + begin)


class TensorSource(Protocol):
    """Tensors by name, read from the files of one checkpoint. A context manager; safe for several reading threads."""

    @property
    def path(self) -> Path:
        """The file or folder that was opened."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, in the order of the file (of the shards)."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows start:stop of a tensor, in fresh memory.

        F64, F32, F16, BF16 and integers come in the file's own type, block-quantised kinds as float32.
        Raises TensorError for an unknown name or rows outside, WeightsError for a kind that cannot be read,
        FileFormatError when the file has become shorter.
        """
        ...

    def close(self) -> None:
        """Let go of the files; reading afterwards is a mistake of the program (ValueError)."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class OpenFile:
    """One regular file, open for reading at given offsets; several threads may read at once.

    `path` and `size` (bytes, when it was opened). Raises WeightsError where there is no readable regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # before open(), which would wait for ever on a pipe
                raise WeightsError(f"{path}: not a regular file")
            self._file = path.open("rb", buffering=0)
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise WeightsError(f"{path}: cannot be opened: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._file.close()

    def forget(self) -> None:
        """Let the system drop what its page cache holds of this file."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, which the caller knows to be inside the file."""
        data = bytearray(count)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` (bytes) from `offset`; FileFormatError when the file ends before."""
        while len(view):
            try:
                count = os.preadv(self._file.fileno(), [view[:_READ_BYTES]], offset)
            except OSError as error:
                raise WeightsError(f"{self.path}: cannot be read at byte {offset}: {error.strerror}") from error
            if count == 0:
                raise FileFormatError(
                    f"{self.path}: ends at byte {offset}, {len(view)} bytes short; it had {self.size} when opened"
                )
            view, offset = view[count:], offset + count


def read_plain(file: OpenFile, info: TensorInfo) -> torch.Tensor:
    """All of `info`, whose kind is one of DTYPES, in that type: read straight into the tensor's memory."""
    raw = empty_bytes(info.nbytes, info)
    file.read_into(raw.numpy().data, info.offset)
    if info.kind == "BOOL":  # torch takes a bool's byte to be 0 or 1; a file may hold any
        return raw.ne(0).view(info.shape)
    return raw.view(DTYPES[info.kind]).view(info.shape)


def empty_bytes(count: int, info: TensorInfo) -> torch.Tensor:
    """A uint8 tensor [count], for reading `info` into; MachineError where the memory does not suffice."""
    try:
        return torch.empty(count, dtype=torch.uint8)
    except RuntimeError as error:
        raise MachineError(f"{info}: this machine has no {count} bytes of memory free to read it") from error


def quoted(value: object) -> str:
    """A name or value out of a file, short and fit for a one-line message whatever it holds."""
    short = reprlib.Repr()
    short.maxstring = 100
    return short.repr(value)
