"""Tokens guessed ahead: a proposer drafts what may come next, and the network judges several tokens in one step.

The request's own sampler draws position after position from the network's logits, and a drafted token stands as long as
the draw equals it. So every token is the one that would have come without drafts, greedy or drawn, whatever a proposer
says; proposers only decide how fast it goes (docs/engine-speculation.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tenth.errors import RequestError

LONGEST_MATCH = 32
"""Tokens that a match is followed back: what agrees further says little more."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens in order, and for each a chance in 0 to 1 that it is accepted if all before it were.

    Chances are the proposer's own view; `DraftLength` learns what they are worth, apart for each name of `proposer`.
    """

    tokens: list[int]
    chances: list[float]
    proposer: str

    def cut(self, count: int) -> Draft:
        """The first so many."""
        return Draft(self.tokens[:count], self.chances[:count], self.proposer)


@dataclass(slots=True)
class DraftCounts:
    """What came of drafts: steps in which a sequence could have one, tokens drafted in them, and those that stood."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    def add(self, drafted: int, accepted: int) -> None:
        """One more step of a sequence."""
        self.steps, self.drafted, self.accepted = self.steps + 1, self.drafted + drafted, self.accepted + accepted

    @property
    def tokens_per_step(self) -> float:
        """1 where nothing stood; 0 where there was no step."""
        return (self.steps + self.accepted) / self.steps if self.steps else 0.0


class Proposer(Protocol):
    """Guesses how one sequence goes on. `begin` comes first, then `propose` and `take` in turn, at last `close`."""

    def begin(self, prompt: Sequence[int]) -> None:
        """A new sequence with this prompt."""

    def take(self, tokens: Sequence[int]) -> None:
        """What the sampler drew in a step, in order: drafted tokens that stood, and the one behind them."""

    def propose(self, most: int) -> Draft:
        """Up to so many tokens that may follow; none where the proposer knows nothing."""

    def close(self) -> None:
        """The sequence has ended: memory held for it is let go."""


class PromptLookup:
    """The sequence's own tokens behind the last place where it read as it does now.

    Prompt lookup decoding: the longest of the last `longest` down to `shortest` tokens that came before decides, of its
    places the most recent. A dictionary of n-grams grows by `longest - shortest + 1` entries a token.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest <= LONGEST_MATCH:
            raise RequestError(
                f"prompt lookup matches {shortest} to {longest} tokens, it must be within 1 to {LONGEST_MATCH}"
            )
        self._lengths = range(longest, shortest - 1, -1)
        self.begin([])

    def begin(self, prompt: Sequence[int]) -> None:
        """Forget all, then read the prompt."""
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}  # behind which place an n-gram was seen last
        self.take(prompt)

    def take(self, tokens: Sequence[int]) -> None:
        """Read on. The n-grams that end before a token are entered with it: the present end is no match of itself."""
        known = self._tokens
        for token in tokens:
            at = len(known)
            for length in self._lengths:
                if length <= at:
                    self._follows[tuple(known[at - length :])] = at
            known.append(token)

    def propose(self, most: int) -> Draft:
        """What followed the match, drafted tokens themselves where it runs into the present end."""
        known = self._tokens
        at = self._match()
        if at is None:
            return Draft([], [], "lookup")
        length = matching(known, at, known)
        tokens: list[int] = []
        for place in range(at, at + most):
            tokens.append(known[place] if place < len(known) else tokens[place - len(known)])
        return Draft(tokens, [(length + k) / (length + k + 1) for k in range(most)], "lookup")

    def close(self) -> None:
        """Forget all."""
        self.begin([])

    def _match(self) -> int | None:
        for length in self._lengths:
            if length <= len(self._tokens):
                at = self._follows.get(tuple(self._tokens[-length:]))
                if at is not None:
                    return at
        return None


def matching(text: Sequence[int], at: int, tokens: Sequence[int]) -> int:
    """How many tokens before `at` in a text are those at the end of `tokens`, up to LONGEST_MATCH."""
    length, most = 0, min(at, len(tokens), LONGEST_MATCH)
    while length < most and text[at - 1 - length] == tokens[-1 - length]:
        length += 1
    return length
