"""How many tokens to draft, by what steps were measured to cost and how far drafts were seen to stand.

A step costs more with every token: four tokens of a sparse model ask for 29 experts where one asks for 8, so that on a
CPU drafts that are refused are paid for. They pay where expected tokens a second rise, which is judged in every step:

- the seconds of a step are a moving average for each number of tokens (`StepCosts`);
- the chance of a drafted token is learned by the proposer's own chance and by position (`Acceptance`);
- of all lengths, 0 included, the one with most expected tokens a second is taken, if it beats 0 by a margin;
- an account has 1 % of the time, what drafts gain, and two steps to begin with; all they lose against doing without and
  all that guessing costs is taken from it. A draft goes through the network only where the account can pay for it if
  no token of it stands, so that no wrong estimate and no text that turns costs more;
- drafts that stay out of the network are compared with what comes all the same (`learn`): whether they would stand is
  known before a step is spent on it;
- lengths that are not taken are tried now and then, for less than 0.5 % of the time.

All is a function of what was recorded. No clock is read: time is the sum of the seconds that were recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenth.engine.draft import Draft
from tenth.engine.draft_estimates import SPIKE, Acceptance, StepCosts, Tried
from tenth.errors import RequestError

_OFF_FIRST, _OFF_EVERY = 4, 64  # steps after which doing without is measured again: at first, later ever more, at last
_TRY_EVERY = 4  # steps between two tries, and between two looks at what a slow proposer would say
_FIRST_TRIES = 0.5  # steps that tries may be expected to lose at first
_MOST_HELD = 8.0  # steps that the account holds at most: what drafts may lose at once where a text turns
_MOST_RESTED = 32  # steps without books: what a step costs may change
_CHEAP = 0.003  # share of a step below which drafting costs nothing
_RECENT = 1 / 16  # weight of the newest in averages over steps
_FEW = 4  # values that say nothing of the others
_FAR = 4.0  # drafting that takes so many times the average counts as that: the machine did something else


@dataclass(frozen=True, slots=True)
class LengthOptions:
    """`most` tokens a draft; the shares of time that drafts and tries may lose; the least gain for which to draft.

    `credit` is what drafts may lose before any time has passed, in steps.
    """

    most: int = 8
    loss: float = 0.01
    tries: float = 0.005
    margin: float = 0.02
    credit: float = 2.0

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
        self._order = _spread(self.options.most)  # lengths to try, one after the other
        self._since_try = self._since_look = self._since_off = 0  # steps
        self._off_every = _OFF_FIRST
        self._trying = self._looking = self._offered = False
        self._begun = False
        self._account = self._tries = 0.0  # seconds that drafts, and tries among them, may lose
        self._per_token = 0.0  # seconds of a token in the best way that is known
        self._pace = 0.0  # the same where drafting takes time, which is in it
        self._asked = 0  # tokens of each sequence in this step
        self._drafting = _Mean()  # seconds for each token that was asked for
        self._saved = _Mean()  # seconds that a step with proposals is expected to save
        self._reach = [_Mean() for _ in range(self.options.most)]  # chance of a token that was asked for, by position

    def most(self, sequences: int) -> int:
        """How many tokens to ask a proposer for, for each of so many sequences; 0: ask nobody, and do not `cut`."""
        self._trying = self._looking = self._offered = False
        self._asked = self._ask(sequences)
        return self._asked

    def cut(self, drafts: Sequence[Draft]) -> list[int]:
        """How many tokens of each draft, one a sequence, go through the network; an empty draft where there is none."""
        chances = [self._acceptance.chances(draft) for draft in drafts]
        counts, self._per_token, saved = self._best(chances)
        self._offered = any(chances)
        if self._asked:
            self._note_proposals(chances, saved)
        if self._offered and not any(counts):
            self._off_every = _OFF_FIRST
        expected = [sum(line[: self._next]) for line in chances]
        tried = [min(self._next, len(line)) for line in chances]
        offered = self._asked >= self._next and any(tried)
        if offered and tried == counts:  # no need to try what is done
            self._put_off()
            return counts
        return tried if offered and self._try(len(chances), sum(tried), sum(expected)) else counts

    @property
    def rest(self) -> int:
        """How many of the next steps need no books: until the account is made up for nobody is asked. Tell `spent`."""
        income = self.options.loss * self._costs(1)
        return min(int(-self._account / income), _MOST_RESTED) if self._account < 0 < income else 0

    def learn(self, tried: Tried) -> None:
        """How much of a draft stood that was only compared with what came."""
        self._acceptance.record(tried)

    def spent(self, seconds: float) -> None:
        """Time passed in which nobody was asked: prompts were read, or the account was made up for."""
        self._account += self.options.loss * seconds
        self._tries += self.options.tries * seconds

    def record(
        self,
        sequences: int,
        tried: Sequence[Tried],
        seconds: float | None,
        drafting: float = 0.0,
        beside: float = 0.0,
    ) -> None:
        """What came of a step: drafts as they were cut, seconds of the network with its draws, and of the proposers.

        `beside` are seconds of everything else that drafts cost: proposers that begin, and the books that are kept.
        `seconds` is None where parts of prompts were computed as well: what the step cost is not known.
        """
        for one in tried:
            self._acceptance.record(one)
        drafted = sum(len(one.draft.tokens) for one in tried)
        if self._asked and self._offered:
            taken, usual = drafting / (self._asked * sequences), self._drafting
            usual.add(min(taken, _FAR * usual.value) if usual.count >= _FEW else taken)
        if seconds is None:
            self._account -= drafting + beside
            return
        self._costs.record(sequences + drafted, seconds)
        self._since_try += 1
        self._since_look += 1
        self._since_off = self._since_off + 1 if drafted else 0
        if not drafted:
            seconds = self._costs(sequences)
        # not the average of a length that was chosen because its average is low; what else the machine did is no loss
        seconds = min(seconds, SPIKE * self._costs(sequences + drafted))
        self._settle(sequences, sequences + sum(one.accepted for one in tried), seconds, drafting, beside)

    @property
    def _next(self) -> int:
        """The length to try."""
        return self._order[0]

    def _settle(self, sequences: int, tokens: int, seconds: float, drafting: float, beside: float) -> None:
        """Keep the two accounts: `tokens` came of a step of so many seconds, and of drafting beside it."""
        step, options = self._costs(sequences), self.options
        if not self._begun:
            self._begun = True
            self._account += options.credit * step
            self._tries += _FIRST_TRIES * step
        lost = seconds + drafting + beside - tokens * step / sequences
        self._account = min(self._account + options.loss * seconds - lost, max(_MOST_HELD, options.credit) * step)
        lost = seconds - tokens * self._per_token if self._trying else 0.0
        lost = seconds + drafting - tokens * self._pace if self._looking else lost
        self._tries = min(self._tries + options.tries * seconds - lost, options.most * step)

    def _ask(self, sequences: int) -> int:
        step = self._costs(sequences)
        if not self._begun or self._account < 0:
            return 0
        if self._since_off >= self._off_every:
            self._off_every = min(2 * self._off_every, _OFF_EVERY)
            return 0
        if not self._drafting.count:
            return 1  # nobody knows what more would take
        most, each = self.options.most, self._drafting.value * sequences
        if each * most < _CHEAP * step:
            return most
        reached = self._reached()
        speeds = [
            (sequences * (1 + sum(reached[:count]))) / (self._costs(sequences * (1 + count)) + each * count)
            for count in range(1, most + 1)
        ]
        best = 1 + speeds.index(max(speeds))
        pays = self._saved.value > each * best <= self._account
        self._per_token = 1 / speeds[best - 1] if pays else step / sequences
        if self._look(sequences, each, reached, best if pays else 0):
            return self._next
        return best if pays else 0

    def _look(self, sequences: int, each: float, reached: Sequence[float], usual: int) -> bool:
        """Whether a slow proposer is asked for the next length all the same: what it takes and a try are affordable."""
        if self._since_look < _TRY_EVERY:
            return False
        if self._next == usual:
            self._put_off()
        count, chance = sequences * self._next, sequences * sum(reached[: self._next])
        self._looking = self._may_try(sequences, count, chance, each * self._next)
        if self._looking:
            self._since_look, self._pace = 0, self._per_token
        return self._looking

    def _reached(self) -> list[float]:
        """The chance of a token at each position; as it falls up to there, where few were asked for yet."""
        chances: list[float] = []
        for place, mean in enumerate(self._reach):
            fallen = chances[-1] ** (1 + 1 / place) if place else 1.0
            chances.append(mean.value if mean.count >= _FEW else fallen)
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
            if cost / expected < best and self._affordable(sequences, number):
                best, taken, saved = cost / expected, number, off * expected - cost
        for _, row in order[:taken]:
            counts[row] += 1
        return counts, best if taken else off, saved

    def _affordable(self, sequences: int, drafted: int, drafting: float = 0.0) -> bool:
        """Whether the account can pay for so many drafted tokens if none of them stands."""
        return self._costs(sequences + drafted) + drafting - self._costs(sequences) <= self._account

    def _try(self, sequences: int, drafted: int, expected: float) -> bool:
        """Whether the next length is tried now."""
        if self._since_try < _TRY_EVERY or not self._may_try(sequences, drafted, expected, 0.0):
            return False
        self._put_off()
        self._trying, self._since_try = True, 0
        return True

    def _may_try(self, sequences: int, drafted: int, expected: float, drafting: float) -> bool:
        """Whether the next length is affordable, and could be best if it cost less; one that could not is put off.

        `drafted` tokens in all, of which `expected` may stand; `drafting` seconds are still to be spent on them.
        """
        best = (sequences + expected) * (self._per_token or self._costs(sequences) / sequences)
        if self._next > 1 and self._costs.least(sequences + drafted) + drafting > best:
            self._put_off()
            return False
        lost = self._costs(sequences + drafted) + drafting - best
        return lost <= self._tries and self._affordable(sequences, drafted, drafting)

    def _put_off(self) -> None:
        """Another length is the next to be tried."""
        self._order.append(self._order.pop(0))

    def _note_proposals(self, chances: Sequence[Sequence[float]], saved: float) -> None:
        for place in range(self._asked):
            self._reach[place].add(sum(line[place] for line in chances if place < len(line)) / len(chances))
        self._saved.add(saved)


def _spread(most: int) -> list[int]:
    """All lengths, those first between which the cost of the others can be guessed: 1, 2, 3, 4, 6, 8, then 5, 7."""
    first = {factor << bits for factor in (1, 3) for bits in range(most.bit_length())}
    return sorted(range(1, most + 1), key=lambda length: (length not in first, length))
