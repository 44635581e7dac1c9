"""Drafts of an engine's sequences: who proposes, how many tokens go through the network, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tenth.engine.draft import Draft, Proposer
from tenth.engine.draft_estimates import Tried
from tenth.engine.draft_length import DraftLength, LengthOptions
from tenth.engine.draft_model import propose_all
from tenth.engine.progress import Progress
from tenth.engine.request import Request
from tenth.engine.work import Work

_TICK = 1e-9  # seconds: no step takes less, however coarse the clock

MakeProposer = Callable[[Request], Proposer]
"""A proposer for each sequence of a request."""


@dataclass(slots=True)
class _Follower:
    """A proposer, and how many of its sequence's tokens it was told."""

    proposer: Proposer
    told: int


class Speculation:
    """In each step `guess` before it is scheduled, `note` behind it; beams are left alone."""

    def __init__(self, make: MakeProposer, clock: Callable[[], float], options: LengthOptions | None = None) -> None:
        self._make, self._clock, self._length = make, clock, DraftLength(options)
        self._followers: dict[Progress, _Follower] = {}
        self._drafts: dict[Progress, Draft] = {}
        self._drafting = 0.0

    def guess(self, running: Iterable[Progress]) -> None:
        """Give each sequence that generates a draft, as long as pays."""
        self._close_ended()
        decoding = [p for p in running if p.pending == 1 and p.generated and p.request.beams is None]
        self._drafts, self._drafting = {}, 0.0
        if not decoding:
            return
        most, start = self._length.most(len(decoding)), self._clock()
        drafts = [Draft([], [], "none")] * len(decoding)
        if most:
            proposers = [self._told(progress) for progress in decoding]
            drafts = propose_all(proposers, [min(most, p.room - p.generated - 1) for p in decoding])
            self._drafting = self._clock() - start
        for progress, draft, count in zip(decoding, drafts, self._length.cut(drafts), strict=True):
            self._drafts[progress] = draft.cut(count)
            progress.draft = list(self._drafts[progress].tokens)

    def note(self, works: Sequence[Work], seconds: float) -> None:
        """What a step computed, in so many seconds."""
        judged = [work for work in works if work.progress in self._drafts]
        if not judged:
            return
        alone = len(judged) == len(works) == len(self._drafts)
        tried = [Tried(self._drafts[work.progress].cut(work.guesses), work.right) for work in judged]
        self._length.record(len(judged), tried, max(seconds, _TICK) if alone else None, self._drafting)

    def _told(self, progress: Progress) -> Proposer:
        """Its proposer, which knows all of its tokens."""
        follower = self._followers.get(progress)
        if follower is None:
            follower = self._followers[progress] = _Follower(self._make(progress.request), len(progress.request.prompt))
            follower.proposer.begin(progress.request.prompt)
        follower.proposer.take(progress.tokens[follower.told :])
        follower.told = len(progress.tokens)
        return follower.proposer

    def _close_ended(self) -> None:
        for progress in [p for p in self._followers if p.answer.finish_reason is not None]:
            self._told(progress).close()
            del self._followers[progress]
