"""A quantised GGUF as it is: blocks become packed integers of the same values, floats the least type that has them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from tenth.errors import RequestError
from tenth.kernels.packed import PackedFormat, PackedWeight
from tenth.quantize.nearest import nearest
from tenth.quantize.streaming import Quantised, Tally, write_packed
from tenth.weights.checkpoint import Checkpoint
from tenth.weights.ggml_packed import PACKED_OF_KIND, pack_blocks
from tenth.weights.load import Progress
from tenth.weights.matrices import SourceMatrix

# what other blocks are rounded to where that is allowed: more bits than they have, so that little is lost
_NEAREST: Mapping[str, PackedFormat] = {
    "Q2_K": PackedFormat(4, 32, minimums=True),
    "Q3_K": PackedFormat(4, 32),
    "Q5_0": PackedFormat(8, 32),
    "Q5_1": PackedFormat(8, 32),
    "Q5_K": PackedFormat(8, 32),
}


def pack_checkpoint(
    checkpoint: Checkpoint, folder: Path, *, requantize: bool = False, progress: Progress | None = None
) -> Tally:
    """Write a model with the values it has as the packed folder `folder`; see `exact_format` and `write_packed`."""
    return write_packed(checkpoint, folder, partial(exact_format, requantize=requantize), take_over, progress)


def exact_format(matrix: SourceMatrix, *, requantize: bool = False) -> PackedFormat:
    """The format that has a matrix's values: that of `PACKED_OF_KIND` for blocks, else bfloat16 or float32.

    RequestError, which names the tensor, for blocks of another type; with `requantize` these get a format of more bits
    than they have. A type that cannot be read is a WeightsError.
    """
    if matrix.kind in PACKED_OF_KIND:
        return PACKED_OF_KIND[matrix.kind]
    if matrix.kind not in _NEAREST:
        return PackedFormat(16 if _is_bfloat16(matrix) else 32)
    if not requantize:
        raise RequestError(
            f"{matrix}: type {matrix.kind} has no packed format of the same values ({', '.join(PACKED_OF_KIND)} have); "
            f"--requantize rounds it to {_NEAREST[matrix.kind].name}"
        )
    return _NEAREST[matrix.kind]


def _is_bfloat16(matrix: SourceMatrix) -> bool:
    """Whether bfloat16 has all values of a float matrix."""
    return matrix.kind == "BF16" or all(torch.equal(part, part.bfloat16().to(part)) for part in matrix.values())


def take_over(matrix: SourceMatrix, form: PackedFormat) -> Quantised:
    """The same values in `form`, from the blocks where it is that of their type; else rounded to nearest."""
    if PACKED_OF_KIND.get(matrix.kind) != form:
        return nearest(matrix, form)
    data_B = torch.empty(form.bytes_of(matrix.rows, matrix.columns), dtype=torch.uint8)
    at = 0
    for raw_OB in matrix.blocks():
        packed = pack_blocks(raw_OB, matrix.kind, str(matrix))
        data_B[at : at + len(packed)] = packed
        at += len(packed)
    return Quantised(PackedWeight(data_B, matrix.rows, matrix.columns, form))
