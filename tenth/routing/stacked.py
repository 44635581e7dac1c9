"""The record of one step as one array for all sparse layers, whose `LayerRouting`s are made when they are asked for.

A step of one token has a few hundred numbers in dozens of layers: two arrays are copied in microseconds, two tensors a
layer are not. L sparse layers, T tokens, K active experts, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tenth.routing.record import LayerRouting, Routing
from tenth.routing.rule import Score


@dataclass(frozen=True, slots=True, eq=False)
class StackedLayers(Mapping[int, LayerRouting]):
    """The layers of a `Routing`, whose indices are `layers`; the fields are those of `LayerRouting`, with an axis L."""

    layers: tuple[int, ...]
    num_experts: int
    experts_LTK: Tensor
    gates_LTK: Tensor
    logits_LTE: Tensor | None = None
    score: Score = "softmax"
    limited: bool = False
    norms_LTK: Tensor | None = None
    peaks_LTK: Tensor | None = None

    def __getitem__(self, index: int) -> LayerRouting:
        try:
            at = self.layers.index(index)
        except ValueError:
            raise KeyError(index) from None
        gates_TK = self.gates_LTK[at]
        logits_TE = None if self.logits_LTE is None else self.logits_LTE[at]
        dropped_TK = gates_TK == 0 if self.limited or logits_TE is not None else None
        return LayerRouting(
            self.num_experts,
            self.experts_LTK[at],
            gates_TK,
            logits_TE,
            dropped_TK,
            self.score,
            self.limited,
            None if self.norms_LTK is None else self.norms_LTK[at],
            None if self.peaks_LTK is None else self.peaks_LTK[at],
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def stacked(routing: Routing) -> StackedLayers | None:
    """A record with its layers in one; None where it has none. All layers have as many experts, and as many at work."""
    if isinstance(routing.layers, StackedLayers):
        return routing.layers
    found = list(routing.layers.values())
    if not found:
        return None
    first = found[0]

    def together(name: str) -> Tensor | None:
        parts = [part for layer in found if (part := getattr(layer, name)) is not None]
        return torch.stack(parts) if len(parts) == len(found) else None

    return StackedLayers(
        tuple(routing.layers),
        first.num_experts,
        torch.stack([layer.experts_TK for layer in found]),
        torch.stack([layer.gates_TK for layer in found]),
        together("logits_TE"),
        first.score,
        any(layer.limited for layer in found),
        together("norms_TK"),
        together("peaks_TK"),
    )
