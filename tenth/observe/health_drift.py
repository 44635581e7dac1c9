"""What changed since another model, or since an earlier state of this one: loads, entropies, experts without work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tenth.observe.health import Examined
from tenth.observe.health_loads import layer_loads
from tenth.routing.drift import drift_from
from tenth.routing.profile import check_same_shape


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """One layer against the reference's.

    `divergence` is Jensen-Shannon's of the loads, in bits, `chance` what as much of the reference's own text shows;
    entropies are differences; `newly_dead` experts had work in the reference. `saturation` is the share of choices that
    both routers make for the same tokens (None where there is no model to ask), `agreement` the same from 0 at chance
    (K / E) to 1.
    """

    divergence: float
    chance: float
    router_entropy: float
    load_entropy: float
    newly_dead: tuple[int, ...]
    saturation: float | None = None
    agreement: float | None = None

    @property
    def excess(self) -> float:
        """Divergence beyond chance; NaN where a layer has no work."""
        return self.divergence - self.chance


def drifts(examined: Examined) -> Mapping[int, LayerDrift]:
    """By layer; nothing without a reference. RequestError where its layers or experts are others."""
    profile, reference = examined.profile, examined.reference
    if reference is None:
        return {}
    check_same_shape(profile.model, reference.model)
    drift, fair = drift_from(reference, profile.counts), profile.model.top_k / profile.model.experts
    found = dict[int, LayerDrift]()
    for at, index in enumerate(profile.model.layers):
        loads = examined.loads[index]
        if loads is None or not reference.counts.counts_LE[at].any():
            continue
        before, same = layer_loads(reference, at), examined.saturation.get(index)
        found[index] = LayerDrift(
            float(drift.divergence_L[at]),
            float(drift.chance_L[at]),
            loads.router_entropy - before.router_entropy,
            loads.load_entropy - before.load_entropy,
            tuple(sorted(set(loads.dead) - set(before.dead))),
            same,
            None if same is None else _over(same, fair),
        )
    return found


def _over(same: float, fair: float) -> float:
    return (same - fair) / (1 - fair) if fair < 1 else math.nan
