"""A proposer that is told what its sequence became, and what its drafts would have been worth."""

from __future__ import annotations

from collections.abc import Sequence

from tenth.engine.draft import Draft, Proposer
from tenth.engine.draft_estimates import Tried


class Follower:
    """Keeps a proposer up to date, and compares a draft that stayed out of the network with what came all the same."""

    def __init__(self, proposer: Proposer, prompt: Sequence[int]) -> None:
        self.proposer, self._told = proposer, len(prompt)
        proposer.begin(prompt)
        self._watched: Draft | None = None
        self._right = 0  # tokens of it that came

    def tell(self, tokens: Sequence[int]) -> Tried | None:
        """All tokens of the sequence; what became of the draft that was watched, once that is known."""
        new = tokens[self._told :]
        self._told = len(tokens)
        self.proposer.take(new)
        return self._compared(new)

    def watch(self, draft: Draft) -> None:
        """A draft of which nothing goes through the network. One is watched at a time."""
        if self._watched is None and draft.tokens:
            self._watched, self._right = draft, 0

    def _compared(self, new: Sequence[int]) -> Tried | None:
        draft = self._watched
        if draft is None:
            return None
        for token in new:
            if token != draft.tokens[self._right]:
                break
            self._right += 1
            if self._right == len(draft.tokens):
                break
        else:
            return None
        self._watched = None
        return Tried(draft, self._right)
