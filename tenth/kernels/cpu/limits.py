"""What the machine can do at most: read the bytes of a step without computing, and compute without reading.

E experts, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

import tenth.kernels.cpu._native as _native
from tenth.kernels.cpu.expert_cache import CachedExpertTable
from tenth.kernels.packed import TILE_ROWS, PackedExpertTable, PackedWeight
from tenth.kernels.weight import ExpertTable, Weight

_Bytes = tuple[int, int, int]  # where a matrix lies, its bytes, those of a tile


@dataclass(frozen=True, slots=True)
class Peaks:
    """Operations a second of all threads, in registers only; a multiply-add is two.

    `integer` is the instruction set's product of bytes. `floating` is the faster of its products of bfloat16 and of
    float32: what attention is held against.
    """

    integer: float
    floating: float

    @classmethod
    def measured(cls, machine: _native.Machine, seconds: float) -> Peaks:
        """Each kind of product for at least so many seconds."""
        integer, *floating = (_native.products(machine, kind, seconds) for kind in ("int8", "bfloat16", "float32"))
        return cls(integer, max(floating))


class StepWalk:
    """Reads what the operations of a step read, in their order and in the pieces that their threads claim.

    It takes the operations one by one, as a step runs them; `run` then reads it all and computes nothing.
    """

    def __init__(self, machine: _native.Machine) -> None:
        self._walk = _native.Walk(machine)
        self._held: list[object] = []  # whose memory is read
        self._elsewhere = 0  # bytes that have no place of their own

    @property
    def nbytes(self) -> int:
        """Bytes that a run reads."""
        return self._walk.bytes + self._elsewhere

    def matrices(self, weights: Sequence[Weight]) -> None:
        """Packed matrices that are multiplied in one operation."""
        self._held.extend(weights)
        self._walk.matrices([_packed(weight) for weight in weights])

    def router(self, weight_ED: Tensor) -> None:
        """Rows of a router, which are float32 and not packed."""
        self._held.append(weight_ED)
        row_bytes = weight_ED.stride(0) * weight_ED.element_size()
        self._walk.matrices([(weight_ED.data_ptr(), weight_ED.nbytes, row_bytes * TILE_ROWS)])

    def experts(self, table: ExpertTable, ids: Sequence[int], tokens: int) -> None:
        """The chosen experts of a layer, each named once, for so many tokens.

        Those that are on disk have no place in memory before the step: they count as being read as fast as the rest.
        """
        assert isinstance(table, PackedExpertTable), "native kernels take packed experts"
        chosen = [table.experts[index] for index in ids]
        if isinstance(table, CachedExpertTable):
            self._elsewhere += sum(expert.nbytes for expert in chosen)
            return
        self._held.append(table)
        self._walk.experts([(_packed(e.gate), _packed(e.up), _packed(e.down)) for e in chosen], tokens)

    def memory(self, parts: Sequence[Tensor]) -> None:
        """Other memory, of which each part is contiguous and read by one thread."""
        assert all(part.is_contiguous() for part in parts)
        self._held.extend(parts)
        self._walk.matrices([(part.data_ptr(), part.nbytes, part.nbytes) for part in parts])

    def run(self) -> float:
        """Read everything once; the seconds it took."""
        return self._walk.run() * self.nbytes / self._walk.bytes


def _packed(weight: Weight) -> _Bytes:
    assert isinstance(weight, PackedWeight), "native kernels take packed weights"
    return weight.data_B.data_ptr(), weight.nbytes, weight.format.tile_bytes(weight.in_features)
