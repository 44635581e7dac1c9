"""Learning rates at steps that can be counted by hand; places of steps."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenth.train.recipe import StageOptions
from tenth.train.schedule import Place, rate, settled


def _rates(**options: object) -> list[float]:
    stage = StageOptions(**{"steps": 10, "length": 8, "rows": 1, **options})
    return [rate(step, stage) for step in range(stage.total_steps)]


def test_constant() -> None:
    assert _rates(schedule="constant", warmup=4) == [0.25, 0.5, 0.75] + [1.0] * 7


def test_linear() -> None:
    expected = [0.5, 1.0] + [1 - 0.8 * n / 8 for n in range(1, 9)]
    assert _rates(schedule="linear", warmup=2, final=0.2) == pytest.approx(expected)


def test_cosine() -> None:
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * n / 10)) / 2 for n in range(1, 11)]
    assert _rates(schedule="cosine") == pytest.approx(expected)
    assert expected[-1] == pytest.approx(0.1)


def test_wsd() -> None:
    expected = [0.5, 1.0] + [1.0] * 4 + [0.75, 0.5, 0.25, 0.0]
    assert _rates(schedule="wsd", warmup=2, decay=0.4, final=0.0) == pytest.approx(expected)


def test_a_stage_scales_all_of_it() -> None:
    assert _rates(schedule="linear", lr_scale=0.3) == pytest.approx([0.3 * r for r in _rates(schedule="linear")])


@given(
    st.sampled_from(["constant", "cosine", "linear", "wsd"]),
    st.integers(1, 200),
    st.data(),
    st.floats(0, 1),
    st.floats(0.01, 1),
)
def test_rises_then_falls_to_the_end(kind: str, steps: int, data: st.DataObject, final: float, decay: float) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    options = {**({} if kind == "constant" else {"final": final}), **({"decay": decay} if kind == "wsd" else {})}
    rates = _rates(schedule=kind, steps=steps, warmup=warmup, **options)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert all(0 <= r <= 1 for r in rates)
    assert rates[-1] == pytest.approx(1.0 if kind == "constant" else final)


def test_places() -> None:
    stages = [StageOptions(steps=3, length=8), StageOptions(steps=2, length=8)]
    assert settled(Place(0, 2), stages) == Place(0, 2)
    assert settled(Place(0, 3), stages) == Place(1, 0)
    assert settled(Place(1, 2), stages) is None
    assert settled(Place(0, 3), [StageOptions(steps=5, length=8), stages[1]]) == Place(0, 3)  # the stage got longer
