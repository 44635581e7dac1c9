"""Sums over routing records: what each expert of each layer had to do, and what that says of the routers.

L sparse layers, T tokens, K active experts, E experts, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tenth.routing.rule import Score
from tenth.routing.stacked import StackedLayers

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Assignments:
    """Experts and gates of some steps' tokens, for sums over them; `kept_LTK` marks those that were carried out."""

    experts: int
    experts_LTK: Ints
    gates_LTK: npt.NDArray[np.floating]
    kept_LTK: npt.NDArray[np.bool_] | None  # None: all
    broken_L: Ints

    @classmethod
    def of(cls, steps: Sequence[StackedLayers]) -> Self:
        """Of steps of one model, one after the other. A gate that is exactly 0 is one that was not carried out."""
        experts_LTK = np.concatenate([step.experts_LTK.cpu().numpy() for step in steps], axis=1)
        gates_LTK = np.concatenate([step.gates_LTK.cpu().numpy() for step in steps], axis=1)
        broken_L = np.zeros(len(gates_LTK), np.int64)
        if np.isfinite(gates_LTK.sum()) and gates_LTK.all():
            return cls(steps[0].num_experts, experts_LTK, gates_LTK, None, broken_L)
        finite_LT = np.isfinite(gates_LTK).all(2)
        kept_LTK = (gates_LTK != 0) & finite_LT[:, :, None]
        return cls(steps[0].num_experts, experts_LTK, gates_LTK, kept_LTK, (~finite_LT).sum(1))

    def part(self, begin: int, end: int) -> Assignments:
        """Of the tokens from one to another."""
        kept_LTK = None if self.kept_LTK is None else self.kept_LTK[:, begin:end]
        return Assignments(
            self.experts, self.experts_LTK[:, begin:end], self.gates_LTK[:, begin:end], kept_LTK, self.broken_L
        )

    def sums(self, values_LTK: npt.NDArray[np.floating] | None = None) -> npt.NDArray[Any]:
        """How many assignments each expert has (L, E, int64), or the sum of what they have (float64)."""
        layers = len(self.experts_LTK)
        at_LTK = self.experts_LTK + np.arange(layers)[:, None, None] * self.experts  # one row of numbers for all layers
        kept = slice(None) if self.kept_LTK is None else self.kept_LTK
        weights = None if values_LTK is None else values_LTK[kept].ravel()
        sums = np.bincount(at_LTK[kept].ravel(), weights, minlength=layers * self.experts)
        return sums.reshape(layers, self.experts)

    def steps_at_work(self, sizes: Sequence[int]) -> Ints:
        """In how many steps each expert has an assignment (L, E); the steps have so many tokens, one behind the other.

        That is how often its weights are read.
        """
        step_T = np.repeat(np.arange(len(sizes)), sizes)
        layer_L = np.arange(len(self.experts_LTK))
        shape = self.experts_LTK.shape
        at = [np.broadcast_to(number, shape) for number in (step_T[:, None], layer_L[:, None, None])]
        at.append(self.experts_LTK)
        met_SLE = np.zeros((len(sizes), shape[0], self.experts), bool)
        met_SLE[tuple(at) if self.kept_LTK is None else tuple(one[self.kept_LTK] for one in at)] = True
        at_work_LE: Ints = met_SLE.sum(0, dtype=np.int64)
        return at_work_LE

    def peaks(self, values_LTK: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """The largest of what each expert's assignments have (L, E); 0 where it has none."""
        peaks_LE = np.zeros((len(self.experts_LTK), self.experts), np.float32)
        at = np.arange(len(self.experts_LTK))[:, None, None], self.experts_LTK
        np.maximum.at(peaks_LE, at, values_LTK if self.kept_LTK is None else np.where(self.kept_LTK, values_LTK, 0))
        return peaks_LE

    def pairs(self) -> Ints:
        """Of each layer how many tokens chose expert i and expert j (L, E, E); the diagonal counts assignments."""
        layers, _, top_k = self.experts_LTK.shape
        size = self.experts * self.experts
        pairs_LEE: Ints = np.zeros((layers, self.experts, self.experts), np.int64)
        one_K, other_K = np.triu_indices(top_k, 1)
        for layer, experts_TK in enumerate(self.experts_LTK):
            at_TP = experts_TK[:, one_K] * self.experts + experts_TK[:, other_K]
            if self.kept_LTK is not None:
                kept_TK = self.kept_LTK[layer]
                at_TP = at_TP[kept_TK[:, one_K] & kept_TK[:, other_K]]
            half_EE = np.bincount(at_TP.ravel(), minlength=size).reshape(self.experts, self.experts)
            pairs_LEE[layer] = half_EE + half_EE.T
        diagonal_E = np.arange(self.experts)
        pairs_LEE[:, diagonal_E, diagonal_E] = self.sums()
        return pairs_LEE


@dataclass(slots=True, eq=False)
class RoutingCounts:
    """Of `tokens` tokens: assignments carried out by each expert (`counts_LE`), and the sum of their gates.

    Dropped assignments are in neither. `entropy_L` sums the entropy of the router's scores over log E for the
    `judged_L` tokens whose router logits are known, and are numbers. `broken_L` counts tokens whose gates are no
    numbers in a layer: nothing else of them is counted there.
    """

    layers: tuple[int, ...]
    counts_LE: Ints
    gates_LE: Floats
    entropy_L: Floats
    broken_L: Ints
    judged_L: Ints
    tokens: int = 0

    @classmethod
    def empty(cls, layers: tuple[int, ...], experts: int) -> Self:
        """Of no tokens."""
        shape, each = (len(layers), experts), len(layers)
        none_L, nobody_L = np.zeros(each, np.int64), np.zeros(each, np.int64)
        return cls(layers, np.zeros(shape, np.int64), np.zeros(shape), np.zeros(each), none_L, nobody_L)

    def copy(self) -> Self:
        """The same in memory of its own."""
        return type(self).empty(self.layers, self.counts_LE.shape[1]).add(self)

    def add(self, other: RoutingCounts, times: int = 1) -> Self:
        """Add what another one of the same model counted, or with -1 take it away again; returns itself."""
        self.counts_LE += times * other.counts_LE
        self.gates_LE += times * other.gates_LE
        self.entropy_L += times * other.entropy_L
        self.broken_L += times * other.broken_L
        self.judged_L += times * other.judged_L
        self.tokens += times * other.tokens
        return self

    def take(self, steps: Sequence[StackedLayers], work: Assignments | None = None) -> None:
        """Add the records of some steps; `work` are their assignments, where they are known already."""
        if not steps:
            return
        self.count(work or Assignments.of(steps))
        for step in steps:
            if step.logits_LTE is not None:
                entropy_LT = router_entropies(step.logits_LTE.cpu().double().numpy(), step.score)
                known_LT = np.isfinite(entropy_LT)
                self.entropy_L += np.where(known_LT, entropy_LT, 0.0).sum(1)
                self.judged_L += known_LT.sum(1)

    def count(self, work: Assignments) -> None:
        """Add assignments."""
        self.counts_LE += work.sums()
        self.gates_LE += work.sums(work.gates_LTK)
        self.broken_L += work.broken_L
        self.tokens += work.gates_LTK.shape[1]

    @property
    def judged(self) -> int:
        """Tokens whose entropy is known in some layer."""
        return int(self.judged_L.max(initial=0))

    @property
    def balancedness_L(self) -> Floats:
        """Mean assignments of an expert over the most: 1 is perfect balance, 1 / E one expert for all. NaN: no work."""
        return _ratio(self.counts_LE.mean(1), self.counts_LE.max(1))

    @property
    def load_entropy_L(self) -> Floats:
        """Entropy of the experts' shares of the work over log E: 1 is perfect balance. NaN where there was no work."""
        share_LE = _ratio(self.counts_LE, self.counts_LE.sum(1)[:, None])
        log_LE = np.log(share_LE, out=np.zeros_like(share_LE), where=share_LE > 0)
        entropy_L: Floats = -(share_LE * log_LE).sum(1)
        return entropy_L / _log(self.counts_LE.shape[1])

    @property
    def max_violation_L(self) -> Floats:
        """MaxVio, (max - mean) / mean of the assignments (arXiv 2408.15664, eq. 4). NaN where there was no work."""
        return _ratio(self.counts_LE.max(1), self.counts_LE.mean(1)) - 1

    @property
    def dead_L(self) -> Ints:
        """Experts that had nothing to do."""
        dead_L: Ints = (self.counts_LE == 0).sum(1)
        return dead_L

    @property
    def router_entropy_L(self) -> Floats:
        """Mean of the entropy over the judged tokens: 0 is a certain router, 1 an undecided one. NaN where none is."""
        return _ratio(self.entropy_L, self.judged_L)


def router_entropies(logits_LTE: Floats, score: Score) -> Floats:
    """Entropy of each token's scores over log E (L, T); sigmoids are over their sum (`measures.router_entropy`).

    In numpy, in the thread that calls: torch would wake its own, which then spin beside the engine's.
    """
    scores_LTE = -np.logaddexp(0.0, -logits_LTE) if score == "sigmoid" else logits_LTE
    scores_LTE = scores_LTE - scores_LTE.max(-1, keepdims=True)
    parts_LTE = np.exp(scores_LTE)
    sums_LT = parts_LTE.sum(-1)
    entropy_LT: Floats = np.log(sums_LT) - (parts_LTE * scores_LTE).sum(-1) / sums_LT
    return entropy_LT / _log(logits_LTE.shape[-1])


def _log(experts: int) -> float:
    return math.log(experts) if experts > 1 else 1.0


def _ratio(above: Floats | Ints, below: Floats | Ints) -> Floats:
    """NaN where there is nothing to divide by."""
    with np.errstate(invalid="ignore"):
        return np.divide(above, below, dtype=np.float64)
