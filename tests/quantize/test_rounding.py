"""Rounding to nearest: less error than ggml's types at the same bits, and no value that it does not survive."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.errors import TensorError
from tenth.kernels.packed import PackedFormat, PackedWeight
from tenth.quantize import rounding
from tenth.quantize.rounding import Rounded, round_to_nearest
from tenth.weights.gguf import GgufFile

FORMATS = [f"int{bits}-g{group}{minimums}" for bits in (4, 8) for group in (32, 64, 128) for minimums in ("", "-min")]


def rounded(values: torch.Tensor, name: str, **options: torch.Tensor) -> Rounded:
    return round_to_nearest(values, PackedFormat.parse(name).fitted(values.shape[1]), "the tensor", **options)


def dense(one: Rounded) -> torch.Tensor:
    """Read back from the packed bytes."""
    return PackedWeight(one.packed(), *one.quants_OI.shape, one.form).dense()


def by_ggml(values: torch.Tensor, kind: str) -> torch.Tensor:
    form = gguf.GGMLQuantizationType[kind]
    with np.errstate(all="ignore"):
        back = gguf.quants.dequantize(gguf.quants.quantize(values.numpy(), form), form)
    return torch.from_numpy(back.copy())


def drawn(kind: str, smollm2: Path) -> torch.Tensor:
    """1,024 rows of 1,536 values; real ones are turned, because the file's own lie on a grid."""
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(1024, 1536, generator=generator)
    if kind == "gaussian":
        return normal * 0.02
    if kind == "heavy-tailed":  # Student's t of three degrees of freedom
        squares = torch.randn(3, 1024, 1536, generator=generator).square().mean(0)
        return normal / squares.sqrt() * 0.02
    with GgufFile(smollm2) as file:
        gate, up = (file.read(f"blk.11.ffn_{part}.weight") for part in ("gate", "up"))
    turn = torch.linalg.qr(torch.randn(1536, 1536, generator=generator)).Q
    return (torch.cat((gate, up)).T @ torch.cat((turn, turn)) / math.sqrt(2))[:, :1536].contiguous()


@pytest.mark.parametrize("kind", ["gaussian", "heavy-tailed", "real"])
@pytest.mark.parametrize(
    ("name", "theirs", "share"),
    [("int4-g32", "Q4_0", 0.95), ("int4-g32-min", "Q4_1", 0.85), ("int8-g32", "Q8_0", 0.88)],
)
def test_less_error_than_ggml_at_the_same_bits(kind: str, name: str, theirs: str, share: float, smollm2: Path) -> None:
    values = drawn(kind, smollm2)
    errors = [(back - values).square().sum() for back in (dense(rounded(values, name)), by_ggml(values, theirs))]
    assert errors[0] < share * errors[1]


@pytest.mark.parametrize("kind", ["gaussian", "heavy-tailed"])
def test_no_group_errs_more_than_in_q4_0(kind: str, smollm2: Path) -> None:
    values = drawn(kind, smollm2)
    ours, theirs = (
        (back - values).square().view(-1, 32).sum(1)
        for back in (dense(rounded(values, "int4-g32")), by_ggml(values, "Q4_0"))
    )
    assert bool((ours <= theirs * 1.01).all())  # a percent for the rounding of scales to float16
    assert (ours < theirs * 0.999).float().mean() > 0.9


@pytest.mark.parametrize(
    ("name", "factor"),
    [("int4-g32", 1.01), ("int4-g128", 1.01), ("int4-g32-min", 1.04), ("int8-g32", 1.04), ("int8-g32-min", 1.12)],
)
def test_the_search_is_near_the_best_of_300_layouts(name: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(256, 1024, generator=torch.Generator().manual_seed(5))
    found = rounded(values, name).error
    form = PackedFormat.parse(name)
    own = rounding._LEVELS[form.bits, form.minimums]
    levels = own.high if form.minimums else math.copysign(own.high, own.layouts[0][0])
    parts = (0.0, 0.25, 0.5, 0.75, 1.0) if form.minimums else (0.0,)
    spread = [levels * (0.85 + 0.6 * step * len(parts) / 300) for step in range(300 // len(parts))]
    layouts = [(f, (own.high - f) * part) for f in spread for part in parts]
    monkeypatch.setitem(rounding._LEVELS, (form.bits, form.minimums), own._replace(layouts=layouts))
    assert rounded(values, name).error <= found * 1.001
    assert found <= factor * rounded(values, name).error


@pytest.mark.parametrize("name", FORMATS)
@given(rows=st.integers(1, 40), columns=st.integers(1, 200), scale=st.floats(-6, 3), seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=25)
def test_any_shape_and_size(name: str, rows: int, columns: int, scale: float, seed: int) -> None:
    """Errors stay below half a step (a whole one at the end that has no extra level), and are counted right."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10**scale
    one = rounded(values, name)
    back = dense(one)
    assert back.shape == values.shape
    form = one.form
    padded = torch.nn.functional.pad(values, (0, form.padded(columns) - columns)).view(rows, -1, form.group)
    reach = (padded.amax(2) - padded.amin(2) if form.minimums else padded.abs().amax(2)).clamp_min(1e-6)
    lost = torch.nn.functional.pad(values - back, (0, form.padded(columns) - columns)).view(padded.shape)
    steps = 15 if form.minimums else 7.0
    steps = steps if form.bits == 4 else 15.0  # 8 bits clip less
    assert bool((lost.square().mean(2).sqrt() <= reach / steps + 1e-3 * padded.abs().amax(2)).all())
    assert one.error == pytest.approx(float((values - back).square().sum()), rel=1e-3, abs=1e-12)
    assert one.power == pytest.approx(float(values.square().sum()), rel=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_are_exact_and_alone(name: str) -> None:
    values = torch.randn(20, 256, generator=torch.Generator().manual_seed(1))
    group = PackedFormat.parse(name).group
    values[3], values[5, group : 2 * group] = 0, -0.0
    back = dense(rounded(values, name))
    assert torch.equal(back[3], torch.zeros(256))
    assert torch.equal(back[5, group : 2 * group], torch.zeros(group))
    assert bool((back[5, :group] != 0).any())
    nothing = rounded(torch.zeros(5, 64), name)
    assert (nothing.error, nothing.power) == (0, 0)
    assert torch.equal(dense(nothing), torch.zeros(5, 64))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [1.0, -1.0, 0.0123291015625, -3.0, 448.0])
def test_one_value_among_zeros_and_a_constant_row(name: str, value: float) -> None:
    values = torch.zeros(2, 128)
    values[0, 77] = value
    values[1] = value
    # with a minimum, zero is a level of the line, off by the rounding of its scale
    off = abs(value) * 1e-3 if name.endswith("-min") else 0
    torch.testing.assert_close(dense(rounded(values, name)), values, rtol=2e-3, atol=off)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_by_name(name: str, bad: float) -> None:
    values = torch.randn(40, 70)
    values[39, 69] = bad
    with pytest.raises(TensorError, match="the tensor: holds a value that is not finite"):
        rounded(values, name)


@pytest.mark.parametrize("name", FORMATS)
def test_the_ends_of_float16(name: str) -> None:
    """Scales that float16 cannot hold are refused; the smallest there are round up, so that nothing is clipped."""
    form = PackedFormat.parse(name)
    shape = torch.linspace(-1, 1, 256).repeat(4, 1)
    large = 60_000.0 if form.minimums else 60_000.0 * (7 if form.bits == 4 else 120)
    back = dense(rounded(shape * large, name))
    assert float((back - shape * large).abs().max()) < large / 6
    for size in ("1e+10", "3e+38"):
        with pytest.raises(
            TensorError, match=rf"the tensor: holds values up to {size}, beyond what".replace("+", r"\+")
        ):
            rounded(shape * float(size), name)
    for size in (1e-3, 1e-5, 1e-6, 3e-7, 1e-7, 3e-8, 1e-8, 1e-12, 1e-38, 1e-44):
        back = dense(rounded(shape * size, name))
        assert bool(back.isfinite().all())
        step = max(size / (6 if form.bits == 4 else 100), 2.0**-24)
        assert float((back - shape * size).abs().max()) <= step * 1.01, size


def test_importance_moves_the_error_to_where_it_matters_least() -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(200, 256, generator=generator)
    importance = torch.rand(256, generator=generator).square() * 10
    importance[::7] = 0
    for name in ("int4-g32", "int4-g64-min", "int8-g32"):
        plain, weighted = dense(rounded(values, name)), dense(rounded(values, name, importance_I=importance))
        cost = [float(((back - values).square() * importance).sum()) for back in (plain, weighted)]
        assert cost[1] < 0.97 * cost[0], name
        assert torch.equal(dense(rounded(values, name, importance_I=torch.full((256,), 3.0))), plain)
        assert torch.equal(dense(rounded(values, name, importance_I=torch.zeros(256))), plain)


@pytest.mark.parametrize("name", ["int4-g32", "int8-g64-min"])
def test_a_row_does_not_depend_on_others_or_on_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(301, 320, generator=torch.Generator().manual_seed(4))
    whole = rounded(values, name)
    alone = rounded(values[17:18], name)
    assert torch.equal(alone.quants_OI[0], whole.quants_OI[17])
    assert torch.equal(alone.scales_OG[0], whole.scales_OG[17])
    monkeypatch.setattr(rounding, "_SLAB", 1000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(rounded(values, name).packed(), whole.packed())
    finally:
        torch.set_num_threads(before)


def test_types_of_the_source() -> None:
    values = torch.randn(30, 64, generator=torch.Generator().manual_seed(6)).bfloat16()
    packed = [
        rounded(values.to(dtype), "int4-g32").packed() for dtype in (torch.bfloat16, torch.float32, torch.float64)
    ]
    assert torch.equal(packed[0], packed[1])
    assert torch.equal(packed[0], packed[2])
