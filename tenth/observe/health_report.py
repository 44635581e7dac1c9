"""A verdict for people and for programs. E experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from tenth.observe.health import Examined
from tenth.observe.health_experts import LayerExperts
from tenth.observe.health_similarity import nearest
from tenth.observe.health_verdict import Health

Json = dict[str, Any]


def record_of(examined: Examined, health: Health) -> Json:
    """All of it as plain data; numbers that are none are null. docs/health.md names the fields."""
    profile = examined.profile
    found = {
        "model": profile.model.name,
        "version": profile.model.version,
        "healthy": health.healthy,
        "alarms": sorted(health.alarms),
        "tokens": profile.counts.tokens,
        "experts": profile.model.experts,
        "experts_per_token": profile.model.top_k,
        "findings": [asdict(finding) for finding in health.findings],
        "super_experts": [list(one) for one in examined.super_experts],
        "massive_layers": list(examined.massive),
        "layers": [_layer(examined, health, at, index) for at, index in enumerate(profile.model.layers)],
    }
    plain: Json = _plain(found)
    return plain


def _layer(examined: Examined, health: Health, at: int, index: int) -> Json:
    loads, experts, drift = examined.loads[index], examined.experts[index], health.drift.get(index)
    counts = examined.profile.counts
    return {
        "layer": index,
        "counts": counts.counts_LE[at].tolist(),
        "broken_tokens": int(counts.broken_L[at]),
        "loads": None if loads is None else asdict(loads),
        "experts": None if experts is None else _experts(experts),
        "drift": None if drift is None else asdict(drift),
    }


def _experts(experts: LayerExperts) -> Json:
    units_EE = experts.shared_EE
    found: Json = {
        "broken": experts.broken,
        "silent": experts.silent,
        "peak": experts.peaks_E.tolist(),
        "norm": experts.norms_E.tolist(),
        "median_cka": experts.median_cka,
    }
    for name, similar_EE in (("cka", experts.cka_EE), ("cka_unbiased", experts.unbiased_EE), ("units", units_EE)):
        largest_E, partner_E = (torch.empty(0),) * 2 if similar_EE is None else nearest(similar_EE)
        found |= {f"{name}_nearest": largest_E.tolist(), f"{name}_partner": partner_E.tolist()}
    return found


def _plain(value: Any) -> Any:
    """Without NaN and infinity, which JSON has not, and without more digits than mean anything."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def layer_lines(examined: Examined, health: Health) -> list[str]:
    """A table with a row a layer, and what its columns are."""
    names = ["layer", "dead", "busiest", "MaxVio", "chance", "load H", "router H", "CKA", "CKA max", "units"]
    if health.drift:
        names += ["drift", "chance", "same"]
    rows = [names, *(_row(examined, health, index) for index in examined.profile.model.layers)]
    lines = [" ".join(f"{cell:>8}" for cell in row) for row in rows]
    lines.append(
        "busiest: tokens that choose the busiest expert; MaxVio, and what fair routers show by chance; H: entropy,"
    )
    lines.append("1 is even; CKA of two experts' outputs: median, largest; units: most hidden units two have in common")
    if health.drift:
        lines.append("drift of loads in bits, and by chance; same: choices that both routers make for the same tokens")
    return lines


def _row(examined: Examined, health: Health, index: int) -> list[str]:
    loads, experts = examined.loads[index], examined.experts[index]
    row = [str(index)]
    if loads is None:
        row += ["no work", *["-"] * 5]
    else:
        numbers = (loads.max_violation, loads.chance_violation, loads.load_entropy, loads.router_entropy)
        row += [str(len(loads.dead)), f"{loads.top_share:.0%}", *(f"{number:.2f}" for number in numbers)]
    row += ["-"] * 3 if experts is None else _similar(experts)
    if (drift := health.drift.get(index)) is not None:
        same = "-" if drift.saturation is None else f"{drift.saturation:.0%}"
        row += [f"{drift.divergence:.3f}", f"{drift.chance:.3f}", same]
    return row


def _similar(experts: LayerExperts) -> list[str]:
    units_EE = experts.shared_EE
    if experts.unbiased_EE is None or units_EE is None or len(units_EE) < 2:
        return ["-"] * 3
    largest = [max(float(nearest(similar_EE)[0].max()), 0.0) for similar_EE in (experts.unbiased_EE, units_EE)]
    return [f"{experts.median_cka:.2f}", f"{largest[0]:.2f}", f"{largest[1]:.0%}"]


def told(examined: Examined, health: Health) -> list[str]:
    """The verdict in words: a line for the model, one for each finding, advice once for each kind."""
    profile, model = examined.profile, examined.profile.model
    alarms = [finding for finding in health.findings if finding.alarm]
    layers = {layer for finding in alarms for layer in finding.layers}
    shape = f"{len(model.layers)} layers of {model.experts} experts, {model.top_k} a token"
    verdict = f"not healthy: {len(layers)} of {len(model.layers)} layers" if alarms else "healthy"
    lines = [f"{model.name}: {verdict} ({shape}; {profile.counts.tokens:,} tokens)"]
    lines += [f"{'ALARM' if finding.alarm else 'note '} {finding.kind}: {finding.words}" for finding in health.findings]
    for advice in dict.fromkeys(finding.advice for finding in health.findings if finding.advice):
        kinds = ", ".join(finding.kind for finding in health.findings if finding.advice == advice)
        lines.append(f"advice ({kinds}): {advice}")
    return lines
