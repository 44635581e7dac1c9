"""The router: which experts a token goes to, and with what weight. T tokens, D model width, E experts, K active."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tenth.kernels.backend import Backend
from tenth.model.config import MoeConfig
from tenth.routing.record import LayerRouting, RecordKind


class Router(nn.Module):
    """Top-k of a softmax over linear scores. Its rows and all its arithmetic are float32 or wider."""

    def __init__(self, moe: MoeConfig, width: int, on: Backend) -> None:
        super().__init__()
        self.weight_ED = on.at("weight").precise(moe.num_experts, width)
        self._moe, self._kernels = moe, on.kernels

    def forward(self, x_TD: Tensor, record: RecordKind, replay: LayerRouting | None) -> LayerRouting:
        """Choose experts for each token; a replayed record fixes ids and drops, not the gates."""
        logits_TE = self._kernels.router_logits(x_TD, self.weight_ED)
        if replay is None:
            experts_TK, gates_TK = self._kernels.route(logits_TE, self._moe.top_k, self._moe.norm_topk_prob)
        else:
            experts_TK = replay.experts_TK.to(x_TD.device)
            gates_TK = self._kernels.gates(logits_TE, experts_TK, self._moe.norm_topk_prob)
        dropped_TK = None if replay is None or replay.dropped_TK is None else replay.dropped_TK.to(x_TD.device)
        if dropped_TK is not None:
            gates_TK = gates_TK.masked_fill(dropped_TK, 0.0)
        elif record == "full":
            dropped_TK = torch.zeros_like(experts_TK, dtype=torch.bool)
        logits = logits_TE if record == "full" else None
        return LayerRouting(self._moe.num_experts, experts_TK, gates_TK, logits, dropped_TK)
