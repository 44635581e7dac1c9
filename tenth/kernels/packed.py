"""Packed weights: few bits a weight, in the one interleave that every kernel reads. `docs/packed.md` draws it.

O outputs (rows), I inputs (columns), G groups of columns, S superblocks of 256 columns, P padded columns, N rows at
hand, T tiles of 16 rows, R rows of a tile, U units: a row's bytes in runs of four, which hold 8, 4, 2 or 1 columns,
X entries of a row in any part; D model width, F expert width.

A tile holds 16 rows. Its bytes are segments, each padded to 64: the quants, the units of its 16 rows side by
side; scales (float16; by superblock, then an int8 step by group, where the format has superblocks); minimums likewise.
Padding is zero bytes, and no kernel may depend on what a padding column would be worth.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenth.errors import WeightsError
from tenth.kernels.weight import ExpertTable, Weight

TILE_ROWS = 16
"""Rows of a tile: the lanes of an AVX-512 register of 4-byte elements."""

SUPERBLOCK = 256
"""Columns that share one float16 scale where groups have steps of it."""

_ALIGN = 64
_COLUMNS = 32  # a width is padded to a multiple of this
_GROUPS = (32, 64, 128)
_SLAB = 1 << 18  # weights packed at a time: what is between stays within a core's cache
_NAME = re.compile(r"int([48])-g(16|32|64|128)(-k|-s4)?(-min)?")
_FLOATS = {"bf16": 16, "fp32": 32}


class Segments(NamedTuple):
    """Offsets in a tile of the parts of a format (an absent part is empty), and the tile's bytes: `end`."""

    quants: int
    scales: int
    group_scales: int
    minimums: int
    group_minimums: int
    end: int


@dataclass(frozen=True, slots=True)
class PackedFormat:
    """How a matrix's weights are held.

    `bits` 4 and 8 are unsigned quants q in groups of `group` columns, each with a scale: the value is
    `scale * (q - 8)` or `scale * (q - 128)`, with `minimums` it is `scale * q + minimum`. With `superblock` a scale is
    `d * step`, a minimum `-dmin * step`: float16 d and dmin for 256 columns, an int8 step for the group. With
    `step_bits` 4 (4 bits in groups of 16, without minimums) the steps are -8 to 7: the products of a superblock are
    whole numbers of one byte, which kernels may sum in any way. 16 is bfloat16 and 32 float32, without groups.
    WeightsError for a combination that does not exist.
    """

    bits: int
    group: int = 0
    minimums: bool = False
    superblock: bool = False
    step_bits: int = 8

    def __post_init__(self) -> None:
        rest = (self.group, self.minimums, self.superblock)
        if self.bits in _FLOATS.values():
            known = not any(rest) and self.step_bits == 8
        elif self.step_bits == 8:
            known = (self.bits in (4, 8) and self.group in _GROUPS) or (self.bits, *rest) == (8, 16, False, True)
        else:
            known = (self.step_bits, self.bits, *rest) == (4, 4, 16, False, True)
        if not known:
            raise WeightsError(
                f"no packed format has {self.bits} bits in groups of {self.group}: there are 4 and 8 bits "
                f"in groups of {', '.join(map(str, _GROUPS))}, and 16 and 32 without groups"
            )

    @property
    def name(self) -> str:
        """`int4-g32`, `int4-g32-min`, `int4-g32-k-min`, `int8-g16-k`, `bf16`, `fp32` and their like."""
        for name, bits in _FLOATS.items():
            if bits == self.bits:
                return name
        steps = "" if not self.superblock else "-k" if self.step_bits == 8 else "-s4"
        return f"int{self.bits}-g{self.group}{steps}{'-min' if self.minimums else ''}"

    @classmethod
    def parse(cls, name: str) -> PackedFormat:
        """The format of a name; WeightsError where there is none."""
        return _parsed(name)

    @property
    def zero(self) -> int:
        """The quant that stands for 0 where there are no minimums."""
        return 0 if self.minimums or not self.group else 1 << (self.bits - 1)

    def padded(self, columns: int) -> int:
        """The columns that are stored: a multiple of 32."""
        return -(-columns // _COLUMNS) * _COLUMNS

    def fitted(self, columns: int) -> PackedFormat:
        """The same with the group halved until it divides the padded width: 32 always does."""
        group = self.group
        while group > _COLUMNS and self.padded(columns) % group:
            group //= 2
        return replace(self, group=group)

    def fits(self, columns: int) -> bool:
        """Whether groups divide the padded width, and superblocks the width."""
        if self.superblock and self.step_bits == 8 and columns % SUPERBLOCK:
            return False
        return not self.group or self.padded(columns) % self.group == 0

    def groups(self, columns: int) -> int:
        """Groups in a row: 0 where the format has none."""
        return self.padded(columns) // self.group if self.group else 0

    def shared(self, columns: int) -> int:
        """Float16 scales of a row: one a superblock (the last may be short) or a group."""
        return -(-self.padded(columns) // SUPERBLOCK) if self.superblock else self.groups(columns)

    def segments(self, columns: int) -> Segments:
        """Where a tile's parts begin. WeightsError where the width does not fit the format."""
        return _segments(self, columns)

    def tile_bytes(self, columns: int) -> int:
        """Bytes of 16 rows: a multiple of 64."""
        return self.segments(columns).end

    def bytes_of(self, rows: int, columns: int) -> int:
        """Bytes of a matrix: whole tiles."""
        return tiles_of(rows) * self.tile_bytes(columns)

    def bits_per_weight(self, columns: int) -> float:
        """Bits of a stored weight with its share of scales, minimums and padding columns."""
        return self.tile_bytes(columns) * 8 / (TILE_ROWS * columns)


def tiles_of(rows: int) -> int:
    """Tiles that hold so many rows."""
    return -(-rows // TILE_ROWS)


# a sparse model has thousands of matrices in a handful of forms
@lru_cache(maxsize=256)
def _parsed(name: str) -> PackedFormat:
    if name in _FLOATS:
        return PackedFormat(_FLOATS[name])
    match = _NAME.fullmatch(name)
    if match is None:
        raise WeightsError(f"no packed format is named {name[:40]!r}: int4-g32, int8-g64-min or bf16 would be one")
    step_bits = 4 if match[3] == "-s4" else 8
    return PackedFormat(int(match[1]), int(match[2]), match[4] is not None, match[3] is not None, step_bits)


@lru_cache(maxsize=1024)
def _segments(form: PackedFormat, columns: int) -> Segments:
    if columns < 1 or not form.fits(columns):
        raise WeightsError(f"{form.name} does not divide a width of {columns}")
    groups = form.groups(columns)
    shared = TILE_ROWS * 2 * form.shared(columns)
    steps = TILE_ROWS * groups * form.step_bits // 8 if form.superblock else 0
    sizes = [form.padded(columns) * TILE_ROWS * form.bits // 8, shared, steps]
    sizes += [shared, steps] if form.minimums else [0, 0]
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // _ALIGN) * _ALIGN)
    return Segments(*offsets)


@torch.no_grad()
def pack(
    form: PackedFormat,
    values_OI: Tensor,
    *,
    scales: Tensor | None = None,
    minimums: Tensor | None = None,
    group_scales_OG: Tensor | None = None,
    group_minimums_OG: Tensor | None = None,
) -> Tensor:
    """A matrix in its packed bytes (uint8, 1-D).

    `values_OI` are uint8 quants for 4 and 8 bits, else floats. `scales` and `minimums` are (O, G), or (O, S) where the
    format has superblocks; then `group_scales_OG` and `group_minimums_OG` are the int8 steps.
    """
    rows, columns = values_OI.shape
    at = form.segments(columns)
    given = (scales, group_scales_OG, minimums, group_minimums_OG)
    wanted = (form.group > 0, form.superblock, form.minimums, form.minimums and form.superblock)
    assert tuple(part is not None for part in given) == wanted, f"{form.name} has other parts"
    assert not form.group or values_OI.dtype == torch.uint8, "quants are bytes"
    data_TB = np.empty((tiles_of(rows), at.end), np.uint8)
    tiles = max(_SLAB // (TILE_ROWS * form.padded(columns)), 1)
    for first in range(0, len(data_TB), tiles):
        span = slice(first * TILE_ROWS, (first + tiles) * TILE_ROWS)
        _fill(data_TB[first : first + tiles, : at.scales], _units(form, values_OI[span]))
    kinds = (torch.float16, torch.int8) * 2
    for part, kind, start, end in zip(given, kinds, at[1:], at[2:], strict=False):
        if part is not None:
            assert len(part) == rows, "a row of scales for every row"
            if form.step_bits == 4 and kind == torch.int8:  # of two groups, the first in the low half of a byte
                part = (part[:, 0::2] & 15) | (part[:, 1::2] << 4)
            _fill(data_TB[:, start:end], part.to(kind).numpy())
    return torch.from_numpy(data_TB).flatten()


# The shuffling is numpy's: torch would cut each slab among its threads, which wait for each other where cores are busy.


def _units(form: PackedFormat, values_NI: Tensor) -> NDArray[Any]:
    """Rows as int32 units, padded with zeros to whole tiles and 32 columns."""
    if form.bits == 16:
        values_NI = values_NI.to(torch.bfloat16).view(torch.int16)  # numpy has no bfloat16
    elif form.bits == 32:
        values_NI = values_NI.to(torch.float32)
    rows, columns = values_NI.shape
    padded_NP = np.ascontiguousarray(values_NI.numpy())
    shape = (tiles_of(rows) * TILE_ROWS, form.padded(columns))
    if shape != (rows, columns):
        padded_NP = np.zeros(shape, padded_NP.dtype)
        padded_NP[:rows, :columns] = values_NI.numpy()
    units = padded_NP.view(np.int32)
    # a unit of eight nibbles: columns 0 to 3 in the low halves of its bytes, 4 to 7 in the high ones
    return units[:, 0::2] | (units[:, 1::2] << 4) if form.bits == 4 else units


def _fill(segment_TB: NDArray[np.uint8], part_NX: NDArray[Any]) -> None:
    """Lay a part's rows side by side in their tiles' segment, zeros behind."""
    count = part_NX.shape[1]
    elements = segment_TB.view(part_NX.dtype)
    elements[:, count * TILE_ROWS :] = 0
    lanes_TXR = elements[:, : count * TILE_ROWS].reshape(-1, count, TILE_ROWS)
    full, rest = divmod(len(part_NX), TILE_ROWS)
    lanes_TXR[:full] = part_NX[: full * TILE_ROWS].reshape(full, TILE_ROWS, count).swapaxes(1, 2)
    if rest:
        lanes_TXR[full, :, :rest] = part_NX[full * TILE_ROWS :].T
        lanes_TXR[full, :, rest:] = 0


class PackedWeight(Weight):
    """A matrix in packed bytes: `data_B` is uint8, 1-D, often a view of a mapped file; it is no parameter."""

    def __init__(self, data_B: Tensor, out_features: int, in_features: int, form: PackedFormat) -> None:
        super().__init__()
        assert data_B.dtype == torch.uint8
        assert data_B.shape == (form.bytes_of(out_features, in_features),), "bytes of another shape or format"
        self.data_B, self.format = data_B, form
        self.out_features, self.in_features = out_features, in_features

    def rows(self, ids: Tensor) -> Tensor:
        """The named rows (..., I), float32."""
        flat_N = ids.flatten()
        tile_N, lane_N = flat_N // TILE_ROWS, flat_N % TILE_ROWS
        parts = [part[tile_N, :, lane_N] for part in self._parts()]
        return self._values(parts).view(*ids.shape, self.in_features)

    def dense(self) -> Tensor:
        """All of it (O, I), float32."""
        parts = [part.transpose(1, 2).flatten(0, 1)[: self.out_features] for part in self._parts()]
        return self._values(parts)

    @property
    def nbytes(self) -> int:
        """Bytes that hold it."""
        return self.data_B.nbytes

    def _parts(self) -> list[Tensor]:
        """Views T, X, 16 of the parts that the format has: units, then scales and minimums, each with their steps."""
        form, columns = self.format, self.in_features
        at = form.segments(columns)
        data_TB = self.data_B.view(-1, at.end)
        groups = form.groups(columns)
        shared, steps = form.shared(columns), groups * form.step_bits // 8
        counts = (form.padded(columns) * form.bits // 32, shared, steps, shared, steps)
        kinds = (torch.int32, torch.float16, torch.int8, torch.float16, torch.int8)
        parts = []
        for start, end, count, kind in zip(at[:-1], at[1:], counts, kinds, strict=True):
            if end > start:
                segment = data_TB[:, start:end].view(kind)
                parts.append(segment[:, : count * TILE_ROWS].view(-1, count, TILE_ROWS))
        return parts

    def _values(self, parts: Sequence[Tensor]) -> Tensor:
        """Values (N, I) of rows whose parts are (N, X)."""
        form, units_NU = self.format, parts[0].contiguous()
        if not form.group:
            kind = torch.bfloat16 if form.bits == 16 else torch.float32
            return units_NU.view(kind)[:, : self.in_features].float()
        if form.bits == 4:
            units_NU = torch.stack((units_NU & 0x0F0F0F0F, (units_NU >> 4) & 0x0F0F0F0F), -1).flatten(1)
        quants_NGX = units_NU.view(torch.uint8).view(len(units_NU), -1, form.group)
        values_NGX = quants_NGX.float() - form.zero
        terms = [self._groupwise(*pair) for pair in _pairs(parts[1:], 2 if form.superblock else 1)]
        values_NGX *= terms[0][..., None]
        if form.minimums:
            # a superblock's minimum is stored as what is taken away
            values_NGX += terms[1][..., None] * (-1.0 if form.superblock else 1.0)
        values_NI: Tensor = values_NGX.flatten(1)[:, : self.in_features]
        return values_NI

    def _groupwise(self, shared: Tensor, steps_NG: Tensor | None = None) -> Tensor:
        """Float32 scales or minimums (N, G); exact: 11 bits times 8."""
        if steps_NG is None:
            return shared.float()
        if self.format.step_bits == 4:  # of two groups, the first in the low half of a byte
            steps_NG = torch.stack((steps_NG << 4 >> 4, steps_NG >> 4), -1).flatten(1)
        shared_NG = shared.float().repeat_interleave(SUPERBLOCK // self.format.group, 1)
        return shared_NG[:, : steps_NG.shape[1]] * steps_NG.float()


def _pairs(parts: Sequence[Tensor], size: int) -> list[Sequence[Tensor]]:
    return [parts[at : at + size] for at in range(0, len(parts), size)]


class PackedExpert:
    """One SwiGLU expert: `gate` and `up` (F, D) and `down` (D, F), which may differ in format."""

    __slots__ = ("down", "gate", "up")

    def __init__(self, gate: PackedWeight, up: PackedWeight, down: PackedWeight) -> None:
        self.gate, self.up, self.down = gate, up, down

    @classmethod
    def of(cls, data_B: Tensor, formats: Sequence[PackedFormat], hidden: int, intermediate: int) -> PackedExpert:
        """The three matrices that lie one behind the other in `data_B`, in the formats of gate, up and down."""
        shapes = ((intermediate, hidden), (intermediate, hidden), (hidden, intermediate))
        sizes = [form.bytes_of(*shape) for form, shape in zip(formats, shapes, strict=True)]
        parts = torch.split(data_B, sizes)
        return cls(*(PackedWeight(*part) for part in zip(parts, *zip(*shapes, strict=True), formats, strict=True)))

    @property
    def nbytes(self) -> int:
        """Bytes that hold it."""
        return self.gate.nbytes + self.up.nbytes + self.down.nbytes


class PackedExpertTable(ExpertTable):
    """The packed experts of one layer; each may have formats of its own."""

    def __init__(self, experts: Sequence[PackedExpert]) -> None:
        super().__init__()
        self.experts = tuple(experts)
        first = self.experts[0]
        self.num_experts = len(self.experts)
        self.hidden_size, self.intermediate_size = first.gate.in_features, first.gate.out_features
        for expert in self.experts:
            shapes = [(part.out_features, part.in_features) for part in (expert.gate, expert.up, expert.down)]
            inner = (self.intermediate_size, self.hidden_size)
            assert shapes == [inner, inner, inner[::-1]], "experts of one layer have one shape"

    def expert(self, index: int) -> tuple[Tensor, Tensor]:
        """One expert dense, in float32: gate over up (2F, D), and down (D, F)."""
        one = self.experts[index]
        return torch.cat((one.gate.dense(), one.up.dense())), one.down.dense()

    @property
    def nbytes(self) -> int:
        """Bytes that hold it."""
        return sum(expert.nbytes for expert in self.experts)
