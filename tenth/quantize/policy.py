"""Which format each weight of a network gets."""

from __future__ import annotations

from dataclasses import dataclass

from tenth.errors import RequestError
from tenth.kernels.packed import PackedFormat
from tenth.weights.matrices import SourceMatrix

GROUPS = (32, 64, 128)
"""Columns that may share a scale."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Bits of the weights: experts and linear layers, the embedding, the head. RequestError for what there is not.

    `bits` is 4 or 8, `group` the columns that share a scale; a width that it does not divide gets the largest half of
    it that does (32 always does, with the width padded to a multiple of 32). Without a group, 8 bits have groups of 32,
    and 4 bits groups of 16 with integer steps (`int4-g16-s4`): fewer bits than groups of 32 with a scale each, less
    error, and the fastest kernels. `asymmetric` gives each group a minimum beside its scale. `embedding_bits` and
    `head_bits` are 4, 8, 16 (bfloat16) or 32; a head that is the embedding gets the larger of both. Norms, biases,
    router rows and gates of one row stay float32.
    """

    bits: int = 4
    group: int | None = None
    asymmetric: bool = False
    embedding_bits: int = 8
    head_bits: int = 8

    def __post_init__(self) -> None:
        _among("bits", self.bits, (4, 8))
        if self.group is not None:
            _among("group", self.group, GROUPS)
        _among("embedding_bits", self.embedding_bits, (4, 8, 16, 32))
        _among("head_bits", self.head_bits, (4, 8, 16, 32))

    def format_of(self, matrix: SourceMatrix, *, tied: bool) -> PackedFormat:
        """The format of a matrix by its name in the network; `tied` says that the head is the embedding."""
        if matrix.rows == 1:  # the gate of a shared expert: as little, and as decisive, as a router's row
            return PackedFormat(32)
        bits = self.bits
        if matrix.name == "embedding":
            bits = max(self.embedding_bits, self.head_bits) if tied else self.embedding_bits
        elif matrix.name == "head.weight":
            bits = self.head_bits
        if bits > 8:
            return PackedFormat(bits)
        if bits == 4 and self.group is None and not self.asymmetric:
            return PackedFormat(4, 16, superblock=True, step_bits=4)
        return PackedFormat(bits, self.group or 32, self.asymmetric).fitted(matrix.columns)


def _among(name: str, value: int, known: tuple[int, ...]) -> None:
    if value not in known:
        raise RequestError(f"{name} is {value}, it must be one of {', '.join(map(str, known))}")
