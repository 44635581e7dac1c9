"""Balance and confidence of a router, in numbers (they differ: log both), and what two choices have in common.

T tokens, K active experts, E experts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tenth.routing.record import LayerRouting, Routing
from tenth.routing.rule import Score


def expert_counts(layer: LayerRouting) -> Tensor:
    """Assignments carried out by each expert, int64 (E)."""
    experts = layer.experts_TK
    if layer.dropped_TK is not None:
        experts = experts[~layer.dropped_TK]
    return torch.bincount(experts.flatten(), minlength=layer.num_experts)


def max_violation(counts_E: Tensor) -> float:
    """MaxVio, (max - mean) / mean of the assignments: 0 is perfect balance (arXiv 2408.15664, eq. 4)."""
    mean = counts_E.double().mean()
    return float((counts_E.max() - mean) / mean) if mean > 0 else 0.0


def load_entropy(counts_E: Tensor) -> float:
    """Entropy of the experts' shares of the work over log E: 1 is perfect balance, 0 one expert for all."""
    share = counts_E.double() / max(int(counts_E.sum()), 1)
    return _over_log(torch.special.entr(share).sum(), len(counts_E))


def router_entropy(logits_TE: Tensor, score: Score = "softmax") -> float:
    """Mean over tokens of the entropy of the scores over log E: 0 is a certain router, 1 an undecided one.

    Sigmoid scores are over their sum. 0 where there are no tokens, as in all measures here.
    """
    tokens, experts = logits_TE.shape
    logits_TE = logits_TE.double()
    scores_TE = F.logsigmoid(logits_TE) if score == "sigmoid" else logits_TE
    entropies = torch.special.entr(torch.softmax(scores_TE, dim=-1))
    return _over_log(entropies.sum() / max(tokens, 1), experts)


def dead_experts(counts_E: Tensor) -> int:
    """Experts that no token was sent to."""
    return int((counts_E == 0).sum())


def saturation(record: Routing, other: Routing) -> dict[int, float]:
    """How much the routers of two models agree on the same tokens, by layer (OLMoE, arXiv 2409.02060, eq. 5).

    It is the mean over tokens of the share of experts that both chose: 1 is full agreement, chance is K / E.
    """
    return {index: overlap(record.layers[index].experts_TK, layer.experts_TK) for index, layer in other.layers.items()}


def overlap(experts_TK: Tensor, others_TK: Tensor) -> float:
    """The mean over tokens of the share of experts that both chose: the `saturation` of one layer."""
    # no token chooses an expert twice
    both_TK = (experts_TK[:, :, None] == others_TK[:, None, :]).any(-1)
    return float(both_TK.double().mean()) if both_TK.numel() else 0.0


def _over_log(entropy: Tensor, experts: int) -> float:
    return float(entropy) / math.log(experts) if experts > 1 else 0.0
