"""Experts that stay on disk, and a cache of fixed size in which the native kernels keep some of them.

The cache itself is native (`csrc/expert_store.h`): a step is one native call, and which experts it needs is known in
the middle of it. E experts, D model width.
"""

from __future__ import annotations

import mmap
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

import tenth.kernels.cpu._native as _native
from tenth.errors import MachineError, WeightsError
from tenth.kernels.cpu.native_weights import native_experts
from tenth.kernels.packed import PackedExpert, PackedExpertTable, PackedFormat, PackedWeight
from tenth.routing.rule import RouteRule

READERS = 4
"""Reads that are under way at a time."""


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What a cache did; of two, `later - earlier` is what it did between.

    A layer's step asks for distinct experts: `hits` were there, `late` were predicted and on their way, `misses` had to
    be read. `predicted` experts were expected of a step, `right` of them were asked for; `ahead` counts reads that a
    prediction caused. `reads` and `bytes_read` (whole pages) are all that came from disk, `stalled_seconds` how long
    steps waited for it.
    """

    steps: int
    hits: int
    late: int
    misses: int
    predicted: int
    right: int
    ahead: int
    reads: int
    bytes_read: int
    stalled_seconds: float

    def __sub__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    @property
    def hit_rate(self) -> float:
        """The share of experts that were there when they were asked for; 1 where none was."""
        asked = self.hits + self.late + self.misses
        return self.hits / asked if asked else 1.0

    @property
    def right_rate(self) -> float | None:
        """The share of predicted experts that were asked for; None where none was predicted."""
        return self.right / self.predicted if self.predicted else None


@dataclass(frozen=True, slots=True)
class LayerUses:
    """Of a sparse layer: its steps, and in how many of them each expert was asked for."""

    steps: int
    uses: list[int]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The next sparse layer's router, as far as it tells that layer's experts from this one's input."""

    weight: PackedWeight  # (E, D)
    rule: RouteRule
    bias_E: Tensor | None


class ExpertCache:
    """Slots for `slots` experts of `slot_bytes` (whole pages of 4096 bytes) at most; they are taken at once.

    MachineError where the memory cannot be had.
    """

    def __init__(self, slots: int, slot_bytes: int, readers: int = READERS) -> None:
        try:
            self.store = _native.ExpertStore(slots, slot_bytes, readers)
        except MemoryError:
            size = slots * slot_bytes / 1e9
            raise MachineError(f"a cache of {slots} experts needs {size:.1f} GB of memory: give it less") from None
        self.slots, self.slot_bytes, self.experts = slots, slot_bytes, 0
        self._sizes: list[list[int]] = []  # whole pages of each layer's experts

    def table(
        self,
        path: Path,
        places: Sequence[tuple[int, int]],
        formats: Sequence[Sequence[PackedFormat]],
        hidden: int,
        intermediate: int,
    ) -> CachedExpertTable:
        """The next sparse layer: where its experts lie in a file (first byte, bytes), and their formats."""
        nowhere = [torch.empty(nbytes, dtype=torch.uint8, device="meta") for _, nbytes in places]
        experts = [
            PackedExpert.of(data_B, forms, hidden, intermediate) for data_B, forms in zip(nowhere, formats, strict=True)
        ]
        try:
            layer = self.store.add_layer(str(path), native_experts(experts, inside=True), list(places))
        except RuntimeError as error:
            raise WeightsError(str(error)) from None
        self.experts += len(experts)
        self._sizes.append([_whole_pages(nbytes) for _, nbytes in places])
        return CachedExpertTable(experts, self, layer)

    @property
    def indirect(self) -> str:
        """Why reads go through the system's page cache, and are dropped from it at once; empty: they do not."""
        return self.store.indirect

    @property
    def statistics(self) -> CacheStatistics:
        """What it did since it was made."""
        c = self.store.counts()
        parts = (c.steps, c.hits, c.late, c.misses, c.expected, c.right, c.ahead, c.reads, c.bytes, c.stalled)
        return CacheStatistics(*parts)

    @property
    def uses(self) -> list[LayerUses]:
        """What the steps of each sparse layer asked for since it was made."""
        return [LayerUses(self.store.steps(layer), self.store.uses(layer)) for layer in range(len(self._sizes))]

    def seed(self, layers: Sequence[LayerUses]) -> None:
        """Start as if these had been used before: the most used are read in the background, into slots still empty."""
        seeds = [
            (layer, expert, count / of.steps)
            for layer, of in enumerate(layers)
            for expert, count in enumerate(of.uses)
            if count
        ]
        self.store.seed(sorted(seeds, key=lambda seed: -seed[2]))

    def disk_speed(self, seconds: float) -> float:
        """Bytes a second that the disk gives to READERS readers of experts at random; nothing of it is kept.

        It takes memory for so many experts meanwhile. WeightsError.
        """
        end = time.perf_counter() + seconds

        def read(reader: int) -> int:
            chance, memory, done = random.Random(reader), _memory(self.slot_bytes), 0
            address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
            while not done or time.perf_counter() < end:
                layer = chance.randrange(len(self._sizes))
                expert = chance.randrange(len(self._sizes[layer]))
                self.store.read(layer, expert, address)
                done += self._sizes[layer][expert]
            return done

        start = time.perf_counter()
        try:
            with ThreadPoolExecutor(READERS) as readers:
                done = sum(readers.map(read, range(READERS)))
        except RuntimeError as error:
            raise WeightsError(str(error)) from None
        return done / (time.perf_counter() - start)


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _memory(nbytes: int) -> mmap.mmap:
    """Memory that begins with a page, of whole pages."""
    return mmap.mmap(-1, _whole_pages(nbytes))


class CachedExpertTable(PackedExpertTable):
    """A layer's experts on disk. Its packed experts have shapes and formats, their bytes are nowhere (`meta`)."""

    def __init__(self, experts: Sequence[PackedExpert], cache: ExpertCache, layer: int) -> None:
        super().__init__(experts)
        self.cache, self.layer = cache, layer
        self.forecast: Forecast | None = None

    def expert(self, index: int) -> tuple[Tensor, Tensor]:
        """One expert read from its file, dense, in float32: gate over up (2F, D), and down (D, F)."""
        one = self.experts[index]
        data_B = torch.frombuffer(_memory(one.nbytes), dtype=torch.uint8)
        try:
            self.cache.store.read(self.layer, index, data_B.data_ptr())
        except RuntimeError as error:
            raise WeightsError(str(error)) from None
        parts = (one.gate, one.up, one.down)
        here = PackedExpert.of(
            data_B[: one.nbytes], [part.format for part in parts], self.hidden_size, self.intermediate_size
        )
        return torch.cat((here.gate.dense(), here.up.dense())), here.down.dense()
