"""Round to nearest: a matrix as 4- or 8-bit integers in groups, each with the scale that errs least.

A group of columns of a row gets levels l, whole numbers, and a line `slope * l + offset` through them (offset 0 where
the format is symmetric). For fixed levels the best line is least squares in closed form, and it takes off the squared
error `sum(v l)^2 / (sum(l^2) - sum(l)^2 / sum(1))`, v the values about their mean; where there is no offset,
`sum(x l)^2 / sum(l^2)`. So a few ways to lay the levels over the group's range are tried, from wider than the range
to clipping its ends, and the best is kept; then levels and line are fitted to each other once more. Scales and
minimums are rounded to float16 before the integers are chosen for good.

Sums may be weighted by the importance of each column, which a calibration measures.

O outputs, I inputs, P padded columns, G groups of a row, S columns of a group, N groups at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tenth.errors import TensorError
from tenth.kernels.packed import PackedFormat, pack

_SLAB = 1 << 17  # weights at a time: a few float32 tensors of it stay within the cores' caches
_HALF_NORMAL = 2.0**-14  # below it float16 has steps of _HALF_STEP
_HALF_STEP = 2.0**-24


@dataclass(frozen=True, slots=True)
class Rounded:
    """A matrix of few bits: `quants_OI` bytes, float16 `scales_OG` (one a
    superblock where there are `steps_OG`) and, where the format has them, `minimums_OG`.

    `error` is the sum of the squared differences to the values, `power` that of their squares (neither is weighted).
    """

    form: PackedFormat
    quants_OI: Tensor
    scales_OG: Tensor
    minimums_OG: Tensor | None
    error: float
    power: float
    steps_OG: Tensor | None = None

    def packed(self) -> Tensor:
        """Its bytes as the kernels read them."""
        return pack(
            self.form,
            self.quants_OI,
            scales=self.scales_OG,
            minimums=self.minimums_OG,
            group_scales_OG=self.steps_OG,
        )


class _Levels(NamedTuple):
    """What a format's integers are: their range, and the layouts to try.

    A layout (f, a) gives a value at share u of the group's range the level `u * f + a`. Where the format is symmetric,
    u is a share of the group's largest value with its sign: at that end 4 bits have their extra level, as in Q4_0.
    """

    low: int
    high: int
    layouts: Sequence[tuple[float, float]]


def _steps(first: float, last: float, count: int) -> list[float]:
    return [first + (last - first) * i / (count - 1) for i in range(count)]


# An f above the range's own number of levels clips; each layout is one more pass over the weights. Among those of 4
# bits without minimums is Q4_0's own: no group errs more than there, but for the rounding of scales.
_LEVELS = {
    (4, False): _Levels(-8, 7, [(-f, 0.0) for f in _steps(6.5, 10.0, 8)]),
    (8, False): _Levels(-127, 127, [(f, 0.0) for f in _steps(118.0, 127.0, 10)]),
    (4, True): _Levels(0, 15, [(f, (15 - f) * part) for f in _steps(14.4, 18.0, 4) for part in (0.0, 0.5, 1.0)]),
    (8, True): _Levels(0, 255, [(f, (255 - f) / 2) for f in _steps(246.0, 255.0, 10)]),
}


@torch.no_grad()
def round_to_nearest(values_OI: Tensor, form: PackedFormat, where: str, importance_I: Tensor | None = None) -> Rounded:
    """The integers and scales of `form`: 4 or 8 bits, without superblocks, its group divides the padded width.

    `importance_I` weights the squared error of each column. TensorError, which names `where`, for a value that is not
    finite or lies beyond what a float16 scale reaches.
    """
    rows, columns = values_OI.shape
    assert (form.bits, form.minimums) in _LEVELS
    assert form.fits(columns)
    assert not form.superblock
    groups = form.groups(columns)
    quants_OI = torch.empty(rows, columns, dtype=torch.uint8)
    scales_OG = torch.empty(rows, groups, dtype=torch.float16)
    minimums_OG = torch.empty_like(scales_OG)
    error = power = 0.0
    importance_GS = None if importance_I is None else _in_groups(_positive(importance_I)[None], form)
    step = max(_SLAB // form.padded(columns), 1)
    for first in range(0, rows, step):
        x_NS = _in_groups(values_OI[first : first + step].float(), form)
        here = slice(first, first + len(x_NS) // groups)
        weight_NS = None if importance_GS is None else importance_GS.repeat(len(x_NS) // groups, 1)
        level_NS, scale_N, minimum_N = _round_groups(x_NS, weight_NS, form, where)
        scales_OG[here], minimums_OG[here] = scale_N.view(-1, groups), minimum_N.view(-1, groups)
        quants_OI[here] = (level_NS + form.zero).to(torch.uint8).view(-1, form.padded(columns))[:, :columns]
        lost_NS = torch.addcmul(minimum_N.float()[:, None], level_NS, scale_N.float()[:, None]).sub_(x_NS)
        error += _energy(lost_NS, form, columns)
        power += _energy(x_NS, form, columns)
    return Rounded(form, quants_OI, scales_OG, minimums_OG if form.minimums else None, error, power)


def best_slopes(x_NS: Tensor, weight_NS: Tensor | None) -> Tensor:
    """What each group would multiply its 4-bit levels by if the slope could be any number (N)."""
    low_N, high_N = torch.aminmax(x_NS, dim=1)
    reach_N = torch.where(high_N > -low_N, high_N, low_N)
    inverse_N = torch.where(reach_N.abs() < torch.finfo(torch.float32).tiny, 0.0, 1 / reach_N)
    slope_N, _ = _best_line(x_NS * inverse_N[:, None], weight_NS, _LEVELS[4, False], affine=False)
    return slope_N.nan_to_num_() * reach_N


def _energy(x_NS: Tensor, form: PackedFormat, columns: int) -> float:
    """The sum of squares, without padding columns."""
    flat = x_NS.view(-1, form.padded(columns))[:, :columns].flatten()
    return float(torch.dot(flat, flat))


def _positive(importance_I: Tensor) -> Tensor:
    """Weights without zeros: a group that nothing reads is still fitted."""
    largest = importance_I.max().clamp_min(1e-20)
    return (importance_I.float() / largest).clamp_min(2.0**-20)


def _in_groups(rows_OI: Tensor, form: PackedFormat) -> Tensor:
    """Groups one below the other; a width that is no multiple of 32 is filled with its last column."""
    missing = form.padded(rows_OI.shape[1]) - rows_OI.shape[1]
    if missing:
        rows_OI = functional.pad(rows_OI[None], (0, missing), mode="replicate")[0]
    return rows_OI.reshape(-1, form.group)


def _round_groups(
    x_NS: Tensor, weight_NS: Tensor | None, form: PackedFormat, where: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Levels N, S and the float16 scale and minimum (0 where there are none) of each group."""
    levels = _LEVELS[form.bits, form.minimums]
    low_N, high_N = torch.aminmax(x_NS, dim=1)
    base_N = low_N if form.minimums else torch.zeros_like(low_N)
    reach_N = high_N - low_N if form.minimums else torch.where(high_N > -low_N, high_N, low_N)
    if not bool((low_N.isfinite() & high_N.isfinite()).all()):
        raise TensorError(f"{where}: holds a value that is not finite; quantising takes finite numbers")
    # a group too small for any float16 scale is all zeros
    inverse_N = torch.where(reach_N.abs() < _HALF_STEP / 2, 0.0, 1 / reach_N)
    u_NS = (x_NS - base_N[:, None] if form.minimums else x_NS) * inverse_N[:, None]
    slope_N, offset_N = _best_line(u_NS, weight_NS, levels, affine=form.minimums)
    scale_N, minimum_N = _half(slope_N * reach_N), (base_N + offset_N * reach_N).half()
    if not bool((scale_N.isfinite() & minimum_N.isfinite()).all()):
        raise TensorError(
            f"{where}: holds values up to {float(x_NS.abs().max()):.3g}, beyond what a float16 scale of "
            f"{form.bits} bits reaches; 16 or 32 bits keep them"
        )
    wide_N = scale_N.float()
    inverse_N = torch.where(wide_N == 0, 0.0, 1 / wide_N)
    shifted_NS = x_NS - minimum_N.float()[:, None] if form.minimums else x_NS
    level_NS = (shifted_NS * inverse_N[:, None]).round_().clamp_(levels.low, levels.high)
    return level_NS, scale_N, minimum_N


def _half(scale_N: Tensor) -> Tensor:
    """Scales as float16; those below its normal range are rounded away from zero, so that none clips its group."""
    up_N = (scale_N.abs() / _HALF_STEP).ceil() * _HALF_STEP
    return torch.where(scale_N.abs() < _HALF_NORMAL, up_N.copysign(scale_N), scale_N).half()


def _best_line(u_NS: Tensor, weight_NS: Tensor | None, levels: _Levels, *, affine: bool) -> tuple[Tensor, Tensor]:
    """Slope and offset of the line from levels to `u` that leaves the least (weighted) squared error."""
    fit = _Fit(u_NS, weight_NS, affine=affine)
    slope_N, offset_N = torch.zeros(len(u_NS)), torch.zeros(len(u_NS))
    most_N = torch.full((len(u_NS),), -1.0)
    level_NS = torch.empty_like(u_NS)
    for factor, shift in levels.layouts:
        torch.mul(u_NS, factor, out=level_NS).add_(shift) if shift else torch.mul(u_NS, factor, out=level_NS)
        gain_N, new_N, base_N = fit.line(level_NS.round_().clamp_(levels.low, levels.high))
        better_N = gain_N > most_N  # false for NaN: all levels are one
        slope_N, offset_N = torch.where(better_N, new_N, slope_N), torch.where(better_N, base_N, offset_N)
        most_N = torch.where(better_N, gain_N, most_N)
    # levels and line fitted to each other once more
    inverse_N = torch.where(slope_N == 0, 0.0, 1 / slope_N)
    torch.sub(u_NS, offset_N[:, None], out=level_NS).mul_(inverse_N[:, None])
    gain_N, new_N, base_N = fit.line(level_NS.round_().clamp_(levels.low, levels.high))
    better_N = gain_N > most_N
    return torch.where(better_N, new_N, slope_N), torch.where(better_N, base_N, offset_N)


class _Fit:
    """Least squares of lines through levels, for groups whose values `u_NS` stay."""

    def __init__(self, u_NS: Tensor, weight_NS: Tensor | None, *, affine: bool) -> None:
        self._weight_NS, self._affine = weight_NS, affine
        self._v_NS = u_NS if weight_NS is None else u_NS * weight_NS
        self._product_NS = torch.empty_like(u_NS)
        if affine:
            ones_NS = torch.ones(()).expand(u_NS.shape) if weight_NS is None else weight_NS
            self._total_N = ones_NS.sum(1)
            self._mean_N = self._v_NS.sum(1) / self._total_N
            self._v_NS = self._v_NS - self._mean_N[:, None] * ones_NS

    def line(self, level_NS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the best line takes off the squared error, its slope, its offset; NaN where all levels are one."""
        weighted_NS = level_NS if self._weight_NS is None else level_NS * self._weight_NS
        product_N = self._dot(self._v_NS, level_NS)
        square_N = self._dot(weighted_NS, level_NS)
        if not self._affine:
            slope_N = product_N / square_N
            return slope_N * product_N, slope_N, torch.zeros_like(slope_N)
        sum_N = weighted_NS.sum(1)
        slope_N = product_N / (square_N - sum_N.square() / self._total_N)
        return slope_N * product_N, slope_N, self._mean_N - slope_N * sum_N / self._total_N

    def _dot(self, a_NS: Tensor, b_NS: Tensor) -> Tensor:
        return torch.mul(a_NS, b_NS, out=self._product_NS).sum(1)
