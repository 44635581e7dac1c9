"""The failures that `bench/health_science.py` plants, and its sums."""

from __future__ import annotations

import math

import pytest
import torch

from tests.bench_scripts import script
from tests.observe.health_models import healthy_decoder, sparse, stacked

science = script("health_science")


def dice() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_area_under_the_roc() -> None:
    assert science.area([2, 3], [0, 1]) == 1
    assert science.area([0, 1], [0, 1]) == 0.5
    assert science.area([0, 0], [1]) == 0
    assert math.isnan(science.area([], [1]))


@pytest.mark.parametrize(("strength", "copies"), [(0.01, 1), (0.5, 4), (1.0, 7)])
def test_copies(strength: float, copies: int) -> None:
    decoder = healthy_decoder()
    before = stacked(decoder, 1)[0].clone()
    mlp = sparse(decoder, 1)
    with science.kept(mlp):
        science.plant("permuted", mlp, torch.randn(64, 64), strength, dice())
        changed = (stacked(decoder, 1)[0] != before).flatten(1).any(1)
        assert int(changed.sum()) == copies
        sums = stacked(decoder, 1)[0].sum((1, 2))
        assert sum(torch.isclose(sums, sums[e], rtol=1e-4).sum() == copies + 1 for e in range(8)) == copies + 1
    assert torch.equal(stacked(decoder, 1)[0], before)


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_driven_traffic(strength: float) -> None:
    mlp = sparse(healthy_decoder(), 1)
    x_ND = torch.randn(512, 64, generator=dice()) + 0.5

    few = torch.randperm(8, generator=dice())[:2]

    def share() -> float:
        return float(torch.isin(mlp.router(x_ND, "choice", None).experts_TK, few).double().mean())

    first = share()
    science.plant("driven", mlp, x_ND, strength, dice())
    assert share() == pytest.approx(first + strength * (1 - first), abs=0.01)


def test_near_copies() -> None:
    decoder = healthy_decoder()
    before = stacked(decoder, 1)[0].clone()
    science.plant("near", sparse(decoder, 1), torch.randn(4, 64), 0.5, dice())
    after = stacked(decoder, 1)[0]
    changed = (after != before).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert len(changed) == 2
    for expert in changed:
        halves = [0.5 * before[expert] + 0.5 * before[other] for other in range(8) if other != expert]
        assert min(float((after[expert] - half).std() / before.std()) for half in halves) < 0.02
