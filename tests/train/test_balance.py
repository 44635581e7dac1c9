"""Balance: every loss against a loop in float64, gradients, accumulation, biases, capacity, measures, state.

T tokens, K active experts, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.errors import ConfigError, RequestError
from tenth.model.batch import Batch, Want
from tenth.model.config import ModelConfig, MoeConfig
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.routing.record import LayerRouting, Routing
from tenth.routing.rule import RouteRule, RoutingPolicy
from tenth.train.balance import Balance, BalanceOptions
from tenth.train.balance_loss import log_scores, router_terms, token_weights, z_loss

MOE = MoeConfig(8, 2, 12)
BIASED = replace(MOE, score="sigmoid", expert_bias=True)


def _config(moe: MoeConfig = MOE, layers: tuple[int, ...] = (1, 2)) -> ModelConfig:
    return replace(
        preset("tiny-moe"), model_type="tenth", moe=moe, sparse_layers=layers, vocab_size=48, hidden_size=24, head_dim=8
    )


def _random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _p(row: Sequence[float], score: str) -> list[float]:
    parts = [math.exp(x) / (1 + math.exp(x)) if score == "sigmoid" else math.exp(x) for x in row]
    return [part / sum(parts) for part in parts]


def _agreement(tokens: Sequence[int], logits: list[list[float]], ids: list[list[int]], score: str) -> float:
    """E * sum_i f_i P_i of some tokens."""
    experts, total = len(logits[0]), 0.0
    for i in range(experts):
        chosen = sum(ids[t].count(i) for t in tokens)
        mass = sum(_p(logits[t], score)[i] for t in tokens)
        total += chosen / (len(ids[0]) * len(tokens)) * mass / len(tokens)
    return experts * total


def _loss(
    kind: str,
    logits_TE: torch.Tensor,
    ids_TK: torch.Tensor,
    rule: RouteRule,
    real_T: torch.Tensor | None = None,
    bounds: Sequence[int] | None = None,
) -> torch.Tensor:
    """What `Balance` adds for a single layer and micro-batch, at weight 1."""
    moe = MoeConfig(logits_TE.shape[1], rule.top_k, 12, score=rule.score)
    balance = Balance(_config(moe, layers=(1,)), BalanceOptions(kind, weight=1.0))  # type: ignore[arg-type]
    balance.begin(len(logits_TE) if real_T is None else int(real_T.sum()), 0)
    record = LayerRouting(logits_TE.shape[1], ids_TK, torch.ones(ids_TK.shape), logits_TE, None)
    return balance.loss(Routing({1: record}), bounds or (0, len(logits_TE)), real_T)


def _global_loss(logits_TE: torch.Tensor, share_E: torch.Tensor, rule: RouteRule, tokens: int) -> torch.Tensor:
    return router_terms(log_scores(logits_TE, rule), token_weights(logits_TE, None, tokens), share_E)[0]


@given(
    st.integers(1, 12), st.integers(2, 7), st.data(), st.sampled_from(["softmax", "sigmoid"]), st.integers(0, 1 << 20)
)
@settings(deadline=None, max_examples=60)
def test_losses_are_the_sums_they_say(t: int, e: int, data: st.DataObject, score: str, seed: int) -> None:
    k = data.draw(st.integers(1, e))
    logits_TE = _random(t, e, seed=seed) * 2
    ids_TK = torch.rand(t, e, generator=torch.Generator().manual_seed(seed)).topk(k).indices
    real = data.draw(st.lists(st.booleans(), min_size=t, max_size=t).filter(any))
    cuts = sorted(data.draw(st.sets(st.integers(1, t - 1)))) if t > 1 else []
    bounds = [0, *cuts, t]
    rule, real_T = RouteRule(k, score=score), torch.tensor(real)
    logits, ids, kept = logits_TE.tolist(), ids_TK.tolist(), [i for i in range(t) if real[i]]

    for kind in ("micro", "global"):
        got = _loss(kind, logits_TE, ids_TK, rule, real_T, bounds)
        assert float(got) == pytest.approx(_agreement(kept, logits, ids, score), rel=1e-12)
    by_document = 0.0
    for start, end in pairwise(bounds):
        inside = [i for i in kept if start <= i < end]
        by_document += len(inside) / len(kept) * _agreement(inside, logits, ids, score) if inside else 0.0
    got = _loss("document", logits_TE, ids_TK, rule, real_T, bounds)
    assert float(got) == pytest.approx(by_document, rel=1e-12)
    z = sum(math.log(sum(math.exp(x) for x in logits[i])) ** 2 for i in kept) / len(kept)
    assert float(z_loss(logits_TE, real_T)) == pytest.approx(z, rel=1e-12)


def test_float32_and_bfloat16_logits_are_summed_in_float32() -> None:
    logits_TE, ids_TK = _random(500, 16, seed=1, dtype=torch.bfloat16), torch.arange(1000).reshape(500, 2) % 16
    exact = _loss("micro", logits_TE.double(), ids_TK, RouteRule(2))
    for dtype in (torch.float32, torch.bfloat16):
        loss = _loss("micro", logits_TE.to(dtype), ids_TK, RouteRule(2))
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(exact), rel=1e-6)


def test_balanced_and_collapsed_losses() -> None:
    even = torch.zeros(8, 4)
    assert float(_loss("micro", even, torch.arange(16).reshape(8, 2) % 4, RouteRule(2))) == pytest.approx(1.0)
    one = torch.tensor([[50.0, 0.0, 0.0, 0.0]] * 8)
    assert float(_loss("micro", one, torch.zeros(8, 1, dtype=torch.int64), RouteRule(1))) == pytest.approx(4.0)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_gradients_of_the_losses(score: str) -> None:
    rule, ids_TK = RouteRule(2, score=score), torch.rand(7, 5, generator=torch.Generator()).topk(2).indices
    real_T = torch.tensor([True, True, False, True, True, True, True])

    def run(logits_TE: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            _loss("micro", logits_TE, ids_TK, rule, real_T),
            _loss("document", logits_TE, ids_TK, rule, real_T, (0, 3, 7)),
            z_loss(logits_TE, real_T),
        )

    logits_TE = (_random(7, 5, seed=3) * 2).requires_grad_()
    assert torch.autograd.gradcheck(run, logits_TE)
    run(logits_TE)[0].backward()
    assert logits_TE.grad is not None
    assert not logits_TE.grad[2].any()


@pytest.mark.parametrize("moe", [MOE, BIASED], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["micro", "document", "global", "none"])
def test_gradients_through_a_sparse_layer(kind: str, moe: MoeConfig) -> None:
    """Output, loss and z-loss of a whole layer, with respect to every weight and the input."""
    config = _config(moe, layers=(2,))
    decoder = initialise(Decoder(config, dtype=torch.float64), seed=1, std=0.3)
    mlp = decoder.blocks()[2].mlp
    balance = Balance(config, BalanceOptions(kind, weight=0.7, z_weight=0.2))  # type: ignore[arg-type]
    names = [name for name, parameter in mlp.named_parameters() if parameter.requires_grad]

    def run(x_TD: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        balance.begin(9, 0)
        weights = dict(zip(names, parameters, strict=True))
        y_TD, routing = torch.func.functional_call(mlp, weights, (x_TD, "full", None))
        return y_TD, balance.loss(Routing({2: routing}), (0, 2, 6))

    inputs = [_random(6, 24, seed=5), *(dict(mlp.named_parameters())[name].detach() for name in names)]
    assert torch.autograd.gradcheck(run, [part.clone().requires_grad_() for part in inputs], fast_mode=True)


def _gradients(decoder: Decoder, options: BalanceOptions, batches: Sequence[Sequence[list[int]]]) -> torch.Tensor:
    """Of cross entropy and balance over the micro-batches (documents of ids), summed; token 0 is padding."""
    balance = Balance(decoder.config, options)
    real = [torch.tensor([id != 0 for document in batch for id in document]) for batch in batches]
    tokens = sum(int(part.sum()) for part in real)
    balance.begin(tokens, 0)
    decoder.zero_grad()
    for batch, real_T in zip(batches, real, strict=True) if balance.counting else ():
        with torch.no_grad():
            balance.count(decoder(Batch.of(batch), want=Want("none", routing="choice")).routing, real_T)
    for batch, real_T in zip(batches, real, strict=True):
        whole = Batch.of(batch)
        out = decoder(whole, want=Want(routing="full"))
        targets_T = torch.tensor([id or -100 for document in batch for id in [*document[1:], 0]])
        cross = F.cross_entropy(out.logits_NV, targets_T, reduction="sum") / tokens
        (cross + balance.loss(out.routing, whole.bounds, real_T)).backward()
    return torch.cat([p.grad.flatten() for p in decoder.parameters() if p.grad is not None])


def _documents(by_domain: bool) -> list[list[int]]:
    """16 documents of 8 ids in 1 to 47; by domain: of 4 disjoint ranges, one after the other. The last is padded."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 12 if by_domain else 48, (16, 8), generator=generator)
    if by_domain:
        ids += 12 * (torch.arange(16) // 4)[:, None]
    documents = [row.tolist() for row in ids]
    documents[-1] = [*documents[-1][:3], *[0] * 5]
    return documents


@pytest.mark.parametrize("by_domain", [False, True])
@pytest.mark.parametrize("moe", [MOE, BIASED], ids=["softmax", "sigmoid"])
def test_four_micro_batches_are_one(by_domain: bool, moe: MoeConfig) -> None:
    """Exact global counts, documents and the z-loss: gradients of 4 micro-batches equal those of one batch of 4.

    The micro-batch loss's do not: least of all where each micro-batch is a domain of its own.
    """
    decoder = initialise(Decoder(_config(moe), dtype=torch.float64), seed=2, std=0.2)
    documents = _documents(by_domain)
    fours = [documents[i : i + 4] for i in range(0, 16, 4)]
    for options in (
        BalanceOptions(counts="exact", weight=1.0, z_weight=0.1),
        BalanceOptions("document", weight=1.0),
        BalanceOptions("none", z_weight=0.1),
    ):
        one, four = _gradients(decoder, options, [documents]), _gradients(decoder, options, fours)
        assert (one - four).abs().max() < 1e-10
    micro = BalanceOptions("micro", weight=1.0)
    one, four = _gradients(decoder, micro, [documents]), _gradients(decoder, micro, fours)
    none = _gradients(decoder, BalanceOptions("none"), fours)
    difference = float((one - four).norm() / (one - none).norm())
    assert difference > (0.5 if by_domain else 0.05)
    buffered = BalanceOptions(weight=1.0)
    late = _gradients(decoder, buffered, fours)
    assert 0.01 < float((one - late).norm() / (one - none).norm()) < difference  # nearer, and not the same
    assert torch.equal(_gradients(decoder, buffered, [documents]), one)


def _record(ids: list[list[int]], logits: torch.Tensor, dropped: list[list[bool]] | None = None) -> LayerRouting:
    ids_TK = torch.tensor(ids)
    drops = None if dropped is None else torch.tensor(dropped)
    return LayerRouting(logits.shape[1], ids_TK, torch.ones(ids_TK.shape), logits, drops)


FOUR = _config(MoeConfig(4, 2, 12), layers=(1,))


def test_buffered_shares_are_of_the_micro_steps_so_far() -> None:
    logits = [_random(3, 4, seed=seed) for seed in (1, 2)]
    ids = [[[0, 1], [0, 2], [0, 1]], [[3, 2], [3, 1], [2, 3]]]
    balance = Balance(FOUR, BalanceOptions(weight=0.5))
    for step in range(2):  # the second global batch begins anew
        balance.begin(6, step)
        first = balance.loss(Routing({1: _record(ids[0], logits[0])}), (0, 3))
        second = balance.loss(Routing({1: _record(ids[1], logits[1])}), (0, 3))
        rule, seen = RouteRule(2), torch.tensor([[3, 2, 1, 0], [3, 3, 3, 3]])
        torch.testing.assert_close(first, 0.5 * _global_loss(logits[0], seen[0] / 6, rule, 6))
        torch.testing.assert_close(second, 0.5 * _global_loss(logits[1], seen[1] / 12, rule, 6))
        balance.finish(Decoder(FOUR, device="meta"))


def test_the_measures() -> None:
    """By hand: 4 experts, real tokens alone, choices before drops, a window of two global batches."""
    balance = Balance(FOUR, BalanceOptions("micro", z_weight=1e-3, capacity=1.0, window=2))
    decoder, flat = Decoder(FOUR, device="meta"), torch.zeros(3, 4)
    real_T = torch.tensor([True, True, False])
    dropped = [[False, True], [False, False], [True, True]]
    balance.begin(4, 0)
    balance.loss(Routing({1: _record([[0, 1], [0, 2], [3, 2]], flat, dropped)}), (0, 3), real_T)
    balance.loss(Routing({1: _record([[0, 1], [0, 1], [3, 3]], flat, dropped)}), (0, 3), real_T)
    measures = balance.finish(decoder)  # counts 4 3 1 0
    assert measures == pytest.approx(
        {
            "max_vio": 1.0,
            "max_vio_global": 1.0,
            "load_entropy": (0.5 * math.log(2) + 0.375 * math.log(8 / 3) + 0.125 * math.log(8)) / math.log(4),
            "router_entropy": 1.0,
            "dead_experts": 1.0,
            "drops": 0.25,
            "balance_loss": 1.0,
            "z_loss": math.log(4) ** 2,
            "capacity": 1.0,
        },
        rel=1e-6,
    )
    assert balance.layers == {1: measures}
    expected = [([[2, 3]] * 2, 1.0, 1 / 3), ([[2, 3]] * 2, 1.0, 1.0)]  # windows 4 3 3 2 and 0 0 4 4
    for step, (ids, batch, window) in enumerate(expected, 1):
        balance.begin(2, step)
        balance.loss(Routing({1: _record(ids, flat[:2])}), (0, 2))
        measures = balance.finish(decoder)
        assert (measures["max_vio"], measures["max_vio_global"]) == pytest.approx((batch, window))
        assert measures["drops"] == 0.0


def test_router_entropy_is_the_mean_over_real_tokens() -> None:
    certain, even = [1000.0, 0.0, 0.0, 0.0], [0.0] * 4
    for score in ("softmax", "sigmoid"):
        config = replace(FOUR, moe=replace(FOUR.moe, score=score))
        balance = Balance(config, BalanceOptions("none"))
        balance.begin(3, 0)
        logits = torch.tensor([certain, even, even] if score == "softmax" else [[x - 500 for x in certain], even, even])
        routing = Routing({1: _record([[0, 1]] * 3, logits)})
        loss = balance.loss(routing, (0, 3), torch.tensor([True, True, False]))
        balance.loss(routing.select(slice(1, 2)), (0, 1))
        assert float(loss) == 0.0
        assert balance.finish(Decoder(config, device="meta"))["router_entropy"] == pytest.approx(2 / 3, abs=1e-6)


@pytest.mark.parametrize("z_weight", [0.0, 1e-9])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_the_z_loss_that_is_logged_is_of_logits(score: str, z_weight: float) -> None:
    config = replace(FOUR, moe=replace(FOUR.moe, score=score))
    balance = Balance(config, BalanceOptions("none", z_weight=z_weight))
    balance.begin(2, 0)
    balance.loss(Routing({1: _record([[0, 1]] * 2, torch.full((2, 4), 5.0))}), (0, 2))
    measured = balance.finish(Decoder(config, device="meta"))["z_loss"]
    assert measured == pytest.approx((5 + math.log(4)) ** 2, rel=1e-6)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_biases_bring_balance(score: str) -> None:
    """A router that prefers few experts: only biases move, and the load becomes even."""
    config = _config(MoeConfig(8, 2, 12, score=score, expert_bias=True), layers=(2,))
    decoder = initialise(Decoder(config), seed=1, std=0.2).requires_grad_(False)
    router = decoder.blocks()[2].mlp.router
    balance = Balance(config, BalanceOptions("none", bias_rate=0.02 if score == "sigmoid" else 0.05))
    x_TD = _random(1000, 24, seed=3, dtype=torch.float32) + 2 * _random(24, seed=4, dtype=torch.float32)
    violations = []
    for step in range(200):
        balance.begin(1000, step)
        routing = router(x_TD, "full", None)
        balance.loss(Routing({2: routing}), (0, 1000))
        before_E, counts_E = router.bias_E.clone(), torch.bincount(routing.experts_TK.flatten(), minlength=8)
        violations.append(balance.finish(decoder)["max_vio"])
        moved_E = balance.options.bias_rate * torch.sign(250.0 - counts_E)
        assert torch.equal(router.bias_E, before_E + moved_E)
    assert violations[0] > 1.0
    assert max(violations[-20:]) < 0.25
    assert torch.equal(router.weight_ED, initialise(Decoder(config), seed=1, std=0.2).blocks()[2].mlp.router.weight_ED)


def test_a_bias_moves_once_a_global_batch_by_all_its_counts() -> None:
    config = replace(FOUR, moe=replace(FOUR.moe, expert_bias=True))
    decoder = initialise(Decoder(config), seed=1).requires_grad_(False)
    balance, flat = Balance(config, BalanceOptions("none", bias_rate=0.5)), torch.zeros(2, 4)
    balance.begin(4, 0)
    for ids in ([[0, 1], [0, 2]], [[3, 1], [3, 1]]):
        balance.loss(Routing({1: _record(ids, flat)}), (0, 2))
        assert not decoder.blocks()[1].mlp.router.bias_E.any()
    balance.finish(decoder)  # counts 2 3 1 2, mean 2
    assert decoder.blocks()[1].mlp.router.bias_E.tolist() == [0.0, -0.5, 0.5, 0.0]


def test_capacity_follows_the_load() -> None:
    """0.9 of the average before, 0.1 of the mean over micro-steps of max / mean; kept within 1 and 2."""
    balance = Balance(FOUR, BalanceOptions("none", capacity="load"))
    assert balance.policy(0).capacity == {1: 2.0}
    average = 2.0
    for step in range(30):
        balance.begin(4, step)
        real_T = torch.tensor([True, False, True])
        for ids, real in (([[0, 1], [2, 3]], None), ([[0, 1], [0, 0], [0, 2]], real_T)):  # max / mean 1 and 2
            balance.loss(Routing({1: _record(ids, torch.zeros(len(ids), 4))}), (0, len(ids)), real)
        measures = balance.finish(Decoder(FOUR, device="meta"))
        assert measures["capacity"] == pytest.approx(average)
        average = 0.9 * average + 0.1 * 1.5
        assert balance.policy(0).capacity[1] == pytest.approx(average, rel=1e-6)
    for step in range(60):
        balance.begin(1, step)
        balance.loss(Routing({1: _record([[0, 0]], torch.zeros(1, 4))}), (0, 1))  # all to one of four: 4
        balance.finish(Decoder(FOUR, device="meta"))
    assert balance.policy(0).capacity == {1: 2.0}


def test_policies() -> None:
    real_T = torch.ones(3, dtype=torch.bool)
    assert Balance(FOUR, BalanceOptions()).policy(0) is None
    fixed = Balance(_config(), BalanceOptions(capacity=1.25)).policy(0, real_T)
    assert (fixed.capacity, fixed.noise, fixed.real_T is real_T) == ({1: 1.25, 2: 1.25}, 0.0, True)

    def noise(seed: int, step: int, micro: int) -> RoutingPolicy:
        balance = Balance(FOUR, BalanceOptions(noise=0.5), seed)
        balance.begin(1, step)
        return balance.policy(micro)

    assert noise(1, 2, 3).capacity == {}
    seeds = [noise(*at).at(1).seed for at in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4))]
    assert len(set(seeds)) == 4
    assert noise(1, 2, 3).at(1).seed == seeds[0]


def test_state_goes_on_where_it_was() -> None:
    def steps(balance: Balance, first: int, count: int) -> list[dict[str, float]]:
        measures = []
        for step in range(first, first + count):
            ids = [[step % 4, (step + 1) % 4], [0, 1 + step % 3]]
            balance.begin(2, step)
            balance.loss(Routing({1: _record(ids, _random(2, 4, seed=step))}), (0, 2))
            measures.append(balance.finish(Decoder(FOUR, device="meta")))
        return measures

    options = BalanceOptions(capacity="load", window=3)
    whole = steps(Balance(FOUR, options), 0, 8)
    first = Balance(FOUR, options)
    assert steps(first, 0, 4) == whole[:4]
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second = Balance(FOUR, options)
    for name, tensor in second.state_dict().items():
        tensor.copy_(state[name])
    assert steps(second, 4, 4) == whole[4:]


def test_a_dense_model_has_nothing_to_balance() -> None:
    dense = replace(_config(), moe=None, sparse_layers=())
    for values in ({"capacity": 1.0}, {"noise": 0.1}):
        with pytest.raises(ConfigError, match=f"{next(iter(values))} is for routers, and this model is dense"):
            Balance(dense, BalanceOptions(**values))
    balance = Balance(dense, BalanceOptions(counts="exact"))
    balance.begin(5, 0)
    assert not balance.counting
    assert balance.policy(0) is None
    assert float(balance.loss(Routing({}), (0, 5))) == 0.0
    assert balance.finish(Decoder(dense, device="meta")) == {}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "batch"}, "kind is 'batch', it must be one of none, micro, document, global"),
        ({"counts": "all"}, "counts is 'all', it must be buffered or exact"),
        ({"kind": "micro", "counts": "exact"}, "counts is 'exact', which is of kind 'global'; kind is 'micro'"),
        ({"weight": -1.0}, "weight is -1.0, it must be finite and not negative"),
        ({"z_weight": math.nan}, "z_weight is nan"),
        ({"noise": math.inf}, "noise is inf"),
        ({"capacity": "full"}, "capacity is 'full', it must be a factor or 'load'"),
        ({"capacity": 0.0}, "capacity is 0.0, it must be positive"),
        ({"window": 0}, "window is 0, it must lie between 1 and 10000"),
    ],
)
def test_options_that_mean_nothing(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BalanceOptions(**values)  # type: ignore[arg-type]


def test_what_does_not_fit_together() -> None:
    with pytest.raises(ConfigError, match="bias_rate changes biases that this model's routers lack: set moe expert_b"):
        Balance(FOUR, BalanceOptions(bias_rate=1e-3))
    balance = Balance(FOUR, BalanceOptions())
    with pytest.raises(RequestError, match="0 tokens, it needs at least one"):
        balance.begin(0, 0)
    balance.begin(1, 0)
    with pytest.raises(RequestError, match=r"layers \[2\], the model \[1\]"):
        balance.loss(Routing({2: _record([[0, 1]], torch.zeros(1, 4))}), (0, 1))
    with pytest.raises(RequestError, match="needs the full record of routing"):
        balance.loss(Routing({1: replace(_record([[0, 1]], torch.zeros(1, 4)), logits_TE=None)}), (0, 1))
