"""Round to nearest where scales are integers: groups of 16 columns with a 4-bit step, 256 with a float16 scale.

Each group first gets the slope that would err least on its own (`rounding.py`). A superblock's scale `d` is then tried
at a few ratios to its steepest group, with every slope rounded to a whole number of it; the best is kept, each group
tries the steps beside its own, and `d` is fitted once more by least squares: sum(x s l) / sum((s l)^2), s the step and
l the level of a value x.

O outputs, I inputs, P padded columns, B superblocks at hand, G groups of a superblock, S columns of a group.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tenth.errors import TensorError
from tenth.kernels.packed import SUPERBLOCK, PackedFormat
from tenth.quantize.rounding import Rounded, best_slopes

_SLAB = 1 << 17  # weights at a time: a few float32 tensors of it stay within the cores' caches
_LOW, _HIGH = -8, 7  # of levels and of steps
_RATIOS = (-8.6, -8.0, -7.5, -7.0)  # what step the steepest group would get; beyond the range it is clipped
_REACH = 65504.0 * 7 * 6  # of values: float16's largest, times a step and a level that every ratio leaves in range


@torch.no_grad()
def round_in_steps(values_OI: Tensor, form: PackedFormat, where: str, importance_I: Tensor | None = None) -> Rounded:
    """The integers, steps and scales of `int4-g16-s4`. Errors and `importance_I` as in `round_to_nearest`."""
    assert form.step_bits == 4
    rows, columns = values_OI.shape
    supers, groups = form.shared(columns), form.groups(columns)
    quants_OI = torch.empty(rows, columns, dtype=torch.uint8)
    scales_OB = torch.empty(rows, supers, dtype=torch.float16)
    steps_OG = torch.empty(rows, groups, dtype=torch.int8)
    weight_BGS = None if importance_I is None else _in_supers(importance_I.float()[None].clamp_min(1e-20))
    error = power = 0.0
    step = max(_SLAB // (supers * SUPERBLOCK), 1)
    for first in range(0, rows, step):
        here = slice(first, first + step)
        x_BGS = _in_supers(values_OI[here].float())
        largest = float(x_BGS.abs().max())
        if not math.isfinite(largest):
            raise TensorError(f"{where}: holds a value that is not finite; quantising takes finite numbers")
        if largest > _REACH:
            raise TensorError(
                f"{where}: holds values up to {largest:.3g}, 4 bits in steps reach {_REACH:.3g}: 16 or 32 bits keep it"
            )
        count = len(x_BGS) // supers
        d_B, step_BG, level_BGS = _round_supers(x_BGS, None if weight_BGS is None else weight_BGS.repeat(count, 1, 1))
        scales_OB[here] = d_B.view(count, supers)
        steps_OG[here] = step_BG.view(count, -1)[:, :groups]
        quants_OI[here] = (level_BGS + form.zero).to(torch.uint8).view(count, -1)[:, :columns]
        lost_BGS = level_BGS * (step_BG * d_B[:, None])[..., None] - x_BGS
        error += float(lost_BGS.view(count, -1)[:, :columns].square().sum())
        power += float(x_BGS.view(count, -1)[:, :columns].square().sum())
    return Rounded(form, quants_OI, scales_OB, None, error, power, steps_OG)


def _in_supers(rows_OI: Tensor) -> Tensor:
    """Superblocks one below the other, in groups of 16; the last one is filled with zeros."""
    missing = -rows_OI.shape[1] % SUPERBLOCK
    return functional.pad(rows_OI, (0, missing)).view(-1, SUPERBLOCK // 16, 16)


def _round_supers(x_BGS: Tensor, weight_BGS: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The scale of each superblock (float16's values), its steps, and the levels."""
    flat_NS, weight_NS = x_BGS.flatten(0, 1), None if weight_BGS is None else weight_BGS.flatten(0, 1)
    slope_BG = best_slopes(flat_NS, weight_NS).view(x_BGS.shape[:2])
    steepest_B = slope_BG.gather(1, slope_BG.abs().argmax(1, keepdim=True))[:, 0]
    best_B, best_BG = torch.zeros_like(steepest_B), torch.zeros_like(slope_BG)
    least_B = torch.full_like(steepest_B, torch.inf)
    for ratio in _RATIOS:
        d_B = (steepest_B / ratio).half().float()
        step_BG = _whole(slope_BG * _inverse(d_B)[:, None])
        lost_B = _lost(x_BGS, d_B, step_BG, weight_BGS).sum(1)
        better_B = lost_B < least_B
        least_B = torch.where(better_B, lost_B, least_B)
        best_B = torch.where(better_B, d_B, best_B)
        best_BG = torch.where(better_B[:, None], step_BG, best_BG)
    best_BG = _neighbours(x_BGS, best_B, best_BG, weight_BGS)
    d_B = _refitted(x_BGS, best_B, best_BG, weight_BGS)
    return d_B, best_BG, _levels(x_BGS, d_B, best_BG)


def _neighbours(x_BGS: Tensor, d_B: Tensor, step_BG: Tensor, weight_BGS: Tensor | None) -> Tensor:
    """Each group's step, or the one before or behind it, whichever errs least."""
    best_BG, least_BG = step_BG, _lost(x_BGS, d_B, step_BG, weight_BGS)
    for move in (-1, 1):
        tried_BG = (step_BG + move).clamp_(_LOW, _HIGH)
        lost_BG = _lost(x_BGS, d_B, tried_BG, weight_BGS)
        best_BG = torch.where(lost_BG < least_BG, tried_BG, best_BG)
        least_BG = torch.minimum(lost_BG, least_BG)
    return best_BG


def _refitted(x_BGS: Tensor, d_B: Tensor, step_BG: Tensor, weight_BGS: Tensor | None) -> Tensor:
    """The scale by least squares for the levels that there are, where that errs less."""
    whole_BGS = _levels(x_BGS, d_B, step_BG) * step_BG[..., None]
    weighted_BGS = whole_BGS if weight_BGS is None else whole_BGS * weight_BGS
    product_B = (weighted_BGS * x_BGS).sum((1, 2))
    square_B = (weighted_BGS * whole_BGS).sum((1, 2))
    new_B = torch.where(square_B > 0, product_B / square_B, d_B).half().float()
    old, new = (_lost(x_BGS, d, step_BG, weight_BGS).sum(1) for d in (d_B, new_B))
    return torch.where(new < old, new_B, d_B)


def _levels(x_BGS: Tensor, d_B: Tensor, step_BG: Tensor) -> Tensor:
    return _whole(x_BGS * _inverse(step_BG * d_B[:, None])[..., None])


def _lost(x_BGS: Tensor, d_B: Tensor, step_BG: Tensor, weight_BGS: Tensor | None) -> Tensor:
    """Squared error of each group."""
    scale_BG = step_BG * d_B[:, None]
    level_BGS = _whole(x_BGS * _inverse(scale_BG)[..., None])
    lost_BGS = level_BGS.mul_(scale_BG[..., None]).sub_(x_BGS).square_()
    return (lost_BGS if weight_BGS is None else lost_BGS.mul_(weight_BGS)).sum(2)


def _whole(values: Tensor) -> Tensor:
    return values.round_().clamp_(_LOW, _HIGH)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)
