"""Activation checkpointing: layers are computed again in the backward pass, with the routing of the first time.

A router that chose anew could choose otherwise (rounding, noise, capacity), and its gradient would belong to another
forward pass: ids and drops are replayed. T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tenth.model.decoder import LayerResult
from tenth.routing.record import LayerRouting

Layer = Callable[[Tensor, LayerRouting | None], LayerResult]


class Recompute:
    """A `RunLayer` that keeps a layer's input alone. Results and gradients are those without it.

    Router logits in a full record carry their gradient; the record's gates do not.
    """

    def __call__(self, index: int, layer: Layer, x_TD: Tensor, replay: LayerRouting | None) -> LayerResult:
        """What `layer(x_TD, replay)` gives."""
        if not torch.is_grad_enabled():
            return layer(x_TD, replay)
        first = _FirstPass(layer, replay)
        # the empty tensor wants a gradient: without it, a layer behind a frozen embedding would not be asked for one
        anchor = torch.empty(0, requires_grad=True)
        y_TD, logits_TE = _Recomputed.apply(x_TD, anchor, first)  # type: ignore[no-untyped-call]
        routing = first.routing
        if routing is not None and routing.logits_TE is not None:
            routing = replace(routing, logits_TE=logits_TE)
        return y_TD, routing


class _FirstPass:
    """A layer's first pass, and what it decided."""

    def __init__(self, layer: Layer, replay: LayerRouting | None) -> None:
        self.layer, self.replay = layer, replay
        self.routing: LayerRouting | None = None

    def run(self, x_TD: Tensor) -> Tensor:
        y_TD, self.routing = self.layer(x_TD, self.replay)
        return y_TD


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, anchor: Tensor, first: _FirstPass) -> tuple[Tensor, Tensor | None]:
        y_TD = first.run(x_TD)
        ctx.layer, ctx.routing = first.layer, first.routing
        ctx.wants_input = x_TD.requires_grad
        ctx.save_for_backward(x_TD)
        ctx.set_materialize_grads(False)
        return y_TD, None if first.routing is None else first.routing.logits_TE

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, None]:
        x_TD = ctx.saved_tensors[0].detach().requires_grad_(ctx.wants_input)
        with torch.enable_grad():
            y_TD, routing = ctx.layer(x_TD, ctx.routing)
        outputs = (y_TD, None if routing is None else routing.logits_TE)
        known = [
            (output, grad)
            for output, grad in zip(outputs, grads, strict=True)
            if grad is not None and output is not None and output.requires_grad
        ]
        if known:
            torch.autograd.backward([output for output, _ in known], [grad for _, grad in known])
        return x_TD.grad, None, None
