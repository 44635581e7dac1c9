"""What each part of a layer does to the same input in two models: where B's error comes from.

T tokens, D model width, K active experts, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tenth.model.batch import Batch, Want
from tenth.model.decoder import Layer
from tenth.model.experts import SparseMlp
from tenth.model.linear import Mlp
from tenth.routing.measures import overlap
from tenth.routing.record import LayerRouting

PART_NAMES = ("attention_norm", "attention", "mlp_norm", "router", "experts")
"""In the order in which they work: an error shows in what comes behind it too. A dense layer has `mlp` at the end."""

Part = Literal["attention_norm", "attention", "mlp_norm", "router", "experts", "mlp"]

CosSin = tuple[Tensor, Tensor]
_FEW = 4  # fewer tokens of an expert say too little of it
_TURNED = 4.0  # the square of the error of an output turned round, over its own
_MOST_RATIO = 1e6  # where the other tokens do not err at all


class NotFinite(Exception):
    """A part of a model gave NaN or infinity: the side, the layer (None: outside of layers), the part."""

    def __init__(self, side: str, layer: int | None, part: str) -> None:
        self.side, self.layer, self.part = side, layer, part
        place = part if layer is None else f"layer {layer} ({part})"
        super().__init__(f"{place} of {side} gives NaN or infinity")


@dataclass(frozen=True, slots=True)
class LayerStates:
    """A layer's work on some tokens: its input, what attention and the feed-forward part add, and its routing."""

    input_TD: Tensor
    attention_TD: Tensor  # what attention adds
    attended_TD: Tensor  # and both together
    fed_TD: Tensor  # what the feed-forward part adds
    output_TD: Tensor  # the next layer's input
    routing: LayerRouting | None

    def select(self, rows: Tensor) -> LayerStates:
        """The same of some tokens."""
        routing = None if self.routing is None else self.routing.select(rows)
        names = ("input_TD", "attention_TD", "attended_TD", "fed_TD", "output_TD")
        return LayerStates(**{name: getattr(self, name)[rows] for name in names}, routing=routing)


def run_layer(layer: Layer, x_TD: Tensor, batch: Batch, cos_sin: CosSin, given: LayerRouting | None) -> LayerStates:
    """The layer on whole documents, without a cache; a record that is given is replayed."""
    attention_TD = layer.attention(layer.attention_norm(x_TD), batch, cos_sin, None)
    attended_TD, h_TD = layer.mlp_norm.after(x_TD, attention_TD)
    fed_TD, routing = layer.feed(h_TD, Want(routing="choice"), given)
    return LayerStates(x_TD, attention_TD, attended_TD, fed_TD, attended_TD + fed_TD, routing)


def check_finite(states: LayerStates, side: str, index: int) -> None:
    """NotFinite that names the first part whose result is not."""
    # a sum is quick, and finite only where all numbers are; it may overflow
    if bool(states.output_TD.sum().isfinite()) or bool(states.output_TD.isfinite().all()):
        return
    part = "experts" if states.routing is not None else "mlp"
    if not bool(states.attended_TD.isfinite().all()):
        part = "attention"
    elif states.routing is not None and not bool(states.routing.gates_TK.isfinite().all()):
        part = "router"
    raise NotFinite(side, index, part)


@dataclass(slots=True)
class PartErrors:
    """Squares of the differences on A's input and of A's own results, summed over batches, by part.

    `agreed` counts how many of A's experts B's router chooses on the same input; `by_token` has the squared difference
    of each token's experts over A's own square (T), and which worked on it (T, K).
    """

    differences: dict[str, float] = field(default_factory=dict)
    powers: dict[str, float] = field(default_factory=dict)
    agreed: float = 0.0
    tokens: int = 0
    by_token: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, part: str, difference: Tensor, own: Tensor) -> None:
        """Count one part's results."""
        self.differences[part] = self.differences.get(part, 0.0) + _square(difference)
        self.powers[part] = self.powers.get(part, 0.0) + _square(own)

    def relative(self) -> dict[str, float]:
        """Root of differences over own results, by part (`layer` too); 0 of 0 is 0."""
        return {
            part: (value / self.powers[part]) ** 0.5 if self.powers[part] else float(value > 0)
            for part, value in self.differences.items()
        }

    @property
    def agreement(self) -> float | None:
        """The share of A's experts that B's router chooses too; None of a dense layer."""
        return self.agreed / self.tokens if self.tokens else None

    def worst_expert(self) -> tuple[int, float] | None:
        """The expert whose tokens err most, and how many times as much as tokens without it; None of too few tokens.

        Each token counts alike: one that an expert gives a massive output has an error as large, and says nothing.
        """
        if not self.by_token:
            return None
        squares_T, ids_TK = (torch.cat(parts) for parts in zip(*self.by_token, strict=True))
        counts_E = torch.bincount(ids_TK.flatten())
        sums_E = torch.bincount(ids_TK.flatten(), squares_T.repeat_interleave(ids_TK.shape[1]))
        without_E = len(squares_T) - counts_E
        others_E = ((squares_T.sum() - sums_E) / without_E.clamp(min=1)).clamp(min=0)
        # the largest error alone would name an expert whose few tokens the wrong one had too
        ratios_E = (sums_E / counts_E.clamp(min=1) / others_E.clamp(min=1e-30)).sqrt().clamp(max=_MOST_RATIO)
        ratios_E[(counts_E < _FEW) | (without_E < _FEW) | (sums_E <= 0)] = -1.0
        worst = int(ratios_E.argmax())
        return (worst, float(ratios_E[worst])) if ratios_E[worst] >= 0 else None


def add_errors(
    errors: PartErrors,
    layers: tuple[Layer, Layer],
    own: LayerStates,
    batch: Batch,
    cos_sin: tuple[CosSin, CosSin],
    kind: torch.dtype,
) -> None:
    """Run each part of B's layer on what that part of A's was given, A's expert ids replayed, and count the errors.

    `layers` and `cos_sin` are A's and B's, `kind` is the type of B's activations. What `own` holds came of whole
    windows: norms and attention are computed again of both, as attention over fewer tokens sums in another order.
    """
    a, b = layers
    n_TD, own_n_TD = b.attention_norm(own.input_TD.to(kind)), a.attention_norm(own.input_TD)
    errors.add("attention_norm", *_differing(n_TD, own_n_TD))
    by_attention_TD, attention_TD = _differing(
        b.attention(n_TD, batch, cos_sin[1], None), a.attention(own_n_TD, batch, cos_sin[0], None)
    )
    errors.add("attention", by_attention_TD, attention_TD)
    h_TD = b.mlp_norm(own.attended_TD.to(kind))
    errors.add("mlp_norm", *_differing(h_TD, a.mlp_norm(own.attended_TD)))
    fed_TD, routing = b.feed(h_TD, Want(routing="full"), own.routing)
    by_feed_TD, own_fed_TD = _differing(fed_TD, own.fed_TD)
    errors.add("mlp" if own.routing is None else "experts", by_feed_TD, own_fed_TD)
    errors.add("layer", by_attention_TD + by_feed_TD, attention_TD + own_fed_TD)
    if own.routing is not None and routing is not None and isinstance(b.mlp, SparseMlp):
        errors.add("router", *_differing(routing.gates_TK, own.routing.gates_TK))
        assert routing.logits_TE is not None, "asked for"
        errors.agreed += overlap(own.routing.experts_TK, b.mlp.router.choose(routing.logits_TE)) * len(h_TD)
        errors.tokens += len(h_TD)
        errors.by_token.append((_relative_squares(by_feed_TD, own_fed_TD), own.routing.experts_TK))


def _relative_squares(difference_TD: Tensor, own_TD: Tensor) -> Tensor:
    """Of each token, T in float64; at most that of an output turned round, also where A's own is nothing."""
    squares_T, own_T = (torch.linalg.vector_norm(x_TD, dim=-1).double() ** 2 for x_TD in (difference_TD, own_TD))
    return torch.where(squares_T > 0, squares_T / own_T, 0.0).clamp(max=_TURNED)


def _differing(theirs: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """The difference, and A's own, in a type that holds both."""
    kind = torch.promote_types(theirs.dtype, own.dtype)
    kind = torch.float32 if kind.itemsize < 4 else kind
    own = own.to(kind)
    return theirs.to(kind) - own, own


def same_form(a: Layer, b: Layer) -> bool:
    """Whether one layer's routing can be replayed in the other: both dense, or as many experts, as many at work."""
    if isinstance(a.mlp, Mlp) or isinstance(b.mlp, Mlp):
        return isinstance(a.mlp, Mlp) and isinstance(b.mlp, Mlp)
    return a.mlp.router.shape == b.mlp.router.shape


def parts_in_order(found: dict[str, float]) -> Iterator[str]:
    """The parts of a layer that were measured, in the order in which they work."""
    yield from (part for part in (*PART_NAMES, "mlp") if part in found)


def _square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) ** 2
