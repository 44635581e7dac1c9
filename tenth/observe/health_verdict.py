"""From what was measured to a verdict: what is wrong with which layers, how that shows, and what may help.

E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tenth.observe.health import Examined
from tenth.observe.health_drift import LayerDrift, drifts
from tenth.observe.health_experts import LayerExperts
from tenth.observe.health_loads import LayerLoads
from tenth.observe.health_words import (
    alike_words,
    certain_words,
    copied_words,
    dead_words,
    full_words,
    lost_words,
    moved_words,
    numbered,
    pair_words,
    silent_words,
    uneven_words,
    unsure_words,
)

F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where an alarm begins.

    Chosen on set A of `bench/health_science.py` before any model of set B was judged, and not moved since: six healthy
    models of 2 to 3 M parameters, failures made of them, and two that went on with broad or narrow text for half or all
    of their steps. The ranges are those of set A.
    """

    dead: float = 0.05  # share of a layer's experts; healthy: 0
    concentration: float = 0.2  # of the busiest expert, less chance; healthy: up to 0.08, half driven: from 0.32
    violation: float = 0.75  # MaxVio that a concentrated layer has too: where most experts work, all are chosen often
    effective: float = 0.7  # share of experts that would do the work; healthy: from 0.97, half driven: 0.57 to 0.76
    undecided: float = 0.995  # router entropy of a softmax; healthy: 0.78 to 0.87; a note, no alarm
    certain: float = 0.02
    together: float = 0.9  # of the way from chance to two experts that always work together; a note
    units: float = 0.25  # of the way from the cosines of chance to copies; healthy: below 0, half blended: from 0.60
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
        *_changes(examined, drift, at),
        *_notes(examined, at),
    ]
    return Health(tuple(found), drift)


# ---- numbers that are none


def _numbers(examined: Examined) -> list[Finding]:
    """The first layer that makes them is named; what lies behind it cannot be judged."""
    broken = dict(zip(examined.profile.model.layers, examined.profile.counts.broken_L.tolist(), strict=True))
    for index, experts in examined.experts.items():
        behind = tuple(other for other in examined.experts if other > index)
        rest = f"; layers behind it ({numbered(behind)}) are judged by what is left" if behind else ""
        if experts is None:
            words = f"layer {index}: all that comes to its experts is no number: something before them is broken"
            return [Finding("broken", True, (index,), words + rest, _NUMBERS)]
        if experts.broken:
            words = f"layer {index}: experts {numbered(experts.broken)} answer with what is no number"
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
        *_about(dead, "dead", _dead, lambda i, f: dead_words(f, count), _BALANCE),
        *_about(full, "concentrated", lambda f: f.surely, lambda i, f: full_words(f, examined), _BALANCE),
        *_about(uneven, "uneven", lambda f: -f.effective, lambda i, f: uneven_words(f, count), _BALANCE),
    ]


def _dead(found: LayerLoads) -> float:
    return len(found.dead)


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
        *_about(unsure, "undecided", _entropy, lambda i, f: unsure_words(f), "", alarm=False),
        *_about(certain, "certain", lambda f: -_entropy(f), lambda i, f: certain_words(f), advice),
    ]


def _entropy(found: LayerLoads) -> float:
    return found.router_entropy


# ---- experts


def _experts(examined: Examined, at: Thresholds) -> list[Finding]:
    known = {index: found for index, found in examined.experts.items() if found is not None}
    copied = {index: found for index, found in known.items() if found.doubles(at.units, at.cka)}
    alike = {i: f for i, f in known.items() if i not in copied and f.median_cka > at.alike}
    silent = {index: found for index, found in known.items() if found.silent}
    return [
        *_about(copied, "copies", _doubles(at), lambda i, f: copied_words(f, f.doubles(at.units, at.cka)), _DOUBLES),
        *_about(alike, "alike", lambda f: f.median_cka, lambda i, f: alike_words(f), _DOUBLES),
        *_about(silent, "silent", lambda f: len(f.silent), lambda i, f: silent_words(f), _NUMBERS),
    ]


def _doubles(at: Thresholds) -> Callable[[LayerExperts], float]:
    return lambda found: len(found.doubles(at.units, at.cka))


# ---- change


def _changes(examined: Examined, drift: Mapping[int, LayerDrift], at: Thresholds) -> list[Finding]:
    """Loads of unlike texts differ for that: they are told, but are no alarm."""
    moved = {index: found for index, found in drift.items() if found.excess > at.shift}
    lost = {
        index: found
        for index, found in drift.items()
        if found.agreement is not None and found.agreement < at.saturation
    }
    if not drift:
        return []
    advice = (
        "if it was trained on: mix in some of the text it had before, lower the learning rate, or freeze the routers"
    )
    return [
        *_about(
            moved, "load drift", lambda f: f.excess, lambda i, f: moved_words(f), advice, alarm=_same_text(examined)
        ),
        *_about(lost, "choice drift", lambda f: -(f.agreement or 0.0), lambda i, f: lost_words(f), advice),
    ]


def _same_text(examined: Examined) -> bool:
    """Whether both profiles have as many tokens in each block of documents, which the documents' tokens decide."""
    assert examined.reference is not None
    one, other = examined.profile.blocks, examined.reference.blocks
    return {key: block.tokens for key, block in one.items()} == {key: block.tokens for key, block in other.items()}


# ---- notes


def _notes(examined: Examined, at: Thresholds) -> list[Finding]:
    loads = {index: found for index, found in examined.loads.items() if found is not None}
    count, found = examined.profile.model.experts, list[Finding]()
    few = {index: load for index, load in loads.items() if 0 < len(load.dead) < max(at.dead * count, 1)}
    found += _about(few, "few dead", _dead, lambda i, f: dead_words(f, count), "", alarm=False)
    together = {index: load for index, load in loads.items() if _together(load) > at.together}
    found += _about(together, "together", _together, lambda i, f: pair_words(f), "", alarm=False)
    if examined.super_experts:
        names = ", ".join(f"L{layer}E{expert}" for layer, expert in examined.super_experts)
        layers = tuple(sorted({layer for layer, _ in examined.super_experts}))
        found.append(Finding("super experts", False, layers, names, "keep them when pruning or quantising"))
    if unsure := tuple(index for index, load in loads.items() if not load.tells_dead):
        words = f"layers {numbered(unsure)}: the text is too little to tell experts without work from chance"
        found.append(Finding("little text", False, unsure, words, "give more, or more documents"))
    if examined.reference is not None and not _same_text(examined):
        words = "the reference's profile is of other text: loads may differ for that alone"
        found.append(Finding("other text", False, (), words, "make both profiles of one corpus, or name the model"))
    return found


def _together(found: LayerLoads) -> float:
    return (found.co_activation - found.chance_together) / (1.001 - found.chance_together)


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
    where = f"layer {worst}" if len(layers) == 1 else f"layers {numbered(layers)}, worst layer {worst}"
    return [Finding(kind, alarm, layers, f"{where}: {words(worst, found[worst])}", advice)]
