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
    counts the tokens of the prompt that the first answer found in the prefix cache, `waited` the seconds until it began
    (None: it has not).
    """

    request: Request
    answers: list[Answer]
    prompt: list[Drawn] = field(default_factory=list)
    found: int = 0
    waited: float | None = None

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

    def fail(self, error: TenthError) -> None:
        """End every answer that has not ended; a beam's own answer is none of these."""
        for answer in self.answers:
            if answer.finish_reason is None:
                answer.error, answer.finish_reason = error, "error"

    def drop(self) -> bool:
        """End the answers that nobody waits for any more; whether there were any."""
        dropped = [answer for answer in self.answers if answer.cancelled and answer.finish_reason is None]
        for answer in dropped:
            answer.finish_reason = "cancelled"
        return bool(dropped)

    def cancel(self) -> None:
        """Stop all answers."""
        for answer in self.answers:
            answer.cancel()
