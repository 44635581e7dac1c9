"""Layers that are computed again give the same gradients, with the routing of the first time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tenth.model.batch import Batch, Want
from tenth.model.decoder import Decoder, LayerResult, initialise
from tenth.model.preset import preset
from tenth.routing.record import LayerRouting
from tenth.routing.rule import RoutingPolicy
from tenth.train.recompute import Layer, Recompute


def _decoder(dtype: torch.dtype) -> Decoder:
    config = replace(preset("tiny-moe"), num_layers=4, sparse_layers=(1, 2, 3))
    return initialise(Decoder(config, dtype=dtype), 3, std=0.3)


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch.of([torch.randint(0, 512, (length,), generator=generator) for length in (5, 12, 7)])


def _loss(decoder: Decoder, run: Recompute | None, policy: RoutingPolicy | None) -> Tensor:
    """Something of the output and of every layer's router logits, as balance losses take them."""
    want = Want(logits="none", hidden=True, routing="full")
    output = decoder(_batch(), want=want, routing=policy, run=run)
    loss: Tensor = output.hidden_TD.square().sum()
    for index, layer in output.routing.layers.items():
        loss = loss + (index + 1) * torch.softmax(layer.logits_TE, -1)[:, :3].square().sum()
    return loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("policy", [None, RoutingPolicy({1: 1.0, 2: 1.0}, noise=2.0, seed=5)], ids=["rule", "policy"])
def test_equal_losses_and_gradients(dtype: torch.dtype, policy: RoutingPolicy | None) -> None:
    """The policy's noise and capacity would choose otherwise for other tokens: nothing is chosen a second time."""
    kept, again = _decoder(dtype), _decoder(dtype)
    losses = _loss(kept, None, policy), _loss(again, Recompute(), policy)
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for (name, one), (_, other) in zip(kept.named_parameters(), again.named_parameters(), strict=True):
        if name != "head.weight.values_OI":
            assert one.grad is not None, name
            assert other.grad is not None, name
            torch.testing.assert_close(one.grad, other.grad, msg=name)


class _Spy(Recompute):
    """Counts how often each layer is computed, and what it was to replay."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, LayerRouting | None]] = []

    def __call__(self, index: int, layer: Layer, x_TD: Tensor, replay: LayerRouting | None) -> LayerResult:
        def watched(x_TD: Tensor, replay: LayerRouting | None) -> LayerResult:
            self.seen.append((index, replay))
            return layer(x_TD, replay)

        return super().__call__(index, watched, x_TD, replay)


def test_the_first_routing_is_replayed() -> None:
    decoder, spy = _decoder(torch.float32), _Spy()
    _loss(decoder, spy, None).backward()
    assert [index for index, _ in spy.seen] == [0, 1, 2, 3, 3, 2, 1, 0]
    assert all(replay is None for _, replay in spy.seen[:4])
    replayed = dict(spy.seen[4:])
    first = decoder(_batch(), want=Want(routing="full")).routing
    for index, layer in first.layers.items():
        replay = replayed[index]
        assert replay is not None
        assert torch.equal(replay.experts_TK, layer.experts_TK)
    assert replayed[0] is None


def test_less_is_kept() -> None:
    """Bytes that autograd saves between the passes: a layer's input instead of all in it."""

    def saved(run: Recompute | None) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            _loss(_decoder(torch.float32), run, None)
        return total

    assert saved(Recompute()) < saved(None) / 4


def test_frozen_embedding_and_no_gradients() -> None:
    decoder = _decoder(torch.float32).requires_grad_(False)
    weight = decoder.blocks()[0].attention_norm.weight.requires_grad_(True)
    _loss(decoder, Recompute(), None).backward()
    assert weight.grad is not None
    assert weight.grad.any()
    with torch.no_grad():
        assert not _loss(decoder, Recompute(), None).requires_grad
