"""Packed weights as the native module takes them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from torch import Tensor

import tenth.kernels.cpu._native as _native
from tenth.errors import WeightsError
from tenth.kernels.packed import SUPERBLOCK, TILE_ROWS, PackedExpert, PackedFormat, PackedWeight, pack
from tenth.kernels.weight import Weight


def native_matrix(weight: Weight, address: int | None = None) -> _native.Matrix:
    """A matrix where its bytes lie, or where they will: at `address`."""
    assert isinstance(weight, PackedWeight), "native kernels take packed weights"
    form, columns = weight.format, weight.in_features
    at = form.segments(columns)
    scales, steps, minimums, minimum_steps = (start if end > start else 0 for start, end in pairwise(at[1:]))
    return _native.Matrix(
        weight.data_B.data_ptr() if address is None else address,
        weight.out_features,
        columns,
        form.padded(columns),
        form.bits,
        form.group or TILE_ROWS,
        form.step_bits if form.superblock else 0,
        at.end,
        (scales, steps, minimums, minimum_steps),
    )


def native_experts(experts: Sequence[PackedExpert], *, inside: bool = False) -> _native.Experts:
    """A layer's experts; `inside`: addresses are counted from each expert's first byte.

    WeightsError where gate and up of an expert take their input in different ways.
    """
    for index, expert in enumerate(experts):
        if _activations(expert.gate) != _activations(expert.up):
            raise WeightsError(
                f"expert {index} has gate in {expert.gate.format.name} and up in {expert.up.format.name}: the "
                "native kernels quantise their common input once; the reference backend runs any"
            )
    parts = [(expert.gate, expert.up, expert.down) for expert in experts]
    if inside:
        starts = [[0, *accumulate(part.nbytes for part in expert[:-1])] for expert in parts]
        addresses: list[list[int | None]] = [list(row) for row in starts]
    else:
        addresses = [[None] * 3] * len(parts)
    matrices = [tuple(map(native_matrix, part, where)) for part, where in zip(parts, addresses, strict=True)]
    return _native.Experts([(gate, up, down) for gate, up, down in matrices])


def packed_floats(weight_OI: Tensor, bits: int = 32) -> PackedWeight:
    """A matrix of floats packed, as float32 or bfloat16."""
    form, (outputs, inputs) = PackedFormat(bits), weight_OI.shape
    return PackedWeight(pack(form, weight_OI), outputs, inputs, form)


def _activations(weight: PackedWeight) -> int:
    """Columns of activations that share a scale in products with this format; 0 where they stay floats."""
    form = weight.format
    return SUPERBLOCK if form.step_bits == 4 else 32 if form.group else 0
