"""Thinking before the answer, and its bound: when the budget is spent the engine itself writes its end."""

from __future__ import annotations

from dataclasses import dataclass

from tenth.engine.bounds import whole
from tenth.errors import RequestError

QWEN3_STOP = (
    "Considering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
    "</think>.\n\n"
)
"""What Qwen3 was trained to go on from (Qwen3 technical report, 4.3); `Thinking.stop_ids` are its tokens."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a model marks its thinking, and how much of it a request may have.

    A thought stands between `open_id` and `close_id`; `begun` says that the prompt has opened it already. When `budget`
    tokens were thought (None: no bound), `stop_ids` follow, which must hold `close_id`.
    """

    open_id: int
    close_id: int
    budget: int | None = None
    stop_ids: tuple[int, ...] = ()
    begun: bool = False

    def __post_init__(self) -> None:
        named = [("open_id", self.open_id), ("close_id", self.close_id), *(("stop_ids", one) for one in self.stop_ids)]
        for name, token in named:
            whole(name, token, 0)
        if self.budget is not None:
            whole("the thinking budget", self.budget, 0)
        if self.budget is not None and self.close_id not in self.stop_ids:
            raise RequestError("stop_ids of a thinking budget must hold the closing tag")


class Thought:
    """Where a sequence stands: `inside` a thought or not, and the `tokens` thought so far."""

    def __init__(self, options: Thinking) -> None:
        self._options = options
        self.inside, self.tokens = options.begun, 0

    def take(self, token: int) -> None:
        """A token has come."""
        if not self.inside:
            self.inside = token == self._options.open_id
        elif token == self._options.close_id:
            self.inside = False
        else:
            self.tokens += 1

    @property
    def forced(self) -> tuple[int, ...]:
        """What must follow now: the stop sentence where the budget is spent, else nothing."""
        budget = self._options.budget
        return self._options.stop_ids if self.inside and budget is not None and self.tokens >= budget else ()
