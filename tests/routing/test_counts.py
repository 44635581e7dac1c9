"""Sums of routing records: the numbers of `measures`, layer by layer; and only what was carried out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.routing.counts import RoutingCounts, router_entropies
from tenth.routing.measures import dead_experts, expert_counts, load_entropy, max_violation, router_entropy
from tenth.routing.record import LayerRouting, Routing
from tenth.routing.rule import Score
from tenth.routing.stacked import StackedLayers, stacked

LAYERS = (1, 2, 5)


def record(seed: int, tokens: int, experts: int, top_k: int, *, limited: bool = False, full: bool = False) -> Routing:
    generator = torch.Generator().manual_seed(seed)

    def layer() -> LayerRouting:
        logits_TE = torch.randn(tokens, experts, generator=generator)
        gates_TK, experts_TK = logits_TE.softmax(-1).topk(top_k)
        if limited:
            gates_TK = gates_TK * (torch.rand(gates_TK.shape, generator=generator) < 0.6)
        dropped_TK = gates_TK == 0 if limited or full else None
        logits = logits_TE if full else None
        return LayerRouting(experts, experts_TK, gates_TK, logits, dropped_TK, limited=limited)

    return Routing({index: layer() for index in LAYERS})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), min_size=1, max_size=5), st.data())
def test_sums_are_those_of_each_record_by_itself(steps: list[tuple[int, bool, bool]], data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 12))
    top_k = data.draw(st.integers(1, experts))
    records = [record(n, t, experts, top_k, limited=lim, full=full) for n, (t, lim, full) in enumerate(steps)]
    counts = RoutingCounts.empty(LAYERS, experts)
    counts.take([layers for one in records if (layers := stacked(one)) is not None])
    assert counts.tokens == sum(tokens for tokens, _, _ in steps)
    assert counts.judged == sum(tokens for tokens, _, full in steps if full)
    for at, index in enumerate(LAYERS):
        layers = [one.layers[index] for one in records]
        expected_E = sum((expert_counts(layer) for layer in layers), torch.zeros(experts, dtype=torch.int64))
        assert counts.counts_LE[at].tolist() == expected_E.tolist()
        gates_E = torch.zeros(experts, dtype=torch.float64)
        for layer in layers:
            gates_E.index_add_(0, layer.experts_TK.flatten(), layer.gates_TK.flatten().double())
        np.testing.assert_allclose(counts.gates_LE[at], gates_E.numpy(), atol=1e-12)
        if expected_E.sum() > 0:
            assert counts.balancedness_L[at] == pytest.approx(1 / (1 + max_violation(expected_E)))
            shares = load_entropy(expected_E) if experts > 1 else 0.0
            assert counts.load_entropy_L[at] == pytest.approx(shares, abs=1e-12)
        assert counts.dead_L[at] == dead_experts(expected_E)
        judged = [layer.logits_TE for layer in layers if layer.logits_TE is not None]
        if judged:
            assert counts.router_entropy_L[at] == pytest.approx(router_entropy(torch.cat(judged)), abs=1e-9)


def test_what_is_known_of_no_tokens() -> None:
    counts = RoutingCounts.empty(LAYERS, 4)
    counts.take([])
    assert counts.tokens == 0
    assert counts.dead_L.tolist() == [4, 4, 4]
    for measure in (counts.balancedness_L, counts.load_entropy_L, counts.router_entropy_L):
        assert all(map(math.isnan, measure)), "no number is made of nothing"


def test_even_and_uneven_loads() -> None:
    counts = RoutingCounts.empty((0, 1), 4)
    counts.counts_LE[:] = [[5, 5, 5, 5], [20, 0, 0, 0]]
    assert counts.balancedness_L.tolist() == [1.0, 0.25]
    assert counts.load_entropy_L.tolist() == pytest.approx([1.0, 0.0])
    assert counts.dead_L.tolist() == [0, 3]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_entropy_of_a_router_is_that_of_measures(score: Score) -> None:
    logits_TE = torch.randn(7, 6, generator=torch.Generator().manual_seed(1)) * 40
    logits_TE[3] = 2.5  # undecided
    (entropy_T,) = router_entropies(logits_TE[None].double().numpy(), score)
    for token, entropy in enumerate(entropy_T):
        assert entropy == pytest.approx(router_entropy(logits_TE[token, None], score), abs=1e-12)
    assert entropy_T[3] == pytest.approx(1.0)


def test_a_router_without_numbers_is_judged_where_it_has_some() -> None:
    one = record(1, 6, 5, 2, full=True)
    layer = one.layers[LAYERS[1]]
    assert layer.logits_TE is not None
    layer.logits_TE[2:] = math.nan
    counts = RoutingCounts.empty(LAYERS, 5)
    counts.take([layers for layers in [stacked(one)] if layers is not None])
    assert counts.judged_L.tolist() == [6, 2, 6]
    assert counts.router_entropy_L[1] == pytest.approx(router_entropy(layer.logits_TE[:2]), abs=1e-9)


def test_a_stack_has_the_layers_that_it_was_made_of() -> None:
    for options in ({}, {"full": True}, {"limited": True}):
        routing = record(3, 5, 6, 2, **options)
        layers = stacked(routing)
        assert isinstance(layers, StackedLayers)
        assert list(layers) == list(LAYERS)
        assert stacked(Routing(layers)) is layers
        assert Routing(layers).num_tokens == 5
        for index, layer in routing.layers.items():
            for name in ("experts_TK", "gates_TK", "logits_TE", "dropped_TK"):
                one, other = getattr(layer, name), getattr(layers[index], name)
                assert (one is None) == (other is None)
                assert one is None or torch.equal(one, other)
        with pytest.raises(KeyError):
            layers[0]
    assert stacked(Routing({})) is None
