"""Carving: every neuron once, the dense function where all are at work, choices that keep most of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.errors import ConfigError, RequestError
from tenth.kernels.reference import rms_norm
from tenth.model.batch import Batch, Want
from tenth.model.decoder import Decoder
from tenth.model.linear import Mlp
from tenth.model.preset import preset
from tenth.routing.record import Routing
from tenth.train.carve import SPLITS, SPREAD, Carved, CarveOptions, carve, carved_config
from tenth.train.coactivation import balanced_clusters, expert_energies, moments
from tenth.train.router_fit import fitted_router, judged_router
from tests.train.dense import CONFIG, texts, tiny_dense

OPTIONS = CarveOptions(num_experts=12, shared=3, top_k=6)


def _mlp(seed: int, width: int = 24, inner: int = 48) -> Mlp:
    dense = tiny_dense(hidden_size=width, intermediate_size=inner, head_dim=width // 4)
    mlp = dense.blocks()[0].mlp
    assert isinstance(mlp, Mlp)
    generator = torch.Generator().manual_seed(seed)
    for part in (mlp.gate, mlp.up, mlp.down):
        part.weight.values_OI.data.normal_(generator=generator)
    return mlp


def _inputs(tokens: int, width: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rms_norm(drawn, torch.ones(width, dtype=torch.float64), 1e-6)


@pytest.mark.parametrize("split", SPLITS)
def test_every_neuron_is_used_once(split: str) -> None:
    dense = tiny_dense()
    carved = carve(dense, texts(4, 1), replace(OPTIONS, split=split))
    for layer, source, target in zip(carved.layers, dense.blocks(), carved.decoder.blocks(), strict=True):
        rows_FD = source.mlp.gate.weight.values_OI
        kept = len(layer.neurons_F)
        assert len(layer.neurons_F.unique()) == kept
        if split == "prune":
            assert kept == 72
            assert torch.equal(target.mlp.gate.weight.values_OI, rows_FD[layer.neurons_F])
            continue
        assert kept == 96
        gates_FD = torch.cat(
            (target.mlp.shared.gate.weight.values_OI, target.mlp.experts.w13_E2FD[:, :8].flatten(0, 1))
        )
        assert torch.equal(gates_FD, rows_FD[layer.neurons_F])
        assert torch.equal(gates_FD.sort(0).values, rows_FD.sort(0).values)


@pytest.mark.parametrize(("experts", "shared"), [(12, 3), (4, 0), (32, 31)])
def test_with_all_experts_at_work_and_even_gates_it_is_the_dense_model(experts: int, shared: int) -> None:
    dense = tiny_dense()
    carved = carve(dense, texts(4, 1), CarveOptions(experts, shared, experts - shared)).decoder
    for layer in carved.blocks():
        layer.mlp.router.weight_ED.data.zero_()
    batch = Batch.of(texts(3, 2))
    torch.testing.assert_close(carved(batch).logits_NV, dense(batch).logits_NV, atol=1e-9, rtol=0)


def test_gates_are_near_one_and_parameters_are_counted() -> None:
    dense = tiny_dense()
    carved = carve(dense, texts(4, 1), OPTIONS).decoder
    routing = carved(Batch.of(texts(3, 2)), want=Want(logits="none", routing="full")).routing
    assert routing is not None
    for layer in routing.layers.values():
        assert layer.gates_TK.shape[1] == 6
        assert layer.gates_TK.mean() == pytest.approx(1.0, abs=1e-6)
        assert (layer.gates_TK - 1).abs().max() < 5 * SPREAD
        assert layer.gates_TK.std() > SPREAD / 5
    count, before = carved.config.parameters, CONFIG.parameters
    assert count.mlp == before.mlp
    assert count.active_mlp == before.mlp * 9 // 12
    built = sum(p.numel() for p in carved.parameters())
    assert built == count.total == before.total + count.router


def _loss_of_function(dense: Decoder, carved: Decoder) -> float:
    batch = Batch.of(texts(6, 2))
    own, its = (model(batch).logits_NV.log_softmax(-1) for model in (dense, carved))
    return float((own.exp() * (own - its)).sum(-1).mean())


def _planted(seed: int) -> Decoder:
    """A model whose neurons work in groups: each group's gates have one direction, and groups are shuffled."""
    dense = tiny_dense()
    for number, layer in enumerate(dense.blocks()):
        generator = torch.Generator().manual_seed(seed + number)
        directions_GD = torch.randn(12, 64, dtype=torch.float64, generator=generator)
        group_F = torch.arange(96)[torch.randperm(96, generator=generator)] % 12
        noise_FD = 0.05 * torch.randn(96, 64, dtype=torch.float64, generator=generator)
        layer.mlp.gate.weight.values_OI.data.copy_(directions_GD[group_F] * 0.4 + noise_FD)
    return dense


def test_coactivation_finds_groups_that_a_random_split_does_not() -> None:
    dense, options = _planted(5), CarveOptions(num_experts=12, shared=0, top_k=6)
    kl = {
        split: _loss_of_function(dense, carve(dense, texts(24, 1), replace(options, split=split)).decoder)
        for split in SPLITS
    }
    assert kl["coactivation"] < 0.6 * kl["random"]
    assert kl["coactivation"] < 0.6 * kl["prune"]


def test_the_router_is_judged_on_other_tokens_and_beats_chance() -> None:
    dense = _planted(5)
    carved: Carved = carve(dense, texts(24, 1), CarveOptions(num_experts=12, shared=0, top_k=6))
    for fit in carved.fits:
        assert 0.75 < fit.recall <= 1.0
        assert 0.5 < fit.kept <= fit.kept_best <= 1.0
        assert fit.kept > 0.9 * fit.kept_best
        assert 0 <= fit.max_vio < 1.0


def test_energies_are_the_lengths_of_what_experts_add() -> None:
    mlp, x_ND = _mlp(1), _inputs(10, 24, 2)
    groups = torch.randperm(48, generator=torch.Generator().manual_seed(0)).view(6, 8)
    energies_NE = expert_energies(x_ND, mlp, groups)
    for expert, group in enumerate(groups):
        gate_TF, up_TF = (x_ND @ part.weight.values_OI[group].T for part in (mlp.gate, mlp.up))
        out_TD = (gate_TF * torch.sigmoid(gate_TF) * up_TF) @ mlp.down.weight.values_OI[:, group].T
        torch.testing.assert_close(energies_NE[:, expert], out_TD.norm(dim=1) ** 2)
    everything = expert_energies(x_ND, mlp, torch.arange(48)[None])[:, 0]
    torch.testing.assert_close(everything, mlp(x_ND).square().sum(1))


def test_moments_are_means_over_tokens() -> None:
    mlp, x_ND = _mlp(1), _inputs(5000, 24, 2)  # more than one chunk
    mean_F, gram_FF = moments(x_ND, mlp)
    active_NF = torch.nn.functional.silu(x_ND @ mlp.gate.weight.values_OI.T) * (x_ND @ mlp.up.weight.values_OI.T)
    importance_NF = active_NF.abs() * mlp.down.weight.values_OI.norm(dim=0)
    torch.testing.assert_close(mean_F, importance_NF.mean(0))
    torch.testing.assert_close(gram_FF, importance_NF.T @ importance_NF / 5000)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), st.integers(1, 6), st.integers(0, 1000))
def test_clusters_are_equal_in_size_and_no_exchange_would_help(clusters: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    patterns_FN = torch.rand(clusters * size, 20, dtype=torch.float64, generator=generator)
    gram_FF = patterns_FN @ patterns_FN.T
    label_F = balanced_clusters(gram_FF, clusters, generator)
    assert torch.bincount(label_F, minlength=clusters).tolist() == [size] * clusters

    def within(label_F: torch.Tensor) -> float:
        return float(gram_FF[label_F[:, None] == label_F].sum())

    reached = within(label_F)
    for one in range(len(label_F)):
        for other in range(one):
            exchanged_F = label_F.clone()
            exchanged_F[[one, other]] = label_F[[other, one]]
            assert within(exchanged_F) <= reached * (1 + 1e-5)


def test_planted_clusters_are_found() -> None:
    generator = torch.Generator().manual_seed(1)
    truth_F = torch.arange(60)[torch.randperm(60, generator=generator)] % 5
    patterns_FN = torch.nn.functional.one_hot(truth_F, 5).double() + 0.1 * torch.rand(60, 5, generator=generator)
    label_F = balanced_clusters(patterns_FN @ patterns_FN.T, 5, generator)
    assert torch.equal(label_F[:, None] == label_F, truth_F[:, None] == truth_F)


def test_the_fitted_router_finds_what_is_linear() -> None:
    x_ND, generator = _inputs(600, 24, 3), torch.Generator().manual_seed(4)
    truth_ED = torch.randn(8, 24, dtype=torch.float64, generator=generator)
    offset_E = torch.randn(8, dtype=torch.float64, generator=generator)
    energy_NE = (x_ND @ truth_ED.T * 0.3 + offset_E).exp()
    rows_ED, bias_E = fitted_router(x_ND[:400], energy_NE[:400], SPREAD)
    fit = judged_router(x_ND[400:], energy_NE[400:], rows_ED, bias_E, top_k=3)
    assert fit.recall > 0.98
    assert fit.kept > 0.99 * fit.kept_best
    assert (x_ND @ rows_ED.T).std() == pytest.approx(SPREAD, rel=0.3)
    blind = judged_router(x_ND[400:], energy_NE[400:], torch.zeros_like(rows_ED), bias_E, top_k=3)
    assert blind.recall < 0.8


def test_the_same_seed_gives_the_same_model() -> None:
    one, same, other = (
        carve(tiny_dense(), texts(4, 1), replace(OPTIONS, seed=seed)).decoder.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_nothing_but_feed_forward_layers_is_copied_and_routing_is_recorded() -> None:
    dense = tiny_dense(torch.bfloat16)
    carved = carve(dense, texts(4, 1), OPTIONS).decoder
    assert carved.embedding is dense.embedding
    assert all(a.attention is b.attention for a, b in zip(carved.blocks(), dense.blocks(), strict=True))
    assert carved.blocks()[0].mlp.router.weight_ED.dtype == torch.float32
    assert carved.blocks()[0].mlp.experts.w13_E2FD.dtype == torch.bfloat16
    routing = carved(Batch.of(texts(1, 2)), want=Want(logits="none", routing="choice")).routing
    assert isinstance(routing, Routing)
    assert tuple(routing.layers) == (0, 1, 2)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="2 sparse layers already"):
        carved_config(preset("tiny-moe"), OPTIONS)
    with pytest.raises(ConfigError, match="biases"):
        carved_config(replace(CONFIG, mlp_bias=True), OPTIONS)
    with pytest.raises(RequestError, match="num_experts is 7, it must divide the dense width 96"):
        carved_config(CONFIG, CarveOptions(7, 1, 2))
    with pytest.raises(RequestError, match="calibration text are too few"):
        carve(tiny_dense(), [[1, 2, 3]], OPTIONS)
    for wrong in ({"split": "best"}, {"shared": 32}, {"shared": -1}, {"top_k": 0}, {"top_k": 25}, {"seed": -1}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            CarveOptions(**wrong)
