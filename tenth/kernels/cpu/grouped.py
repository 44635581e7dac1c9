"""The experts of a layer while it trains: all of it native, forward and backward, in bfloat16 or float32.

T tokens, D model width, F expert width, E experts, K active, A assignments of tokens to experts (T * K, less those with
gate 0), S slabs of N columns.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

import tenth.kernels.cpu._native as _native
from tenth.kernels.cpu.machine import instruction_sets, machine

_INNER_UNIT = 16  # native code takes experts of a multiple of so many columns
_SLAB = 32  # columns that lie together in what forward keeps for backward


def borrowing_machine(threads: int, instruction_set: str | None = None) -> _native.Machine:
    """A team on torch's own threads, whose waiting would else hold the cores; on others where torch has none."""
    runtime = _openmp()
    if runtime is None:
        return machine(threads, instruction_set)
    return _borrowing(instruction_set or instruction_sets()[0], threads, runtime)


@cache
def _borrowing(instruction_set: str, threads: int, runtime: tuple[int, int, int]) -> _native.Machine:
    return _native.Machine(instruction_set, threads, runtime)


@cache
def _openmp() -> tuple[int, int, int] | None:
    """Addresses of the functions of GNU's OpenMP that torch has brought into the process."""
    process = ctypes.CDLL(None)
    found = []
    for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"):
        if not hasattr(process, name):
            return None
        address = ctypes.cast(getattr(process, name), ctypes.c_void_p).value
        assert address is not None, "a symbol that was found has an address"
        found.append(address)
    return found[0], found[1], found[2]


def expert_ffn(
    team: _native.Machine, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, w13_E2FD: Tensor, w2_EDF: Tensor
) -> Tensor:
    """`sum_k gate_k * down_k(silu(gate_proj_k(x)) * up_k(x))` (T, D), with a gradient of all but the ids.

    Products and sums are float32, over k in order. An assignment whose gate is exactly 0 is not computed, and its gate
    gets no gradient. A leaf's gradient has its `grad_dtype`, the gradient of any other weight its own type.
    """
    w13_E2FD, w2_EDF = _padded(w13_E2FD.to(x_TD.dtype), w2_EDF.to(x_TD.dtype))
    parts = (x_TD, gates_TK.float(), w13_E2FD, w2_EDF)
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        y_TD: Tensor = _ExpertFfn.apply(*parts, experts_TK, team)  # type: ignore[no-untyped-call]
        return y_TD
    return _forward(team, _plain(parts), experts_TK.contiguous(), keep=False)[0]


def _padded(w13_E2FD: Tensor, w2_EDF: Tensor) -> tuple[Tensor, Tensor]:
    """Experts of odd width with columns of zeros behind, which give zeros."""
    inner = w2_EDF.shape[2]
    more = -inner % _INNER_UNIT
    if not more:
        return w13_E2FD, w2_EDF
    w13_E2FD = torch.cat([F.pad(half_EFD, (0, 0, 0, more)) for half_EFD in w13_E2FD.chunk(2, dim=1)], dim=1)
    return w13_E2FD, F.pad(w2_EDF, (0, more))


_Parts = tuple[Tensor, Tensor, Tensor, Tensor]  # x (T, D), gates (T, K), gate over up (E, 2F, D), down (E, D, F)


def _plain(parts: _Parts) -> _Parts:
    """As native code reads them: rows of x at a stride, the others in one piece."""
    x_TD, gates_TK, w13_E2FD, w2_EDF = parts
    if x_TD.stride(1) != 1 or (len(x_TD) > 1 and x_TD.stride(0) < x_TD.shape[1]):
        x_TD = x_TD.contiguous()
    return x_TD, gates_TK.contiguous(), w13_E2FD.contiguous(), w2_EDF.contiguous()


def _table(w13_E2FD: Tensor, w2_EDF: Tensor) -> _native.TrainedExperts:
    _, width, inner = w2_EDF.shape
    return w13_E2FD.dtype == torch.bfloat16, width, inner, w13_E2FD.data_ptr(), w2_EDF.data_ptr()


def _forward(
    team: _native.Machine, parts: _Parts, experts_TK: Tensor, *, keep: bool
) -> tuple[Tensor, _native.Assignments, Tensor | None]:
    """The output (T, D), how assignments lie by expert, and gate and up of each where they are kept."""
    x_TD, gates_TK, w13_E2FD, w2_EDF = parts
    tokens, top_k = experts_TK.shape
    sorted_A = _native.Assignments(tokens, top_k, len(w13_E2FD), experts_TK.data_ptr(), gates_TK.data_ptr())
    slabs = -(-w13_E2FD.shape[1] // _SLAB)
    kept_SAN = x_TD.new_empty(slabs, sorted_A.rows, _SLAB) if keep else None
    y_TD = x_TD.new_empty(tokens, x_TD.shape[1])
    kept = 0 if kept_SAN is None else kept_SAN.data_ptr()
    x = x_TD.data_ptr(), x_TD.stride(0)
    _native.train_forward(team, sorted_A, _table(w13_E2FD, w2_EDF), *x, gates_TK.data_ptr(), kept, y_TD.data_ptr())
    return y_TD, sorted_A, kept_SAN


class _ExpertFfn(torch.autograd.Function):
    """Keeps gate and up of each assignment; what SwiGLU makes of them is computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        gates_TK: Tensor,
        w13_E2FD: Tensor,
        w2_EDF: Tensor,
        experts_TK: Tensor,
        team: _native.Machine,
    ) -> Tensor:
        ctx.types = gradient_type(w13_E2FD), gradient_type(w2_EDF)
        parts = _plain((x_TD, gates_TK, w13_E2FD, w2_EDF))
        y_TD, ctx.sorted_A, kept_SAN = _forward(team, parts, experts_TK.contiguous(), keep=True)
        ctx.team = team
        ctx.save_for_backward(*parts, kept_SAN)
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, gates_TK, w13_E2FD, w2_EDF, kept_SAN = ctx.saved_tensors
        dy_TD = dy_TD.to(x_TD.dtype).contiguous()
        wants_x, wants_gates, *wants_weights = ctx.needs_input_grad[:4]
        dx_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format) if wants_x else None
        dgates_TK = torch.zeros_like(gates_TK)
        dweights = [
            torch.empty_like(weight, dtype=kind) if wanted else None
            for weight, kind, wanted in zip((w13_E2FD, w2_EDF), ctx.types, wants_weights, strict=True)
        ]
        _native.train_backward(
            ctx.team,
            ctx.sorted_A,
            _table(w13_E2FD, w2_EDF),
            x_TD.data_ptr(),
            x_TD.stride(0),
            gates_TK.data_ptr(),
            kept_SAN.data_ptr(),
            dy_TD.data_ptr(),
            0 if dx_TD is None else dx_TD.data_ptr(),
            dgates_TK.data_ptr(),
            *(_gradient(dweight) for dweight in dweights),
        )
        return dx_TD, dgates_TK if wants_gates else None, *dweights, None, None


def gradient_type(weight: Tensor) -> torch.dtype:
    """What a weight's gradient is given in: bfloat16 or float32, and a leaf may ask for it by `grad_dtype`."""
    kind: torch.dtype | None = getattr(weight, "grad_dtype", weight.dtype) if weight.is_leaf else weight.dtype
    return torch.float32 if kind is None else kind


def _gradient(dweight: Tensor | None) -> _native.WeightGradient:
    if dweight is None:
        return 0, False
    return dweight.data_ptr(), dweight.dtype == torch.bfloat16
