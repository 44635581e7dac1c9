"""From what was measured to a verdict: what is wrong with which layers, how that shows, and what may help.

E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from tenth.observe.health import Examined
from tenth.observe.health_drift import LayerDrift, drifts
from tenth.observe.health_experts import LayerExperts
from tenth.observe.health_loads import LayerLoads
from tenth.observe.health_similarity import nearest

F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where an alarm begins.

    Chosen on set A of `bench/health_science.py` before any model of set B was judged, and not moved since: six healthy
    models of 2 to 3 M parameters, failures made of them, and two that went on with broad or narrow text for half or all
    of their steps. The ranges are those of set A.
    """

    dead: float = 0.05  # share of a layer's experts; healthy: 0
    concentration: float = 0.3  # of the busiest expert, less chance; healthy: up to 0.08, half collapsed: 0.45
    violation: float = 0.75  # MaxVio that a concentrated layer has too: where most experts work, all are chosen often
    effective: float = 0.7  # share of experts that would do the work; healthy: from 0.97, half collapsed: 0.58
    undecided: float = 0.995  # router entropy of a softmax; healthy: 0.78 to 0.87; a note, no alarm
    certain: float = 0.02
    together: float = 0.9  # of the way from chance to two experts that always work together; a note
    units: float = 0.25  # of the way from the cosines of chance to copies; healthy: below 0, half blended: 0.57
    cka: float = 0.995  # unbiased, of two experts; healthy: up to 0.97 where a few tokens outweigh the rest
    alike: float = 0.9  # its median over all pairs of a layer; healthy: up to 0.29
    shift: float = 0.0125  # bits of Jensen-Shannon divergence beyond chance; broad: up to 0.008, narrow: from 0.018
    saturation: float = 0.58  # of routers, from 0 at chance to 1; broad: from 0.63, narrow: up to 0.54


FROZEN = Thresholds()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to say of some layers. An alarm makes a model unhealthy, a note does not."""

    kind: str
    alarm: bool
    layers: tuple[int, ...]
    words: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """The verdict: healthy where no finding is an alarm."""

    findings: tuple[Finding, ...]
    drift: Mapping[int, LayerDrift]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not any(finding.alarm for finding in self.findings)

    @property
    def alarms(self) -> frozenset[str]:
        """The kinds of what is wrong."""
        return frozenset(finding.kind for finding in self.findings if finding.alarm)


_BALANCE = (
    "train with a balance loss over the global batch or loss-free biases (`balance.kind`, `balance.bias_rate`); "
    "if it was trained so, look at the router's rows and biases: were they loaded, quantised or changed since?"
)
_NUMBERS = "load the model again from where it was made; if it is broken there, go back to an earlier checkpoint"
_DOUBLES = (
    "doubles take memory and add nothing: an upcycled model needs training until they differ; otherwise prune or merge"
)


def judge(examined: Examined, at: Thresholds = FROZEN) -> Health:
    """What there is to say of a model."""
    drift = drifts(examined)
    found = [
        *_numbers(examined),
        *_loads(examined, at),
        *_routers(examined, at),
        *_experts(examined, at),
        *_changes(drift, at),
        *_notes(examined, at),
    ]
    return Health(tuple(found), drift)


# ---- numbers that are none


def _numbers(examined: Examined) -> list[Finding]:
    """The first layer that makes them is named; what lies behind it cannot be judged."""
    broken = dict(zip(examined.profile.model.layers, examined.profile.counts.broken_L.tolist(), strict=True))
    for index, experts in examined.experts.items():
        behind = tuple(other for other in examined.experts if other > index)
        rest = f"; layers behind it ({_numbered(behind)}) are judged by what is left" if behind else ""
        if experts is None:
            words = f"layer {index}: all that comes to its experts is no number: something before them is broken"
            return [Finding("broken", True, (index,), words + rest, _NUMBERS)]
        if experts.broken:
            words = f"layer {index}: experts {_numbered(experts.broken)} answer with what is no number"
            return [Finding("broken", True, (index,), words + rest, _NUMBERS)]
        if broken[index]:
            words = f"layer {index}: gates of {broken[index]:,} tokens are no numbers"
            return [Finding("broken", True, (index,), words + rest, _NUMBERS)]
    return []


# ---- loads


def _loads(examined: Examined, at: Thresholds) -> list[Finding]:
    loads = {index: found for index, found in examined.loads.items() if found is not None}
    count = examined.profile.model.experts
    dead = {index: found for index, found in loads.items() if len(found.dead) >= max(at.dead * count, 1)}
    full = {i: f for i, f in loads.items() if f.surely > at.concentration and f.max_violation > at.violation}
    uneven = {i: f for i, f in loads.items() if f.effective < at.effective and i not in dead and i not in full}
    return [
        *_about(dead, "dead", len_of_dead, lambda i, f: _dead_words(f, count), _BALANCE),
        *_about(full, "concentrated", lambda f: f.surely, lambda i, f: _full_words(f, examined), _BALANCE),
        *_about(uneven, "uneven", lambda f: -f.effective, lambda i, f: _uneven_words(f, count), _BALANCE),
    ]


def len_of_dead(found: LayerLoads) -> float:
    """How many experts are dead."""
    return len(found.dead)


def _dead_words(found: LayerLoads, count: int) -> str:
    return f"{len(found.dead)} of {count} experts get next to no work ({_numbered(found.dead)})"


def _full_words(found: LayerLoads, examined: Examined) -> str:
    model = examined.profile.model
    fair = model.top_k / model.experts
    return f"expert {found.busiest} is chosen by {found.top_share:.0%} of the tokens, fair is {fair:.0%}"


def _uneven_words(found: LayerLoads, count: int) -> str:
    return f"the work of {count} experts is spread as over {found.effective * count:.1f}"


def _routers(examined: Examined, at: Thresholds) -> list[Finding]:
    """How sure routers are; entropies of sigmoids are near 1 in any case and say little.

    An undecided router still chooses by the token, and carved experts have gates that are nearly equal on purpose.
    """
    model = examined.profile.model
    loads = {index: found for index, found in examined.loads.items() if found is not None}
    unsure = {i: f for i, f in loads.items() if model.score == "softmax" and f.router_entropy > at.undecided}
    certain = {i: f for i, f in loads.items() if f.router_entropy < at.certain}
    advice = "look at the size of its rows and of what it reads; a z-loss (`balance.z_weight`) keeps scores small"
    return [
        *_about(unsure, "undecided", _entropy, lambda i, f: _unsure_words(f), "", alarm=False),
        *_about(certain, "certain", lambda f: -_entropy(f), lambda i, f: _certain_words(f), advice),
    ]


def _unsure_words(found: LayerLoads) -> str:
    return f"it chooses, but hardly weighs: its scores are nearly equal (entropy {found.router_entropy:.4f} of 1)"


def _certain_words(found: LayerLoads) -> str:
    return f"it gives all weight to one expert (entropy {found.router_entropy:.4f} of 1)"


def _entropy(found: LayerLoads) -> float:
    return found.router_entropy


# ---- experts


def units_excess(experts: LayerExperts) -> torch.Tensor | None:
    """Similarity of hidden units (E, E) beyond what chance gives: 0 is chance, 1 are copies."""
    if experts.units_EE is None:
        return None
    return (experts.units_EE - experts.units_chance) / (1 - experts.units_chance)


def doubles(experts: LayerExperts, at: Thresholds) -> list[int]:
    """Experts that have a double: alike units, or outputs that are the same up to rotation and scale."""
    found = set[int]()
    for similar_EE, least in ((units_excess(experts), at.units), (experts.unbiased_EE, at.cka)):
        if similar_EE is not None:
            found |= set((nearest(similar_EE)[0] > least).nonzero()[:, 0].tolist())
    return sorted(found - set(experts.silent))


def _experts(examined: Examined, at: Thresholds) -> list[Finding]:
    known = {index: found for index, found in examined.experts.items() if found is not None}
    copied = {index: found for index, found in known.items() if doubles(found, at)}
    alike = {i: f for i, f in known.items() if i not in copied and median_similarity(f) > at.alike}
    silent = {index: found for index, found in known.items() if found.silent}
    return [
        *_about(copied, "copies", lambda f: len(doubles(f, at)), lambda i, f: _copied_words(f, at), _DOUBLES),
        *_about(alike, "alike", median_similarity, lambda i, f: _alike_words(f), _DOUBLES),
        *_about(silent, "silent", lambda f: len(f.silent), lambda i, f: _silent_words(f), _NUMBERS),
    ]


def median_similarity(experts: LayerExperts) -> float:
    """Of the outputs of two experts, unbiased CKA; NaN where there is none."""
    if experts.unbiased_EE is None or len(experts.unbiased_EE) < 2:
        return math.nan
    above_EE = torch.ones_like(experts.unbiased_EE, dtype=torch.bool).triu(1)
    return float(experts.unbiased_EE[above_EE].nanmedian())


def _copied_words(experts: LayerExperts, at: Thresholds) -> str:
    found = doubles(experts, at)
    assert experts.unbiased_EE is not None
    similar_EE = units_excess(experts)
    _, partner_E = nearest(experts.unbiased_EE if similar_EE is None else similar_EE)
    first, second = found[0], int(partner_E[found[0]])
    shared = "" if similar_EE is None else f"{max(float(similar_EE[first, second]), 0):.0%} of their units in common, "
    cka = float(experts.unbiased_EE[first, second])
    return (
        f"{len(found)} of {len(experts.norms_E)} experts have a double ({_numbered(found)}); "
        f"{first} and {second} have {shared}CKA of outputs {cka:.2f}"
    )


def _alike_words(experts: LayerExperts) -> str:
    return f"all experts answer alike (median CKA of two {median_similarity(experts):.2f})"


def _silent_words(experts: LayerExperts) -> str:
    return f"experts {_numbered(experts.silent)} answer with next to nothing"


# ---- change


def _changes(drift: Mapping[int, LayerDrift], at: Thresholds) -> list[Finding]:
    moved = {index: found for index, found in drift.items() if found.excess > at.shift}
    lost = {
        index: found
        for index, found in drift.items()
        if found.agreement is not None and found.agreement < at.saturation
    }
    advice = (
        "if it was trained on: mix in some of the text it had before, lower the learning rate, or freeze the routers"
    )
    return [
        *_about(moved, "load drift", lambda f: f.excess, lambda i, f: _moved_words(f), advice),
        *_about(lost, "choice drift", lambda f: -(f.agreement or 0.0), lambda i, f: _lost_words(f), advice),
    ]


def _moved_words(found: LayerDrift) -> str:
    return f"its load has moved by {found.divergence:.2f} bits, chance alone by {found.chance:.2f}"


def _lost_words(found: LayerDrift) -> str:
    return f"both routers make the same choice in {found.saturation:.0%} of the cases"


# ---- notes


def _notes(examined: Examined, at: Thresholds) -> list[Finding]:
    loads = {index: found for index, found in examined.loads.items() if found is not None}
    count, found = examined.profile.model.experts, list[Finding]()
    few = {index: load for index, load in loads.items() if 0 < len(load.dead) < max(at.dead * count, 1)}
    found += _about(few, "few dead", len_of_dead, lambda i, f: _dead_words(f, count), "", alarm=False)
    together = {index: load for index, load in loads.items() if _together(load) > at.together}
    found += _about(together, "together", _together, lambda i, f: _pair_words(f), "", alarm=False)
    if examined.super_experts:
        names = ", ".join(f"L{layer}E{expert}" for layer, expert in examined.super_experts)
        layers = tuple(sorted({layer for layer, _ in examined.super_experts}))
        found.append(Finding("super experts", False, layers, names, "keep them when pruning or quantising"))
    if unsure := tuple(index for index, load in loads.items() if not load.tells_dead):
        words = f"layers {_numbered(unsure)}: the text is too little to tell experts without work from chance"
        found.append(Finding("little text", False, unsure, words, "give more, or more documents"))
    return found  # fmt: skip


def _together(found: LayerLoads) -> float:
    return (found.co_activation - found.chance_together) / (1.001 - found.chance_together)


def _pair_words(found: LayerLoads) -> str:
    one, other = found.together
    return f"experts {one} and {other} go together for {found.co_activation:.0%} of the tokens of either"


# ---- words


def _about(
    found: Mapping[int, F],
    kind: str,
    size: Callable[[F], float],
    words: Callable[[int, F], str],
    advice: str,
    *,
    alarm: bool = True,
) -> list[Finding]:
    """One finding of all layers that have it, in the words of the worst one."""
    if not found:
        return []
    layers = tuple(found)
    worst = max(layers, key=lambda index: size(found[index]))
    where = f"layer {worst}" if len(layers) == 1 else f"layers {_numbered(layers)}, worst layer {worst}"
    return [Finding(kind, alarm, layers, f"{where}: {words(worst, found[worst])}", advice)]


def _numbered(numbers: Sequence[int], most: int = 12) -> str:
    shown = ", ".join(map(str, numbers[:most]))
    return shown if len(numbers) <= most else f"{shown} and {len(numbers) - most} more"
