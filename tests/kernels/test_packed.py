"""Packed weights, byte by byte: what `pack` writes is read by a plain loop over the documented layout."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.errors import WeightsError
from tenth.kernels.packed import PackedExpert, PackedExpertTable, PackedFormat, PackedWeight, pack
from tests.kernels.packed import drawn_weight, read_slowly

FORMATS = [
    *(f"int{bits}-g{group}{tail}" for bits in (4, 8) for group in (32, 64, 128) for tail in ("", "-min")),
    *("int4-g32-k-min", "int8-g16-k", "int4-g32-k", "int8-g64-k-min", "int4-g16-s4", "bf16", "fp32"),
]


@pytest.mark.parametrize("name", FORMATS)
def test_names(name: str) -> None:
    assert PackedFormat.parse(name).name == name


@pytest.mark.parametrize(
    "name", ["", "int4", "int4-g48", "int5-g32", "int4-g32-min-k", "int4-g999", "int4-g032", "fp16"]
)
def test_wrong_names(name: str) -> None:
    with pytest.raises(WeightsError, match="no packed format is named"):
        PackedFormat.parse(name)


@pytest.mark.parametrize("fields", [(3, 32), (4,), (16, 32), (32, 0, True), (8, 48), (16, 0, False, True)])
def test_formats_that_do_not_exist(fields: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match="no packed format has"):
        PackedFormat(*fields)


def test_sizes_by_hand() -> None:
    """16 rows of 256 columns: 2048 bytes of nibbles; 8 groups of 16 float16; and so on."""
    sizes = {
        "int4-g32": (2048 + 256, 4.5),
        "int4-g32-min": (2048 + 256 + 256, 5.0),
        "int4-g32-k-min": (2048 + (64 + 128) * 2, 4.75),
        "int8-g32": (4096 + 256, 8.5),
        "int8-g16-k": (4096 + 64 + 256, 8.625),
        "bf16": (8192, 16.0),
        "fp32": (16384, 32.0),
    }
    for name, (size, bits) in sizes.items():
        form = PackedFormat.parse(name)
        assert (form.tile_bytes(256), form.bits_per_weight(256)) == (size, bits), name
        assert form.bytes_of(17, 256) == 2 * size
    assert PackedFormat.parse("int4-g32").tile_bytes(1) == 256 + 64  # one group of 32 bytes, padded


@given(columns=st.integers(1, 5000), group=st.sampled_from([32, 64, 128]))
def test_a_group_that_does_not_divide_is_halved(columns: int, group: int) -> None:
    form = PackedFormat(4, group).fitted(columns)
    assert form.fits(columns)
    assert form.group == max(g for g in (32, 64, 128) if g <= group and form.padded(columns) % g == 0)


@pytest.mark.parametrize(("name", "columns"), [("int4-g64", 96), ("int4-g32-k", 288), ("int8-g128-min", 64)])
def test_a_format_that_does_not_fit_says_so(name: str, columns: int) -> None:
    with pytest.raises(WeightsError, match=f"{name} does not divide a width of {columns}"):
        PackedFormat.parse(name).tile_bytes(columns)


@given(name=st.sampled_from(FORMATS), rows=st.integers(1, 50), columns=st.integers(1, 150), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=150)
def test_values_are_those_of_the_documented_bytes(name: str, rows: int, columns: int, seed: int) -> None:
    form = PackedFormat.parse(name)
    form = form if form.superblock else form.fitted(columns)
    columns = 256 * (1 + columns % 2) if form.superblock and form.step_bits == 8 else columns
    rows = 1 + rows % 20 if form.superblock else rows
    if not form.fits(columns):
        return
    weight = drawn_weight(form, rows, columns, seed)
    assert weight.data_B.shape == (form.bytes_of(rows, columns),)
    assert weight.nbytes == form.bytes_of(rows, columns)
    expected = torch.tensor(read_slowly(weight.data_B.numpy().tobytes(), form, rows, columns))
    assert weight.dense().dtype == torch.float32
    assert torch.equal(weight.dense(), expected)
    ids = torch.randint(rows, (2, 3), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(weight.rows(ids), expected[ids])


@pytest.mark.parametrize("name", FORMATS)
def test_padding_is_zero_bytes(name: str) -> None:
    """The last tile is filled with zero rows: clearing what belongs to row 16 of 17 leaves nothing in it."""
    form = PackedFormat.parse(name)
    data_TB = drawn_weight(form, 17, 256, 1).data_B.view(2, -1)
    assert data_TB[1].any()
    at = form.segments(256)
    widths = (4, 2, 1, 2, 1)
    for start, end, width in zip(at[:-1], at[1:], widths, strict=True):
        lanes = data_TB[1, start:end].view(-1, width)
        lanes[::16] = 0
    assert not data_TB[1].any()


def test_quants_survive_in_slabs() -> None:
    """A matrix of several slabs, with an odd number of rows."""
    form = PackedFormat(4, 32)
    generator = torch.Generator().manual_seed(0)
    quants = torch.randint(16, (1111, 2016), dtype=torch.uint8, generator=generator)
    data = pack(form, quants, scales=torch.ones(1111, 63))
    assert torch.equal(PackedWeight(data, 1111, 2016, form).dense(), quants.float() - 8)


def test_floats_keep_their_bits() -> None:
    values = torch.tensor([[1.0, -0.0, float("inf"), 3e-41, 1e38, -1.5]])
    for name in ("fp32", "bf16"):
        form = PackedFormat.parse(name)
        dense = PackedWeight(pack(form, values), 1, 6, form).dense()
        assert dense.numpy().tobytes() == (values if name == "fp32" else values.bfloat16().float()).numpy().tobytes()


def test_a_unit_by_hand() -> None:
    quants = torch.arange(32, dtype=torch.uint8)[None] % 16
    data = pack(PackedFormat(4, 32), quants, scales=torch.tensor([[0.5]])).numpy().tobytes()
    assert data[:4] == bytes([0x40, 0x51, 0x62, 0x73])  # columns 0 to 3 low, 4 to 7 high
    assert data[4:64] == bytes(60)
    assert data[64:68] == bytes([0xC8, 0xD9, 0xEA, 0xFB])
    assert data[256:258] == struct.pack("<e", 0.5)
    assert len(data) == 256 + 64


def test_experts_lie_one_behind_the_other() -> None:
    formats = [PackedFormat.parse(name) for name in ("int4-g32", "int8-g32-min", "bf16")]
    shapes = [(40, 64), (40, 64), (64, 40)]
    parts = [drawn_weight(form, *shape, seed) for seed, (form, shape) in enumerate(zip(formats, shapes, strict=True))]
    expert = PackedExpert.of(torch.cat([part.data_B for part in parts]), formats, 64, 40)
    table = PackedExpertTable([expert, PackedExpert(*parts)])
    assert (table.num_experts, table.hidden_size, table.intermediate_size) == (2, 64, 40)
    assert table.nbytes == 2 * sum(part.nbytes for part in parts)
    for index in range(2):
        w13, w2 = table.expert(index)
        assert torch.equal(w13, torch.cat((parts[0].dense(), parts[1].dense())))
        assert torch.equal(w2, parts[2].dense())
