"""The sequences of one beam search, which go on together.

V vocabulary.
"""

from __future__ import annotations

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
    """One search on the scheduler's sequences."""

    def __init__(self, root: Progress, scheduler: Scheduler) -> None:
        request = root.request
        assert request.beams is not None, "of a request with beams"
        self._search = BeamSearch(request.beams, request.end_ids, root.room, request.length_penalty)
        self._scheduler, self._stream = scheduler, root.stream
        self._beams: list[Progress] = [root]
        self._found: dict[Progress, Candidates] = {}

    def take(self, progress: Progress, logits_V: Tensor, mask: Mask) -> bool:
        """Note what may follow a beam; once all have come as far they branch. Whether the search is over."""
        found = candidates(progress, logits_V, self._search.wanted, mask)
        if isinstance(found, RequestError):
            return self._failed(found)
        self._found[progress], progress.parked = found, True
        if len(self._found) < len(self._beams):
            return False
        branches = self._search.advance([self._found[beam] for beam in self._beams])
        if not branches:
            self._answer()
            self.close()
            return True
        try:
            self._branch(branches)
        except RequestError as error:  # the grammar's limits
            return self._failed(error)
        return False

    def close(self) -> None:
        """Let go of all beams."""
        for beam in self._beams:
            self._scheduler.finish(beam)

    def _failed(self, error: RequestError) -> bool:
        self._stream.fail(error)
        self.close()
        return True

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
            parent.biases,
        )
        child.matcher = parent.matcher.fork() if parent.matcher is not None else None
        self._scheduler.fork(parent, child)
        return child

    def _answer(self) -> None:
        best = self._search.best(len(self._stream.answers))
        for answer, (score, beam) in zip(self._stream.answers, best, strict=False):
            if answer.finish_reason is not None:  # cancelled
                continue
            answer.drawn, answer.score = [Drawn(token) for token in beam.tokens], score
            answer.finish_reason = "stop" if beam.tokens[-1] in self._stream.request.end_ids else "length"
        for answer in self._stream.answers[len(best) :]:
            if answer.finish_reason is None:
                answer.error = RequestError(f"the search found {len(best)} sequences, n is {self._stream.request.n}")
