"""Learning from another model of the same vocabulary: its probabilities, and the outputs of its layers.

T tokens, R rows of a block, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tenth.data.collate import TrainBatch
from tenth.data.packing import IGNORE
from tenth.errors import RequestError
from tenth.kernels.reference import wide
from tenth.model.batch import Want
from tenth.model.decoder import Decoder, LayerResult, RunLayer
from tenth.routing.record import LayerRouting, Routing
from tenth.routing.rule import RoutingPolicy
from tenth.train.cross_entropy import rows_together
from tenth.train.objective import record_kind

LayerCall = Callable[[Tensor, LayerRouting | None], LayerResult]


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """`teacher` names the model to learn from; weights of the two terms of the loss.

    `kl_weight` weighs KL(teacher || student) where a token has a target, `layer_weight` the squared error of every
    layer's output over the square of the teacher's, mean over layers. Logits are there for `rows` tokens at a time.
    """

    teacher: str = "default-dense"
    kl_weight: float = 1.0
    layer_weight: float = 0.1
    rows: int = 256

    def __post_init__(self) -> None:
        for name in ("kl_weight", "layer_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RequestError(f"distill {name} is {getattr(self, name)}, it must be at least 0 and finite")
        if not self.kl_weight and not self.layer_weight:
            raise RequestError("distill kl_weight and layer_weight are both 0: there is nothing to learn")
        if self.rows < 1:
            raise RequestError(f"distill rows is {self.rows}, it must be at least 1")


class Distillation:
    """The objective of a student: to say what a frozen teacher says, which runs beside it."""

    def __init__(self, teacher: Decoder, options: DistillOptions) -> None:
        self._teacher, self._options = teacher.requires_grad_(False), options

    def loss(
        self, decoder: Decoder, batch: TrainBatch, policy: RoutingPolicy | None, run: RunLayer | None
    ) -> tuple[Tensor, dict[str, float], Routing | None]:
        """The weighted terms summed over the tokens that have a target, and each apart; the full routing record.

        RequestError where the two models have other vocabularies or, with `layer_weight`, other layers.
        """
        self._check(decoder)
        options, counts_T = self._options, batch.targets_T != IGNORE
        taught = _Outputs()
        want = Want(logits="none", hidden=True)
        with torch.no_grad():
            theirs_TD = self._teacher(batch.batch, want=want, run=taught if options.layer_weight else None).hidden_TD
        errors = _Errors(taught.outputs, counts_T, run)
        want = Want(logits="none", hidden=True, routing=record_kind(decoder))
        output = decoder(batch.batch, want=want, routing=policy, run=errors if options.layer_weight else run)
        heads = decoder.head.weight.dense(), self._teacher.head.weight.dense()
        kl = kl_sum(output.hidden_TD[counts_T], heads[0], theirs_TD[counts_T], heads[1], options.rows)
        error = errors.mean(kl)
        loss = options.kl_weight * kl + options.layer_weight * error
        return loss, {"kl": float(kl.detach()), "layer_error": float(error.detach())}, output.routing

    def _check(self, student: Decoder) -> None:
        ours, theirs = student.config, self._teacher.config
        if ours.vocab_size != theirs.vocab_size:
            raise RequestError(f"the teacher has {theirs.vocab_size} tokens in its vocabulary, this {ours.vocab_size}")
        shape = (ours.num_layers, ours.hidden_size)
        if self._options.layer_weight and shape != (theirs.num_layers, theirs.hidden_size):
            raise RequestError(
                f"the teacher has {theirs.num_layers} layers of width {theirs.hidden_size}, the model {shape[0]} of "
                f"{shape[1]}: set distill layer_weight to 0"
            )


class _Outputs:
    """A `RunLayer` that keeps every layer's output."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def __call__(self, index: int, layer: LayerCall, x_TD: Tensor, replay: LayerRouting | None) -> LayerResult:
        y_TD, routing = layer(x_TD, replay)
        self.outputs.append(y_TD)
        return y_TD, routing


class _Errors:
    """A `RunLayer` that compares every layer's output with the teacher's, around another one."""

    def __init__(self, taught: list[Tensor], counts_T: Tensor, run: RunLayer | None) -> None:
        self._taught, self._counts_T, self._run = taught, counts_T, run
        self._sums: list[Tensor] = []

    def __call__(self, index: int, layer: LayerCall, x_TD: Tensor, replay: LayerRouting | None) -> LayerResult:
        y_TD, routing = layer(x_TD, replay) if self._run is None else self._run(index, layer, x_TD, replay)
        self._sums.append(layer_error_sum(y_TD, self._taught[index], self._counts_T))
        return y_TD, routing

    def mean(self, like: Tensor) -> Tensor:
        """Mean over layers of the sums over tokens; 0 where nothing was compared."""
        return torch.stack(self._sums).mean() if self._sums else torch.zeros_like(like)


def layer_error_sum(ours_TD: Tensor, theirs_TD: Tensor, counts_T: Tensor) -> Tensor:
    """Sum over the tokens that count of |ours - theirs|^2 / |theirs|^2, in float32 or wider.

    Each token is measured by its own length: a few (the first of a text) are hundreds of times as long as others.
    """
    ours_TD, theirs_TD = ours_TD.to(wide(ours_TD.dtype)), theirs_TD.to(wide(ours_TD.dtype))
    error_T = (ours_TD - theirs_TD).square().sum(-1) / theirs_TD.square().sum(-1).clamp_min(1e-12)
    return error_T[counts_T].sum()


def kl_sum(ours_TD: Tensor, head_VD: Tensor, theirs_TD: Tensor, their_head_VD: Tensor, rows: int) -> Tensor:
    """The sum over tokens of KL(softmax(theirs @ their_head.T) || softmax(ours @ head.T)), in float32 or wider.

    The gradient is found with it, `rows` tokens at a time, for whichever of `ours` and `head` want one.
    """
    kl: Tensor = _Divergence.apply(ours_TD, head_VD, theirs_TD, their_head_VD, rows)  # type: ignore[no-untyped-call]
    return kl


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ours_TD: Tensor, head_VD: Tensor, theirs_TD: Tensor, their_head_VD: Tensor, rows: int
    ) -> Tensor:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        precise = wide(ours_TD.dtype)
        weight_VD = head_VD.to(ours_TD.dtype)
        d_hidden_TD = torch.empty_like(ours_TD) if wants_hidden else None
        d_head_VD = torch.zeros_like(head_VD, dtype=precise) if wants_head else None
        total = torch.zeros((), dtype=precise, device=ours_TD.device)
        for start in range(0, len(ours_TD), rows):
            ours_RD, theirs_RD = ours_TD[start : start + rows], theirs_TD[start : start + rows]
            slope_RV = ours_RD @ weight_VD.T
            total += _divergence(slope_RV, theirs_RD @ their_head_VD.to(theirs_RD.dtype).T)
            if d_hidden_TD is not None:
                torch.mm(slope_RV, weight_VD, out=d_hidden_TD[start : start + rows])
            if d_head_VD is not None:
                d_head_VD += slope_RV.T @ ours_RD
        ctx.save_for_backward(d_hidden_TD, d_head_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        d_hidden_TD, d_head_VD = ctx.saved_tensors
        scale = grads[0]
        return (
            None if d_hidden_TD is None else d_hidden_TD * scale.to(d_hidden_TD.dtype),
            None if d_head_VD is None else d_head_VD * scale,
            None,
            None,
            None,
        )


def _divergence(ours_RV: Tensor, theirs_RV: Tensor) -> Tensor:
    """KL of the rows, summed; `ours` become its gradient by them: softmax(ours) - softmax(theirs)."""
    precise, rows = wide(ours_RV.dtype), rows_together(ours_RV)
    total = torch.zeros((), dtype=precise, device=ours_RV.device)
    for ours_NV, theirs_NV in zip(torch.split(ours_RV, rows), torch.split(theirs_RV, rows), strict=True):
        log_q_NV = torch.log_softmax(ours_NV.to(precise), -1)
        log_p_NV = torch.log_softmax(theirs_NV.to(precise), -1)
        p_NV = log_p_NV.exp()
        total += (p_NV * log_p_NV.sub_(log_q_NV)).sum()
        ours_NV.copy_(log_q_NV.exp_().sub_(p_NV))
    return total
