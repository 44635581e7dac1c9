"""Steps of the optimiser against torch's own, groups, masters, and Muon on tables of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.train.low_rank import LowRankOptions, attach
from tenth.train.muon import matrices, orthogonal
from tenth.train.optimizer import Optimizer, group_of
from tenth.train.recipe import OptimizerOptions

SHARED = {"shared_intermediate_size": 32, "shared_gate": True, "expert_bias": True, "score": "sigmoid"}


def _config(**moe: Any) -> ModelConfig:
    config = preset("tiny-moe")
    assert config.moe is not None
    return replace(config, model_type="tenth", qkv_bias=True, moe=replace(config.moe, **moe))


def _decoder(dtype: torch.dtype = torch.float32, **moe: Any) -> Decoder:
    return initialise(Decoder(_config(**moe), dtype=dtype), 1)


def _gradients(decoder: Decoder, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        if parameter.requires_grad:
            drawn = torch.empty(parameter.shape).normal_(0, scale, generator=generator)
            parameter.grad = drawn.to(parameter.grad_dtype or parameter.dtype)


def test_every_parameter_has_one_group() -> None:
    decoder = _decoder(**SHARED)
    optimizer = Optimizer(decoder.named_parameters(), OptimizerOptions())
    groups = {part.name: part.group for part in optimizer.learned}
    assert set(groups) == {name for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    assert not any(name.endswith("bias_E") for name in groups)  # balance moves it
    assert sum(numbers for _, numbers in optimizer.coverage().values()) == sum(
        parameter.numel() for parameter in decoder.parameters() if parameter.requires_grad
    )
    assert groups["embedding.values_OI"] == groups["head.weight.values_OI"] == "embeddings"
    assert groups["layers.1.mlp.router.weight_ED"] == groups["layers.1.mlp.shared_gate.weight.values_OI"] == "routers"
    assert groups["layers.0.attention.q.bias"] == groups["norm.weight"] == groups["layers.0.attention.q_norm.weight"]
    assert groups["norm.weight"] == "vectors"
    assert groups["layers.2.mlp.experts.w13_E2FD"] == groups["layers.0.mlp.gate.weight.values_OI"] == "matrices"
    with pytest.raises(AssertionError, match=r"no rule for the parameter 'layers.0.mlp.new'"):
        group_of("layers.0.mlp.new")


def test_deltas_have_a_group_of_their_own() -> None:
    decoder = attach(_decoder(**SHARED), LowRankOptions(rank=2, shared_rank=2))
    optimizer = Optimizer(decoder.named_parameters(), OptimizerOptions())
    assert set(optimizer.coverage()) == {"routers", "deltas"}
    assert optimizer.coverage()["routers"][0] == 2
    assert optimizer.coverage()["deltas"][0] == 2 * 4 + 3 * 3 * 2  # two tables, three dense layers of three matrices


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e9])
def test_adamw_is_that_of_torch(clip: float) -> None:
    """Three steps with decay on matrices and clipping, beside `torch.optim.AdamW` and `clip_grad_norm_`."""
    ours, theirs = _decoder(), _decoder()
    options = OptimizerOptions(lr=1e-2, betas=(0.8, 0.9), weight_decay=0.3, clip=clip)
    optimizer = Optimizer(ours.named_parameters(), options)
    named = [(name, parameter) for name, parameter in theirs.named_parameters() if parameter.requires_grad]
    decayed = [p for name, p in named if p.dim() > 1 and not name.startswith(("embedding", "head"))]
    rest = [p for _, p in named if all(p is not other for other in decayed)]
    groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9), weight_decay=0.3)
    for step, rate in enumerate((0.5, 1.0, 0.1)):
        _gradients(ours, step)
        _gradients(theirs, step)
        norm = optimizer.norm()
        assert norm == pytest.approx(float(nn.utils.get_total_norm([p.grad for _, p in named])), rel=1e-6)
        optimizer.step(rate, norm)
        if clip:
            nn.utils.clip_grad_norm_([p for _, p in named], clip)
        for group in reference.param_groups:
            group["lr"] = 1e-2 * rate
        reference.step()
        for (name, parameter), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            torch.testing.assert_close(parameter, other, atol=1e-6, rtol=1e-5, msg=name)
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_masters_keep_what_bfloat16_loses() -> None:
    """Steps of a thousandth of a weight vanish in bfloat16; twenty of them on a master do not."""
    decoder = _decoder(torch.bfloat16)
    start = {name: parameter.detach().float() for name, parameter in decoder.named_parameters()}
    name = "layers.0.attention.q.weight.values_OI"
    start[name].fill_(1.0 + 2**-10)
    optimizer = Optimizer(decoder.named_parameters(), OptimizerOptions(lr=5e-4, weight_decay=0.0), dict(start))
    parameter = dict(decoder.named_parameters())[name]
    assert float(parameter.detach()[0, 0]) == 1.0
    for _ in range(20):
        for part in optimizer.learned:
            part.parameter.grad = torch.ones_like(part.master)
        optimizer.step(1.0, optimizer.norm())
    master = optimizer.masters()[name]
    assert master.dtype == torch.float32
    torch.testing.assert_close(master, torch.full_like(master, 1 + 2**-10 - 1e-2), atol=1e-5, rtol=0)
    assert torch.equal(parameter, master.bfloat16())


def test_gradients_of_bfloat16_weights_are_summed_in_float32() -> None:
    decoder = _decoder(torch.bfloat16)
    optimizer = Optimizer(decoder.named_parameters(), OptimizerOptions())
    weight = decoder.embedding.values_OI
    assert isinstance(weight, Tensor)
    for value in (1.0, 2**-9, 2**-9, 2**-9):
        (weight * torch.tensor(value, dtype=torch.bfloat16)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert float(weight.grad[0, 0]) == 1 + 3 * 2**-9  # in bfloat16 it would be 1
    assert optimizer.norm() == pytest.approx(float(weight.grad.norm()))


def test_a_norm_that_is_not_finite_is_seen() -> None:
    decoder = _decoder()
    optimizer = Optimizer(decoder.named_parameters(), OptimizerOptions())
    _gradients(decoder, 0)
    next(iter(decoder.parameters())).grad[0, 0] = float("inf")  # type: ignore[index]
    assert optimizer.norm() == float("inf")


def _singular(x_EOI: Tensor) -> Tensor:
    return torch.linalg.svdvals(x_EOI.float())


@pytest.mark.parametrize("shape", [(5, 24, 16), (5, 16, 24), (3, 16, 16)])
def test_each_expert_becomes_orthogonal_by_itself(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x_EOI = torch.empty(shape).normal_(generator=generator)
    x_EOI[1] *= 1e4  # one that is large does not drown the others
    step_EOI = orthogonal(x_EOI)
    assert 0.6 < float(_singular(step_EOI).min()) <= float(_singular(step_EOI).max()) < 1.3
    for one, alone in zip(step_EOI, x_EOI, strict=True):
        torch.testing.assert_close(one, orthogonal(alone[None])[0], atol=2e-2, rtol=0)
    assert not orthogonal(torch.zeros(2, 3, 4)).any()


def test_gate_and_up_are_apart() -> None:
    table = torch.zeros(2, 6, 4)
    parts = list(matrices("layers.0.mlp.experts.w13_E2FD", table))
    assert [part.shape for part in parts] == [(2, 3, 4), (2, 3, 4)]
    assert parts[1].data_ptr() == table[:, 3:].data_ptr()


@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
def test_muon_is_that_of_torch_on_matrices_and_the_same_on_each_expert(scale: str) -> None:
    decoder, twin = _decoder(), _decoder()
    options = OptimizerOptions(kind="muon", lr=2e-2, muon_lr=1e-2, muon_scale=scale, weight_decay=0.2, clip=0)  # type: ignore[arg-type]
    optimizer = Optimizer(decoder.named_parameters(), options)
    before = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
    q, table = "layers.0.attention.q.weight.values_OI", "layers.1.mlp.experts.w13_E2FD"
    values = dict(twin.named_parameters())
    experts = [nn.Parameter(part[0].clone()) for part in values[table].detach().chunk(2, dim=1)]  # expert 0: gate, up
    theirs = torch.optim.Muon([values[q], *experts], lr=1e-2, weight_decay=0.2, adjust_lr_fn=scale)
    for step in range(3):
        _gradients(decoder, step)
        _gradients(twin, step)
        optimizer.step(1.0, optimizer.norm())
        for expert, grad in zip(experts, values[table].grad.chunk(2, dim=1), strict=True):  # type: ignore[union-attr]
            expert.grad = grad[0]
        theirs.step()
    after = dict(decoder.named_parameters())
    torch.testing.assert_close(after[q], values[q], atol=2e-3, rtol=0)
    moved = float((after[q] - before[q]).detach().abs().mean())
    assert float((after[q] - values[q]).detach().abs().mean()) < 0.03 * moved  # bfloat16 inside
    torch.testing.assert_close(after[table][0], torch.cat(experts), atol=2e-3, rtol=0)
    averages = {part.name: set(part.averages) for part in optimizer.learned}
    assert averages[table] == {"average"}
    assert averages["norm.weight"] == averages["embedding.values_OI"] == {"average", "square"}


def test_state_is_named_and_whole() -> None:
    decoder = _decoder()
    optimizer = Optimizer(decoder.named_parameters(), OptimizerOptions(kind="muon"))
    names = set(optimizer.tensors())
    assert {"master/norm.weight", "average/norm.weight", "square/norm.weight"} <= names
    assert "square/layers.1.mlp.experts.w2_EDF" not in names
    held = sum(len(part.averages) + 1 for part in optimizer.learned)
    assert len(names) == held


def test_routers_have_a_rate_of_their_own() -> None:
    """AdamW's first step is its rate, whatever the size of a gradient."""
    decoder = _decoder()
    optimizer = Optimizer(
        decoder.named_parameters(), OptimizerOptions(lr=1e-2, router_lr=1e-4, clip=0.0, weight_decay=0.0)
    )
    before = {part.name: part.master.clone() for part in optimizer.learned}
    _gradients(decoder, 3)
    optimizer.step(0.5, optimizer.norm())
    for part in optimizer.learned:
        moved = (part.master - before[part.name]).abs().median().item()
        assert moved == pytest.approx(5e-5 if part.group == "routers" else 5e-3, rel=1e-2), part.name


def test_rates_for_the_log() -> None:
    def rates(**options: Any) -> dict[str, float]:
        decoder = Decoder(preset("tiny-moe"))
        return Optimizer(decoder.named_parameters(), OptimizerOptions(lr=0.5, **options)).rates(0.5)

    assert rates() == {"lr": 0.25}
    assert rates(router_lr=0.5) == {"lr": 0.25}
    assert rates(router_lr=0.25) == {"lr": 0.25, "lr_router": 0.125}
    assert rates(kind="muon") == {"lr": 0.25}
    assert rates(kind="muon", muon_lr=2.0, router_lr=1.0) == {"lr": 0.25, "lr_muon": 1.0, "lr_router": 0.5}
