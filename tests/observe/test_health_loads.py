"""Loads against chance: the dispersion of documents, experts without work, and text that is too little."""

from __future__ import annotations

import numpy as np
import pytest

from tenth.observe.health_loads import UNKNOWN_DISPERSION, dispersion, layer_loads, most_together
from tenth.routing.profile import Block, ProfiledModel, RoutingProfile

EXPERTS, TOP_K = 8, 2


def profile(counts_BE: np.ndarray, domain: str = "code") -> RoutingProfile:
    """One layer, whose blocks have these counts."""
    model = ProfiledModel("model", "abc", (3,), EXPERTS, TOP_K)
    found = RoutingProfile.empty(model)
    for number, counts_E in enumerate(counts_BE.astype(np.int64)):
        found.blocks[domain, number] = Block(int(counts_E.sum()) // TOP_K, counts_E[None])
        found.counts.counts_LE += counts_E[None]
    found.counts.tokens = int(found.counts.counts_LE.sum()) // TOP_K
    found.pairs_LEE[0][np.diag_indices(EXPERTS)] = found.counts.counts_LE[0]
    return found


def drawn(blocks: int, size: int, share_E: np.ndarray | None = None, together: int = 1, seed: int = 0) -> np.ndarray:
    """Assignments of blocks, `together` of which always go to the same expert."""
    dice = np.random.default_rng(seed)
    shares = np.full(EXPERTS, 1 / EXPERTS) if share_E is None else share_E
    return dice.multinomial(size // together, shares, blocks) * together


@pytest.mark.parametrize("together", [1, 4, 16])
def test_dispersion_is_how_many_choices_go_together(together: int) -> None:
    found = dispersion(profile(drawn(400, 320, together=together)), 0)
    assert found == pytest.approx(together, rel=0.15)


def test_domains_that_differ_are_no_dispersion() -> None:
    code = np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])
    found = profile(drawn(200, 320, code))
    for key, block in profile(drawn(200, 320, code[::-1], seed=1), "prose").blocks.items():
        found.blocks[key] = block
    assert dispersion(found, 0) == pytest.approx(1, abs=0.15)
    assert dispersion(profile(drawn(1, 320)), 0) == UNKNOWN_DISPERSION


def test_fair_loads_of_any_size_are_fair() -> None:
    for seed in range(20):
        for size in (64, 640):
            loads = layer_loads(profile(drawn(20, size, seed=seed)), 0)
            assert loads.dead == ()
            assert loads.surely < 0.05
            assert loads.max_violation < 3 * loads.chance_violation
            assert loads.effective > 0.9


def test_dead_experts_need_text_enough() -> None:
    share_E = np.array([0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0])
    loads = layer_loads(profile(drawn(20, 320, share_E)), 0)
    assert loads.dead == (4, 5, 6, 7)
    assert loads.tells_dead
    assert loads.effective == pytest.approx(0.5, abs=0.01)
    little = layer_loads(profile(drawn(20, 8, share_E)), 0)
    assert (little.dead, little.tells_dead) == ((), False)
    clustered = layer_loads(profile(drawn(20, 320, share_E, together=40)), 0)
    assert (clustered.dead, clustered.tells_dead) == ((), False)


def test_loads_of_a_billion_tokens_are_judged_at_once() -> None:
    share_E = np.array([0.2499, 0.25, 0.25, 0.25, 0.0001, 0, 0, 0])
    loads = layer_loads(profile(drawn(20, 10**9, share_E)), 0)
    assert loads.dead == (4, 5, 6, 7)


def test_one_expert_for_half_of_the_tokens() -> None:
    share_E = np.array([0.44, *[0.08] * 7])
    loads = layer_loads(profile(drawn(20, 2000, share_E)), 0)
    assert (loads.busiest, loads.overloaded) == (0, (0,))
    assert loads.top_share == pytest.approx(0.88, abs=0.02)
    assert loads.concentration == pytest.approx((0.88 - 0.25) / 0.75, abs=0.03)
    assert loads.surely < loads.concentration


def test_pairs_that_are_together() -> None:
    pairs_EE = np.array([[10, 9, 1], [9, 10, 0], [1, 0, 50]])
    assert most_together(pairs_EE) == ((0, 1), pytest.approx(9 / 11))
