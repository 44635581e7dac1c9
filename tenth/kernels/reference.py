"""The operations in plain torch: the oracle of all faster kernels, and what trains.

T tokens, D model width, F expert width, E experts, K active, H query heads, G key-value heads, C head size,
P pages, N tokens a page, L tokens of a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from tenth.kernels.weight import DenseExpertTable, DenseWeight, ExpertTable, Weight


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type for arithmetic that must not be coarse: float32, or float64 where the model has it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`."""
    assert isinstance(weight, DenseWeight)
    return F.linear(x, weight.values_OI, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis, in float32 or wider."""
    x_wide = x.to(wide(x.dtype))
    scale = torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)
    return (x_wide * scale * weight).to(x.dtype)


def rotate(x_THC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Rotary positions on halves: pair (i, i + C/2) turned by angle i."""
    first, second = x_THC.to(cos_TC.dtype).chunk(2, dim=-1)
    cos, sin = cos_TC[:, None], sin_TC[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_THC.dtype)


def attention(q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, bounds: Sequence[int]) -> Tensor:
    """Causal attention within each document."""
    spans = [slice(start, end) for start, end in pairwise(bounds)]
    return torch.cat([_attend(q_THC[span], k_TGC[span], v_TGC[span]) for span in spans])


def paged_attention(
    q_THC: Tensor,
    keys_PNGC: Tensor,
    values_PNGC: Tensor,
    pages: Sequence[Tensor],
    lengths: Sequence[int],
    bounds: Sequence[int],
) -> Tensor:
    """Causal attention of each document's new queries to all its tokens, gathered from their pages."""
    out = []
    for (start, end), table, length in zip(pairwise(bounds), pages, lengths, strict=True):
        # one page is a slice of the pool, not a copy
        k_LGC, v_LGC = (
            (pool[table[0]] if len(table) == 1 else pool[table].flatten(0, 1))[:length].to(q_THC.dtype)
            for pool in (keys_PNGC, values_PNGC)
        )
        out.append(_attend(q_THC[start:end], k_LGC, v_LGC))
    return torch.cat(out)


def _attend(q_THC: Tensor, k_LGC: Tensor, v_LGC: Tensor) -> Tensor:
    queries, seen = len(q_THC), len(k_LGC)
    mask = None
    if 1 < queries < seen:
        mask = torch.ones(queries, seen, dtype=torch.bool, device=q_THC.device).tril(seen - queries)
    out_HTC = F.scaled_dot_product_attention(
        q_THC.transpose(0, 1)[None],
        k_LGC.transpose(0, 1)[None],
        v_LGC.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=queries == seen > 1,
        enable_gqa=q_THC.shape[1] != k_LGC.shape[1],
    )[0]
    return out_HTC.transpose(0, 1)


def router_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """Scores of all experts, summed in float64 and rounded to float32 (float64 models stay float64).

    Experts with equal rows (an upcycled model has groups of them) must tie: a float32 product may sum equal rows in
    different orders, a float64 one that is rounded at the end does not show it.
    """
    logits_TE = x_TD.double() @ weight_ED.double().T
    return logits_TE.to(wide(x_TD.dtype))


def choose(logits_TE: Tensor, top_k: int) -> Tensor:
    """Ids of the largest logits, best first; of equal ones the lower id first (torch.topk promises no order)."""
    return torch.sort(logits_TE, dim=-1, descending=True, stable=True).indices[:, :top_k]


def gates(logits_TE: Tensor, experts_TK: Tensor, renormalise: bool) -> Tensor:
    """Softmax of the logits at the chosen experts."""
    if renormalise:
        # the same as softmax over all, divided by its sum over the chosen ones, without the underflow
        return torch.softmax(logits_TE.gather(-1, experts_TK), dim=-1)
    return torch.softmax(logits_TE, dim=-1).gather(-1, experts_TK)


def expert_ffn(x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, table: ExpertTable) -> Tensor:
    """The weighted sum of the chosen SwiGLU experts, a loop over those at work."""
    assert isinstance(table, DenseExpertTable)
    # A = T * K assignments, sorted by expert: only the matrix products are a loop
    expert_A, order_A = experts_TK.flatten().sort(stable=True)
    experts, counts = torch.unique_consecutive(expert_A, return_counts=True)
    at_work, sizes = experts.tolist(), counts.tolist()
    token_A = order_A // experts_TK.shape[1]
    h_A2F = _products(x_TD[token_A], table.w13_E2FD, at_work, sizes)
    gate_AF, up_AF = h_A2F.chunk(2, dim=-1)
    y_AD = _products(F.silu(gate_AF) * up_AF, table.w2_EDF, at_work, sizes)
    weighted_AD = y_AD.to(wide(x_TD.dtype)) * gates_TK.flatten()[order_A, None]
    out_TD = torch.zeros_like(x_TD, dtype=weighted_AD.dtype)
    return out_TD.index_add(0, token_A, weighted_AD).to(x_TD.dtype)


def _products(x_AI: Tensor, w_EOI: Tensor, experts: list[int], sizes: list[int]) -> Tensor:
    """Rows `sizes[i]` at a time times the matrix of `experts[i]`."""
    parts = torch.split(x_AI, sizes)
    return torch.cat([F.linear(part, w_EOI[expert]) for part, expert in zip(parts, experts, strict=True)])
