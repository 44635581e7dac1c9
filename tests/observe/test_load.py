"""Loads by a clock of their own: every figure against what it must be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tenth.engine.engine import Engine
from tenth.engine.scheduler import SchedulerOptions
from tenth.errors import RequestError
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.observe import load
from tenth.observe.load import LoadReport, LoadSettings, Spread, measure_load


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    return initialise(Decoder(preset("tiny-moe"), dtype=torch.float32), seed=1).requires_grad_(False)


@contextmanager
def clocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A step takes a second; sleeping takes what it says."""
    now, step = [0.0], Engine.step

    def one_second(engine: Engine) -> bool:
        now[0] += 1
        return step(engine)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", one_second)
        patch.setattr(load.time, "sleep", sleep)
        yield now


def measured(tiny: Decoder, monkeypatch: pytest.MonkeyPatch, settings: LoadSettings) -> LoadReport:
    with clocked(monkeypatch) as now:
        return measure_load(tiny, settings, SchedulerOptions(wait=0), clock=lambda: now[0])


def test_so_many_at_a_time(tiny: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    report = measured(tiny, monkeypatch, LoadSettings(4, 5, 7, concurrency=2))
    assert report.seconds == 4 * 5  # pairs, the last one alone
    assert (report.tok_s, report.prompt_tok_s) == (7 * 5 / 20, 7 * 4 / 20)
    assert report.first_token == report.between_tokens == Spread(1, 1, 1)
    assert report.whole == Spread(5, 5, 5)


def test_as_they_arrive(tiny: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seldom = measured(tiny, monkeypatch, LoadSettings(4, 5, 20, rate=0.001))
    assert 5000 < seldom.seconds < 80_000
    assert seldom.whole.p50 == pytest.approx(5)  # alone, from when it was due
    often = measured(tiny, monkeypatch, LoadSettings(4, 5, 20, rate=2.0))
    # due between two steps: it waits for the next one
    assert 1 < often.first_token.p50 < 2
    assert often.between_tokens == Spread(1, 1, 1)


def test_spread() -> None:
    assert Spread.of(range(1, 201)) == Spread(100, 180, 198)
    assert Spread.of([3.0]) == Spread(3, 3, 3)


def test_refusals(tiny: Decoder) -> None:
    with pytest.raises(RequestError, match="either a concurrency or a rate"):
        LoadSettings(1, 1, 1)
    with pytest.raises(RequestError, match="prompt is 0"):
        LoadSettings(0, 1, 1, concurrency=1)
    with pytest.raises(RequestError, match="context"):
        measure_load(tiny, LoadSettings(10**6, 1, 1, concurrency=1))


def test_requests_that_fail_are_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = initialise(Decoder(preset("tiny-moe"), dtype=torch.float32), seed=1).requires_grad_(False)
    next(iter(broken.parameters())).fill_(float("nan"))
    with pytest.raises(RequestError, match="logits are not numbers"):
        measured(broken, monkeypatch, LoadSettings(4, 5, 3, concurrency=2, warmup=0))
