"""Cross-entropy of a head's logits, a block of rows at a time: all logits together never exist.

T tokens, R rows of a block, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tenth.data.packing import IGNORE
from tenth.kernels.reference import wide

_BLOCK = 1 << 24  # logits that are there at a time
_ROWS = 512  # and as many rows at least: products of fewer are slow
_RARE = 1e-30
_CACHED = 1 << 18  # logits that are looked at together: they stay in the processor's cache


def cross_entropy_sum(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
    """The sum over tokens of -log softmax(hidden @ head.T)[target], in float32 or wider; IGNORE counts nothing.

    Gradients are found with the loss, so that a block's logits are computed once and dropped; they reach whichever of
    hidden and head want them.
    """
    loss: Tensor = _CrossEntropy.apply(hidden_TD, head_VD, targets_T)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def token_losses(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
    """The loss of each token (T), without gradients; 0 where the target is IGNORE."""
    rows = _block_rows(len(head_VD))
    parts = [
        _losses(hidden_RD @ head_VD.to(hidden_RD.dtype).T, targets_R, None)
        for hidden_RD, targets_R in zip(torch.split(hidden_TD, rows), torch.split(targets_T, rows), strict=True)
    ]
    return torch.cat(parts)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        rows = _block_rows(len(head_VD))
        weight_VD = head_VD.to(hidden_TD.dtype)
        room_RV = hidden_TD.new_empty(min(rows, len(hidden_TD)), len(head_VD))
        d_hidden_TD = torch.empty_like(hidden_TD) if wants_hidden else None
        d_head_VD: Tensor | None = None
        losses = []
        for start in range(0, len(hidden_TD), rows):
            hidden_RD, targets_R = hidden_TD[start : start + rows], targets_T[start : start + rows]
            logits_RV = torch.mm(hidden_RD, weight_VD.T, out=room_RV[: len(hidden_RD)])
            losses.append(_losses(logits_RV, targets_R, logits_RV if wants_hidden or wants_head else None).sum())
            if d_hidden_TD is not None:
                torch.mm(logits_RV, weight_VD, out=d_hidden_TD[start : start + rows])
            if wants_head:
                d_head_VD = _added(d_head_VD, logits_RV.T @ hidden_RD)
        ctx.save_for_backward(d_hidden_TD, d_head_VD)
        return torch.stack(losses).sum() if losses else hidden_TD.new_zeros((), dtype=wide(hidden_TD.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        d_hidden_TD, d_head_VD = ctx.saved_tensors
        scale = grads[0]
        # the head's gradient stays as wide as its sum, which a weight that asks for float32 receives
        return (
            None if d_hidden_TD is None else (d_hidden_TD.to(scale.dtype) * scale).to(d_hidden_TD.dtype),
            None if d_head_VD is None else d_head_VD.to(scale.dtype) * scale,
            None,
        )


def rows_together(logits_RV: Tensor) -> int:
    """How many rows of logits to go through at a time: what a processor's cache holds, all on other devices."""
    return _rows(logits_RV.shape[1], _CACHED) if logits_RV.device.type == "cpu" else max(len(logits_RV), 1)


def _block_rows(vocabulary: int) -> int:
    return max(_rows(vocabulary, _BLOCK), _ROWS)


def _rows(vocabulary: int, logits: int) -> int:
    return max(logits // vocabulary, 1)


def _added(total_VD: Tensor | None, part_VD: Tensor) -> Tensor:
    """Sums of blocks in float32 or wider; a single block needs none."""
    if total_VD is None:
        return part_VD
    return total_VD.to(wide(part_VD.dtype)).add_(part_VD)


def _losses(logits_RV: Tensor, targets_R: Tensor, gradient_RV: Tensor | None) -> Tensor:
    """The loss of each row; `gradient_RV`, which may be the logits themselves, receives softmax minus one-hot."""
    rows = rows_together(logits_RV)
    losses = []
    for start in range(0, len(logits_RV), rows):
        targets_N = targets_R[start : start + rows]
        counts_N1 = (targets_N != IGNORE)[:, None]
        safe_N1 = targets_N.clamp(min=0)[:, None]
        p_NV = torch.softmax(logits_RV[start : start + rows].to(wide(logits_RV.dtype)), dim=-1)
        p_target_N1 = p_NV.gather(1, safe_N1)
        if bool((p_target_N1 < _RARE).any()):  # a probability near underflow has no digits left
            log_p_N1 = F.log_softmax(logits_RV[start : start + rows].to(p_NV.dtype), dim=-1).gather(1, safe_N1)
        else:
            log_p_N1 = p_target_N1.log()
        losses.append(log_p_N1[:, 0].mul(counts_N1[:, 0]).neg())
        if gradient_RV is not None:
            p_NV.scatter_add_(1, safe_N1, p_NV.new_full(safe_N1.shape, -1.0))
            gradient_RV[start : start + rows] = p_NV if bool(counts_N1.all()) else p_NV.mul_(counts_N1)
    return torch.cat(losses)
