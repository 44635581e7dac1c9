"""Kernels to train with: native where that is faster on the CPU, torch's everywhere else, all with gradients.

T tokens, D model width, F expert width, E experts, K active, A = T * K assignments, H query heads, G key-value heads,
C head size, S documents of L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from tenth.kernels import reference
from tenth.kernels.contract import Kernels
from tenth.kernels.cpu.machine import built, usable_threads
from tenth.kernels.weight import ExpertTable

if TYPE_CHECKING:
    import tenth.kernels.cpu._native as _native


_TYPES = (torch.bfloat16, torch.float32)


@runtime_checkable
class StackedTable(Protocol):
    """A table whose experts are to be had as two tensors, with their gradient."""

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Gate over up (E, 2F, D), and down (E, D, F)."""


def training_kernels(threads: int | None = None) -> Kernels:
    """Every operation with its gradient, on any device.

    Experts, attention, norms, rotary positions and router scores are native on the CPU in bfloat16 and float32.
    Elsewhere experts are torch's grouped products, attention is torch's; all the rest, and float64, is the reference.
    `threads` counts torch's, which the native ones run on (default: as torch is set). MachineError where this process
    may not use so many.
    """
    if threads is not None:
        torch.set_num_threads(usable_threads(threads))
    if not built():
        return TrainingKernels(None)
    from tenth.kernels.cpu.grouped import borrowing_machine

    return TrainingKernels(borrowing_machine(torch.get_num_threads()))


class TrainingKernels:
    """All operations; which of them are native is a question of type and device."""

    name = "training"

    embed = staticmethod(reference.embed)
    take = staticmethod(reference.take)
    linear = staticmethod(reference.linear)
    linears = staticmethod(reference.linears)
    add = staticmethod(reference.add)
    swiglu = staticmethod(reference.swiglu)
    add_shared = staticmethod(reference.add_shared)
    kv_layout = staticmethod(reference.kv_layout)
    store = staticmethod(reference.store)
    paged_attention = staticmethod(reference.paged_attention)
    route = staticmethod(reference.route)
    gates = staticmethod(reference.gates)
    measured_experts = staticmethod(reference.measured_experts)

    def __init__(self, machine: _native.Machine | None) -> None:
        """`machine` runs the native part; None: there is none."""
        self.machine = machine

    def _team(self, x: Tensor) -> _native.Machine | None:
        """What runs an operation on `x` natively, or None."""
        return self.machine if x.device.type == "cpu" and x.dtype in _TYPES else None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x / sqrt(mean(x^2) + eps) * weight` over the last axis."""
        team = self._team(x)
        if team is None or weight.dtype != torch.float32:
            return reference.rms_norm(x, weight, eps)
        from tenth.kernels.cpu import train_rows

        return train_rows.rms_norm(team, x, weight, eps)

    def add_rms_norm(self, x_TD: Tensor, y_TD: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`x + y`, and its norm."""
        team = self._team(x_TD)
        if team is None or weight.dtype != torch.float32 or y_TD.dtype != x_TD.dtype:
            return reference.add_rms_norm(x_TD, y_TD, weight, eps)
        from tenth.kernels.cpu import train_rows

        return train_rows.add_rms_norm(team, x_TD, y_TD, weight, eps)

    def heads(
        self,
        q_THC: Tensor,
        k_TGC: Tensor,
        weights: tuple[Tensor | None, Tensor | None],
        eps: float,
        cos_TC: Tensor,
        sin_TC: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Each head of queries and keys normalised where there is a weight, and turned to its position."""
        team = self._team(q_THC)
        narrow = all(part is None or part.dtype == torch.float32 for part in (*weights, cos_TC))
        if team is None or not narrow:
            return reference.heads(q_THC, k_TGC, weights, eps, cos_TC, sin_TC)
        from tenth.kernels.cpu import train_rows

        q_weight, k_weight = weights
        q_THC = train_rows.heads(team, q_THC, q_weight, eps, cos_TC, sin_TC)
        return q_THC, train_rows.heads(team, k_TGC, k_weight, eps, cos_TC, sin_TC)

    def attention(self, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, bounds: Sequence[int]) -> Tensor:
        """Causal attention within each document; torch's takes documents of one length in one call."""
        team = self._team(q_THC)
        if team is not None:
            from tenth.kernels.cpu import train_attention

            return train_attention.attention(team, q_THC, k_TGC, v_TGC, bounds)
        lengths = [end - start for start, end in pairwise(bounds)]
        if len(set(lengths)) == 1:
            q_SLHC, k_SLGC, v_SLGC = (x.view(len(lengths), -1, *x.shape[1:]) for x in (q_THC, k_TGC, v_TGC))
            return _attend(q_SLHC, k_SLGC, v_SLGC).flatten(0, 1)
        # split has one gradient for all parts; a slice has one of the whole length for each
        parts = zip(*(torch.split(x, lengths) for x in (q_THC, k_TGC, v_TGC)), strict=True)
        return torch.cat([_attend(*(x[None] for x in part))[0] for part in parts])

    def router_logits(self, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        """Scores of all experts; equal rows of the weight get equal bits."""
        team = self._team(x_TD)
        if team is None or weight_ED.dtype != torch.float32:
            return reference.router_logits(x_TD, weight_ED)
        from tenth.kernels.cpu import train_rows

        return train_rows.linear(team, x_TD.float(), weight_ED)

    def expert_ffn(self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, table: ExpertTable) -> Tensor:
        """The weighted sum of the chosen SwiGLU experts.

        The native one computes no assignment whose gate is exactly 0, and that gate gets no gradient.
        """
        if not isinstance(table, StackedTable) or x_TD.dtype not in _TYPES:
            return reference.expert_ffn(x_TD, experts_TK, gates_TK, table)
        team = self._team(x_TD)
        if team is not None:
            from tenth.kernels.cpu import grouped

            return grouped.expert_ffn(team, x_TD, experts_TK, gates_TK, *table.stacked())
        if not hasattr(F, "grouped_mm"):  # torch before 2.10
            return reference.expert_ffn(x_TD, experts_TK, gates_TK, table)
        return grouped_ffn(x_TD, experts_TK, gates_TK, *table.stacked())


def _attend(q_SLHC: Tensor, k_SLGC: Tensor, v_SLGC: Tensor) -> Tensor:
    """Causal attention in each of S documents of L tokens; of one token it is the value itself, with a gradient."""
    out_SHLC = F.scaled_dot_product_attention(
        q_SLHC.transpose(1, 2),
        k_SLGC.transpose(1, 2),
        v_SLGC.transpose(1, 2),
        is_causal=True,
        enable_gqa=q_SLHC.shape[2] != k_SLGC.shape[2],
    )
    return out_SHLC.transpose(1, 2)


def grouped_ffn(x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, w13_E2FD: Tensor, w2_EDF: Tensor) -> Tensor:
    """The same by torch's grouped products, which run on CUDA too."""
    tokens, top_k = experts_TK.shape
    expert_A, order_A = experts_TK.flatten().sort(stable=True)
    ends_E = torch.bincount(expert_A, minlength=len(w13_E2FD)).cumsum(0).int()
    w13_ED2F, w2_EFD = (weight.to(x_TD.dtype).transpose(1, 2) for weight in (w13_E2FD, w2_EDF))
    gate_AF, up_AF = F.grouped_mm(x_TD[order_A // top_k], w13_ED2F, offs=ends_E).chunk(2, dim=-1)
    y_AD = F.grouped_mm(F.silu(gate_AF) * up_AF, w2_EFD, offs=ends_E)
    # back in the order of tokens and of k: a sum in order, where index_add has none on CUDA
    place_A = torch.empty_like(order_A)
    place_A[order_A] = torch.arange(len(order_A), device=order_A.device)
    weighted_TKD = y_AD[place_A].view(tokens, top_k, -1).to(reference.wide(x_TD.dtype)) * gates_TK[..., None]
    return weighted_TKD.sum(1).to(x_TD.dtype)
