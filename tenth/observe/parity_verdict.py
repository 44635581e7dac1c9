"""What the figures say, in words. The thresholds are stated here and in docs/verify.md, nowhere else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROUNDING_KL = 1e-3
"""Nats: a mean divergence below it, with ROUNDING_LAYER, is what another order of sums or bfloat16 makes."""
ROUNDING_LAYER = 0.03
"""The error of every layer on A's input below which two models are the same but for rounding."""
RELATED_LAYER = 0.7
"""The median error of layers below which B is made of A; unrelated weights have 1.4 (the root of 2)."""
JUMP = 5.0
"""A layer is damaged where a part's error is so many times the median of the same part in other layers ..."""
JUMP_LEAST = 0.05
"""... and at least so large. A router is judged by the experts it chooses: the share it chooses otherwise."""
EXPERT_JUMP = 3.0
"""One expert is damaged where its tokens err so many times as much as the layer's other tokens, and twice as much
above them as in the median layer."""
END_JUMP = 20.0
"""Embedding and head have no siblings: they are damaged at so many times the median layer's error, from END_LEAST."""
END_LEAST = 0.3
FEWER_BITS = 0.9
"""B is called compressed where a weight has less than this share of A's bits."""

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Damage:
    """A part that stands out: its layer (None: embedding or head), its error, and the median of its siblings."""

    layer: int | None
    part: str
    error: float
    others: float
    expert: int | None = None

    def __str__(self) -> str:
        place = self.part if self.layer is None else f"layer {self.layer}, {self.part}"
        expert = "" if self.expert is None else f" (expert {self.expert})"
        return f"{place}{expert}: error {self.error:.3g} on A's input, elsewhere {self.others:.2g}"

    def facts(self) -> dict[str, Any]:
        """As a report has it."""
        return {name: getattr(self, name) for name in self.__slots__}


def damages(layers: Sequence[Report], ends: Mapping[str, float]) -> list[Damage]:
    """Parts whose error on A's input stands out; of a layer the first in the order of work, as others follow from it.

    Nothing where there are fewer than two layers, or where more than half of them stand out.
    """
    found = [damage for layer in layers if (damage := _damage_of(layer, layers)) is not None]
    if 2 * len(found) > len(layers):
        found = []
    errors = [layer["error"] for layer in layers]
    others = statistics.median(errors) if errors else 0.0
    for part, error in ends.items():
        if layers and error >= END_LEAST and error > END_JUMP * others:
            found.append(Damage(None, part, error, others))
    return found


def _damage_of(layer: Report, layers: Sequence[Report]) -> Damage | None:
    siblings = [other for other in layers if other is not layer]
    for part in layer["parts"]:
        others = [_error(other, part) for other in siblings if part in other["parts"]]
        if not others:
            continue
        error, median = _error(layer, part), statistics.median(others)
        if error >= JUMP_LEAST and error > JUMP * median:
            expert = layer["worst_expert"] if part == "experts" and _one_expert(layer, siblings) else None
            return Damage(layer["layer"], part, error, median, expert)
        if part == "experts" and _one_expert(layer, siblings):
            return Damage(layer["layer"], part, error, median, layer["worst_expert"])
    return None


def _error(layer: Report, part: str) -> float:
    return 1.0 - layer["router_agreement"] if part == "router" else float(layer["parts"][part])


def _one_expert(layer: Report, siblings: Sequence[Report]) -> bool:
    """Whether one expert's tokens err far more than the others', and more than so in other layers."""
    ratio = layer["worst_expert_ratio"]
    others = [other["worst_expert_ratio"] for other in siblings if other["worst_expert_ratio"] is not None]
    if ratio is None or layer["parts"]["experts"] < JUMP_LEAST / 2:
        return False
    return bool(ratio > EXPERT_JUMP and ratio > 2 * statistics.median(others or [1.0]))


def verdict(report: Report, found: Sequence[Damage]) -> dict[str, Any]:
    """One of `identical`, `damaged`, `rounding`, `compressed`, `retrained`, `different`, `measured`; and a sentence."""
    kind, text = _words(report, found)
    return {"kind": kind, "text": text, "damaged": [one.facts() for one in found]}


def _words(report: Report, found: Sequence[Damage]) -> tuple[str, str]:
    kl, top1, layers = report["kl"], report["top1"], report["layers"]
    errors = [layer["error"] for layer in layers]
    facts = f"mean KL {kl['mean']:.3g} nats, {top1:.2%} the same likeliest token" if kl["mean"] is not None else ""
    if found:
        return "damaged", f"damaged at {'; '.join(map(str, found))} ({facts})"
    if report["server"] is not None:
        return (
            "measured",
            f"by what the server tells: {facts}" if facts else "the server tells too little for a verdict",
        )
    if kl["max"] == 0 and top1 == 1:
        return "identical", "identical: the same probabilities at every position"
    if not layers:
        return "different", f"networks of different shape: {facts}"
    median, worst = statistics.median(errors), max(errors)
    spread = f"layers err by {median:.2g} on A's input, {worst:.2g} at most; {facts}"
    if kl["mean"] < ROUNDING_KL and worst < ROUNDING_LAYER:
        return "rounding", f"the same within rounding: {spread}"
    if median >= RELATED_LAYER:
        return "different", f"different models: {spread}"
    if report["b"]["bits_per_weight"] < FEWER_BITS * report["a"]["bits_per_weight"]:
        return "compressed", f"a compressed copy: {spread}"
    if report["a"]["bits_per_weight"] < FEWER_BITS * report["b"]["bits_per_weight"]:
        return "compressed", f"B is what A is a compressed copy of: {spread}"
    return "retrained", f"the same model further trained, or changed a little everywhere: {spread}"


def not_finite(place: str) -> dict[str, Any]:
    """The verdict where a model gives NaN or infinity."""
    return {"kind": "not_finite", "text": f"damaged: {place}", "damaged": []}
