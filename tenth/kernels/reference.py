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

from tenth.kernels.contract import KVLayout, KVType
from tenth.kernels.weight import ExpertTable, Weight
from tenth.routing.limit import TokenLimits
from tenth.routing.rule import RouteRule

name = "reference"

_SCALE = 4
"""Bytes of a scale."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type for arithmetic that must not be coarse: float32, or float64 where the model has it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def embed(ids_T: Tensor, weight: Weight) -> Tensor:
    """The named rows of a matrix."""
    return weight.rows(ids_T)


def take(x_TD: Tensor, rows_N: Tensor) -> Tensor:
    """The named rows of a tensor."""
    return x_TD[rows_N]


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`."""
    return F.linear(x, weight.dense().to(x.dtype), bias)


def linears(x_TI: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """Several matrices on the same rows."""
    return [linear(x_TI, weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def add(x_TD: Tensor, y_TD: Tensor) -> Tensor:
    """`x + y`."""
    return x_TD + y_TD


def add_rms_norm(x_TD: Tensor, y_TD: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x + y`, and its norm."""
    sum_TD = x_TD + y_TD
    return sum_TD, rms_norm(sum_TD, weight, eps)


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """`silu(gate) * up`."""
    return F.silu(gate_TF) * up_TF


def add_shared(y_TD: Tensor, shared_TD: Tensor, gate_T1: Tensor | None) -> Tensor:
    """`y + sigmoid(gate) * shared`."""
    return y_TD + (shared_TD if gate_T1 is None else torch.sigmoid(gate_T1) * shared_TD)


def heads(
    q_THC: Tensor,
    k_TGC: Tensor,
    weights: tuple[Tensor | None, Tensor | None],
    eps: float,
    cos_TC: Tensor,
    sin_TC: Tensor,
) -> tuple[Tensor, Tensor]:
    """Each head of queries and keys normalised where there is a weight, and turned to its position."""
    q, k = (
        rotate(x if weight is None else rms_norm(x, weight, eps), cos_TC, sin_TC)
        for x, weight in zip((q_THC, k_TGC), weights, strict=True)
    )
    return q, k


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


def kv_layout(heads: int, size: int, kv: KVType = "bf16") -> KVLayout:
    """Rows of tokens: P, 1, N, G, C; of int8 ones P, 1, N, G, C + 4, the last four bytes the scale."""
    if kv == "bf16":
        return KVLayout((1, 1, heads, size), (1, 1, heads, size))
    return KVLayout((1, 1, heads, size + _SCALE), (1, 1, heads, size + _SCALE), torch.int8)


def store(k_TGC: Tensor, v_TGC: Tensor, keys: Tensor, values: Tensor, slots_T: Tensor) -> None:
    """Write each token's key and value to its slot."""
    for pool, part in ((keys, k_TGC), (values, v_TGC)):
        pool.flatten(0, 2)[slots_T] = _quantised(part) if pool.dtype == torch.int8 else part.to(pool.dtype)


def _quantised(x_TGC: Tensor) -> Tensor:
    """Bytes (T, G, C + 4): each row of C numbers rounded to nearest, and its scale."""
    x_TGC = x_TGC.float()
    most_TG1 = x_TGC.abs().amax(-1, keepdim=True)
    finite_TG1 = x_TGC.isfinite().all(-1, keepdim=True)
    some_TG1 = finite_TG1 & (most_TG1 > 2.0**-100)
    # torch takes `127 / most` for 127 times the reciprocal, which is another number now and then
    whole_TGC = (x_TGC * (torch.full_like(most_TG1, 127) / most_TG1)).round().where(some_TG1, 0)
    scale_TG1 = (most_TG1 / 127).where(some_TG1, 0).where(finite_TG1, torch.nan)
    return torch.cat((whole_TGC.to(torch.int8), scale_TG1.view(torch.int8)), -1)


def _numbers(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a pool as they were stored."""
    if rows.dtype != torch.int8:
        return rows.to(dtype)
    scale = rows[..., -_SCALE:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return (rows[..., :-_SCALE] * scale).to(dtype)


def paged_attention(
    q_THC: Tensor,
    keys: Tensor,
    values: Tensor,
    pages: Sequence[Tensor],
    lengths: Sequence[int],
    bounds: Sequence[int],
) -> Tensor:
    """Causal attention of each document's new queries to all its tokens, gathered from their pages."""
    out = []
    for (start, end), table, length in zip(pairwise(bounds), pages, lengths, strict=True):
        # one page is a slice of the pool, not a copy
        k_LGC, v_LGC = (
            _numbers((pool[table[0], 0] if len(table) == 1 else pool[table].flatten(0, 2))[:length], q_THC.dtype)
            for pool in (keys, values)
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


def choose(logits_TE: Tensor, rule: RouteRule, bias_E: Tensor | None = None) -> Tensor:
    """Ids of the largest biased scores, best first; of equal ones the lower id first (torch.topk promises no order)."""
    scores_TE = logits_TE.detach()
    if rule.score == "sigmoid":
        scores_TE = torch.sigmoid(scores_TE)
    if bias_E is not None:
        scores_TE = scores_TE + bias_E
    if rule.top_groups < rule.groups:
        scores_TE = _in_best_groups(scores_TE, rule)
    return torch.sort(scores_TE, dim=-1, descending=True, stable=True).indices[:, : rule.top_k]


def _in_best_groups(scores_TE: Tensor, rule: RouteRule) -> Tensor:
    """Scores with -infinity outside of each token's best groups (J of them, of X experts)."""
    scores_TJX = scores_TE.view(len(scores_TE), rule.groups, -1)
    best_TJ = scores_TJX.topk(min(2, scores_TJX.shape[-1]), dim=-1).values.sum(-1)
    ranked_TJ = torch.sort(best_TJ, dim=-1, descending=True, stable=True).indices
    allowed_TJ = torch.zeros_like(best_TJ, dtype=torch.bool).scatter(-1, ranked_TJ[:, : rule.top_groups], True)
    return scores_TJX.masked_fill(~allowed_TJ[..., None], -torch.inf).flatten(1)


def route(
    logits_TE: Tensor, rule: RouteRule, bias_E: Tensor | None = None, limits: TokenLimits | None = None
) -> tuple[Tensor, Tensor]:
    """Ids of the rule's experts, and their gates; 0 for those that a limit drops."""
    experts_TK = choose(logits_TE, rule, bias_E)
    dropped_TK = None if limits is None else dropped(logits_TE, experts_TK, rule, limits)
    return experts_TK, gates(logits_TE, experts_TK, rule, dropped_TK)


def dropped(logits_TE: Tensor, experts_TK: Tensor, rule: RouteRule, limits: TokenLimits) -> Tensor:
    """Which of the chosen experts (T, K) a token's limit leaves out (`tenth.routing.limit`).

    The mass of a token whose logits are not all numbers drops nothing.
    """
    chosen_TK = logits_TE.detach().gather(-1, experts_TK)
    logs_TK = F.logsigmoid(chosen_TK) if rule.score == "sigmoid" else chosen_TK
    scores_TK = (logs_TK - logs_TK.amax(-1, keepdim=True)).exp()  # up to a factor that all of a token's share
    before_TK = F.pad(scores_TK.cumsum(-1)[:, :-1], (1, 0))
    enough_TK = before_TK >= limits.mass_T[:, None] * scores_TK.sum(-1, keepdim=True)
    known_T = (limits.mass_T < 1) & ~logits_TE.isnan().any(-1)
    place_K = torch.arange(experts_TK.shape[1], device=experts_TK.device)
    return (enough_TK & known_T[:, None] & (place_K > 0)) | (place_K >= limits.cap_T[:, None])


def gates(logits_TE: Tensor, experts_TK: Tensor, rule: RouteRule, dropped_TK: Tensor | None = None) -> Tensor:
    """Softmax or sigmoids of the logits at the chosen experts; 0 for dropped ones, the others' rescaled by the rule."""
    chosen_TK = logits_TE.gather(-1, experts_TK)
    if rule.renormalise:
        # the same as scores of all, divided by their sum over the chosen ones, without the underflow
        logs_TK = F.logsigmoid(chosen_TK) if rule.score == "sigmoid" else chosen_TK
        if dropped_TK is not None and rule.rescales:
            logs_TK = logs_TK.masked_fill(dropped_TK, -torch.inf)
        gates_TK = torch.softmax(logs_TK, dim=-1)
    elif rule.score == "sigmoid":
        gates_TK = torch.sigmoid(chosen_TK)
    else:
        gates_TK = torch.softmax(logits_TE, dim=-1).gather(-1, experts_TK)
    gates_TK = gates_TK if rule.scale == 1 else gates_TK * rule.scale
    return gates_TK if dropped_TK is None else gates_TK.masked_fill(dropped_TK, 0.0)


def expert_ffn(x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, table: ExpertTable) -> Tensor:
    """The weighted sum of the chosen SwiGLU experts, a loop over those at work."""
    y_AD, order_A = _outputs(x_TD, experts_TK, gates_TK, table)
    return _summed(x_TD, y_AD, order_A, gates_TK)


def measured_experts(
    x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, table: ExpertTable
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and the norms and largest magnitudes of what is summed, before gates (T, K)."""
    y_AD, order_A = _outputs(x_TD, experts_TK, gates_TK, table)
    norms_A, peaks_A = torch.zeros(2, gates_TK.numel(), device=x_TD.device)
    if len(order_A):
        norms_A[order_A] = torch.linalg.vector_norm(y_AD.detach(), dim=1).float()
        peaks_A[order_A] = y_AD.detach().abs().amax(1).float()
    return _summed(x_TD, y_AD, order_A, gates_TK), norms_A.view(gates_TK.shape), peaks_A.view(gates_TK.shape)


def _outputs(x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, table: ExpertTable) -> tuple[Tensor, Tensor]:
    """Outputs of the A assignments that are carried out, float32 or wider, and which ones they are, by expert."""
    at_A = (gates_TK.detach().flatten() != 0).nonzero()[:, 0]
    if not len(at_A):
        return x_TD.new_zeros(0, x_TD.shape[1], dtype=wide(x_TD.dtype)), at_A
    expert_A, sorted_A = experts_TK.flatten()[at_A].sort(stable=True)
    order_A = at_A[sorted_A]
    experts, counts = torch.unique_consecutive(expert_A, return_counts=True)
    parts = torch.split(x_TD[order_A // experts_TK.shape[1]], counts.tolist())
    # only the matrix products are a loop
    y_AD = torch.cat([_swiglu(x_XD, *table.expert(one)) for x_XD, one in zip(parts, experts.tolist(), strict=True)])
    return y_AD.to(wide(x_TD.dtype)), order_A


def _summed(x_TD: Tensor, y_AD: Tensor, order_A: Tensor, gates_TK: Tensor) -> Tensor:
    weighted_AD = y_AD * gates_TK.flatten()[order_A, None]
    out_TD = torch.zeros_like(x_TD, dtype=weighted_AD.dtype)
    return out_TD.index_add(0, order_A // gates_TK.shape[1], weighted_AD).to(x_TD.dtype)


def _swiglu(x_XD: Tensor, w13_2FD: Tensor, w2_DF: Tensor) -> Tensor:
    """One expert on its X tokens."""
    gate_XF, up_XF = F.linear(x_XD, w13_2FD.to(x_XD.dtype)).chunk(2, dim=-1)
    return F.linear(F.silu(gate_XF) * up_XF, w2_DF.to(x_XD.dtype))
