"""Losses of balance for one sparse layer, in float32 or wider, padding left out. None has a weight in it.

f of an expert is its share of the choices, P its mean probability over tokens. The loss is E * sum f P (Switch
Transformer, arXiv 2101.03961, eq. 4, for K choices), 1 where both are even, with a gradient through P alone. f is that
of a micro-batch, of each document (arXiv 2412.19437, eq. 17-20) or of the global batch (arXiv 2501.11873).

T tokens, K active experts, E experts, D documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tenth.routing.rule import RouteRule


def z_loss(logits_TE: Tensor, real_T: Tensor | None = None, tokens: int | None = None) -> Tensor:
    """Mean over tokens of logsumexp(logits)^2: keeps logits small (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return token_weights(logits_TE, real_T, tokens) @ torch.logsumexp(_precise(logits_TE), dim=-1).square()


def router_terms(scores_TE: Tensor, weight_T: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of p = softmax(scores): E * sum f P, the mean square of logsumexp, and the mean entropy (without a gradient).

    Means are sums over tokens times `weight_T`; `share` is f of all tokens (E), or of each (T, E). One softmax and no
    other pass over exponentials, forward or backward: this runs in every layer of every step.
    """
    slope = share.to(scores_TE.dtype) * scores_TE.shape[-1]
    loss, z, entropy = _RouterTerms.apply(scores_TE, weight_T, slope)  # type: ignore[no-untyped-call]
    return loss, z, entropy


class _RouterTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores_TE: Tensor, weight_T: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p_TE = torch.softmax(scores_TE, dim=-1)
        # the largest probability is at least 1 / E: its logarithm is exact enough
        log_mass_T = scores_TE.amax(-1) - p_TE.amax(-1).log()
        loss_T = p_TE @ slope if slope.dim() == 1 else (p_TE * slope).sum(-1)
        entropy = weight_T @ (log_mass_T - (p_TE * scores_TE).sum(-1))
        ctx.save_for_backward(p_TE, weight_T, slope, loss_T, log_mass_T)
        ctx.mark_non_differentiable(entropy)
        return weight_T @ loss_T, weight_T @ log_mass_T.square(), entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_loss: Tensor, of_z: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        p_TE, weight_T, slope, loss_T, log_mass_T = ctx.saved_tensors
        # d loss_t / d s = p (slope - loss_t), d log_mass_t / d s = p
        base_T = 2 * of_z * log_mass_T - of_loss * loss_T
        grad_TE = torch.add(base_T[:, None], of_loss * slope)
        return grad_TE.mul_(p_TE).mul_(weight_T[:, None]), None, None


def _precise(logits_TE: Tensor) -> Tensor:
    return logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()


def log_scores(logits_TE: Tensor, rule: RouteRule) -> Tensor:
    """What a softmax makes probabilities of: logits, or log sigmoids, which it normalises over the experts."""
    logits_TE = _precise(logits_TE)
    return F.logsigmoid(logits_TE) if rule.score == "sigmoid" else logits_TE


def token_weights(logits_TE: Tensor, real_T: Tensor | None = None, tokens: int | None = None) -> Tensor:
    """1 / tokens for each token that is real, else 0."""
    like = _precise(logits_TE)
    if real_T is None:
        return like.new_full((len(like),), 1 / max(tokens or len(like), 1))
    weight_T = real_T.to(like.dtype)
    return weight_T / (weight_T.sum().clamp(min=1) if tokens is None else tokens)


def choice_counts(experts_TK: Tensor, experts: int, real_T: Tensor | None = None) -> Tensor:
    """How often real tokens chose each expert, int64 (E)."""
    if real_T is not None:
        experts_TK = experts_TK.masked_fill(~real_T[:, None], experts)
    return torch.bincount(experts_TK.flatten(), minlength=experts + 1)[:experts]


def shares(counts: Tensor) -> Tensor:
    """Counts over their sum, along the last axis (zeros where there are none), float64."""
    return counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)


def document_shares(
    scores_TE: Tensor, experts_TK: Tensor, bounds: Sequence[int], real_T: Tensor | None = None
) -> Tensor:
    """The shares of each token's document `bounds[d]:bounds[d + 1]` (T, E), in the type of scores."""
    lengths_D = torch.tensor([end - start for start, end in pairwise(bounds)])
    document_T = torch.repeat_interleave(lengths_D).to(experts_TK.device)
    documents, experts = len(lengths_D), scores_TE.shape[1]
    places_TK = experts_TK + document_T[:, None] * experts
    counts_DE = choice_counts(places_TK, documents * experts, real_T).view(documents, experts)
    return shares(counts_DE).to(scores_TE.dtype)[document_T]
