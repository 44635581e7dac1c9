"""What `DraftLength` decides by: the seconds of a step by its tokens, and the chance that a drafted token stands."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from tenth.engine.draft import Draft

_FORGET = 1 / 48  # weight of the newest drafted token in a rate of acceptance
_PRIOR = 4.0  # tokens that the next wider estimate counts for
_BINS = 8  # of the proposers' own chances
_POSITIONS = 4  # in a draft: 1, 2, 3 to 4, 5 and on
_SLOWEST, _FASTEST = 0.1, 0.5  # weight of the newest seconds in an average, recently measured or long ago
_OLD = 8  # steps
SPIKE = 2.0  # a step that takes so many times as long as expected counts as that: the machine did something else


@dataclass(frozen=True, slots=True)
class Tried:
    """A draft as it went through the network, cut to its length, and how many of its tokens stood."""

    draft: Draft
    accepted: int


@dataclass(slots=True)
class _Average:
    seconds: float
    count: int
    step: int  # when it was measured last
    spike: bool = False  # the last one was far above


class StepCosts:
    """Seconds of a step by its number of tokens: measured, between measured, or pessimistically beyond them."""

    def __init__(self) -> None:
        self._known: dict[int, _Average] = {}
        self._order: list[int] = []
        self._step = 0

    def record(self, tokens: int, seconds: float) -> None:
        """A step was measured."""
        self._step += 1
        known = self._known.get(tokens)
        if known is None:
            self._known[tokens] = _Average(seconds, 1, self._step)
            insort(self._order, tokens)
            return
        age = self._step - known.step
        weight = max(min(1 - (1 - _SLOWEST) ** age, _FASTEST), 1 / (known.count + 1))
        spike = seconds > SPIKE * known.seconds
        if spike:  # once is chance, twice is a change
            seconds, weight = (seconds, _FASTEST) if known.spike else (SPIKE * known.seconds, weight)
        known.seconds += weight * (seconds - known.seconds)
        known.count, known.step, known.spike = known.count + 1, self._step, spike
        self._bound_old(tokens, known.seconds)

    def _bound_old(self, tokens: int, seconds: float) -> None:
        """What is old gives way to what is new: more tokens cost no less, and no more for each."""
        for other, known in self._known.items():
            if self._step - known.step > _OLD:
                each = seconds * other / tokens
                known.seconds = min(max(known.seconds, min(seconds, each)), max(seconds, each))

    def __call__(self, tokens: int) -> float:
        """Seconds of a step, 0 where none was measured.

        Beyond what was measured they are taken to grow as the tokens do: drafts gain nothing there.
        """
        place = bisect_left(self._order, tokens)
        above = self._order[place] if place < len(self._order) else None
        below = self._order[place - 1] if place else None
        if above == tokens or below is None or above is None:
            nearest = above if above is not None else below
            return self._known[nearest].seconds * tokens / nearest if nearest is not None else 0.0
        low, high = self._known[below].seconds, self._known[above].seconds
        return low + (high - low) * (tokens - below) / (above - below)

    def least(self, tokens: int) -> float:
        """What they cost at the least, whatever was measured of them: what fewer ones do."""
        place = bisect_left(self._order, tokens)
        return self._known[self._order[place - 1]].seconds if place else 0.0


@dataclass(slots=True)
class _Rate:
    """Accepted of tried tokens, the older ones forgotten."""

    accepted: float = 0.0
    tried: float = 0.0

    def record(self, accepted: bool) -> None:
        self.accepted += accepted - _FORGET * self.accepted
        self.tried += 1 - _FORGET * self.tried

    def value(self, prior: float) -> float:
        return (self.accepted + _PRIOR * prior) / (self.tried + _PRIOR)


class Acceptance:
    """The chance that a drafted token stands if those before it do.

    Rates are kept for each bin of the proposer's chance, and for each position within it; a rate of few tokens leans on
    the wider one, and that on the proposer's own chance.
    """

    def __init__(self) -> None:
        self._rates: dict[tuple[object, ...], _Rate] = {}

    def record(self, tried: Tried) -> None:
        """Tokens that stood, and the first that did not; nothing is known of those behind."""
        draft = tried.draft
        for place in range(min(tried.accepted + 1, len(draft.tokens))):
            for key in _keys(draft, place):
                self._rates.setdefault(key, _Rate()).record(place < tried.accepted)

    def chances(self, draft: Draft) -> list[float]:
        """Of each token of a draft, that it and all before it stand."""
        return list(accumulate((self._one(draft, place) for place in range(len(draft.tokens))), mul))

    def _one(self, draft: Draft, place: int) -> float:
        chance = draft.chances[place]
        for key in _keys(draft, place):
            rate = self._rates.get(key)
            chance = chance if rate is None else rate.value(chance)
        return chance


def _keys(draft: Draft, place: int) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """The bin of a drafted token, and its position in that bin."""
    score = min(int(draft.chances[place] * _BINS), _BINS - 1)
    return (draft.proposer, score), (draft.proposer, score, min(place.bit_length(), _POSITIONS - 1))
