"""What comes of a request: its answers as far as they have come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tenth.engine.request import Request
from tenth.engine.sampler import Drawn
from tenth.errors import TenthError
from tenth.routing.record import Routing

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(slots=True, eq=False)
class Answer:
    """One sequence. `routing` is of the tokens that were computed, each once, in order; `score` is that of a beam.

    `thought` counts the tokens of thinking among `drawn`; `seed` draws the same again.
    """

    seed: int
    drawn: list[Drawn] = field(default_factory=list)
    routing: list[Routing] = field(default_factory=list)
    thought: int = 0
    score: float | None = None
    finish_reason: FinishReason | None = None
    error: TenthError | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        """Stop: nothing comes behind the next step, which frees all that it holds. For any thread."""
        self.cancelled = True

    @property
    def tokens(self) -> list[int]:
        """The tokens that were generated."""
        return [one.token for one in self.drawn]


@dataclass(slots=True, eq=False)
class Stream:
    """A request on its way: `request.n` answers, the best first where they are beams.

    `prompt` has the log-probabilities of the prompt's tokens behind the first, where they were asked for. `found`
    counts the tokens of the prompt that the first answer found in the prefix cache.
    """

    request: Request
    answers: list[Answer]
    prompt: list[Drawn] = field(default_factory=list)
    found: int = 0

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return all(answer.finish_reason for answer in self.answers)

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens of the first answer."""
        return self.answers[0].tokens

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for any of its answers."""
        return all(answer.cancelled for answer in self.answers)

    def cancel(self) -> None:
        """Stop all answers."""
        for answer in self.answers:
            answer.cancel()
