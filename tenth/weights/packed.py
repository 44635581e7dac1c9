"""Opens a packed model: checks that cost nothing at once, weights by memory map, hashes when asked.

A map is read-only and shared: nothing is copied, and processes that open the same model share its pages. A file that is
shortened while it is mapped ends the program (SIGBUS), as with every mapped file: replace a model, do not rewrite it.
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from tenth.errors import FileFormatError, TensorError, WeightsError
from tenth.kernels.backend import Backend
from tenth.kernels.packed import PackedExpert, PackedExpertTable, PackedWeight
from tenth.kernels.weight import ExpertTable, Weight
from tenth.model.config import ModelConfig
from tenth.weights.packed_index import (
    PACKED_NAME,
    PAGE,
    PackedIndex,
    check_files,
    check_tensors,
    file_of,
    header_hash,
    is_padding,
    read_index,
)
from tenth.weights.safetensors_file import SafetensorsFiles
from tenth.weights.source import TensorInfo, quoted

Progress = Callable[[int, int], None]

_PIECE_BYTES = 8 << 20  # of a tensor, read at a time when it is hashed


class PackedFiles:
    """The tensors of a packed model; `source` has them as the safetensors that they are.

    Raises ConfigError, FileFormatError or TensorError where `packed.json`, the headers and the config do not agree:
    what is read afterwards lies within its file, in the shape and at the alignment that kernels rely on.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self.path, self.index = folder, read_index(folder)
        where = folder / PACKED_NAME
        check_files(self.index, config, where)
        self.source = SafetensorsFiles(folder, files=self.index.files)
        try:
            check_tensors(self.index, config, where)
            _check_headers(self.index, self.source)
            _check_places(self.index, self.source)
        except BaseException:
            self.source.close()
            raise
        self._maps: dict[Path, Tensor] = {}

    def data(self, name: str) -> Tensor:
        """A tensor's bytes in the map of its file: uint8, 1-D, not to be written to."""
        info = self.source.tensors[name]
        if info.where not in self._maps:
            self._maps[info.where] = _mapped(info.where)
        data_B = self._maps[info.where][info.offset : info.offset + info.nbytes]
        if len(data_B) < info.nbytes:
            raise FileFormatError(f"{info}: the file has become shorter since it was opened")
        return data_B

    def matrix(self, name: str, data_B: Tensor | None = None) -> PackedWeight:
        """A matrix, mapped or at `data_B`."""
        tensor = self.index.tensors[name]
        return PackedWeight(self.data(name) if data_B is None else data_B, *tensor.part.shapes()[0], tensor.formats[0])

    def expert(self, name: str) -> PackedExpert:
        """An expert, mapped."""
        tensor = self.index.tensors[name]
        intermediate, hidden = tensor.part.shape
        return PackedExpert.of(self.data(name), tensor.formats, hidden, intermediate)

    def floats(self, name: str) -> Tensor:
        """A norm, a bias or router rows: float32, in memory of their own."""
        return self.source.read(name)

    def verify(self, name: str) -> bool:
        """Whether a tensor's bytes are still those that were written; of padding, whether it is zero."""
        info = self.source.tensors[name]
        if is_padding(name):
            return not self.source.read(name).any()
        # reads rather than maps: a file that has become shorter is an error, not the end of the program
        rows = info.shape[0]
        step = max(_PIECE_BYTES * rows // info.nbytes, 1)
        pieces = (self.source.read(name, at, min(at + step, rows)) for at in range(0, rows, step))
        tensor = self.index.tensors[name]
        return tensor.hash_of(piece.flatten().view(torch.uint8) for piece in pieces) == tensor.digest

    def damaged(self, progress: Progress | None = None) -> list[TensorInfo]:
        """All tensors whose bytes are not those that were written; everything is read, by as many threads as cores.

        `progress` is told the bytes read, of how many.
        """
        infos = list(self.source.tensors.values())
        found, done, total = [], 0, sum(info.nbytes for info in infos)
        with ThreadPoolExecutor(_cores()) as pool:
            for info, good in zip(infos, pool.map(self.verify, (info.name for info in infos)), strict=True):
                found += [] if good else [info]
                done += info.nbytes
                if progress is not None:
                    progress(done, total)
        return found


def _cores() -> int:
    """Cores that this process may use, by its affinity mask where the system has such."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_headers(index: PackedIndex, source: SafetensorsFiles) -> None:
    for file, digest in index.files.items():
        if header_hash(source.header(file)) != digest:
            raise FileFormatError(f"{source.path / file}: its header is not the one that {PACKED_NAME} has the hash of")


def _check_places(index: PackedIndex, source: SafetensorsFiles) -> None:
    """Every tensor is there, in the file, form and alignment that its name and formats mean."""
    for name, tensor in index.tensors.items():
        if name not in source.tensors:
            raise TensorError(f"{source.path / file_of(name)}: tensor {quoted(name)} is missing")
        info = source.tensors[name]
        if info.where.name != file_of(name):
            raise TensorError(f"{info}: should be in {file_of(name)}")
        if (info.kind, info.shape) != tensor.stored:
            kind, shape = tensor.stored
            raise TensorError(f"{info}: is {info.kind} of shape {info.shape}, its formats ask for {kind} {shape}")
        if info.offset % tensor.alignment:
            raise FileFormatError(f"{info}: begins at byte {info.offset}, not at a multiple of {tensor.alignment}")
    for info in source.tensors.values():
        if info.name in index.tensors:
            continue
        if not (is_padding(info.name) and info.kind == "U8"):
            raise TensorError(f"{info}: {PACKED_NAME} does not have it")
        if info.nbytes >= PAGE:
            raise TensorError(f"{info}: is padding of {info.nbytes} bytes, less than {PAGE} is ever needed")


def _mapped(path: Path) -> Tensor:
    try:
        with path.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be mapped: {error}") from None
    with suppress(AttributeError, OSError):  # large pages: read from disk faster, found by the processor faster
        view.madvise(mmap.MADV_HUGEPAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no read-only tensors and says so each time
        return torch.frombuffer(view, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class PackedBackend(Backend):
    """Gives a network the weights of a packed model: mapped, but for norms, biases and router rows."""

    files: PackedFiles = field(kw_only=True)

    def matrix(self, outputs: int, inputs: int) -> Weight:
        """The mapped matrix of this path."""
        return self.files.matrix(self.path)

    def table(self, experts: int, hidden: int, intermediate: int) -> ExpertTable:
        """The mapped experts of this layer."""
        return PackedExpertTable([self.files.expert(f"{self.path}.{expert}") for expert in range(experts)])

    def bias(self, size: int) -> nn.Parameter:
        """A copy, float32."""
        return self.precise(size)

    def precise(self, *shape: int) -> nn.Parameter:
        """A copy, float32."""
        return nn.Parameter(self.files.floats(self.path), requires_grad=False)
