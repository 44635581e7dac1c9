"""A whole model rounded to nearest: the quantiser that needs no text to calibrate with."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tenth.errors import TensorError
from tenth.kernels.packed import PackedFormat, PackedWeight, pack
from tenth.quantize.policy import Policy
from tenth.quantize.rounding import round_to_nearest
from tenth.quantize.steps import round_in_steps
from tenth.quantize.streaming import Quantised, Tally, write_packed
from tenth.weights.checkpoint import Checkpoint
from tenth.weights.load import Progress
from tenth.weights.matrices import SourceMatrix


def quantize(
    checkpoint: Checkpoint, folder: Path, policy: Policy | None = None, progress: Progress | None = None
) -> Tally:
    """Write a model in the formats of `policy` as the packed folder `folder`; see `write_packed`."""
    choose = partial((policy or Policy()).format_of, tied=checkpoint.config.tie_word_embeddings)
    return write_packed(checkpoint, folder, choose, nearest, progress)


def nearest(matrix: SourceMatrix, form: PackedFormat) -> Quantised:
    """Round to the nearest values that the format has; TensorError, by the tensor's name, for what it cannot hold."""
    rounding = _rounded if form.group else _as_floats
    data_B = torch.empty(form.bytes_of(matrix.rows, matrix.columns), dtype=torch.uint8)
    error, power, at = 0.0, 0.0, 0
    for values_OI in matrix.values():
        packed, lost, own = rounding(values_OI, form, str(matrix))
        data_B[at : at + len(packed)] = packed
        error, power, at = error + lost, power + own, at + len(packed)
    return Quantised(PackedWeight(data_B, matrix.rows, matrix.columns, form), error, power)


def _rounded(values_OI: Tensor, form: PackedFormat, where: str) -> tuple[Tensor, float, float]:
    rounded = (round_in_steps if form.step_bits == 4 else round_to_nearest)(values_OI, form, where)
    return rounded.packed(), rounded.error, rounded.power


def _as_floats(values_OI: Tensor, form: PackedFormat, where: str) -> tuple[Tensor, float, float]:
    kept_OI = values_OI.to(torch.bfloat16 if form.bits == 16 else torch.float32)
    if not bool(torch.isfinite(kept_OI).all()):
        raise TensorError(f"{where}: holds a value that is not finite, or beyond {form.name}")
    packed = pack(form, kept_OI)
    if kept_OI.dtype == values_OI.dtype:
        return packed, 0.0, 0.0
    error = (kept_OI.float() - values_OI.float()).square_().sum()
    return packed, float(error), float(values_OI.float().square_().sum())
