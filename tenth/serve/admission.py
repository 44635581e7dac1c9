"""Who may come in: a bound on answers at work and waiting, and on the tokens that they may still need room for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tenth.engine.request import Request
from tenth.serve.problems import HttpProblem

_WINDOW = 16  # requests that ended last, by which the wait is judged
_LONG = 1024  # tokens of an answer, until some have ended


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """`answers` at work and waiting at once; `tokens`, of prompts and expected answers, that these may need."""

    answers: int
    tokens: int


class Admission:
    """Books of what is inside. All calls are made where the event loop runs.

    An answer is expected to be twice as long as the last ones, and never longer than it may be: most requests do not
    say how long, and few fill the context. Where more tokens come than expected, the engine lets some answers wait.
    """

    def __init__(self, limits: AdmissionLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits, clock
        self.answers = self.tokens = 0
        self._ended: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._length = float(_LONG)

    def enter(self, requests: list[Request]) -> Ticket:
        """Let them in together, or HttpProblem 429 with the seconds until it may be worth another try."""
        answers = sum(request.n for request in requests)
        tokens = sum(
            len(request.prompt) + request.n * min(request.max_tokens, int(2 * self._length)) for request in requests
        )
        full = self.answers and (
            self.answers + answers > self.limits.answers or self.tokens + tokens > self.limits.tokens
        )
        if full:
            raise HttpProblem(
                429,
                f"the server is full: {self.answers} answers of {self.tokens:,} tokens are at work or wait, "
                f"there may be {self.limits.answers} of {self.limits.tokens:,}",
                "queue_full",
                retry_after=self._wait(tokens),
            )
        self.answers += answers
        self.tokens += tokens
        return Ticket(self, answers, tokens)

    def leave(self, answers: int, tokens: int, generated: int) -> None:
        """Some have ended, and so many tokens were generated in all; for `Ticket`."""
        self.answers -= answers
        self.tokens -= tokens
        self._length += (generated / answers - self._length) / _WINDOW
        self._ended.append((self._clock(), tokens))

    def _wait(self, tokens: int) -> int:
        """Seconds until there will be room, as fast as the last ones ended: between 1 and 60."""
        if len(self._ended) < 2:
            return 1
        seconds = max(self._clock() - self._ended[0][0], 1e-3)
        rate = sum(count for _, count in self._ended) / seconds
        missing = max(self.tokens + tokens - self.limits.tokens, tokens)
        return int(min(max(missing / rate, 1), 60))


class Ticket:
    """The place of a request inside; `leave` once it has ended."""

    def __init__(self, admission: Admission, answers: int, tokens: int) -> None:
        self._admission: Admission | None = admission
        self._held = answers, tokens

    def leave(self, generated: int) -> None:
        """Give the place back, behind so many tokens; again does nothing."""
        if self._admission is not None:
            self._admission.leave(*self._held, generated)
            self._admission = None
