"""Beam search: of all continuations of the best sequences so far, the best again.

B beams. A candidate that ends is kept aside if it is among the B best of its step; the search is over when B are aside
and no beam is better by now than the worst of them (the rule of `transformers` for `early_stopping=False`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Candidates = Sequence[tuple[int, float]]
"""The likeliest next tokens of a beam with their log-probabilities, best first."""


@dataclass(frozen=True, slots=True)
class Beam:
    """Generated tokens and the sum of their log-probabilities."""

    tokens: tuple[int, ...] = ()
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Branch:
    """How a beam came about: which of the last ones it continues, and with what."""

    parent: int
    beam: Beam


class BeamSearch:
    """The state of one search; `live` are its beams, in order."""

    def __init__(self, width: int, end_ids: frozenset[int], most: int, length_penalty: float) -> None:
        """`most` tokens are generated at the most."""
        self._width, self._end_ids, self._most, self._penalty = width, end_ids, most, length_penalty
        self.live = [Beam()]
        self._ended: list[tuple[float, Beam]] = []  # best first

    @property
    def wanted(self) -> int:
        """Candidates of each beam that decide: even if every end were among them, a beam could go on."""
        return self._width * (1 + len(self._end_ids))

    def advance(self, candidates: Sequence[Candidates]) -> list[Branch]:
        """The next beams, from the candidates of each live one; none where the search is over."""
        reached = [
            Branch(parent, Beam((*beam.tokens, token), beam.total + logprob))
            for parent, (beam, own) in enumerate(zip(self.live, candidates, strict=True))
            for token, logprob in own
        ]
        reached.sort(key=lambda branch: -branch.beam.total)
        chosen: list[Branch] = []
        for rank, branch in enumerate(reached[: self.wanted]):
            if not self._ends(branch.beam):
                chosen.append(branch)
            elif rank < self._width:
                self._put_aside(branch.beam)
        chosen = chosen[: self._width]
        if chosen and self._is_over(chosen[0].beam):
            chosen = []
        self.live = [branch.beam for branch in chosen]
        return chosen

    def best(self, count: int) -> list[tuple[float, Beam]]:
        """Score and tokens of the best sequences, where the search is over."""
        return self._ended[:count]

    def _ends(self, beam: Beam) -> bool:
        return beam.tokens[-1] in self._end_ids or len(beam.tokens) == self._most

    def _is_over(self, best: Beam) -> bool:
        return len(self._ended) == self._width and self._ended[-1][0] >= self._score(best)

    def _score(self, beam: Beam) -> float:
        return float(beam.total / len(beam.tokens) ** self._penalty)

    def _put_aside(self, beam: Beam) -> None:
        self._ended = sorted([*self._ended, (self._score(beam), beam)], key=lambda entry: -entry[0])[: self._width]
