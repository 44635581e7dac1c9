"""A packed model within a budget of memory: experts stay on disk, a cache of what is left keeps some of them.

The budget covers what stays of the model in memory: all weights but the experts (router rows three times: as they are,
packed, and as the forecast of the layer before), and the cache. Keys and values, activations and the program itself are
not in it. Nothing is mapped: what the page cache holds of the files may be dropped at any time.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from tenth.errors import MachineError, RequestError
from tenth.kernels.contract import Kernels
from tenth.kernels.cpu.expert_cache import CachedExpertTable, ExpertCache, Forecast
from tenth.kernels.cpu.native_weights import packed_floats
from tenth.kernels.cpu.operations import CpuKernels
from tenth.kernels.packed import PackedFormat
from tenth.kernels.weight import ExpertTable, Weight
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp
from tenth.weights.packed import PackedBackend, PackedFiles
from tenth.weights.packed_index import LARGE, PAGE, PackedTensor

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B)", re.IGNORECASE)


def memory_bytes(size: str | int, name: str = "memory") -> int:
    """Bytes of a size such as `8GB`, `512MB` or `7.5GiB`; a number is bytes.

    RequestError, which speaks of it by `name`, for anything else.
    """
    if type(size) is int and size > 0:
        return size
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if match is None or match[2].upper() not in _UNITS or not 0 < float(match[1]) < 1e12:
        raise RequestError(f"{name} is {size!r:.40}, it must be a size such as 8GB or 512MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True, slots=True)
class Budget:
    """How a budget is spent: bytes of all but the experts, and slots of so many bytes for experts."""

    rest: int
    slots: int
    slot_bytes: int

    @property
    def nbytes(self) -> int:
        """All of it."""
        return self.rest + self.slots * self.slot_bytes


def spend(files: PackedFiles, config: ModelConfig, memory: int) -> Budget | None:
    """The budget of a model; None: all of it fits.

    RequestError where the smallest cache, an expert for each that a token has in a layer, does not fit.
    """
    tensors = files.index.tensors
    experts = [tensor.nbytes for tensor in tensors.values() if len(tensor.part.shapes()) == 3]
    rest = sum(tensor.nbytes for tensor in tensors.values()) - sum(experts) + _router_copies(config)
    slot_bytes = max((_pages(nbytes) for nbytes in experts), default=0)
    slots = (memory - rest) // slot_bytes if experts else 0
    least = config.moe.top_k if experts and config.moe is not None else 0
    if memory < rest or slots < least:
        cache = (
            f", {least} of its experts, those of a token in one layer, {_text(least * slot_bytes)}" if experts else ""
        )
        raise RequestError(
            f"{files.path}: memory is {_text(memory)}, but all weights {'but the experts ' * bool(experts)}take "
            f"{_text(rest)}{cache}: the least that would do is {_text(rest + least * slot_bytes)}"
        )
    return None if slots >= len(experts) else Budget(rest, slots, slot_bytes)


def _router_copies(config: ModelConfig) -> int:
    """Bytes of what kernels and forecasts make of router rows."""
    if config.moe is None:
        return 0
    shape = (config.moe.num_experts, config.hidden_size)
    return len(config.sparse_layers) * (PackedFormat(32).bytes_of(*shape) + PackedFormat(16).bytes_of(*shape))


def _pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


def _text(nbytes: int) -> str:
    """A size as the option takes it, rounded up to a thousandth of its unit."""
    unit = next(unit for unit in ("GB", "MB", "KB", "B") if nbytes >= _UNITS[unit] or unit == "B")
    return f"{-(-nbytes * 1000 // _UNITS[unit]) / 1000:g}{unit}"


class _Rest:
    """All matrices but the experts, read into memory of their own."""

    def __init__(self, files: PackedFiles) -> None:
        tensors = [tensor for tensor in files.index.tensors.values() if len(tensor.formats) == 1]
        self._start: dict[str, int] = {}
        total = 0
        for tensor in tensors:
            unit = PAGE if tensor.nbytes >= LARGE else 64
            self._start[tensor.name] = -(-total // unit) * unit
            total = self._start[tensor.name] + tensor.nbytes
        try:
            memory = mmap.mmap(-1, total)
        except OSError:
            raise MachineError(f"{files.path}: there is no memory for {_text(total)} of weights") from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._all_B = torch.frombuffer(memory, dtype=torch.uint8)
        for tensor in tensors:
            files.source.read_into(tensor.name, self.data(tensor).numpy().data)

    def data(self, tensor: PackedTensor) -> Tensor:
        """A tensor's bytes: uint8, 1-D."""
        start = self._start[tensor.name]
        return self._all_B[start : start + tensor.nbytes]


@dataclass(frozen=True, slots=True)
class BudgetBackend(PackedBackend):
    """Gives a network a packed model's weights: experts by way of a cache, everything else in memory."""

    rest: _Rest = field(kw_only=True)
    cache: ExpertCache = field(kw_only=True)

    def matrix(self, outputs: int, inputs: int) -> Weight:
        """The matrix of this path, in memory."""
        return self.files.matrix(self.path, self.rest.data(self.files.index.tensors[self.path]))

    def table(self, experts: int, hidden: int, intermediate: int) -> ExpertTable:
        """The experts of this layer, on disk."""
        names = [f"{self.path}.{expert}" for expert in range(experts)]
        infos = [self.files.source.tensors[name] for name in names]
        places = [(info.offset, info.nbytes) for info in infos]
        formats = [self.files.index.tensors[name].formats for name in names]
        return self.cache.table(infos[0].where, places, formats, hidden, intermediate)


def budget_decoder(files: PackedFiles, config: ModelConfig, kernels: Kernels, budget: Budget) -> Decoder:
    """The network of a packed model whose experts stay on disk."""
    cache = ExpertCache(budget.slots, budget.slot_bytes)
    decoder = Decoder(config, on=BudgetBackend(files=files, kernels=kernels, rest=_Rest(files), cache=cache)).eval()
    files.source.forget()
    _add_forecasts(decoder)
    return decoder


def _add_forecasts(decoder: Decoder) -> None:
    """Tell each sparse layer the router of the next one, which then predicts the likelier half of a token's experts.

    Its rows are scaled by what the norms of the two layers differ in: the input is normalised for this one. The less
    likely half is right too seldom: it would be read for nothing (docs/log.md).
    """
    assert decoder.config.moe is not None
    rule = replace(decoder.config.moe.rule, top_k=-(-decoder.config.moe.top_k // 2))
    sparse = [(layer, layer.mlp) for layer in decoder.blocks() if isinstance(layer.mlp, SparseMlp)]
    for (layer, mlp), (following, following_mlp) in pairwise(sparse):
        assert isinstance(mlp.experts, CachedExpertTable)
        ratio_D = following.mlp_norm.weight / layer.mlp_norm.weight
        router = following_mlp.router
        rows_ED = router.weight_ED.detach() * torch.nan_to_num(ratio_D.detach(), 0.0, 0.0, 0.0)
        mlp.experts.forecast = Forecast(packed_floats(rows_ED, 16), rule, router.bias_E)


def expert_cache(decoder: Decoder) -> ExpertCache | None:
    """The cache of a decoder's experts, where they are on disk."""
    for layer in decoder.blocks():
        if isinstance(layer.mlp, SparseMlp) and isinstance(layer.mlp.experts, CachedExpertTable):
            return layer.mlp.experts.cache
    return None


def check_kernels(kernels: Kernels) -> None:
    """RequestError for kernels that cannot work from a cache."""
    if not isinstance(kernels, CpuKernels):
        raise RequestError("a budget of memory needs the native kernels of packed models: `tenth quantize` makes one")
