"""Which tokens grammars allow next: slow masks are computed in a thread of their own while the network runs.

A thread beside the network's takes a core from one of them, for which all others wait: that costs more than a quick
mask (bench/grammar_cost.py), so quick ones are computed behind the pass.

W words of 32 bits, one bit a token.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tenth.engine.grammar_matcher import MaskWorker
from tenth.engine.progress import Progress
from tenth.errors import RequestError

SLOW = 5e-4
"""Seconds from which on a mask is worth the thread."""

Mask = Tensor | RequestError | None
"""Of one sequence: what it may draw, why it cannot go on, or that it may draw anything."""


class Masks:
    """The masks of a step: begin with them before the network runs, and look at them behind it."""

    def __init__(self) -> None:
        self._worker: MaskWorker | None = None
        self._begun: list[Progress] = []
        self._known: dict[Progress, Mask] = {}

    def begin(self, drawing: Sequence[Progress]) -> None:
        """Compute for the next draw of each whose last mask was slow."""
        self._fetch()  # those of a step that failed
        slow = {p: p.matcher for p in drawing if p.constrained and p.matcher and p.matcher.seconds >= SLOW}
        self._begun, self._known = list(slow), {}
        if self._begun:
            self._worker = self._worker or MaskWorker()
            self._worker.prepare(list(slow.values()))

    def of(self, progress: Progress) -> Mask:
        """For the next draw; what was not begun, or is behind the first draw of a step, is computed now."""
        self._fetch()
        if not progress.constrained or progress.matcher is None:
            return None
        try:
            mask = self._known.pop(progress) if progress in self._known else progress.matcher.mask_W()
        except RequestError as error:
            return error
        return _with_tag(progress, mask)

    def _fetch(self) -> None:
        if self._begun:
            assert self._worker is not None, "begun"
            begun, self._begun = self._begun, []  # whatever comes of them, they are not waited for again
            self._known = dict(zip(begun, self._worker.masks(), strict=True))


def _with_tag(progress: Progress, mask: Mask) -> Mask:
    """An answer may begin with a thought, which is no business of the grammar's."""
    thinking = progress.request.thinking
    if isinstance(mask, Tensor) and thinking is not None and not progress.generated:
        word, bit = divmod(thinking.open_id, 32)
        mask[word] |= (1 << bit) - (1 << 32 if bit == 31 else 0)
    return mask
