"""Low-rank deltas: nothing at first, the same as the merged model, the only thing that learns beside routers."""

from __future__ import annotations

import pytest
import torch

from tenth.errors import RequestError
from tenth.kernels.weight import DenseExpertTable, DenseWeight
from tenth.model.batch import Batch
from tenth.model.decoder import Decoder
from tenth.train.carve import CarveOptions, carve
from tenth.train.low_rank import LowRankExpertTable, LowRankOptions, LowRankWeight, attach, merge
from tests.train.dense import texts, tiny_dense

OPTIONS = LowRankOptions(rank=3, shared_rank=5)


def _carved(split: str = "coactivation", dtype: torch.dtype = torch.float64) -> Decoder:
    return carve(tiny_dense(dtype), texts(4, 1), CarveOptions(12, 3, 6, split)).decoder


def _moved(decoder: Decoder, seed: int = 0) -> Decoder:
    """Outer factors as if they had learned."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if "outer" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    return decoder


@pytest.mark.parametrize("split", ["coactivation", "prune"])
def test_deltas_start_at_nothing_and_merge_to_the_same_function(split: str) -> None:
    plain, batch = _carved(split), Batch.of(texts(2, 2))
    before = plain(batch).logits_NV
    decoder = attach(plain, OPTIONS)
    assert torch.equal(decoder(batch).logits_NV, before)
    changed = _moved(decoder)(batch).logits_NV
    assert (changed - before).abs().max() > 0.1
    merged = merge(decoder)
    torch.testing.assert_close(merged(batch).logits_NV, changed, atol=1e-9, rtol=0)
    assert all(type(part) in (DenseWeight, DenseExpertTable) for part in merged.modules() if hasattr(part, "nbytes"))
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert sum(p.numel() for p in merged.parameters()) == merged.config.parameters.total


def test_routers_and_deltas_learn_and_nothing_else() -> None:
    decoder = _moved(attach(_carved(), OPTIONS))
    decoder(Batch.of(texts(2, 2))).logits_NV.square().mean().backward()
    learning = {name for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-1] for name in learning} == {
        "weight_ED", "w13_inner_ERD", "w13_outer_E2FR", "w2_inner_ERF", "w2_outer_EDR", "inner_RI", "outer_OR",
    }  # fmt: skip
    assert all("router" in name for name in learning if name.endswith("weight_ED"))
    for name, parameter in decoder.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in learning), name


def test_the_stacked_table_is_its_experts_and_has_a_gradient() -> None:
    table = _moved(attach(_carved(), OPTIONS)).blocks()[0].mlp.experts
    assert isinstance(table, LowRankExpertTable)
    stacked = table.stacked()
    for expert in range(table.num_experts):
        for all_experts, one in zip(stacked, table.expert(expert), strict=True):
            torch.testing.assert_close(all_experts[expert], one)
    difference = stacked[0] - table.base.w13_E2FD
    assert torch.linalg.matrix_rank(difference, rtol=1e-9).tolist() == [3] * 9


def test_the_gradient_of_the_stacked_table() -> None:
    base = DenseExpertTable(2, 4, 3, torch.float64, "cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in base.parameters():
        parameter.data.normal_(generator=generator)
    table = LowRankExpertTable(base, 2, generator)
    names = [name for name, parameter in _Stacked(table).named_parameters() if parameter.requires_grad]

    def stacked(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.func.functional_call(_Stacked(table), dict(zip(names, values, strict=True)), ())

    values = [
        torch.randn(_Stacked(table).get_parameter(name).shape, dtype=torch.float64, generator=generator)
        for name in names
    ]
    assert torch.autograd.gradcheck(stacked, [value.requires_grad_() for value in values])


class _Stacked(torch.nn.Module):
    def __init__(self, table: LowRankExpertTable) -> None:
        super().__init__()
        self.table = table

    def forward(self) -> tuple[torch.Tensor, ...]:
        return self.table.stacked()


def test_rows_of_a_matrix_are_those_of_its_sum() -> None:
    base = DenseWeight(7, 4, torch.float64, "cpu")
    base.values_OI.data.normal_()
    weight = LowRankWeight(base, 2, torch.Generator().manual_seed(0))
    weight.outer_OR.data.normal_()
    ids = torch.tensor([[3, 0], [6, 3]])
    torch.testing.assert_close(weight.rows(ids), weight.dense()[ids])
    assert weight.nbytes == (7 * 4 + 7 * 2 + 2 * 4) * 8


def test_deltas_of_a_narrow_model_are_wide() -> None:
    decoder = attach(_carved(dtype=torch.bfloat16), OPTIONS)
    for name, parameter in decoder.named_parameters():
        precise = parameter.requires_grad or "norm" in name or "router" in name
        assert parameter.dtype == (torch.float32 if precise else torch.bfloat16), name
    assert decoder.blocks()[0].mlp.experts.stacked()[0].dtype == torch.bfloat16


def test_rank_nought_leaves_weights_alone() -> None:
    decoder = attach(_carved(), LowRankOptions(rank=0, shared_rank=0))
    learning = [name for name, parameter in decoder.named_parameters() if parameter.requires_grad]
    assert learning == [f"layers.{layer}.mlp.router.weight_ED" for layer in range(3)]


def test_refusals() -> None:
    with pytest.raises(RequestError, match="low-rank deltas already"):
        attach(attach(_carved(), OPTIONS), OPTIONS)
    for wrong in ({"rank": -1}, {"shared_rank": -1}, {"seed": -1}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            LowRankOptions(**wrong)
