"""The sequences of one beam search, which go on together.

V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tenth.engine.beams import BeamSearch, Branch, Candidates
from tenth.engine.draws import candidates
from tenth.engine.masks import Mask
from tenth.engine.progress import Progress
from tenth.engine.sampler import Drawn
from tenth.engine.scheduler import Scheduler
from tenth.engine.stream import Answer
from tenth.errors import RequestError


class BeamGroup:
    """One search on the scheduler's sequences; `copy_page` copies keys and values from one page to another."""

    def __init__(self, root: Progress, scheduler: Scheduler, copy_page: Callable[[int, int], None]) -> None:
        request = root.request
        assert request.beams is not None, "of a request with beams"
        self._search = BeamSearch(request.beams, request.end_ids, root.room, request.length_penalty)
        self._scheduler, self._copy_page, self._stream = scheduler, copy_page, root.stream
        self._beams: list[Progress] = [root]
        self._found: dict[Progress, Candidates] = {}

    def take(self, progress: Progress, logits_V: Tensor, mask: Mask) -> bool:
        """Note what may follow a beam; once all have come as far they branch. Whether the search is over."""
        found = candidates(progress, logits_V, self._search.wanted, mask)
        if isinstance(found, RequestError):
            self._stream.answers[0].error = found
            self.close()
            return True
        self._found[progress], progress.parked = found, True
        if len(self._found) < len(self._beams):
            return False
        branches = self._search.advance([self._found[beam] for beam in self._beams])
        if branches:
            self._branch(branches)
        else:
            self._answer()
            self.close()
        return not branches

    def close(self) -> None:
        """Let go of all beams."""
        for beam in self._beams:
            self._scheduler.finish(beam)

    def _branch(self, branches: list[Branch]) -> None:
        """The first child of a beam goes on in its place, others beside it; a beam without children ends."""
        parents = self._beams
        first = {branch.parent: branch for branch in reversed(branches)}
        for number, parent in enumerate(parents):
            if number not in first:
                self._scheduler.finish(parent)
        # copies before anyone writes on
        self._beams = [
            parents[branch.parent] if first[branch.parent] is branch else self._copy(parents[branch.parent])
            for branch in branches
        ]
        for beam, branch in zip(self._beams, branches, strict=True):
            beam.tokens.append(branch.beam.tokens[-1])
            beam.parked = False
            if beam.matcher is not None:
                beam.matcher.take(branch.beam.tokens[-1])
        self._found = {}

    def _copy(self, parent: Progress) -> Progress:
        child = Progress(
            parent.stream,
            Answer(parent.answer.seed),
            parent.sampler,
            parent.number,
            parent.arrived,
            parent.room,
            list(parent.tokens),
        )
        child.matcher = parent.matcher.fork() if parent.matcher is not None else None
        pages = self._scheduler.fork(parent, child)
        if pages is not None:
            self._copy_page(*pages)
        return child

    def _answer(self) -> None:
        best = self._search.best(len(self._stream.answers))
        for answer, (score, beam) in zip(self._stream.answers, best, strict=False):
            answer.drawn, answer.score = [Drawn(token) for token in beam.tokens], score
            answer.finish_reason = "stop" if beam.tokens[-1] in self._stream.request.end_ids else "length"
        for answer in self._stream.answers[len(best) :]:
            answer.error = RequestError(f"the search found {len(best)} sequences, n is {self._stream.request.n}")
