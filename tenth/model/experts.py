"""The sparse feed-forward layer: router, table of experts, and an expert that is always on where there is one.

T tokens, D model width.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from tenth.kernels.backend import Backend
from tenth.model.config import MoeConfig
from tenth.model.linear import Linear, Mlp
from tenth.model.router import LayerChoice, Router
from tenth.routing.limit import TokenLimits
from tenth.routing.record import LayerRouting, RecordKind


class SparseMlp(nn.Module):
    """A mixture of SwiGLU experts, `top_k` of them at work on each token."""

    def __init__(self, moe: MoeConfig, width: int, on: Backend) -> None:
        super().__init__()
        self.router = Router(moe, width, on.at("router"))
        self.experts = on.at("experts").table(moe.num_experts, width, moe.intermediate_size)
        shared = moe.shared_intermediate_size
        self.shared = Mlp(width, shared, False, on.at("shared")) if shared else None
        self.shared_gate = Linear(width, 1, False, on.at("shared_gate")) if moe.shared_gate else None
        self._kernels = on.kernels

    def forward(
        self, x_TD: Tensor, record: RecordKind, given: LayerChoice, limits: TokenLimits | None = None
    ) -> tuple[Tensor, LayerRouting]:
        """T, D to T, D, and what the router decided."""
        routing = self.router(x_TD, record, given, limits)
        chosen = (routing.experts_TK, routing.gates_TK, self.experts)
        if record == "outputs":
            y_TD, norms_TK, peaks_TK = self._kernels.measured_experts(x_TD, *chosen)
            routing = replace(routing, norms_TK=norms_TK, peaks_TK=peaks_TK)
        else:
            y_TD = self._kernels.expert_ffn(x_TD, *chosen)
        if self.shared is not None:
            gate_T1 = None if self.shared_gate is None else self.shared_gate(x_TD)
            y_TD = self._kernels.add_shared(y_TD, self.shared(x_TD), gate_T1)
        return y_TD, routing
