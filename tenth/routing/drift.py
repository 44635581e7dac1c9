"""How far the load of experts has moved from a stored profile's, and how far chance alone moves it.

L sparse layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tenth.errors import RequestError
from tenth.routing.counts import Floats, Ints, RoutingCounts
from tenth.routing.profile import RoutingProfile

FEWEST = 256
"""Tokens that must have been seen before anything is said of drift."""


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """Jensen-Shannon divergence of the experts' shares of work, in bits: 0 is alike, 1 have nothing in common.

    `chance_L` is what as many tokens of the stored profile's own text would show. NaN where there was no work.
    """

    layers: tuple[int, ...]
    divergence_L: Floats
    chance_L: Floats
    tokens: int

    @property
    def judged(self) -> bool:
        """Whether enough was seen to say anything."""
        return self.tokens >= FEWEST

    @property
    def beyond_L(self) -> Floats:
        """What is beyond chance; below 0 where chance would have shown more."""
        return self.divergence_L - self.chance_L

    @property
    def excess(self) -> float:
        """The mean over layers of what is beyond chance; 0 for fewer than `FEWEST` tokens."""
        beyond_L = self.beyond_L[np.isfinite(self.divergence_L)]
        return max(float(beyond_L.mean()), 0.0) if len(beyond_L) and self.judged else 0.0

    @property
    def worst(self) -> int:
        """The layer that moved furthest beyond chance."""
        return self.layers[int(np.nan_to_num(self.beyond_L, nan=-1.0).argmax())]


def drift_from(stored: RoutingProfile, seen: RoutingCounts) -> Drift:
    """How far what was seen is from a stored profile; RequestError where layers or experts are others."""
    if seen.layers != stored.counts.layers or seen.counts_LE.shape != stored.counts.counts_LE.shape:
        raise RequestError(f"a profile of {stored.model.name} is of other layers or experts than this model's")
    divergence_L = divergences(seen.counts_LE, stored.counts.counts_LE)
    return Drift(seen.layers, divergence_L, chance_of(stored, seen.tokens), seen.tokens)


def divergences(one_LE: Ints, other_LE: Ints) -> Floats:
    """Jensen-Shannon divergence of two loads by layer, in bits. NaN where one of them has no work."""
    p_LE, q_LE = _shares(one_LE), _shares(other_LE)
    middle_LE = (p_LE + q_LE) / 2
    both_L: Floats = (_relative(p_LE, middle_LE) + _relative(q_LE, middle_LE)).sum(1) / 2
    found_L: Floats = np.where((one_LE.sum(1) > 0) & (other_LE.sum(1) > 0), both_L, np.nan)
    return found_L


def chance_of(stored: RoutingProfile, tokens: int) -> Floats:
    """The divergence of so many tokens of the profile's own text from the rest of it, by layer.

    Tokens of one document go to alike experts, so it is measured on the profile's blocks of documents, each against the
    others of its domain, and taken to fall with the numbers of tokens on both sides. Without two blocks
    in a domain tokens are taken to be independent, which is less than chance does.
    """
    domains = stored.by_domain()
    found = list[Floats]()
    for (domain, _), block in stored.blocks.items():
        rest_LE, rest = domains[domain].counts_LE - block.counts_LE, domains[domain].tokens - block.tokens
        if block.tokens >= FEWEST // 4 and rest:
            found.append(divergences(block.counts_LE, rest_LE) / (1 / block.tokens + 1 / rest))
    if not found or not tokens:
        return _independent(stored.counts, tokens)
    # both sides are samples: of so many tokens, and of the profile's own
    expected_L: Floats = np.nanmean(np.stack(found), axis=0) * (1 / tokens + 1 / stored.counts.tokens)
    return np.minimum(expected_L, 1.0, out=expected_L)


def _independent(stored: RoutingCounts, tokens: int) -> Floats:
    """What independent draws of experts would show: the first term of the divergence's expansion in their number."""
    assignments_L = np.maximum(stored.counts_LE.sum(1), 1).astype(np.float64)
    seen_L = np.maximum(assignments_L / max(stored.tokens, 1) * tokens, 1.0)
    freedom_L = np.maximum((stored.counts_LE > 0).sum(1) - 1, 0)
    expected_L: Floats = freedom_L * (1 / seen_L + 1 / assignments_L) / (8 * np.log(2))
    return np.minimum(expected_L, 1.0, out=expected_L)


def _shares(counts_LE: Ints) -> Floats:
    share_LE: Floats = counts_LE / np.maximum(counts_LE.sum(1), 1)[:, None]
    return share_LE


def _relative(p_LE: Floats, q_LE: Floats) -> Floats:
    ratios_LE = np.divide(p_LE, q_LE, out=np.ones_like(p_LE), where=p_LE > 0)
    return np.asarray(p_LE * np.log2(ratios_LE), np.float64)
