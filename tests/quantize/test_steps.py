"""Rounding to groups of 16 with integer steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.errors import TensorError
from tenth.kernels.packed import PackedFormat, PackedWeight
from tenth.quantize.rounding import round_to_nearest
from tenth.quantize.steps import round_in_steps

FORM = PackedFormat.parse("int4-g16-s4")


def _dense(values: torch.Tensor) -> torch.Tensor:
    return PackedWeight(round_in_steps(values, FORM, "w").packed(), *values.shape, FORM).dense()


def _error(rounded: torch.Tensor, values: torch.Tensor) -> float:
    return float((rounded - values).square().sum() / values.square().sum())


@pytest.mark.parametrize("tail", ["normal", "heavy"])
def test_fewer_bits_than_groups_of_32_and_less_error(tail: str) -> None:
    values = torch.randn(64, 768, generator=torch.Generator().manual_seed(1))
    values = values**3 if tail == "heavy" else values
    plain = round_to_nearest(values, PackedFormat(4, 32), "w")
    assert FORM.bits_per_weight(768) < PackedFormat(4, 32).bits_per_weight(768)
    assert _error(_dense(values), values) < 0.95 * plain.error / plain.power


@given(rows=st.integers(1, 5), columns=st.integers(1, 600), seed=st.integers(0, 999), power=st.sampled_from([-6, 0, 3]))
@settings(deadline=None, max_examples=60)
def test_any_width(rows: int, columns: int, seed: int, power: int) -> None:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    rounded = round_in_steps(values, FORM, "w")
    dense = PackedWeight(rounded.packed(), rows, columns, FORM).dense()
    if power > -6:  # there float16's own steps are felt
        assert _error(dense, values) < 0.012
    torch.testing.assert_close(float((dense - values).square().sum()), rounded.error, rtol=1e-3, atol=1e-12)


def test_values_on_the_grid_are_kept() -> None:
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(-8, 8, (4, 16, 16), generator=generator)
    levels[..., 0] = -8
    steps = torch.randint(1, 8, (4, 16, 1), generator=generator)
    steps[:, 0] = -8
    values = (levels * steps).float().flatten(1) * 0.25
    assert torch.equal(_dense(values), values)


def test_importance_moves_the_error_to_columns_that_count_less() -> None:
    values = torch.randn(64, 256, generator=torch.Generator().manual_seed(5))
    importance = torch.where(torch.arange(256) % 16 < 4, 100.0, 1.0)
    plain, led = (round_in_steps(values, FORM, "w", weight).packed() for weight in (None, importance))
    lost = [((PackedWeight(p, 64, 256, FORM).dense() - values).square() * importance).sum() for p in (plain, led)]
    assert lost[1] < 0.8 * lost[0]


def test_zeros_stay_zeros() -> None:
    values = torch.zeros(3, 300)
    values[1, 40] = 1.0
    dense = _dense(values)
    assert not dense[0].any()
    assert int((dense[1] != 0).sum()) == 1


@pytest.mark.parametrize(
    ("value", "what"), [(float("nan"), "not finite"), (float("inf"), "not finite"), (1e9, "4 bits in steps reach")]
)
def test_what_cannot_be_held(value: float, what: str) -> None:
    values = torch.ones(2, 64)
    values[1, 3] = value
    with pytest.raises(TensorError, match=f"^blk.0: holds .*{what}"):
        round_in_steps(values, FORM, "blk.0")
