"""What a step computed of each sequence, and what is taken from it beside tokens.

N rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tenth.engine.draws import of_prompt
from tenth.engine.part import Part
from tenth.engine.progress import Progress
from tenth.routing.record import Routing


@dataclass(slots=True)
class Work:
    """A part that was computed, with what was true of its sequence before."""

    part: Part
    start: int  # its first position in the sequence
    at: int  # and in the batch
    rows: range  # its rows of logits
    draws: bool
    guesses: int
    right: int = 0  # of these

    @property
    def progress(self) -> Progress:
        """Whose part it is."""
        return self.part.progress

    @property
    def row(self) -> int:
        """Where the next token is drawn from."""
        return self.rows[-1 - self.guesses + self.right]


def works_of(parts: Sequence[Part], rows: Sequence[range]) -> list[Work]:
    """One for each part, before any is taken; `rows` are positions in the batch whose logits were asked for."""
    found, at, row = [], 0, 0
    for part, own in zip(parts, rows, strict=True):
        progress = part.progress
        rows_of_part = range(row, row + len(own))
        found.append(Work(part, progress.computed, at, rows_of_part, part.draws, len(progress.draft)))
        at, row = at + part.count, row + len(own)
    return found


def note_prompt(work: Work, logits_NV: Tensor) -> None:
    """Log-probabilities of the prompt's tokens that this part leads to, those that are not known yet."""
    stream, number = work.progress.stream, work.progress.request.prompt_logprobs
    assert number is not None, "asked for"
    known = len(stream.prompt)  # the row of token i is that of position i - 1
    tokens = stream.request.prompt[known + 1 : work.start + len(work.rows) + 1]
    if tokens:
        first = work.rows[known - work.start]
        stream.prompt += of_prompt(tokens, logits_NV[first : first + len(tokens)], number)


def note_routing(works: Sequence[Work], routing: Routing) -> None:
    """The routing of tokens that were computed for the first time, wrong guesses apart."""
    for work in works:
        progress = work.progress
        sure = work.part.count - work.guesses + work.right if not work.part.turns else 0
        again = max(progress.recorded - work.start, 0)  # behind a preemption
        if progress.request.record != "none" and again < sure:
            progress.answer.routing.append(routing.select(slice(work.at + again, work.at + sure)).detach())
            progress.recorded = work.start + sure


def rows_at(logits_NV: Tensor, places: Sequence[int]) -> Tensor:
    """These rows, without a copy where they lie together."""
    first, count = (places[0], len(places)) if places else (0, 0)
    if list(places) == list(range(first, first + count)):
        return logits_NV[first : first + count]
    # numpy copies in this thread; torch would wake its own, which then spin beside ours: a step took twice as long
    return torch.from_numpy(logits_NV.numpy()[list(places)]) if logits_NV.is_cpu else logits_NV[list(places)]
