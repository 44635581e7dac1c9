"""Drift of the experts' work: nothing on the same text beyond chance, other text found, whatever was never seen."""

from __future__ import annotations

import numpy as np
import pytest

from tenth.errors import RequestError
from tenth.routing.counts import RoutingCounts
from tenth.routing.drift import chance_of, divergences, drift_from
from tenth.routing.profile import Block, ProfiledModel, RoutingProfile

MODEL = ProfiledModel("model", "abc", (0, 3), 16, 2)


def drawn(shares_E: np.ndarray, tokens: int, documents: int, spread: float, seed: int) -> RoutingProfile:
    """Documents whose tokens prefer experts of their own, `spread` wide around the shares of their domain."""
    random = np.random.default_rng(seed)
    profile = RoutingProfile.empty(MODEL)
    for number in range(documents):
        counts_LE = np.stack(
            [random.multinomial(2 * tokens, random.dirichlet(shares_E * 16 / spread)) for _ in MODEL.layers]
        )
        block = profile.blocks.setdefault(("text", number % 64), Block(0, np.zeros_like(counts_LE)))
        block.tokens += tokens
        block.counts_LE += counts_LE
        profile.counts.counts_LE += counts_LE
        profile.counts.tokens += tokens
    return profile


EVEN = np.full(16, 1 / 16)
SKEW = np.linspace(1, 9, 16) / np.linspace(1, 9, 16).sum()


def test_divergence_by_its_definition() -> None:
    one_LE, other_LE = np.array([[4, 0, 0], [1, 2, 5], [0, 0, 0]]), np.array([[0, 1, 1], [2, 4, 10], [1, 0, 0]])
    found_L = divergences(one_LE, other_LE)
    assert found_L[0] == pytest.approx(1.0)
    assert found_L[1] == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(found_L[2])
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    m = (p + q) / 2
    expected = float((p * np.log2(p / m) + q * np.log2(q / m)).sum() / 2)
    assert divergences(np.array([[50, 50]]), np.array([[90, 10]]))[0] == pytest.approx(expected)


@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_the_same_text_is_within_chance_and_other_text_is_not(spread: float) -> None:
    stored = drawn(EVEN, 200, 640, spread, 1)
    again = [drift_from(stored, drawn(EVEN, 200, 20, spread, seed).counts) for seed in range(2, 30)]
    chance, seen = np.mean([drift.chance_L for drift in again]), np.mean([drift.divergence_L for drift in again])
    assert chance == pytest.approx(seen, rel=0.35)
    assert max(drift.excess for drift in again) < 0.02
    assert all(drift_from(stored, drawn(SKEW, 200, 20, spread, seed).counts).excess > 0.03 for seed in range(5))


def test_a_small_profile_is_a_sample_too() -> None:
    """Much text of the same kind against a profile of little: what differs is the profile's own noise."""
    again = [drift_from(drawn(EVEN, 200, 24, 1.0, seed), drawn(EVEN, 200, 2000, 1.0, 99).counts) for seed in range(20)]
    chance, seen = np.mean([drift.chance_L for drift in again]), np.mean([drift.divergence_L for drift in again])
    assert chance == pytest.approx(seen, rel=0.35)


def test_without_blocks_tokens_are_taken_to_be_independent() -> None:
    stored = drawn(EVEN, 100_000, 1, 1e-6, 1)
    tokens = 1000
    random = np.random.default_rng(0)
    seen = [divergences(random.multinomial(2 * tokens, EVEN)[None], stored.counts.counts_LE[:1])[0] for _ in range(200)]
    assert chance_of(stored, tokens)[0] == pytest.approx(np.mean(seen), rel=0.1)


def test_few_tokens_say_nothing_and_other_models_are_refused() -> None:
    stored = drawn(EVEN, 200, 64, 1.0, 1)
    few = drawn(SKEW, 100, 1, 1.0, 1).counts
    assert drift_from(stored, few).excess == 0.0
    none = drift_from(stored, RoutingCounts.empty(MODEL.layers, MODEL.experts))
    assert (none.excess, none.tokens) == (0.0, 0)
    assert np.isnan(none.divergence_L).all()
    with pytest.raises(RequestError, match="other layers or experts"):
        drift_from(stored, RoutingCounts.empty((0, 3), 8))
