"""The tokens of `cached_generate`, with guesses at the next ones computed along where that pays.

N tokens that are judged together; V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from tenth.engine.draft import Draft, DraftCounts, Proposer
from tenth.engine.draft_estimates import Tried
from tenth.engine.draft_follower import Follower
from tenth.engine.draft_length import DraftLength
from tenth.engine.generate import Step, check_room
from tenth.engine.sampler import Sampler
from tenth.engine.sequence import CachedSequence
from tenth.engine.speculation import NONE, TICK
from tenth.errors import RequestError
from tenth.model.config import fitted_limit
from tenth.routing.limit import ExpertLimit
from tenth.routing.record import RecordKind


@dataclass(slots=True)
class Drafting:
    """Who guesses for one generation, how far: `length` may have learned from others. `counts` is what came of it."""

    proposer: Proposer
    length: DraftLength
    counts: DraftCounts = field(default_factory=DraftCounts)
    clock: Callable[[], float] = time.perf_counter


def drafted_generate(
    sequence: CachedSequence,
    prompt: Sequence[int],
    sampler: Sampler,
    drafting: Drafting,
    *,
    max_tokens: int,
    end_ids: Collection[int] = (),
    record: RecordKind = "none",
    limit: ExpertLimit | None = None,
) -> Iterator[Step]:
    """As `cached_generate`, token by token: a step of the network may give several at once.

    The proposer begins with the prompt and is closed at the end.
    """
    room = check_room(sequence.decoder, prompt, max_tokens)
    limit = fitted_limit(limit, sequence.decoder.config)
    return _Run(sequence, prompt, sampler, drafting, end_ids, record, limit).steps(room)


class _Run:
    """One generation."""

    def __init__(
        self,
        sequence: CachedSequence,
        prompt: Sequence[int],
        sampler: Sampler,
        drafting: Drafting,
        end_ids: Collection[int],
        record: RecordKind,
        limit: ExpertLimit | None,
    ) -> None:
        self._sequence, self._sampler, self._end_ids = sequence, sampler, end_ids
        self._record, self._limit = record, limit
        self._drafting, self._length = drafting, drafting.length
        self._tokens, self._prompt = list(prompt), len(prompt)
        self._follower: Follower | None = None
        self._proposing = self._beside = 0.0  # seconds of this step, of the proposer and of the rest

    def steps(self, room: int) -> Iterator[Step]:
        try:
            yield from self._steps(room)
        finally:
            if self._follower is not None:
                self._follower.tell(self._tokens)
                self._follower.proposer.close()

    def _steps(self, room: int) -> Iterator[Step]:
        first, last = self._first(), self._prompt + room
        mine, rest = self._sequence.turn, self._length.rest
        yield first
        while len(self._tokens) < last and self._tokens[-1] not in self._end_ids:
            if self._sequence.turn != mine:
                raise RequestError("another generation has begun on this sequence; give each a CachedSequence")
            if rest:
                rest -= 1
                yield self._plain()
            else:
                yield from self._judged(self._draft(last - len(self._tokens) - 1))
                rest = self._length.rest

    def _first(self) -> Step:
        """The token behind the prompt."""
        return self._shown(self._sequence.restart(self._tokens, self._limit))

    def _plain(self) -> Step:
        """The next token, without a guess and without books."""
        self._drafting.counts.add(0, 0)
        return self._shown(self._tokens[-1:])

    def _shown(self, tokens: Sequence[int]) -> Step:
        start = self._drafting.clock()
        logits_V, routing = self._sequence.extend(tokens, self._record)
        self._tokens.append(self._sampler.draw(logits_V))
        self._length.spent(self._drafting.clock() - start)
        return Step(self._tokens[-1], logits_V, routing)

    def _draft(self, room: int) -> Draft:
        """What goes through the network with the last token."""
        start = self._drafting.clock()
        self._proposing = 0.0
        most = min(self._length.most(1), room)
        draft = self._cut(most) if most else NONE
        self._beside += self._drafting.clock() - start - self._proposing
        return draft

    def _cut(self, most: int) -> Draft:
        if self._follower is None:
            self._follower = Follower(self._drafting.proposer, self._tokens[: self._prompt])
        if (tried := self._follower.tell(self._tokens)) is not None:
            self._length.learn(tried)
        start = self._drafting.clock()
        draft = self._follower.proposer.propose(most)
        self._proposing = self._drafting.clock() - start
        count = self._length.cut([draft])[0]
        if not count:
            self._follower.watch(draft)
        return draft.cut(count)

    def _judged(self, draft: Draft) -> list[Step]:
        """The tokens of one step: those of the draft that the sampler draws too, and one more."""
        start, guesses = self._drafting.clock(), draft.tokens
        logits_NV, routing = self._sequence.judge([self._tokens[-1], *guesses], self._record)
        drawn: list[int] = []
        for row in range(len(guesses) + 1):
            drawn.append(self._sampler.draw(logits_NV[row]))
            if drawn[-1] in self._end_ids or drawn[-1:] != guesses[row : row + 1]:
                break
        self._sequence.forget(1 + len(guesses) - len(drawn))
        self._tokens += drawn
        seconds = max(self._drafting.clock() - start, TICK)
        self._note(draft, drawn, seconds)
        records = [None if routing is None else routing.select(slice(n, n + 1)).detach() for n in range(len(drawn))]
        return [Step(token, logits_NV[n], records[n]) for n, token in enumerate(drawn)]

    def _note(self, draft: Draft, drawn: Sequence[int], seconds: float) -> None:
        start = self._drafting.clock()
        tried = draft.cut(len(drawn))  # nothing is known of what is behind an end
        accepted = sum(guess == token for guess, token in zip(tried.tokens, drawn, strict=False))
        self._drafting.counts.add(len(draft.tokens), accepted)
        self._length.record(1, [Tried(tried, accepted)], seconds, self._proposing, self._beside)
        self._beside = self._drafting.clock() - start  # goes with the next step
