"""The router: which experts a token goes to, and with what weight. T tokens, D model width, E experts, K active."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor, nn

from tenth.kernels.backend import Backend
from tenth.model.config import MoeConfig
from tenth.routing.limit import TokenLimits
from tenth.routing.record import LayerRouting, RecordKind
from tenth.routing.rule import LayerPolicy

LayerChoice = LayerRouting | LayerPolicy | None
"""What a sparse layer is given beside its tokens: a record to replay, a policy to choose by, or neither."""


_FULL: tuple[RecordKind, ...] = ("full", "outputs")


class Router(nn.Module):
    """Linear scores, and the experts that the config's rule makes of them.

    Its rows, biases and all its arithmetic are float32 or wider. Biases get no gradient: balance sets them.
    """

    def __init__(self, moe: MoeConfig, width: int, on: Backend) -> None:
        super().__init__()
        self.weight_ED = on.at("weight").precise(moe.num_experts, width)
        self.bias_E = on.at("bias").precise(moe.num_experts).requires_grad_(False) if moe.expert_bias else None
        self._num_experts, self._rule, self._kernels = moe.num_experts, moe.rule, on.kernels

    def forward(
        self, x_TD: Tensor, record: RecordKind, given: LayerChoice, limits: TokenLimits | None = None
    ) -> LayerRouting:
        """Choose experts for each token, within its limit; a replayed record fixes ids and drops, not the gates."""
        logits_TE = self._kernels.router_logits(x_TD, self.weight_ED)
        dropped_TK = None
        if isinstance(given, LayerRouting):
            experts_TK = given.experts_TK.to(x_TD.device)
            dropped_TK = None if given.dropped_TK is None else given.dropped_TK.to(x_TD.device)
            gates_TK = self._kernels.gates(logits_TE, experts_TK, self._rule, dropped_TK if given.limited else None)
        else:
            experts_TK, gates_TK = self._chosen(logits_TE, given, limits)
            if given is not None and given.capacity is not None:
                dropped_TK = _over_capacity(experts_TK, gates_TK, self._num_experts, given.capacity, given.real_T)
        if dropped_TK is not None:
            gates_TK = gates_TK.masked_fill(dropped_TK, 0.0)
        elif record in _FULL or (record == "choice" and limits is not None):
            dropped_TK = gates_TK == 0
        logits, limited = logits_TE if record in _FULL else None, limits is not None
        if isinstance(given, LayerRouting):
            limited = given.limited
        return LayerRouting(self._num_experts, experts_TK, gates_TK, logits, dropped_TK, self._rule.score, limited)

    @property
    def shape(self) -> tuple[int, int]:
        """How many experts it chooses from, and how many at a time."""
        return self._num_experts, self._rule.top_k

    def choose(self, logits_TE: Tensor) -> Tensor:
        """The ids (T, K) that its own rule makes of scores."""
        return self._chosen(logits_TE, None, None)[0]

    def _chosen(
        self, logits_TE: Tensor, policy: LayerPolicy | None, limits: TokenLimits | None
    ) -> tuple[Tensor, Tensor]:
        bias_E = self.bias_E
        if policy is not None:
            logits_TE = policy.left(logits_TE)
            bias_E = None if bias_E is None else policy.left(bias_E)
        if policy is None or not policy.noise:
            return self._kernels.route(logits_TE, self._rule, bias_E, limits)
        experts_TK, _ = self._kernels.route(policy.noisy(logits_TE), self._rule, bias_E)
        return experts_TK, self._kernels.gates(logits_TE, experts_TK, self._rule)


def _over_capacity(experts_TK: Tensor, gates_TK: Tensor, experts: int, factor: float, real_T: Tensor | None) -> Tensor:
    """The assignments (T, K) that experts at their limit do not carry out: those of the smallest gates.

    Of equal gates the earlier token's stays. Padding is never carried out.
    """
    tokens, top_k = experts_TK.shape
    dropped_TK = torch.zeros_like(experts_TK, dtype=torch.bool)
    if real_T is not None:
        tokens = int(real_T.sum())
        dropped_TK |= ~real_T.to(experts_TK.device)[:, None]
    limit = ceil(factor * top_k * tokens / experts - 1e-9)  # 1.1 * 10 is a little more than 11
    counts_E = torch.bincount(experts_TK[~dropped_TK], minlength=experts)
    # A assignments to experts over their limit; sorted by expert, and within one by gate
    at_A = ((counts_E > limit)[experts_TK] & ~dropped_TK).flatten().nonzero()[:, 0]
    by_gate_A = at_A[gates_TK.detach().flatten()[at_A].argsort(descending=True, stable=True)]
    expert_A, order_A = experts_TK.flatten()[by_gate_A].sort(stable=True)
    first_A = torch.searchsorted(expert_A, expert_A)
    rank_A = torch.arange(len(at_A), device=at_A.device) - first_A
    dropped_TK.view(-1)[by_gate_A[order_A][rank_A >= limit]] = True
    return dropped_TK
