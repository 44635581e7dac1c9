"""How many tokens to draft, by what steps were measured to cost and how far drafts were seen to stand.

A step costs more with every token: four tokens of a sparse model ask for 29 experts where one asks for 8, so that on a
CPU drafts that are refused are paid for. They pay where expected tokens a second rise, which is judged in every step:

- the seconds of a step are a moving average for each number of tokens (`StepCosts`);
- the chance of a drafted token is learned by the proposer's own chance and by position (`Acceptance`);
- of all lengths, 0 included, the one with most expected tokens a second is taken, if it beats 0 by a margin;
- what drafts lose against doing without is accounted for: where that is more than 1 % of the time, beyond a few steps,
  there are none until it is made up for, so that no wrong estimate costs more;
- lengths that are not taken are tried now and then, for less than 1 % of the time.

All is a function of what was recorded. No clock is read: time is the sum of the seconds that were recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenth.engine.draft import Draft
from tenth.engine.draft_estimates import Acceptance, StepCosts, Tried
from tenth.errors import RequestError

_OFF_FIRST, _OFF_EVERY = 4, 64  # steps after which doing without is measured again: at first, later ever more, at last
_TRY_EVERY = 4  # steps between two tries
_FIRST_LOSS, _MOST_GAIN = 4.0, 16.0  # steps that drafts may lose at first, and once they have gained
_FIRST_TRIES = 2.0  # steps that tries may lose at first
_CHEAP = 0.005  # share of a step below which drafting costs nothing
_RECENT = 1 / 16  # weight of the newest in averages over steps


@dataclass(frozen=True, slots=True)
class LengthOptions:
    """`most` tokens a draft; the shares of time that drafts and tries may lose; the least gain for which to draft."""

    most: int = 8
    loss: float = 0.01
    tries: float = 0.005
    margin: float = 0.02

    def __post_init__(self) -> None:
        if self.most < 1:
            raise RequestError(f"drafts have up to {self.most} tokens, it must be at least 1")


@dataclass(slots=True)
class _Mean:
    """Of recent values."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += max(_RECENT, 1 / self.count) * (value - self.value)


class DraftLength:
    """The lengths of all drafts of an engine. In each step `most`, then `cut`, then `record`, in this order."""

    def __init__(self, options: LengthOptions | None = None) -> None:
        self.options = options or LengthOptions()
        self._costs, self._acceptance = StepCosts(), Acceptance()
        self._next = 1  # the length to try
        self._since_try = self._since_off = 0  # steps
        self._off_every = _OFF_FIRST
        self._trying = False
        self._account: float | None = None  # seconds that drafts may lose
        self._tries = 0.0  # seconds that tries may lose
        self._per_token = 0.0  # seconds of a token in the best way that is known
        self._asked = 0  # tokens of each sequence in this step
        self._drafting = _Mean()  # seconds for each token that was asked for
        self._saved = _Mean()  # seconds that a step with proposals is expected to save
        self._reach = [_Mean() for _ in range(self.options.most)]  # chance of a token that was asked for, by position

    def most(self, sequences: int) -> int:
        """How many tokens to ask a proposer for, for each of so many sequences; 0: ask nobody."""
        self._trying = False
        self._asked = self._ask(sequences)
        return self._asked

    def cut(self, drafts: Sequence[Draft]) -> list[int]:
        """How many tokens of each draft, one a sequence, go through the network; an empty draft where there is none."""
        chances = [self._acceptance.chances(draft) for draft in drafts]
        counts, self._per_token, saved = self._best(chances)
        if self._asked:
            self._note_proposals(chances, saved)
        if self._trying:  # asked for as a try
            return [len(line) for line in chances]
        if any(chances) and not any(counts):
            self._off_every = _OFF_FIRST
        expected = [sum(line[: self._next]) for line in chances]
        tried = [min(self._next, len(line)) for line in chances]
        offered = self._asked == self.options.most and any(tried) and tried != counts
        if offered and self._try(len(chances), sum(tried), sum(expected), 0.0):
            return tried
        return counts

    def record(self, sequences: int, tried: Sequence[Tried], seconds: float | None, drafting: float = 0.0) -> None:
        """What came of a step: drafts as they were cut, seconds of the network with its draws, and of the proposers.

        `seconds` is None where parts of prompts were computed as well: what they cost is not known.
        """
        for one in tried:
            self._acceptance.record(one)
        drafted = sum(len(one.draft.tokens) for one in tried)
        if self._asked:
            self._drafting.add(drafting / (self._asked * sequences))
        if seconds is None:
            return
        self._costs.record(sequences + drafted, seconds)
        self._since_try += 1
        self._since_off = self._since_off + 1 if drafted else 0
        # the average and not this step's seconds: what else the machine did is no loss by drafts
        seconds = self._costs(sequences + drafted) + drafting
        self._settle(sequences, sequences + sum(one.accepted for one in tried), seconds, drafted)

    def _settle(self, sequences: int, tokens: int, seconds: float, drafted: int) -> None:
        """Keep the two accounts."""
        step = self._costs(sequences)
        if self._account is None:
            self._account, self._tries = _FIRST_LOSS * step, _FIRST_TRIES * step
        lost = seconds - tokens * step / sequences if drafted or self._asked else 0.0
        self._account = min(self._account + self.options.loss * seconds - lost, _MOST_GAIN * step)
        lost = seconds - tokens * self._per_token if self._trying else 0.0
        self._tries = min(self._tries + self.options.tries * seconds - lost, self.options.most * step)

    def _ask(self, sequences: int) -> int:
        step = self._costs(sequences)
        if self._account is None or self._account < 0:
            return 0
        if self._since_off >= self._off_every:
            self._off_every = min(2 * self._off_every, _OFF_EVERY)
            return 0
        most, each = self.options.most, self._drafting.value * sequences
        if each * most < _CHEAP * step:
            return most
        reached = self._reached()
        length = self._next
        if self._try(sequences, sequences * length, sequences * sum(reached[:length]), each * length):
            return length
        speeds = [
            (sequences * (1 + sum(reached[:count]))) / (self._costs(sequences * (1 + count)) + each * count)
            for count in range(1, most + 1)
        ]
        best = 1 + speeds.index(max(speeds))
        return best if not self._saved.count or self._saved.value > each * best else 0

    def _reached(self) -> list[float]:
        """The chance of a token at each position; as it falls up to there, where none was asked for yet."""
        chances: list[float] = []
        for place, mean in enumerate(self._reach):
            fallen = chances[-1] ** (1 + 1 / place) if place else 1.0
            chances.append(mean.value if mean.count else fallen)
        return chances

    def _best(self, chances: Sequence[Sequence[float]]) -> tuple[list[int], float, float]:
        """The lengths with most expected tokens a second, with them seconds a token, and seconds saved in this step.

        The likeliest tokens of all drafts go first: chances fall along a draft, so that they are beginnings.
        """
        counts, sequences = [0] * len(chances), len(chances)
        order = sorted(((chance, row) for row, line in enumerate(chances) for chance in line), key=lambda one: -one[0])
        off = self._costs(sequences) / sequences
        best, taken, saved, expected = off / (1 + self.options.margin), 0, 0.0, float(sequences)
        for number, (chance, _) in enumerate(order, 1):
            expected += chance
            cost = self._costs(sequences + number)
            if cost / expected < best:
                best, taken, saved = cost / expected, number, off * expected - cost
        for _, row in order[:taken]:
            counts[row] += 1
        return counts, best if taken else off, saved

    def _try(self, sequences: int, drafted: int, expected: float, drafting: float) -> bool:
        """Whether the next length is tried now: it is affordable, and could be best if it cost less.

        `drafted` tokens in all, of which `expected` may stand; `drafting` seconds are still to be spent on them.
        """
        if self._since_try < _TRY_EVERY:
            return False
        tokens, least = sequences + expected, self._costs.least(sequences + drafted) + drafting
        hopeless = self._next > 1 and least > tokens * self._per_token
        cost = self._costs(sequences + drafted) + drafting
        if not hopeless and cost - tokens * self._per_token > self._tries:
            return False
        self._next = self._next % self.options.most + 1
        if not hopeless:
            self._trying, self._since_try = True, 0
        return not hopeless

    def _note_proposals(self, chances: Sequence[Sequence[float]], saved: float) -> None:
        for place in range(self._asked):
            self._reach[place].add(sum(line[place] for line in chances if place < len(line)) / len(chances))
        self._saved.add(saved)
