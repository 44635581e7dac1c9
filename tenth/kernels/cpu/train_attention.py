"""Attention while it trains, natively: neither scores nor their gradients are ever in memory.

T tokens, H query heads, G key-value heads, C head size, S documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import tenth.kernels.cpu._native as _native


def attention(team: _native.Machine, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, bounds: Sequence[int]) -> Tensor:
    """Causal attention within each document `bounds[s]:bounds[s + 1]`; T, H, C, with a gradient."""
    bounds_S = torch.tensor(bounds, dtype=torch.int64)
    y_THC: Tensor = _Attention.apply(q_THC, k_TGC, v_TGC, bounds_S, team)  # type: ignore[no-untyped-call]
    return y_THC


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, bounds_S: Tensor, team: _native.Machine
    ) -> Tensor:
        q_THC, k_TGC, v_TGC = q_THC.contiguous(), k_TGC.contiguous(), v_TGC.contiguous()
        y_THC, log_sum_HT = torch.empty_like(q_THC), q_THC.new_empty(q_THC.shape[1::-1], dtype=torch.float32)
        _run(team, (q_THC, k_TGC, v_TGC, y_THC, log_sum_HT), bounds_S)
        ctx.save_for_backward(q_THC, k_TGC, v_TGC, y_THC, log_sum_HT, bounds_S)
        ctx.team = team
        return y_THC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_THC: Tensor) -> tuple[Tensor | None, ...]:
        *parts, bounds_S = ctx.saved_tensors
        gradients = [torch.empty_like(part) for part in parts[:3]]
        _run(ctx.team, (*parts, dy_THC.contiguous(), torch.empty_like(parts[4]), *gradients), bounds_S)
        return (*gradients, None, None)


def _run(team: _native.Machine, parts: Sequence[Tensor], bounds_S: Tensor) -> None:
    """Queries, keys, values, outputs, sums; then those of the gradient: outputs', room, queries', keys', values'."""
    heads, size = parts[0].shape[1:]
    shape = parts[0].dtype == torch.bfloat16, heads, parts[1].shape[1], size, len(bounds_S) - 1, bounds_S.data_ptr()
    addresses = [part.data_ptr() for part in parts] + [0] * (10 - len(parts))
    _native.train_attention(team, shape, size**-0.5, *addresses)
