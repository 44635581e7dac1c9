"""Routers: rules against transformers' and brute force, capacity, noise, replay, gradients, configs.

T tokens, D model width, E experts, K active.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from tenth.errors import ConfigError, RequestError
from tenth.kernels import reference
from tenth.kernels.backend import Backend
from tenth.model.batch import Batch, Want
from tenth.model.config import ModelConfig, MoeConfig
from tenth.model.decoder import Decoder, initialise
from tenth.model.experts import SparseMlp
from tenth.model.preset import preset
from tenth.model.router import Router
from tenth.routing.measures import expert_counts
from tenth.routing.record import LayerRouting, Routing
from tenth.routing.rule import LayerPolicy, RouteRule, RoutingPolicy, Score

WIDTH = 10
MOE = MoeConfig(8, 3, 6, score="sigmoid", expert_bias=True, num_groups=4, top_groups=2, routed_scale=2.5)


def _random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _router(moe: MoeConfig, seed: int = 1, dtype: torch.dtype = torch.float64) -> Router:
    router = Router(moe, WIDTH, Backend(dtype))
    with torch.no_grad():
        router.weight_ED.copy_(_random(moe.num_experts, WIDTH, seed=seed))
        if router.bias_E is not None:
            router.bias_E.copy_(_random(moe.num_experts, seed=seed + 1) * 0.3)
    return router


def _config(moe: MoeConfig) -> ModelConfig:
    return replace(preset("tiny-moe"), model_type="tenth", moe=moe, vocab_size=64)


@pytest.mark.parametrize("renormalise", [True, False])
def test_as_deepseek(renormalise: bool) -> None:
    moe = replace(MOE, num_experts=32, num_groups=8, top_groups=3, top_k=5, norm_topk_prob=renormalise)
    router, x_TD = _router(moe, dtype=torch.float32), _random(200, WIDTH, seed=5, dtype=torch.float32)
    theirs = DeepseekV3TopkRouter(
        SimpleNamespace(
            num_experts_per_tok=5,
            num_local_experts=32,
            hidden_size=WIDTH,
            routed_scaling_factor=2.5,
            n_group=8,
            topk_group=3,
            norm_topk_prob=renormalise,
        )
    )
    with torch.no_grad():
        theirs.weight.copy_(router.weight_ED)
        theirs.e_score_correction_bias.copy_(router.bias_E)
        logits_TE, gates_TK, ids_TK = theirs(x_TD)
    ours = router(x_TD, "full", None)
    torch.testing.assert_close(ours.logits_TE, logits_TE, atol=1e-5, rtol=1e-5)
    at_TK = ids_TK.sort(-1).indices
    ours_at_TK = ours.experts_TK.sort(-1).indices
    assert torch.equal(ours.experts_TK.gather(1, ours_at_TK), ids_TK.gather(1, at_TK))
    torch.testing.assert_close(ours.gates_TK.gather(1, ours_at_TK), gates_TK.gather(1, at_TK), atol=1e-6, rtol=1e-5)


@given(st.integers(0, 1 << 20), st.sampled_from(["softmax", "sigmoid"]))
@settings(deadline=None, max_examples=25)
def test_groups_by_trying_all(seed: int, score: str) -> None:
    """Of all sets of 2 of 4 groups the one of the largest sum of two best scores; of its experts the 3 best."""
    rule = RouteRule(3, score=score, groups=4, top_groups=2)
    logits_TE, bias_E = _random(5, 12, seed=seed), _random(12, seed=seed + 1)
    scores_TE = (logits_TE.sigmoid() if score == "sigmoid" else logits_TE) + bias_E
    for row, chosen in zip(scores_TE.tolist(), reference.route(logits_TE, rule, bias_E)[0].tolist(), strict=True):
        members = [range(3 * g, 3 * g + 3) for g in range(4)]
        pairs = {
            (a, b): max(sum(row[e] for e in two) for two in combinations(members[a], 2))
            + max(sum(row[e] for e in two) for two in combinations(members[b], 2))
            for a, b in combinations(range(4), 2)
        }
        a, b = max(pairs, key=lambda pair: pairs[pair])
        best = max(combinations([*members[a], *members[b]], 3), key=lambda three: sum(row[e] for e in three))
        assert set(chosen) == set(best)
        assert [row[e] for e in chosen] == sorted((row[e] for e in chosen), reverse=True)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalise", [True, False])
def test_biases_change_the_choice_and_no_gate(score: str, renormalise: bool) -> None:
    moe = MoeConfig(8, 2, 6, norm_topk_prob=renormalise, score=score, expert_bias=True)
    router, x_TD = _router(moe), _random(50, WIDTH, seed=2)
    with torch.no_grad():
        router.bias_E.zero_()
        before = router(x_TD, "choice", None)
        router.bias_E[5] = 100.0
        after = router(x_TD, "choice", None)
        assert (after.experts_TK[:, 0] == 5).all()
        same_T = (before.experts_TK.sort(-1).values == after.experts_TK.sort(-1).values).all(-1)
        assert 5 < int(same_T.sum()) < 45
        order, other = before.experts_TK[same_T].sort(-1).indices, after.experts_TK[same_T].sort(-1).indices
        torch.testing.assert_close(
            before.gates_TK[same_T].gather(1, order), after.gates_TK[same_T].gather(1, other), atol=1e-15, rtol=0
        )
        router.bias_E.fill_(3.0)
        assert torch.equal(router(x_TD, "choice", None).experts_TK, before.experts_TK)


def test_the_bias_has_no_gradient() -> None:
    router = _router(MOE)
    assert not router.bias_E.requires_grad
    router.bias_E.requires_grad_(True)
    router(_random(5, WIDTH, seed=2), "full", None).gates_TK.sum().backward()
    assert router.bias_E.grad is None


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.25])
@pytest.mark.parametrize("padded", [0, 7])
def test_capacity(factor: float, padded: int) -> None:
    """Nobody is over the limit, who is at it carries out its largest gates, padding takes nothing."""
    moe = MoeConfig(8, 3, 6, score="sigmoid", norm_topk_prob=False)
    router, x_TD = _router(moe), _random(60, WIDTH, seed=3) + 0.5 * _random(WIDTH, seed=6)  # an uneven load
    real_T = torch.rand(60, generator=torch.Generator().manual_seed(1)).argsort() >= padded
    free = router(x_TD, "choice", None)
    held = router(x_TD, "choice", LayerPolicy(factor, real_T=real_T if padded else None))
    limit = math.ceil(factor * 3 * (60 - padded) / 8)
    assert torch.equal(held.experts_TK, free.experts_TK)
    assert held.dropped_TK is not None
    carried: dict[int, list[float]] = {e: [] for e in range(8)}
    left: dict[int, list[float]] = {e: [] for e in range(8)}
    for t in range(60):
        for e, gate, gone in zip(
            free.experts_TK[t].tolist(), free.gates_TK[t].tolist(), held.dropped_TK[t].tolist(), strict=True
        ):
            if real_T[t]:
                (left if gone else carried)[e].append(gate)
            else:
                assert gone
    assert any(left.values())
    for e in range(8):
        assert len(carried[e]) == min(limit, len(carried[e]) + len(left[e]))
        if left[e]:
            assert max(left[e]) <= min(carried[e])
    assert torch.equal(held.gates_TK, free.gates_TK.masked_fill(held.dropped_TK, 0.0))


def test_of_equal_gates_the_earlier_token_stays() -> None:
    router = _router(MoeConfig(4, 1, 6))
    held = router(torch.ones(8, WIDTH, dtype=torch.float64), "choice", LayerPolicy(1.1))  # all to one; ceil(2.2)
    assert held.dropped_TK.flatten().tolist() == [False] * 3 + [True] * 5
    wide = router(torch.ones(10, WIDTH, dtype=torch.float64), "choice", LayerPolicy(4.4))  # ceil(11.000000000000002)
    assert not wide.dropped_TK.any()


def test_noise_moves_the_choice_and_no_gate() -> None:
    router, x_TD = _router(replace(MOE, expert_bias=False)), _random(40, WIDTH, seed=4)
    one, same, other = (router(x_TD, "full", RoutingPolicy(noise=1.0, seed=s).at(0)) for s in (1, 1, 2))
    assert torch.equal(one.experts_TK, same.experts_TK)
    assert not torch.equal(one.experts_TK, other.experts_TK)
    assert torch.equal(one.logits_TE, router(x_TD, "full", None).logits_TE)
    chosen_TK = one.logits_TE.gather(1, one.experts_TK).sigmoid()
    torch.testing.assert_close(one.gates_TK, 2.5 * chosen_TK / chosen_TK.sum(-1, keepdim=True))


@pytest.mark.parametrize("kind", ["softmax", "all", "capacity"])
def test_gradients_of_a_sparse_layer(kind: str) -> None:
    """Through router, gates, experts and a shared one, against differences in float64."""
    plain = MoeConfig(8, 3, 4, shared_intermediate_size=3, shared_gate=True)
    moe = plain if kind == "softmax" else replace(MOE, intermediate_size=4, shared_intermediate_size=3)
    mlp = SparseMlp(moe, WIDTH, Backend(torch.float64))
    with torch.no_grad():
        for seed, parameter in enumerate(mlp.parameters()):
            parameter.copy_(_random(*parameter.shape, seed=seed + 10) * 0.5)
    names = [name for name, p in mlp.named_parameters() if p.requires_grad]
    assert ("router.bias_E" in names) is False
    given_policy = LayerPolicy(0.5) if kind == "capacity" else None
    assert given_policy is None or mlp(_random(4, WIDTH, seed=8), "full", given_policy)[1].dropped_TK.any()

    def run(x_TD: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y_TD, routing = torch.func.functional_call(
            mlp, dict(zip(names, parameters, strict=True)), (x_TD, "full", given_policy)
        )
        return y_TD, routing.logits_TE

    inputs = [_random(4, WIDTH, seed=8), *(dict(mlp.named_parameters())[name].detach() for name in names)]
    assert torch.autograd.gradcheck(run, [part.clone().requires_grad_() for part in inputs], fast_mode=True)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    decoder = initialise(Decoder(_config(MOE)), seed=1, std=0.2).requires_grad_(False)
    for layer in decoder.blocks():
        if isinstance(layer.mlp, SparseMlp):
            layer.mlp.router.bias_E.copy_(_random(8, seed=3) * 0.2)
    return decoder


def test_a_policy_reaches_every_sparse_layer(decoder: Decoder) -> None:
    """Each layer has its own capacity; what was decided can be replayed, drops too, for the same output."""
    batch = Batch.of([torch.arange(40) % 64])
    layers = decoder.config.sparse_layers
    capacity = {layer: 0.5 + 0.25 * place for place, layer in enumerate(layers) if place != 1}
    out = decoder(batch, want=Want(routing="full"), routing=RoutingPolicy(capacity, noise=0.3, seed=4))
    for index, layer in out.routing.layers.items():
        dropped = int(layer.dropped_TK.sum())
        assert (dropped > 0) is (index in capacity)
        if index in capacity:
            assert int(expert_counts(layer).max()) == math.ceil(capacity[index] * 3 * 40 / 8)
    again = decoder(batch, want=Want(routing="full"), routing=out.routing)
    torch.testing.assert_close(again.logits_NV, out.logits_NV, atol=1e-6, rtol=0)
    for index, layer in again.routing.layers.items():
        assert torch.equal(layer.dropped_TK, out.routing.layers[index].dropped_TK)
    free = decoder(batch, routing=Routing({i: replace(r, dropped_TK=None) for i, r in out.routing.layers.items()}))
    assert (free.logits_NV - out.logits_NV).abs().max() > 1e-3


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_removed_experts_are_as_if_they_were_not_there(score: Score) -> None:
    """Against a smaller layer that never had them."""
    moe = MoeConfig(8, 3, 6, score=score, expert_bias=True)
    whole, smaller = _router(moe), _router(replace(moe, num_experts=5))
    removed_E = torch.tensor([False, True, False, False, True, False, True, False])
    with torch.no_grad():
        whole.bias_E.copy_(_random(8, seed=3) * 0.2)
        smaller.weight_ED.copy_(whole.weight_ED[~removed_E])
        smaller.bias_E.copy_(whole.bias_E[~removed_E])
    x_TD = _random(50, WIDTH, seed=4)
    for policy in (LayerPolicy(removed_E=removed_E), LayerPolicy(removed_E=removed_E, noise=1e-9, seed=1)):
        got, expected = whole(x_TD, "choice", policy), smaller(x_TD, "choice", None)
        assert torch.equal(got.experts_TK, (~removed_E).nonzero()[:, 0][expected.experts_TK])
        torch.testing.assert_close(got.gates_TK, expected.gates_TK)


def test_a_run_around_layers_sees_the_policys_decisions(decoder: Decoder) -> None:
    seen: dict[int, LayerRouting | None] = {}

    def run(index: int, layer: object, x_TD: torch.Tensor, replay: LayerRouting | None) -> object:
        y_TD, decided = layer(x_TD, replay)
        again_TD, _ = layer(x_TD, decided)
        torch.testing.assert_close(again_TD, y_TD, atol=1e-6, rtol=0)
        seen[index] = decided
        return y_TD, decided

    decoder(Batch.of([torch.arange(40) % 64]), routing=RoutingPolicy({1: 0.5}, noise=0.3), run=run)
    assert seen[1] is not None
    assert seen[1].dropped_TK is not None


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (RoutingPolicy({99: 1.0}), "capacity 1.0 of layer 99: it is for sparse layers"),
        (RoutingPolicy({1: 0.0}), "positive and finite"),
        (RoutingPolicy(noise=-1.0), "noise of routing is -1.0"),
        (RoutingPolicy(noise=math.nan), "noise of routing is nan"),
        (RoutingPolicy(real_T=torch.ones(3, dtype=torch.bool)), "one for each of the batch's 4 tokens"),
        (RoutingPolicy(real_T=torch.ones(4)), "real_T must be bool"),
        (RoutingPolicy(removed={99: torch.zeros(8, dtype=torch.bool)}), "they are of sparse layers"),
        (RoutingPolicy(removed={1: torch.zeros(7, dtype=torch.bool)}), "one bool an expert"),
        (RoutingPolicy(removed={1: torch.arange(8) > 1}), "leave at least 3"),
        (RoutingPolicy(removed={1: torch.zeros(8)}), "must be bool"),
    ],
)
def test_policies_that_do_not_fit(decoder: Decoder, policy: RoutingPolicy, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        decoder(Batch.of([[1, 2, 3, 4]]), routing=policy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score": "relu"}, "score 'relu' is not supported .supported: softmax, sigmoid"),
        ({"num_groups": 3}, "num_experts 8 is not a multiple of num_groups 3"),
        ({"num_groups": 0}, "num_groups is 0, it must be positive"),
        ({"num_groups": 2, "top_groups": 3}, "top_groups 3 is above num_groups 2"),
        ({"num_groups": 4, "top_groups": 1}, "top_k 3 is above the 2 experts of 1 top_groups"),
        ({"routed_scale": 0.0}, "routed_scale is 0.0, it must be positive"),
        ({"routed_scale": math.inf}, "routed_scale is inf"),
    ],
)
def test_configs_that_do_not_fit(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MoeConfig(8, 3, 6, **changes)


def test_the_biases_are_counted() -> None:
    config = _config(MOE)
    built = Decoder(config, device="meta")
    assert config.parameters.total == sum(p.numel() for p in built.parameters())
    without = replace(config, moe=replace(MOE, expert_bias=False))
    assert config.parameters.router - without.parameters.router == 8 * len(config.sparse_layers)


def test_biases_begin_at_zero() -> None:
    decoder = initialise(Decoder(_config(MOE)), seed=1)
    biases = [p for name, p in decoder.named_parameters() if name.endswith("router.bias_E")]
    assert len(biases) == len(decoder.config.sparse_layers)
    assert all(not bias.any() for bias in biases)
