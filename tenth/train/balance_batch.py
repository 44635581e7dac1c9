"""What routers did in one global batch, added up over its micro-steps, and the measures of it.

T tokens, K active experts, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tenth.routing.measures import dead_experts, load_entropy, max_violation
from tenth.routing.record import LayerRouting
from tenth.train.balance_loss import choice_counts


@dataclass(slots=True)
class LayerSums:
    """One layer's: choices of real tokens before drops, by the counting pass and by micro-steps; sums on its device.

    `entropy`, `loss` and `z` are weighed so that their sum over micro-steps is the global batch's mean; `load` adds up
    the largest load over the mean of each micro-step.
    """

    counted_E: Tensor
    counts_E: Tensor
    dropped: Tensor
    load: Tensor
    entropy: Tensor
    loss: Tensor
    z: Tensor
    steps: int = 0

    @classmethod
    def zeros(cls, experts: int, device: torch.device) -> LayerSums:
        """Before the first micro-step."""
        counted_E, counts_E = torch.zeros(2, experts, dtype=torch.int64, device=device)
        dropped, load, entropy, loss, z = torch.zeros(5, device=device)
        return cls(counted_E, counts_E, dropped, load, entropy, loss, z)

    def take(self, layer: LayerRouting, real_T: Tensor | None, limited: bool) -> Tensor:
        """Add a micro-step's choices, and what was dropped where capacity is `limited`; returns its counts (E)."""
        counts_E = choice_counts(layer.experts_TK, layer.num_experts, real_T)
        self.counts_E += counts_E
        self.load += counts_E.max() * len(counts_E) / counts_E.sum().clamp(min=1)
        if limited and layer.dropped_TK is not None:
            dropped_TK = layer.dropped_TK if real_T is None else layer.dropped_TK & real_T[:, None]
            self.dropped += dropped_TK.sum()
        self.steps += 1
        return counts_E

    def note(self, loss: Tensor, z: Tensor, entropy: Tensor) -> None:
        """Add a micro-step's parts of the global batch's means."""
        self.loss += loss
        self.z += z
        self.entropy += entropy

    def measures(self, window_E: Tensor) -> dict[str, float]:
        """The batch's; `window_E` are the choices of this batch and the ones before it."""
        counts_E = self.counts_E.cpu()
        chosen, experts = int(counts_E.sum()), len(counts_E)
        return {
            "max_vio": max_violation(counts_E),
            "max_vio_global": max_violation(window_E),
            "load_entropy": load_entropy(counts_E),
            "router_entropy": float(self.entropy) / math.log(experts) if experts > 1 else 0.0,
            "dead_experts": float(dead_experts(counts_E)),
            "drops": int(self.dropped) / max(chosen, 1),
            "balance_loss": float(self.loss),
            "z_loss": float(self.z),
        }


@dataclass(slots=True)
class GlobalBatch:
    """A global batch of so many real tokens, `step` of its run; sums by layer, made when a layer is first seen."""

    tokens: int
    step: int
    layers: dict[int, LayerSums] = field(default_factory=dict)

    def at(self, index: int, layer: LayerRouting) -> LayerSums:
        """The sums of a layer."""
        if index not in self.layers:
            self.layers[index] = LayerSums.zeros(layer.num_experts, layer.experts_TK.device)
        return self.layers[index]
