"""Balance and confidence against what follows from their definitions by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tenth.routing.measures import (
    dead_experts,
    expert_counts,
    load_entropy,
    max_violation,
    router_entropy,
    saturation,
)
from tenth.routing.record import LayerRouting, Routing


def _layer(experts: list[list[int]], num_experts: int, dropped: list[list[bool]] | None = None) -> LayerRouting:
    ids = torch.tensor(experts, dtype=torch.int64).reshape(len(experts), -1)
    gates = torch.ones(ids.shape)
    return LayerRouting(num_experts, ids, gates, None, None if dropped is None else torch.tensor(dropped))


def test_counts_are_assignments_of_every_expert() -> None:
    counts = expert_counts(_layer([[0, 2], [2, 5], [2, 0]], 7))
    assert counts.dtype == torch.int64
    assert counts.tolist() == [2, 0, 3, 0, 0, 1, 0]


def test_what_was_dropped_was_not_carried_out() -> None:
    layer = _layer([[0, 2], [2, 5], [2, 0]], 7, [[False, True], [False, False], [True, True]])
    assert expert_counts(layer).tolist() == [1, 0, 1, 0, 0, 1, 0]
    assert expert_counts(_layer([[0, 1]], 3, [[True, True]])).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("counts", "violation", "entropy", "dead"),
    [
        ([5, 5, 5, 5], 0.0, 1.0, 0),  # even
        ([20, 0, 0, 0], 3.0, 0.0, 3),  # one for all: the most there is, E - 1
        ([10, 10, 0, 0], 1.0, 0.5, 2),  # log 2 over log 4
        ([8, 4, 2, 2], 1.0, 1.75 / 2, 0),  # shares 1/2, 1/4, 1/8, 1/8 hold 1.75 bits of 2
        ([1, 2, 3], 0.5, (1 / 6 * math.log(6) + 1 / 3 * math.log(3) + 0.5 * math.log(2)) / math.log(3), 0),
        ([0, 0, 0, 0], 0.0, 0.0, 4),
        ([9], 0.0, 0.0, 0),  # with one expert there is nothing to balance
    ],
)
def test_measures_of_known_counts(counts: list[int], violation: float, entropy: float, dead: int) -> None:
    counts_E = torch.tensor(counts)
    assert max_violation(counts_E) == pytest.approx(violation, abs=1e-12)
    assert load_entropy(counts_E) == pytest.approx(entropy, abs=1e-12)
    assert dead_experts(counts_E) == dead
    assert "-" not in f"{max_violation(counts_E):.2f} {load_entropy(counts_E):.2f}"  # no minus zero in a table


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=64))
def test_measures_stay_in_their_bounds(counts: list[int]) -> None:
    counts_E = torch.tensor(counts)
    assert 0 <= max_violation(counts_E) <= len(counts) - 1 + 1e-9
    assert 0 <= load_entropy(counts_E) <= 1 + 1e-9
    shuffled = torch.tensor(sorted(counts))
    assert max_violation(shuffled) == max_violation(counts_E)
    assert load_entropy(shuffled) == pytest.approx(load_entropy(counts_E))


@pytest.mark.parametrize(
    ("logits", "entropy"),
    [
        ([[0.0, 0.0, 0.0, 0.0]], 1.0),
        ([[7.0, 7.0, 7.0, 7.0]], 1.0),
        ([[1000.0, 0.0, 0.0, 0.0]], 0.0),
        ([[0.0, 0.0, -math.inf, -math.inf]], 0.5),  # a masked expert has no share
        ([[math.log(4), math.log(2), 0.0, 0.0]], 1.75 / 2),
        ([[0.0, 0.0, 0.0, 0.0], [1000.0, 0.0, 0.0, 0.0]], 0.5),  # the mean over tokens
        ([[3.0]], 0.0),
    ],
)
def test_router_entropy_of_known_logits(logits: list[list[float]], entropy: float) -> None:
    measured = router_entropy(torch.tensor(logits))
    assert measured == pytest.approx(entropy, abs=1e-9)
    assert not f"{measured:.2f}".startswith("-")
    half = router_entropy(torch.tensor(logits, dtype=torch.bfloat16))
    assert half == pytest.approx(entropy, abs=2e-3)


def test_router_entropy_of_sigmoids_is_that_of_their_shares() -> None:
    logits = [math.log(1), math.log(3), -50.0]  # sigmoids 1/2, 3/4 and nearly 0: shares 2/5 and 3/5
    measured = router_entropy(torch.tensor([logits], dtype=torch.float64), "sigmoid")
    assert measured == pytest.approx(-(0.4 * math.log(0.4) + 0.6 * math.log(0.6)) / math.log(3), abs=1e-9)


def test_router_entropy_of_no_tokens_is_a_number() -> None:
    assert router_entropy(torch.zeros(0, 4)) == 0.0


@given(st.integers(0, 1 << 30), st.floats(0.1, 8))
def test_router_entropy_is_the_sum_it_says(seed: int, spread: float) -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
    total = 0.0
    for row in logits.tolist():
        weights = [math.exp(value - max(row)) for value in row]
        shares = [weight / sum(weights) for weight in weights]
        total -= sum(share * math.log(share) for share in shares)
    assert router_entropy(logits) == pytest.approx(total / 5 / math.log(6), abs=1e-9)


def test_saturation_is_the_share_that_both_chose() -> None:
    one = Routing({1: _layer([[0, 1], [2, 3], [4, 5]], 8), 4: _layer([[0, 1]] * 3, 8)})
    other = Routing({1: _layer([[1, 0], [2, 7], [6, 7]], 8), 4: _layer([[0, 1]] * 3, 8)})
    assert saturation(one, other) == {1: pytest.approx(0.5), 4: 1.0}
    assert saturation(one, one) == {1: 1.0, 4: 1.0}


def test_saturation_of_chance_is_k_over_e() -> None:
    generator = torch.Generator().manual_seed(1)
    one, other = (torch.rand(4000, 16, generator=generator).topk(4).indices for _ in range(2))
    records = [Routing({0: LayerRouting(16, ids, torch.ones(ids.shape))}) for ids in (one, other)]
    assert saturation(*records)[0] == pytest.approx(0.25, abs=0.01)


def test_saturation_of_no_tokens_is_a_number() -> None:
    nothing = LayerRouting(4, torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2))
    assert saturation(Routing({0: nothing}), Routing({0: nothing})) == {0: 0.0}
