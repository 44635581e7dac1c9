"""The sparse feed-forward layer: router, table of experts, and an expert that is always on where there is one.

T tokens, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tenth.kernels.backend import Backend
from tenth.kernels.weight import DenseExpertTable
from tenth.model.config import MoeConfig
from tenth.model.linear import Linear, Mlp
from tenth.model.router import Router
from tenth.routing.record import LayerRouting, RecordKind


class SparseMlp(nn.Module):
    """A mixture of SwiGLU experts, `top_k` of them at work on each token."""

    def __init__(self, moe: MoeConfig, width: int, on: Backend) -> None:
        super().__init__()
        self.router = Router(moe, width, on)
        self.experts = DenseExpertTable(moe.num_experts, width, moe.intermediate_size, on.dtype, on.device)
        shared = moe.shared_intermediate_size
        self.shared = Mlp(width, shared, False, on) if shared else None
        self.shared_gate = Linear(width, 1, False, on) if moe.shared_gate else None
        self._expert_ffn = on.kernels.expert_ffn

    def forward(self, x_TD: Tensor, record: RecordKind, replay: LayerRouting | None) -> tuple[Tensor, LayerRouting]:
        """T, D to T, D, and what the router decided."""
        routing = self.router(x_TD, record, replay)
        y_TD = self._expert_ffn(x_TD, routing.experts_TK, routing.gates_TK, self.experts)
        if self.shared is not None:
            shared_TD = self.shared(x_TD)
            if self.shared_gate is not None:
                shared_TD = torch.sigmoid(self.shared_gate(x_TD)) * shared_TD
            y_TD = y_TD + shared_TD
        return y_TD, routing
