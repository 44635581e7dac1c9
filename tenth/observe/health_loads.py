"""How the work of a layer is spread over its experts, held against what chance gives for so much text.

B blocks of documents, E experts, L sparse layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from tenth.routing.counts import Floats, Ints
from tenth.routing.profile import RoutingProfile

UNKNOWN_DISPERSION = 8.0
"""Stands for the dispersion of text that is one document: about what small models have on documents of 500 tokens."""
_DEAD, _WELL = 0.02, 0.25  # shares of a fair load: a dead expert has at most the first, and surely not the second
_CHANCE = 1e-3
_SIGMAS = 3.0


@dataclass(frozen=True, slots=True)
class LayerLoads:
    """The loads of one layer.

    `dispersion` is how much more the counts of documents differ than choices by themselves would (1: not at all);
    `independent` is the mean number of assignments of an expert over it. `dead` experts have at most 2 % of a fair
    load, which chance would give one that has 25 % of it once in 1,000 times: none where the text is too little for
    that (`tells_dead`). `busiest` is the expert with most work and `top_share` the share of tokens that choose it,
    `concentration` the part of the way from its fair share to all tokens, `surely` the same less three deviations of
    chance; `overloaded` experts are surely more than half of that way. `effective` is exp(entropy of loads) / E: the
    share of experts that would do the same work evenly. `chance_violation` is the MaxVio of fair routers. `together`
    are the two experts that are most together: tokens that chose both over tokens that chose either (`co_activation`),
    beside what that is where neither heeds the other (`chance_together`).
    """

    dispersion: float
    independent: float
    dead: tuple[int, ...]
    overloaded: tuple[int, ...]
    busiest: int
    top_share: float
    concentration: float
    surely: float
    effective: float
    max_violation: float
    chance_violation: float
    load_entropy: float
    router_entropy: float
    together: tuple[int, int]
    co_activation: float
    chance_together: float

    @property
    def tells_dead(self) -> bool:
        """Whether there was text enough to tell an expert without work from chance."""
        return math.exp(-_WELL * self.independent) < _CHANCE


def layer_loads(profile: RoutingProfile, at: int) -> LayerLoads:
    """Judge the layer at this place of the profile; it must have work in it."""
    counts, model = profile.counts, profile.model
    counts_E = counts.counts_LE[at]
    mean = counts_E.sum() / model.experts
    spread = dispersion(profile, at)
    tokens = counts_E.sum() / model.top_k
    shares_E, fair = counts_E / tokens, model.top_k / model.experts
    deviations_E = np.sqrt(spread * shares_E * (1 - shares_E).clip(0) / tokens)
    room = max(1 - fair, 1e-9)
    sure_E = (shares_E - _SIGMAS * deviations_E - fair) / room
    busiest = int(counts_E.argmax())
    pair, together = most_together(profile.pairs_LEE[at])
    return LayerLoads(
        dispersion=spread,
        independent=mean / spread,
        dead=tuple(np.flatnonzero(_dead(counts_E, mean, spread)).tolist()),
        overloaded=tuple(np.flatnonzero(sure_E > 0.5).tolist()),
        busiest=busiest,
        top_share=float(shares_E[busiest]),
        concentration=float((shares_E[busiest] - fair) / room),
        surely=float(sure_E.max()),
        effective=float(model.experts ** (counts.load_entropy_L[at] - 1)),
        max_violation=float(counts.max_violation_L[at]),
        chance_violation=chance_violation(model.experts, mean / spread),
        load_entropy=float(counts.load_entropy_L[at]),
        router_entropy=float(counts.router_entropy_L[at]),
        together=pair,
        co_activation=together,
        chance_together=_by_chance(*shares_E[list(pair)]),
    )


def dispersion(profile: RoutingProfile, at: int) -> float:
    """Variance of experts' counts between blocks of documents of a domain over that of independent choices; from 1.

    Tokens of a document go to alike experts, so that a text has fewer independent choices than tokens: the design
    effect of samples in clusters. `UNKNOWN_DISPERSION` where no domain has two blocks.
    """
    domains: dict[str, list[Ints]] = {}
    for (domain, _), block in sorted(profile.blocks.items()):
        domains.setdefault(domain, []).append(block.counts_LE[at])
    found = expected = 0.0
    for blocks in domains.values():
        counts_BE = np.stack(blocks).astype(np.float64)
        size_B1 = counts_BE.sum(1, keepdims=True)
        if len(blocks) < 2 or not counts_BE.sum():
            continue
        share_E = counts_BE.sum(0) / counts_BE.sum()
        found += float(((counts_BE - size_B1 * share_E) ** 2).sum())
        freedom_B1 = 1 - size_B1 / size_B1.sum()  # the larger a block, the more it is its own expectation
        expected += float((size_B1 * freedom_B1 * share_E * (1 - share_E)).sum())
    return max(found / expected, 1.0) if expected else UNKNOWN_DISPERSION


def chance_violation(experts: int, independent: float) -> float:
    """About the MaxVio that fair routers show by chance: the largest of E normal deviations of 1 / sqrt(mean)."""
    return math.sqrt(2 * math.log(max(experts, 2)) / max(independent, 1e-9))


def _dead(counts_E: Ints, mean: float, spread: float) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    rate = _WELL * mean / spread
    return (counts_E <= _DEAD * mean) & (_at_most(counts_E, spread, rate) < _CHANCE)


def _at_most(counts_E: Ints, spread: float, rate: float) -> Floats:
    """The chance that a Poisson count of mean `rate` is at most so many: the upper incomplete gamma function."""
    above_E = torch.from_numpy(np.floor(counts_E / spread)) + 1
    chances_E: Floats = torch.special.gammaincc(above_E, torch.full_like(above_E, rate)).numpy()
    return chances_E


def _by_chance(one: float, other: float) -> float:
    """How much two experts with these shares of the tokens are together if neither heeds the other."""
    return float(one * other / max(one + other - one * other, 1e-9))


def most_together(pairs_EE: Ints) -> tuple[tuple[int, int], float]:
    """The two experts that are most together: tokens that chose both over tokens that chose either one."""
    counts_E = pairs_EE.diagonal()
    either_EE = counts_E[:, None] + counts_E[None, :] - pairs_EE
    shares_EE: Floats = pairs_EE / np.maximum(either_EE, 1)
    np.fill_diagonal(shares_EE, -1.0)
    one, other = (int(place) for place in np.unravel_index(int(shares_EE.argmax()), shares_EE.shape))
    return (min(one, other), max(one, other)), float(max(shares_EE.max(), 0.0))
