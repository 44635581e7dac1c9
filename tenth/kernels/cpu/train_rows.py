"""Linear layers, norms and rotary positions while they train: native, each with its gradient.

T tokens, I inputs, O outputs, D model width, R rows, H heads, C head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import tenth.kernels.cpu._native as _native
from tenth.kernels.cpu.grouped import gradient_type

_FORWARD, _INPUT, _WEIGHT = range(3)
_NONE = (0, False)


def linear(team: _native.Machine, x_TI: Tensor, w_OI: Tensor) -> Tensor:
    """`x @ w.T` of two tensors of one type, summed in float32. Equal rows of the matrix give equal bits."""
    y_TO: Tensor = _Linear.apply(x_TI, w_OI, team)  # type: ignore[no-untyped-call]
    return y_TO


def rms_norm(team: _native.Machine, x_RC: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis, in float32."""
    y_RC: Tensor = _Rows.apply(x_RC.contiguous(), weight, None, None, eps, team)  # type: ignore[no-untyped-call]
    return y_RC


def heads(
    team: _native.Machine, x_THC: Tensor, weight: Tensor | None, eps: float, cos_TC: Tensor, sin_TC: Tensor
) -> Tensor:
    """Each head's norm where there is a weight, then its rotary position."""
    y_THC: Tensor = _Rows.apply(  # type: ignore[no-untyped-call]
        x_THC.contiguous(), weight, cos_TC.contiguous(), sin_TC.contiguous(), eps, team
    )
    return y_THC


def add_rms_norm(
    team: _native.Machine, x_TD: Tensor, y_TD: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`x + y`, and its norm."""
    both: tuple[Tensor, Tensor] = _AddNorm.apply(  # type: ignore[no-untyped-call]
        x_TD.contiguous(), y_TD.contiguous(), weight, eps, team
    )
    return both


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, w_OI: Tensor, team: _native.Machine) -> Tensor:
        ctx.kind, ctx.team = gradient_type(w_OI), team
        x_TI, w_OI = x_TI.contiguous(), w_OI.contiguous()
        ctx.save_for_backward(x_TI, w_OI)
        y_TO = x_TI.new_empty(len(x_TI), len(w_OI))
        _multiply(team, _FORWARD, x_TI, w_OI, y=y_TO)
        return y_TO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TO: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, w_OI = ctx.saved_tensors
        dy_TO = dy_TO.contiguous()
        dx_TI = dw_OI = None
        if ctx.needs_input_grad[0]:
            dx_TI = torch.empty_like(x_TI)
            _multiply(ctx.team, _INPUT, x_TI, w_OI, dy_TO, y=dx_TI)
        if ctx.needs_input_grad[1]:
            dw_OI = torch.empty_like(w_OI, dtype=ctx.kind)
            _multiply(ctx.team, _WEIGHT, x_TI, w_OI, dy_TO, dw=dw_OI)
        return dx_TI, dw_OI, None


def _multiply(
    team: _native.Machine,
    kind: int,
    x_TI: Tensor,
    w_OI: Tensor,
    dy_TO: Tensor | None = None,
    *,
    y: Tensor | None = None,
    dw: Tensor | None = None,
) -> None:
    rows, inputs = x_TI.shape
    half = x_TI.dtype == torch.bfloat16
    gradient = _NONE if dw is None else (dw.data_ptr(), dw.dtype == torch.bfloat16)
    at = x_TI.data_ptr(), inputs, w_OI.data_ptr(), _address(dy_TO), _address(y)
    _native.train_linear(team, kind, half, rows, inputs, len(w_OI), *at, gradient)


class _Rows(torch.autograd.Function):
    """Norm, positions, or both, of rows of x; H of them for each token."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        cos_TC: Tensor | None,
        sin_TC: Tensor | None,
        eps: float,
        team: _native.Machine,
    ) -> Tensor:
        ctx.eps, ctx.team = eps, team
        ctx.save_for_backward(None if weight is None else x, weight, cos_TC, sin_TC)
        y = torch.empty_like(x)
        turn = _address(cos_TC), _address(sin_TC)
        norm = _address(weight), eps
        _native.train_rows(team, _shape(x, cos_TC), x.data_ptr(), 0, 0, norm, turn, y.data_ptr())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cos_TC, sin_TC = ctx.saved_tensors
        dx, dweight = _back(ctx, x, weight, (cos_TC, sin_TC), dy, None)
        return dx, dweight, None, None, None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, y_TD: Tensor, weight: Tensor, eps: float, team: _native.Machine
    ) -> tuple[Tensor, Tensor]:
        ctx.eps, ctx.team = eps, team
        sum_TD, norm_TD = torch.empty_like(x_TD), torch.empty_like(x_TD)
        at = x_TD.data_ptr(), y_TD.data_ptr(), sum_TD.data_ptr()
        _native.train_rows(team, _shape(x_TD, None), *at, (weight.data_ptr(), eps), (0, 0), norm_TD.data_ptr())
        ctx.save_for_backward(sum_TD, weight)
        ctx.set_materialize_grads(False)
        return sum_TD, norm_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dsum_TD: Tensor | None, dnorm_TD: Tensor | None) -> tuple[Tensor | None, ...]:
        if dnorm_TD is None:
            return dsum_TD, dsum_TD, None, None, None
        sum_TD, weight = ctx.saved_tensors
        dx_TD, dweight = _back(ctx, sum_TD, weight, (None, None), dnorm_TD, dsum_TD)
        return dx_TD, dx_TD, dweight, None, None


def _back(
    ctx: Any,
    x: Tensor | None,
    weight: Tensor | None,
    turn: tuple[Tensor | None, Tensor | None],
    dy: Tensor,
    dsum: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the rows and of their norm's weight."""
    dy = dy.contiguous()
    dsum = None if dsum is None else dsum.contiguous()
    dx = torch.empty_like(dy)
    dweight = None if weight is None else torch.empty_like(weight)
    _native.train_rows_backward(
        ctx.team,
        _shape(dy, turn[0]),
        _address(x),
        (_address(weight), ctx.eps),
        (_address(turn[0]), _address(turn[1])),
        dy.data_ptr(),
        _address(dsum),
        dx.data_ptr(),
        _address(dweight),
    )
    return dx, dweight


def _shape(x: Tensor, cos_TC: Tensor | None) -> tuple[bool, int, int, int]:
    """Type, rows, rows a token, width."""
    width = x.shape[-1]
    heads = 1 if cos_TC is None else x.shape[-2]
    return x.dtype == torch.bfloat16, x.numel() // max(width, 1), heads, width


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
