"""The routing record: which experts each token went to, with what gates. The one type all observers read.

T tokens, K active experts, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tenth.routing.rule import Score

RecordKind = Literal["none", "choice", "full", "outputs"]
"""How much a pass records: nothing, expert ids and gates, router logits and drops too, or also sizes of outputs."""


@dataclass(frozen=True, slots=True)
class LayerRouting:
    """The decisions of one sparse layer.

    `experts_TK` holds expert ids (int64, best first), `gates_TK` the weights that multiplied their outputs (float32 or
    float64). A full record also has the router's raw `logits_TE`, which are softmax or sigmoid scores as `score` says,
    and `dropped_TK`, true where an assignment was not carried out; so does any record of a batch whose tokens are
    `limited` (`tenth.routing.limit`). The gate of a dropped expert is 0. A limit may give its share to the experts that
    are left (`RouteRule.rescales`); an expert's full capacity does not.

    A record of `outputs` is full, and has the norms of experts' outputs before their gates (`norms_TK`) and their
    largest magnitudes (`peaks_TK`), float32; 0 where an assignment was not carried out.
    """

    num_experts: int
    experts_TK: Tensor
    gates_TK: Tensor
    logits_TE: Tensor | None = None
    dropped_TK: Tensor | None = None
    score: Score = "softmax"
    limited: bool = False
    norms_TK: Tensor | None = None
    peaks_TK: Tensor | None = None

    def select(self, tokens: slice | Tensor) -> LayerRouting:
        """The same for some of the tokens, in the order given."""
        return _rebuild(self, lambda part: part[tokens])

    def detach(self) -> LayerRouting:
        """A copy on the CPU without a gradient."""
        return _rebuild(self, lambda part: part.detach().cpu())


@dataclass(frozen=True, slots=True)
class Routing:
    """The record of one forward pass, or of several joined: one `LayerRouting` for each sparse layer's index."""

    layers: Mapping[int, LayerRouting]

    @property
    def num_tokens(self) -> int:
        """Tokens in the record (0 for a model without sparse layers)."""
        return next((len(layer.experts_TK) for layer in self.layers.values()), 0)

    def select(self, tokens: slice | Tensor) -> Routing:
        """The record of some of the tokens, in the order given."""
        return Routing({index: layer.select(tokens) for index, layer in self.layers.items()})

    def detach(self) -> Routing:
        """A copy on the CPU without a gradient, safe to keep."""
        return Routing({index: layer.detach() for index, layer in self.layers.items()})

    @staticmethod
    def join(records: Sequence[Routing]) -> Routing:
        """Records of one model, one after the other along the tokens."""
        if not records:
            return Routing({})
        return Routing({index: _join([r.layers[index] for r in records]) for index in records[0].layers})


def _rebuild(layer: LayerRouting, change: Callable[[Tensor], Tensor]) -> LayerRouting:
    def changed(part: Tensor | None) -> Tensor | None:
        return None if part is None else change(part)

    return LayerRouting(
        layer.num_experts,
        change(layer.experts_TK),
        change(layer.gates_TK),
        changed(layer.logits_TE),
        changed(layer.dropped_TK),
        layer.score,
        layer.limited,
        changed(layer.norms_TK),
        changed(layer.peaks_TK),
    )


def _join(layers: Sequence[LayerRouting]) -> LayerRouting:
    def joined(name: str) -> Tensor | None:
        parts = [getattr(layer, name) for layer in layers]
        return None if any(part is None for part in parts) else torch.cat(parts)

    experts, gates = joined("experts_TK"), joined("gates_TK")
    assert experts is not None
    assert gates is not None
    first = layers[0]
    limited = any(layer.limited for layer in layers)
    logits, dropped = joined("logits_TE"), joined("dropped_TK")
    sizes = joined("norms_TK"), joined("peaks_TK")
    return LayerRouting(first.num_experts, experts, gates, logits, dropped, first.score, limited, *sizes)
