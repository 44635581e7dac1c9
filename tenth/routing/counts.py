"""Sums over routing records: what each expert of each layer had to do, and what that says of the routers.

L sparse layers, T tokens, K active experts, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from tenth.routing.rule import Score
from tenth.routing.stacked import StackedLayers

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(slots=True, eq=False)
class RoutingCounts:
    """Of `tokens` tokens: assignments carried out by each expert (`counts_LE`), and the sum of their gates.

    Dropped assignments are in neither. `entropy_L` sums the entropy of the router's scores over log E for the `judged`
    tokens whose router logits are known.
    """

    layers: tuple[int, ...]
    counts_LE: Ints
    gates_LE: Floats
    entropy_L: Floats
    tokens: int = 0
    judged: int = 0

    @classmethod
    def empty(cls, layers: tuple[int, ...], experts: int) -> Self:
        """Of no tokens."""
        shape = (len(layers), experts)
        return cls(layers, np.zeros(shape, np.int64), np.zeros(shape), np.zeros(len(layers)))

    def copy(self) -> Self:
        """The same in memory of its own."""
        return type(self).empty(self.layers, self.counts_LE.shape[1]).add(self)

    def add(self, other: RoutingCounts) -> Self:
        """Add what another one of the same model counted; returns itself."""
        self.counts_LE += other.counts_LE
        self.gates_LE += other.gates_LE
        self.entropy_L += other.entropy_L
        self.tokens, self.judged = self.tokens + other.tokens, self.judged + other.judged
        return self

    def take(self, steps: Sequence[StackedLayers]) -> None:
        """Add the records of some steps."""
        for limited in (False, True):
            alike = [step for step in steps if step.limited is limited]
            if alike:
                self._count(alike, limited=limited)
        for step in steps:
            if step.logits_LTE is not None:
                entropy_LT = router_entropies(step.logits_LTE.cpu().double().numpy(), step.score)
                self.entropy_L += entropy_LT.sum(1)
                self.judged += entropy_LT.shape[1]

    def _count(self, steps: Sequence[StackedLayers], *, limited: bool) -> None:
        experts_LTK = np.concatenate([step.experts_LTK.cpu().numpy() for step in steps], axis=1)
        gates_LTK = np.concatenate([step.gates_LTK.cpu().numpy() for step in steps], axis=1)
        layers, experts = self.counts_LE.shape
        experts_LTK += np.arange(layers)[:, None, None] * experts  # one row of numbers for all layers
        at, gates = (
            (experts_LTK, gates_LTK) if not limited else (experts_LTK[gates_LTK != 0], gates_LTK[gates_LTK != 0])
        )
        size = layers * experts
        self.counts_LE += np.bincount(at.ravel(), minlength=size).reshape(layers, experts)
        self.gates_LE += np.bincount(at.ravel(), gates.ravel(), minlength=size).reshape(layers, experts)
        self.tokens += experts_LTK.shape[1]

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
    def dead_L(self) -> Ints:
        """Experts that had nothing to do."""
        dead_L: Ints = (self.counts_LE == 0).sum(1)
        return dead_L

    @property
    def router_entropy_L(self) -> Floats:
        """Mean of the entropy over the judged tokens: 0 is a certain router, 1 an undecided one. NaN where none is."""
        return _ratio(self.entropy_L, np.array(self.judged))


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
