"""How many bytes of weights the steps of an engine read, and how fast the machine reads them and does nothing else.

L sparse layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from tenth.kernels.cpu.operations import CpuKernels
from tenth.kernels.packed import PackedExpertTable
from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp
from tenth.observe.step_limits import read_layer
from tenth.routing.counts import Ints
from tenth.weights.budget import expert_cache

if TYPE_CHECKING:
    from tenth.kernels.cpu.limits import StepWalk

_WALK = 128 << 20  # bytes of a walk, and a layer's more
_ALL = 512 << 20  # of all walks: enough that processors' caches do not hold them
_SECONDS = 0.03  # of reading, beside which no step runs
_MANY = 2  # tokens: more than one, so that experts are read one behind the other


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
            read_layer(walk, layer, (), _MANY)
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
    """Walks over weights of a native decoder, half a gigabyte at most.

    Of experts they are those that were at work: what no step has read may not be in memory yet.
    """
    from tenth.kernels.cpu.limits import StepWalk

    assert isinstance(decoder.kernels, CpuKernels), "seen by StepWeights"
    machine = decoder.kernels.machine
    walks, sparse = [StepWalk(machine)], iter(()) if at_work_LE is None else iter(at_work_LE)
    walks[0].matrices([decoder.head.weight])
    for layer in decoder.blocks():
        if walks[-1].nbytes >= _WALK:
            walks.append(StepWalk(machine))
        counts_E = next(sparse) if isinstance(layer.mlp, SparseMlp) else np.zeros(0, np.int64)
        read_layer(walks[-1], layer, np.flatnonzero(counts_E).tolist(), _MANY)
        if sum(walk.nbytes for walk in walks) >= _ALL:
            break
    return walks


def read_speed(walks: Sequence[StepWalk], seconds: float = _SECONDS) -> float:
    """Bytes a second of all the machine's threads, over at least so many seconds. No step may run meanwhile."""
    read = took = 0.0
    for walk in cycle(walks):
        took += walk.run()
        read += walk.nbytes
        if took >= seconds:
            return read / took
    raise AssertionError("there is a walk at least: the head's")
