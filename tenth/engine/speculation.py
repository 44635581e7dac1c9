"""Drafts of an engine's sequences: who proposes, how many tokens go through the network, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tenth.engine.draft import Draft, DraftCounts, Proposer
from tenth.engine.draft_estimates import Tried
from tenth.engine.draft_follower import Follower
from tenth.engine.draft_forced import with_forced
from tenth.engine.draft_length import DraftLength, LengthOptions
from tenth.engine.draft_model import propose_all
from tenth.engine.progress import Progress
from tenth.engine.request import Request
from tenth.engine.work import Work

TICK = 1e-9  # seconds: no step takes less, however coarse the clock
NONE = Draft([], [], "none")

MakeProposer = Callable[[Request], Proposer]
"""A proposer for each sequence of a request."""


class Speculation:
    """In each step `guess` before it is scheduled, `note` behind it; beams are left alone."""

    def __init__(self, make: MakeProposer, clock: Callable[[], float], options: LengthOptions | None = None) -> None:
        self._make, self._clock, self._length = make, clock, DraftLength(options)
        self.counts = DraftCounts()
        self._followers: dict[Progress, Follower] = {}
        self._drafts: dict[Progress, Draft] = {}
        self._drafting = self._beside = 0.0  # seconds of this step, of the proposers and of the rest
        self._rest, self._resting = 0, False  # steps without books

    def guess(self, running: Iterable[Progress]) -> None:
        """Give each sequence that generates a draft, as long as pays."""
        self._resting = self._rest > 0
        if self._resting:
            self._rest -= 1
            return
        start = self._clock()
        self._close_ended()
        decoding = [p for p in running if p.pending == 1 and p.generated and p.request.beams is None]
        self._drafts, self._drafting = dict.fromkeys(decoding, NONE), 0.0
        most = self._length.most(len(decoding)) if decoding else 0
        if most:
            self._ask(decoding, most)
        self._beside += self._clock() - start - self._drafting

    def note(self, works: Sequence[Work], seconds: float) -> None:
        """What a step computed, in so many seconds."""
        if self._resting:
            self._length.spent(seconds)
            self.counts.steps += sum(work.draws and work.part.count == 1 for work in works)
            return
        start = self._clock()
        judged = [work for work in works if work.progress in self._drafts]
        alone = len(judged) == len(works) == len(self._drafts)
        if not alone:
            self._length.spent(seconds)
        if judged:
            tried = [Tried(self._drafts[work.progress].cut(work.guesses), work.right) for work in judged]
            for one in tried:
                self.counts.add(len(one.draft.tokens), one.accepted)
            known = max(seconds, TICK) if alone else None
            self._length.record(len(judged), tried, known, self._drafting, self._beside)
            self._rest = self._length.rest
            self._beside = self._clock() - start  # goes with the next step

    def _ask(self, decoding: Sequence[Progress], most: int) -> None:
        followers = [self._told(progress) for progress in decoding]
        start = self._clock()
        room = [min(most, p.room - p.generated - 1) for p in decoding]
        proposed = zip(decoding, propose_all([follower.proposer for follower in followers], room), room, strict=True)
        drafts = [with_forced(progress, draft, count) for progress, draft, count in proposed]
        self._drafting = self._clock() - start
        cut = zip(decoding, followers, drafts, self._length.cut(drafts), strict=True)
        for progress, follower, draft, count in cut:
            if not count:
                follower.watch(draft)
            self._drafts[progress] = draft.cut(count)
            progress.draft = list(self._drafts[progress].tokens)

    def _told(self, progress: Progress) -> Follower:
        """Its proposer, which knows all of its tokens."""
        follower = self._followers.get(progress)
        if follower is None:
            request = progress.request
            follower = self._followers[progress] = Follower(self._make(request), request.prompt)
        if (tried := follower.tell(progress.tokens)) is not None:
            self._length.learn(tried)
        return follower

    def _close_ended(self) -> None:
        for progress in [p for p in self._followers if p.answer.finish_reason is not None]:
            self._told(progress).proposer.close()
            del self._followers[progress]
