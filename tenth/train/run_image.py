"""A run's tensors as a safetensors file that is laid out in memory: filled between steps, written behind them."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import torch
from torch import Tensor

from tenth.errors import MachineError, TensorError
from tenth.weights.load import free_bytes
from tenth.weights.source import DTYPES, quoted

__all__ = ["CHUNK_BYTES", "KINDS", "FileImage", "Pace", "write_synced"]

KINDS: Mapping[torch.dtype, str] = {dtype: kind for kind, dtype in DTYPES.items()}
"""The file's name of each type that can be kept."""

CHUNK_BYTES = 1 << 20
"""Bytes hashed or written at once: a millisecond of one core, which is not missed at one blow."""

_BLOCK = 4096  # bytes: what direct writes ask of addresses, offsets and lengths


class Pace:
    """Keeps a thread to a share (0 to 1) of one core: after work it sleeps until that is so.

    A parallel part of a training step ends with its slowest thread, so what is taken from one core is lost on all of
    them, and a lower priority does not help where every core is busy. `hurry` ends it, for when somebody waits.
    """

    def __init__(self, share: float) -> None:
        self._idle = 1.0 / share - 1.0
        self._hurry = Event()
        self._since = 0.0

    def hurry(self) -> None:
        """From now on no sleep; one that is going on ends."""
        self._hurry.set()

    def start(self) -> None:
        """Count from here, in the thread that works."""
        self._since = time.thread_time()

    def rest(self) -> None:
        """Sleep for the seconds on a core since the last rest."""
        if self._idle > 0:
            self._hurry.wait((time.thread_time() - self._since) * self._idle)
            self._since = time.thread_time()


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor's bytes in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    nbytes: int


class FileImage:
    """A safetensors file in memory, made for tensors of certain names, shapes and types, and filled again and again.

    Tensors are copied straight to their places in it, so that training waits for one copy; it is written by direct
    writes where the system has them: those by way of the page cache took 80 times the processor's time here. Raises
    TensorError for a type that the file cannot hold, MachineError where memory does not suffice.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        header, self._places, self.size = _layout(tensors)
        self._memory = _memory(_padded(self.size), any(tensor.is_cuda for tensor in tensors.values()))
        self._memory.numpy()[:] = 0  # fresh pages are slow to come by: now, not when training waits
        self._memory.numpy()[: len(header)] = np.frombuffer(header, np.uint8)
        self.tensors = {name: self._bytes(p).view(p.dtype).view(p.shape) for name, p in self._places.items()}

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these are the names, shapes and types that it was made for."""
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        return found == {name: (place.dtype, place.shape) for name, place in self._places.items()}

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors' values, from any device."""
        for name, place in self._places.items():
            source = tensors[name].detach()
            if source.device.type == "cpu" and source.is_contiguous():
                # numpy copies large arrays past the caches: twice as fast as torch with all its threads here
                np.copyto(self._bytes(place).numpy(), source.reshape(-1).view(torch.uint8).numpy())
            else:
                self.tensors[name].copy_(source)

    def hash(self, name: str, pace: Pace) -> str:
        """The SHA-256 of a tensor's bytes, hexadecimal."""
        place, state = self._places[name], hashlib.sha256()
        for begin in range(place.begin, place.begin + place.nbytes, CHUNK_BYTES):
            state.update(self._view(begin, min(CHUNK_BYTES, place.begin + place.nbytes - begin)))
            pace.rest()
        return state.hexdigest()

    def write(self, path: Path, pace: Pace) -> None:
        """Write the file, which is on the disk when this returns; OSError where it cannot be."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self._write(path, flags | getattr(os, "O_DIRECT", 0), pace)
        except OSError as error:  # a file system without direct writes says so at opening or at the first one
            if error.errno != errno.EINVAL:
                raise
            self._write(path, flags, pace)

    def _write(self, path: Path, flags: int, pace: Pace) -> None:
        file = os.open(path, flags, 0o666)
        try:
            _reserve(file, self.size)
            for begin in range(0, self.size, CHUNK_BYTES):
                view = self._view(begin, min(CHUNK_BYTES, _padded(self.size) - begin))
                while len(view):
                    count = os.pwrite(file, view, begin)
                    view, begin = view[count:], begin + count
                pace.rest()
            os.ftruncate(file, self.size)
            os.fsync(file)
        finally:
            os.close(file)

    def _bytes(self, place: _Place) -> Tensor:
        return self._memory[place.begin : place.begin + place.nbytes]

    def _view(self, begin: int, count: int) -> memoryview:
        return self._memory[begin : begin + count].numpy().data


def _reserve(file: int, size: int) -> None:
    """Ask for the room at once: a full disk is noticed before it is made fuller."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
    except OSError as error:  # some file systems cannot say
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


def write_synced(path: Path, data: bytes) -> None:
    """A small file, on the disk when this returns."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _layout(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, _Place], int]:
    """The header, each tensor's place counted from the file's start, and the file's size."""
    for name, tensor in tensors.items():
        if tensor.dtype not in KINDS or name == "__metadata__":
            raise TensorError(
                f"tensor {quoted(name)} is {tensor.dtype}: a checkpoint holds {', '.join(KINDS.values())}"
            )
    entries: dict[str, object] = {}
    ends: dict[str, int] = {}
    end = 0
    # wider types first, as the format's library has it: then every tensor is aligned to its elements
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        begin, end = end, end + tensors[name].nbytes
        ends[name] = end
        shape = list(tensors[name].shape)
        entries[name] = {"dtype": KINDS[tensors[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text = text.ljust(_padded(8 + len(text)) - 8)
    header = len(text).to_bytes(8, "little") + text
    places = {
        name: _Place(
            tensors[name].dtype,
            tuple(tensors[name].shape),
            len(header) + at - tensors[name].nbytes,
            tensors[name].nbytes,
        )
        for name, at in ends.items()
    }
    return header, places, len(header) + end


def _padded(size: int) -> int:
    return math.ceil(size / _BLOCK) * _BLOCK


def _memory(size: int, pinned: bool) -> Tensor:
    """Bytes that begin at a page: pinned for a GPU to copy into, else in huge pages."""
    free = free_bytes(torch.device("cpu"))
    wanted = f"{size / 1e9:.2f} GB to copy a run's tensors aside while they are written"
    if free is not None and size > free:  # the system would give pages that it has not, and kill us when they are used
        raise MachineError(f"this machine has no {wanted}: {free / 1e9:.2f} GB are free")
    try:
        if pinned:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, RuntimeError) as error:
        raise MachineError(f"this machine has no {wanted}: {str(error)[:100]}") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)
