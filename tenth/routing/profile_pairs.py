"""Which experts are chosen together, from a profile: pairs against what the experts' loads alone would give.

Tokens choose K different experts, so that even a router without any taste brings two of them together less often than
independent draws: the expected pairs are those of quasi-independence (Goodman, 1968), a_i a_j off the diagonal with
each expert's sum of pairs as it was counted. L sparse layers, E experts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tenth.routing.counts import Floats, Ints

FEWEST = 5.0  # expected pairs below which nothing is said of one
_ROUNDS = 200
_CLEAR = 4.0  # standard errors of a count that a strong pair is above what is expected
_LEAST_LIFT = 1.2


def expected_pairs(pairs_LEE: Ints) -> Floats:
    """Pairs (L, E, E) that the loads explain; the diagonal is 0."""
    off_LEE = _off_diagonal(pairs_LEE)
    sums_LE = off_LEE.sum(2)
    a_LE = sums_LE / np.sqrt(np.maximum(sums_LE.sum(1, keepdims=True), 1.0))
    for _ in range(_ROUNDS):  # the geometric mean of old and new: the new one alone swings
        others_LE = a_LE.sum(1, keepdims=True) - a_LE
        a_LE = np.sqrt(a_LE * np.divide(sums_LE, others_LE, out=np.zeros_like(a_LE), where=others_LE > 0))
    return _off_diagonal(a_LE[:, :, None] * a_LE[:, None, :])


def lifts(pairs_LEE: Ints, expected_LEE: Floats) -> Floats:
    """Pairs over expected pairs (L, E, E): 1 as loads explain, 0 never together; NaN where too few were expected."""
    known_LEE = expected_LEE >= FEWEST
    lift_LEE: Floats = np.divide(pairs_LEE, expected_LEE, out=np.full(expected_LEE.shape, np.nan), where=known_LEE)
    return lift_LEE


def structure(pairs_LEE: Ints, expected_LEE: Floats) -> Floats:
    """How far pairs are from the expected ones in each layer (L): chi^2 over pairs, less what counting alone gives."""
    known_LEE = expected_LEE >= FEWEST
    gaps_LEE = np.where(known_LEE, (pairs_LEE - expected_LEE) ** 2 / np.maximum(expected_LEE, FEWEST), 0.0)
    pairs_L = np.where(known_LEE, pairs_LEE, 0).sum((1, 2))
    found_L: Floats = (gaps_LEE.sum((1, 2)) - known_LEE.sum((1, 2))) / np.maximum(pairs_L, 1)
    return found_L


def strongest(pairs_EE: Ints, expected_EE: Floats, most: int) -> list[tuple[int, int, float]]:
    """Pairs i < j of one layer that come together clearly more often than expected, with their lift, highest first."""
    scale_EE = np.maximum(expected_EE, FEWEST)
    lift_EE = pairs_EE / scale_EE
    clear_EE = (expected_EE >= FEWEST) & ((pairs_EE - expected_EE) / np.sqrt(scale_EE) >= _CLEAR)
    at = np.argwhere(np.triu(clear_EE & (lift_EE >= _LEAST_LIFT), 1))
    found = sorted(((float(lift_EE[i, j]), int(i), int(j)) for i, j in at), key=lambda pair: (-pair[0], *pair[1:]))
    return [(i, j, lift) for lift, i, j in found[:most]]


def seriation(likeness_EE: Floats) -> list[int]:
    """An order of experts that brings those together that are alike: the leaves of average linkage.

    Where two groups meet, each is turned so that the ends that meet are the most alike. NaN counts as 0.
    """
    alike_EE: Floats = np.nan_to_num(likeness_EE, nan=0.0)
    groups = {expert: [expert] for expert in range(len(alike_EE))}
    left_EE = alike_EE.copy()
    np.fill_diagonal(left_EE, -np.inf)
    while len(groups) > 1:
        i, j = (int(at) for at in np.unravel_index(left_EE.argmax(), left_EE.shape))
        one, other = len(groups[i]), len(groups[j])
        left_EE[i] = left_EE[:, i] = (one * left_EE[i] + other * left_EE[j]) / (one + other)
        left_EE[j] = left_EE[:, j] = left_EE[i, i] = -np.inf
        groups[i] = _joined(groups[i], groups.pop(j), alike_EE)
    return next(iter(groups.values()))


def _joined(one: list[int], other: list[int], alike_EE: Floats) -> list[int]:
    turns = [(a, b) for a in (one, one[::-1]) for b in (other, other[::-1])]
    first, second = max(turns, key=lambda turn: alike_EE[turn[0][-1], turn[1][0]])
    return first + second


def _off_diagonal(values_LEE: npt.NDArray[np.generic]) -> Floats:
    off_LEE = values_LEE.astype(np.float64)
    experts_E = np.arange(off_LEE.shape[1])
    off_LEE[:, experts_E, experts_E] = 0.0
    return off_LEE
