"""Distillation: the divergence of whole logits, block by block, and the error of layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tenth.data.collate import TrainBatch
from tenth.data.packing import IGNORE
from tenth.errors import RequestError
from tenth.model.batch import Batch, Want
from tenth.routing.rule import RoutingPolicy
from tenth.train.carve import CarveOptions, carve
from tenth.train.distill import Distillation, DistillOptions, kl_sum, layer_error_sum
from tenth.train.low_rank import LowRankOptions, attach
from tenth.train.recompute import Recompute
from tests.train.dense import texts, tiny_dense


def _rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _plain(ours_TD: torch.Tensor, head_VD: torch.Tensor, theirs_TD: torch.Tensor, their_head_VD: torch.Tensor):
    log_q, log_p = (F.log_softmax(x @ h.T, -1) for x, h in ((ours_TD, head_VD), (theirs_TD, their_head_VD)))
    return (log_p.exp() * (log_p - log_q)).sum()


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_divergence_in_blocks_is_the_plain_one_with_its_gradients(rows: int) -> None:
    values = (_rows(0, 7, 5), _rows(1, 11, 5), _rows(2, 7, 6), _rows(3, 11, 6))
    grads = []
    for function in (_plain, lambda *parts: kl_sum(*parts, rows)):
        ours_TD, head_VD = (value.clone().requires_grad_() for value in values[:2])
        kl = function(ours_TD, head_VD, *values[2:])
        (3 * kl).backward()
        grads.append((kl.detach(), ours_TD.grad, head_VD.grad))
    for plain, blocks in zip(*grads, strict=True):
        torch.testing.assert_close(blocks, plain, atol=1e-12, rtol=1e-12)


def test_gradcheck_of_the_divergence() -> None:
    values = [
        _rows(seed, *shape).requires_grad_(seed < 2) for seed, shape in enumerate([(4, 3), (5, 3), (4, 2), (5, 2)])
    ]
    assert torch.autograd.gradcheck(lambda *parts: kl_sum(*parts, 3), values)


def test_the_divergence_of_equals_and_of_nothing_is_nought() -> None:
    hidden_TD, head_VD = _rows(0, 7, 5).requires_grad_(), _rows(1, 11, 5)
    kl = kl_sum(hidden_TD, head_VD, hidden_TD.detach(), head_VD, 3)
    kl.backward()
    assert float(kl.detach()) == pytest.approx(0, abs=1e-12)
    assert hidden_TD.grad is not None
    assert hidden_TD.grad.abs().max() < 1e-12
    empty = torch.zeros(0, 5, dtype=torch.float64)
    assert float(kl_sum(empty, head_VD, empty, head_VD, 3)) == 0


def test_layer_errors_are_measured_by_each_tokens_own_length() -> None:
    theirs_TD = torch.tensor([[1.0, 0.0], [0.0, 100.0], [3.0, 4.0]])
    ours_TD = torch.tensor([[1.5, 0.0], [0.0, 110.0], [0.0, 0.0]])
    counts_T = torch.tensor([True, True, False])
    assert float(layer_error_sum(ours_TD, theirs_TD, counts_T)) == pytest.approx(0.25 + 0.01)


def _batch(documents: list[list[int]]) -> TrainBatch:
    batch = Batch.of(documents)
    targets = [[*document[1:], IGNORE] for document in documents]
    targets_T = torch.tensor([target for row in targets for target in row])
    return TrainBatch(
        batch,
        targets_T,
        torch.zeros(len(batch), dtype=torch.int64),
        torch.ones(len(batch), dtype=torch.bool),
        (0,),
        int((targets_T != IGNORE).sum()),
    )


def test_the_objective_is_its_two_terms_over_tokens_with_targets() -> None:
    dense = tiny_dense()
    student = attach(carve(dense, texts(4, 1), CarveOptions(12, 3, 6)).decoder, LowRankOptions(2, 2))
    documents = texts(3, 2, 20)
    batch = _batch(documents)
    loss, measures, routing = Distillation(dense, DistillOptions(kl_weight=2.0, layer_weight=0.5, rows=7)).loss(
        student, batch, None, None
    )
    outputs: dict[object, list[torch.Tensor]] = {}

    def logits(model: torch.nn.Module) -> torch.Tensor:
        def run(index, layer, x_TD, replay):
            y_TD, decided = layer(x_TD, replay)
            outputs.setdefault(model, []).append(y_TD)
            return y_TD, decided

        return model(batch.batch, want=Want(), run=run).logits_NV

    counts_T = batch.targets_T != IGNORE
    log_q, log_p = (logits(model)[counts_T].log_softmax(-1) for model in (student, dense))
    kl = (log_p.exp() * (log_p - log_q)).sum()
    errors = [
        ((ours - theirs).square().sum(-1) / theirs.square().sum(-1))[counts_T].sum()
        for ours, theirs in zip(outputs[student], outputs[dense], strict=True)
    ]
    error = sum(errors) / len(errors)
    assert measures == pytest.approx({"kl": kl.item(), "layer_error": error.item()})
    assert loss.item() == pytest.approx((2 * kl + 0.5 * error).item())
    assert kl.item() > 0.1
    assert routing is not None
    assert routing.num_tokens == 60
    loss.backward()
    mine = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    (2 * kl + 0.5 * error).backward()
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(mine[name], parameter.grad, atol=1e-10, rtol=1e-8)


def test_gradients_are_the_same_where_layers_are_computed_again() -> None:
    dense = tiny_dense()
    student = attach(carve(dense, texts(4, 1), CarveOptions(12, 3, 6)).decoder, LowRankOptions(2, 2))
    objective, batch = Distillation(dense, DistillOptions()), _batch(texts(3, 2, 20))
    grads = []
    for run in (None, Recompute()):
        student.zero_grad()
        loss, _, _ = objective.loss(student, batch, RoutingPolicy(), run)
        loss.backward()
        grads.append({name: p.grad for name, p in student.named_parameters() if p.grad is not None})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-10, rtol=1e-8)


def test_a_few_steps_bring_the_student_nearer() -> None:
    torch.manual_seed(0)
    dense = tiny_dense(torch.float32)
    student = attach(carve(dense, texts(4, 1), CarveOptions(12, 3, 6)).decoder, LowRankOptions(4, 4))
    objective, batch = Distillation(dense, DistillOptions()), _batch(texts(3, 2, 40))
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    kls = []
    for _ in range(12):
        loss, measures, _ = objective.loss(student, batch, None, None)
        kls.append(measures["kl"])
        optimizer.zero_grad()
        (loss / batch.loss_tokens).backward()
        optimizer.step()
    assert kls[-1] < 0.8 * kls[0]


def test_refusals() -> None:
    objective, batch = Distillation(tiny_dense(), DistillOptions()), _batch(texts(1, 2, 20))
    with pytest.raises(RequestError, match="512 tokens in its vocabulary, this 600"):
        objective.loss(tiny_dense(vocab_size=600), batch, None, None)
    with pytest.raises(RequestError, match="set distill layer_weight to 0"):
        objective.loss(tiny_dense(num_layers=2), batch, None, None)
    for wrong in ({"kl_weight": -1}, {"layer_weight": float("nan")}, {"rows": 0}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            DistillOptions(**wrong)
