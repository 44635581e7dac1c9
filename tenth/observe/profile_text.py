"""Routing profiles in words and tables."""

from __future__ import annotations

import json as json_library
import math
from typing import Any

import numpy as np

from tenth.files import printable
from tenth.routing.drift import FEWEST, drift_from
from tenth.routing.profile import RoutingProfile, check_same_shape

Json = dict[str, Any]


def summary(profile: RoutingProfile) -> str:
    """One line: tokens, domains, balance, and what is wrong if anything is."""
    counts, model = profile.counts, profile.model
    domains = ", ".join(f"{printable(name)} {block.tokens:,}" for name, block in profile.by_domain().items())
    words = [
        f"{counts.tokens:,} token{'s' * (counts.tokens != 1)} ({domains or 'none'})",
        f"{len(model.layers)} layers of {model.experts} experts",
    ]
    if counts.tokens:
        words.append(f"mean MaxVio {np.nanmean(counts.max_violation_L):.2f}" if counts.counts_LE.any() else "no work")
    if dead := int(counts.dead_L.sum()):
        words.append(f"{dead} experts without work")
    if broken := broken_words(profile):
        words.append(broken)
    return "; ".join(words)


def broken_words(profile: RoutingProfile) -> str:
    """What there is to say of gates and outputs that are no numbers; empty where there are none."""
    broken_L, layers, words = profile.counts.broken_L, profile.model.layers, []
    if profile.outputs is not None and not np.isfinite(profile.outputs.peaks_LE).all():
        broken_LE = ~np.isfinite(profile.outputs.peaks_LE)
        first = int(np.flatnonzero(broken_LE.any(1))[0])
        count = int(broken_LE[first].sum())
        words.append(f"in layer {layers[first]} outputs of {count} expert{'s' * (count > 1)} are no numbers")
    if broken_L.any():
        first = int(np.flatnonzero(broken_L)[0])
        words.append(f"from layer {layers[first]} on gates are no numbers, of {int(broken_L[first]):,} tokens there")
    return "; ".join(words)


def shown(profile: RoutingProfile, *, json: bool = False) -> str:
    """A table of layers, or one JSON object."""
    record = record_of(profile)
    if json:
        return json_library.dumps(record, indent=1)
    model = profile.model
    lines = [f"{printable(model.name)} {printable(model.version[:12])}: {summary(profile)}", ""]
    names = ("max_vio", "load_entropy", "router_entropy", "dead", "most", "norm", "extreme")
    lines.append("layer " + " ".join(f"{name:>14}" for name in names))
    for layer in record["layers"]:
        lines.append(f"{layer['layer']:>5} " + " ".join(f"{_cell(layer[name]):>14}" for name in names))
    return "\n".join(lines)


def record_of(profile: RoutingProfile) -> Json:
    """The numbers of a profile by layer, for programs; None where there is none."""
    counts, model = profile.counts, profile.model
    norms_LE = profile.norms_LE
    layers = []
    for at, layer in enumerate(model.layers):
        work_E = counts.counts_LE[at]
        layers.append(
            {
                "layer": layer,
                "max_vio": _number(counts.max_violation_L[at]),
                "load_entropy": _number(counts.load_entropy_L[at]),
                "router_entropy": _number(counts.router_entropy_L[at]),
                "dead": int(counts.dead_L[at]),
                "broken": int(counts.broken_L[at]),
                "most": int(work_E.argmax()) if work_E.any() else None,
                "norm": None if norms_LE is None else _mean(norms_LE[at]),
                "extreme": _number(float(profile.extremes_L[at])) if profile.extremes_L[at] else None,
                "counts": work_E.tolist(),
            }
        )
    domains = {name: block.tokens for name, block in profile.by_domain().items()}
    told = {"name": model.name, "version": model.version, "experts": model.experts, "top_k": model.top_k}
    return {"model": told, "tokens": counts.tokens, "judged": counts.judged, "domains": domains, "layers": layers}


def compared(one: RoutingProfile, other: RoutingProfile, *, json: bool = False) -> str:
    """How far the second's work is from the first's, layer by layer; RequestError for models of another shape."""
    check_same_shape(one.model, other.model)
    drift = drift_from(one, other.counts)
    dead_L = other.counts.dead_L - one.counts.dead_L
    change_L = other.counts.router_entropy_L - one.counts.router_entropy_L
    layers = [
        {
            "layer": layer,
            "divergence": _number(drift.divergence_L[at]),
            "chance": _number(drift.chance_L[at]),
            "dead": int(dead_L[at]),
            "router_entropy": _number(change_L[at]),
        }
        for at, layer in enumerate(drift.layers)
    ]
    if json:
        return json_library.dumps(
            {"excess": drift.excess, "judged": drift.judged, "tokens": drift.tokens, "layers": layers}, indent=1
        )
    lines = [f"{'layer':>5} {'divergence':>11} {'chance':>8} {'more dead':>9} {'router entropy':>14}"]
    for row in layers:
        parts = (
            _cell(row["divergence"]),
            _cell(row["chance"]),
            f"{row['dead']:+d}",
            _cell(row["router_entropy"], sign=True),
        )
        lines.append(f"{row['layer']:>5} {parts[0]:>11} {parts[1]:>8} {parts[2]:>9} {parts[3]:>14}")
    same = "the same weights" if one.model.version == other.model.version else "other weights"
    found = f"{drift.excess:.4f} bits beyond chance in the mean, most in layer {drift.worst}"
    if not drift.judged:
        found = f"not judged: the second has {drift.tokens} tokens, {FEWEST} are the least"
    lines += ["", f"{same}; {found}"]
    return "\n".join(lines)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(values_E: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    known = values_E[np.isfinite(values_E)]
    return float(known.mean()) if len(known) else None


def _cell(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:{'+' if sign else ''}.4g}"
