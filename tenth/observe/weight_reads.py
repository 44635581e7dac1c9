"""How many bytes of weights the steps of an engine read, and how fast the machine reads them and does nothing else.

L sparse layers, E experts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tenth.kernels.cpu.operations import CpuKernels
from tenth.kernels.packed import PackedExpertTable, PackedWeight
from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp
from tenth.model.linear import Linear
from tenth.observe.step_limits import read_layer
from tenth.routing.counts import Ints
from tenth.weights.budget import expert_cache

if TYPE_CHECKING:
    from tenth.kernels.cpu.limits import StepWalk

_WALK = 128 << 20  # bytes of a walk: enough that most processors' caches do not hold it
_MOST = 4  # walks
_PIECE = 1 << 20  # that a thread reads
_SECONDS = 0.03  # of reading, beside which no step runs
_SAMPLE = 0.003  # that a speed is taken over: the clock and the threads' waking are short beside it


@dataclass(frozen=True, slots=True, eq=False)
class StepWeights:
    """Bytes of weights: those that every step reads (`always`), and of each expert (`expert_LE`), 0 rows if dense.

    Each is taken to be read once in a step. Keys and values, the rows that embeddings look up and the vectors of norms
    are not among them; the head is, though steps within a prompt do without it.
    """

    always: int
    expert_LE: Ints

    @classmethod
    def of(cls, decoder: Decoder) -> StepWeights | None:
        """Of a decoder; None where other kernels than the native ones decide what is read, or experts are on disk."""
        if not isinstance(decoder.kernels, CpuKernels) or expert_cache(decoder) is not None:
            return None
        from tenth.kernels.cpu.limits import StepWalk

        walk, rows = StepWalk(decoder.kernels.machine), list[list[int]]()
        for layer in decoder.blocks():
            read_layer(walk, layer, (), 1)
            if isinstance(layer.mlp, SparseMlp):
                table = layer.mlp.experts
                assert isinstance(table, PackedExpertTable), "native kernels take packed experts"
                rows.append([expert.nbytes for expert in table.experts])
        walk.matrices([decoder.head.weight])
        return cls(walk.nbytes, np.array(rows, np.int64))

    def read(self, steps: int, at_work_LE: Ints | None) -> int:
        """By so many steps, in so many of which each expert was at work."""
        return steps * self.always + (0 if at_work_LE is None else int((at_work_LE * self.expert_LE).sum()))


def weight_walks(decoder: Decoder, at_work_LE: Ints | None) -> list[StepWalk]:
    """Walks over weights of a native decoder, half a gigabyte at most: one piece after the other, without waiting.

    Of experts they are those that were at work: what no step has read may not be in memory yet.
    """
    from tenth.kernels.cpu.limits import StepWalk

    assert isinstance(decoder.kernels, CpuKernels), "seen by StepWeights"
    walks, pieces, found = list[StepWalk](), list[Tensor](), 0
    for weight in _weights(decoder, at_work_LE):
        pieces += torch.split(weight.data_B, _PIECE)
        found += weight.nbytes
        if found >= _WALK:
            walks.append(StepWalk(decoder.kernels.machine))
            walks[-1].memory(pieces)
            pieces, found = [], 0
        if len(walks) == _MOST:
            return walks
    walks.append(StepWalk(decoder.kernels.machine))
    walks[-1].memory(pieces)
    return walks if pieces else walks[:-1]


def _weights(decoder: Decoder, at_work_LE: Ints | None) -> Iterator[PackedWeight]:
    """Those that steps have read: the head, then layer by layer."""
    yield _packed(decoder.head)
    sparse = iter(() if at_work_LE is None else at_work_LE)
    for layer in decoder.blocks():
        attention, mlp = layer.attention, layer.mlp
        yield from map(_packed, (attention.q, attention.k, attention.v, attention.o))
        if isinstance(mlp, SparseMlp):
            assert isinstance(mlp.experts, PackedExpertTable), "native kernels take packed experts"
            for index in np.flatnonzero(next(sparse)).tolist():
                expert = mlp.experts.experts[index]
                yield from (expert.gate, expert.up, expert.down)
        dense = mlp.shared if isinstance(mlp, SparseMlp) else mlp
        if dense is not None:
            yield from map(_packed, (dense.gate, dense.up, dense.down))


def _packed(linear: Linear) -> PackedWeight:
    assert isinstance(linear.weight, PackedWeight), "native kernels take packed weights"
    return linear.weight


def read_speed(walks: Sequence[StepWalk], seconds: float = _SECONDS) -> float:
    """The most bytes a second of all the machine's threads, each walk at least once, over so many seconds at least.

    No step may run meanwhile. The most, because whoever else uses the machine only slows it down.
    """
    best, begun = 0.0, time.perf_counter()
    for number, walk in enumerate(cycle(walks), 1):
        read, took = 0, 0.0
        while took < _SAMPLE:
            read, took = read + walk.nbytes, took + walk.run()
        best = max(best, read / took)
        if number >= len(walks) and time.perf_counter() - begun >= seconds:
            break
    return best
