"""An answer of the engine as text: thinking and answer apart, cut before the first stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tenth.engine.thinking import Thinking, Thought
from tenth.weights.text_stream import TextStream
from tenth.weights.tokenizer import Tokenizer

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is new and safe to show, and how many tokens it took."""

    reasoning: str
    content: str
    taken: int = 0


def thinking_of(
    tokenizer: Tokenizer, prompt: Sequence[int], budget: int | None = None, stop: str | None = None
) -> Thinking | None:
    """How a model with tags of thinking marks it, and whether the prompt has opened a thought; None without such tags.

    `stop` is what ends a thought whose budget is spent, the closing tag in it.
    """
    tags = [tokenizer.token_id(tag) for tag in (OPEN, CLOSE)]
    if None in tags:
        return None
    opened, closed = tags
    assert opened is not None
    assert closed is not None
    last = next((token for token in reversed(prompt) if token in (opened, closed)), closed)
    stop_ids = tuple(tokenizer.encode(stop, specials=True)) if stop is not None else ()
    return Thinking(opened, closed, budget, stop_ids, begun=last == opened)


class AnswerText:
    """Decodes the tokens of one answer as they come; tags of thinking and end tokens have no text."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], thinking: Thinking | None, end_ids: frozenset[int]
    ) -> None:
        self._thought = Thought(thinking) if thinking is not None else None
        self._tags = (thinking.open_id, thinking.close_id) if thinking is not None else ()
        self._reasoning, self._content = TextStream(tokenizer), TextStream(tokenizer, stops)
        self._end_ids = end_ids
        stop = thinking.stop_ids if thinking is not None else ()
        at = stop.index(thinking.close_id) if thinking is not None and thinking.close_id in stop else len(stop)
        self._stop, self._behind = stop[:at], stop[at + 1 :]  # what the engine puts in, around the closing tag
        self._last: list[int] = []  # of the thought, as many as `_stop`
        self._skipped: list[int] = []  # what is still to come of `_behind`

    @property
    def stopped(self) -> str | None:
        """The stop string that ended it."""
        return self._content.stopped

    def push(self, tokens: Iterable[int]) -> Piece:
        """What they add; those behind a stop string are not looked at."""
        reasoning, content, taken = list[str](), list[str](), 0
        for token in tokens:
            if self.stopped is not None:
                break
            taken += 1
            inside = self._thought is not None and self._thought.inside
            if self._thought is not None:
                self._thought.take(token)
            if self._put_in(token, inside):
                continue
            if token in self._tags:
                reasoning.append(self._reasoning.finish())
            elif token not in self._end_ids:
                (reasoning if inside else content).append((self._reasoning if inside else self._content).push(token))
        return Piece("".join(reasoning), "".join(content), taken)

    def _put_in(self, token: int, inside: bool) -> bool:
        """Whether a token stands behind the closing tag because the engine put it there: no text of the answer."""
        if self._skipped:
            if token == self._skipped.pop(0):
                return True
            self._skipped = []
        if inside and token in self._tags and self._stop and tuple(self._last) == self._stop:
            self._skipped = list(self._behind)
        self._last = [*self._last, token][-len(self._stop) :] if inside and self._stop else []
        return False

    def finish(self) -> Piece:
        """What was held back, now that no more tokens will come."""
        return Piece(self._reasoning.finish(), self._content.finish())
