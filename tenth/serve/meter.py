"""What a server counts of its requests, as plain numbers; `metrics.py` shows them.

Counting stands in the way of every token, and Prometheus' own objects take a lock for each number: a histogram here is
one search by halves. All calls are made where the event loop runs; any thread may look.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate

from starlette.types import Scope

from tenth.engine.async_engine import AsyncStream, Update
from tenth.routing.window import RoutingWindow
from tenth.serve.problems import HttpProblem
from tenth.serve.trace import Record

SUCCESSES = ("stop", "length", "tool_calls", "content_filter")
"""How an answer ends that is whole."""
FAILURES = ("cancelled", "error", "timeout", "stopping")
"""And how others do: nobody waits for it any more, it failed, its time was up, the server stopped."""
REFUSALS = (401, 403, 429, 503)
"""What the door says: no key, too much, or not now."""

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560)
_TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))


class Histogram:
    """How many values lie at or below each of `bounds` and above the one before; the last count is of those above."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = tuple(bounds), [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """A value that has come so many times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def upto(self) -> list[tuple[str, float]]:
        """For each bound the values at or below it, the last one of all."""
        names = [*(repr(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(list(self.counts)), strict=True))


class Meter:
    """Counts since the server began. Times are in seconds; answers that had been kept are in none of them."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.prompt_tokens = self.generation_tokens = self.reasoning_tokens = 0
        self.succeeded = Counter(dict.fromkeys(SUCCESSES, 0))
        self.failed = Counter(dict.fromkeys(FAILURES, 0))
        self.http: Counter[tuple[str, int]] = Counter()
        self.refused = Counter({"queue_full": 0})
        self.first_token, self.between_tokens = Histogram(_LONG), Histogram(_SHORT)
        self.queued, self.whole = Histogram(_LONG), Histogram(_LONG)
        self.experts: RoutingWindow | None = None  # what routers decide, where there are any
        self.prompt_length, self.generation_length = Histogram(_TOKENS), Histogram(_TOKENS)

    def answered(self, scope: Scope, record: Record) -> None:
        """A request of HTTP is over; one whose client left before the answer began counts as 499."""
        path = getattr(scope.get("route"), "path", None) or "other"
        self.http[path, record.status or 499] += 1
        if record.status in REFUSALS and record.code is not None:
            self.refused[record.code] += 1


class JobMeter:
    """Of one request that is computed: `round` with all that comes, `close` at the end."""

    def __init__(self, meter: Meter, streams: Sequence[AsyncStream], start: float) -> None:
        self._meter, self._streams, self._start = meter, streams, start
        self._last: dict[tuple[AsyncStream, int], float] = {}
        self._begun: set[AsyncStream] = set()
        self._tokens, self._open = 0, True

    def round(self, stream: AsyncStream, update: Update) -> None:
        """What a step has added. Tokens that come in one step share the time since the last one."""
        count = len(update.drawn)
        if not count:
            return
        meter, key, now = self._meter, (stream, update.answer), self._meter.clock()
        if stream not in self._begun:
            self._begin(stream)
        last = self._last.get(key)
        if last is None:
            meter.first_token.observe(now - self._start)
        else:
            meter.between_tokens.observe((now - last) / count, count)
        self._last[key] = now
        self._tokens += count
        meter.generation_tokens += count

    def close(self, reasons: Sequence[str], problem: HttpProblem | None) -> None:
        """The request is over: `reasons` are those of answers that have ended, `problem` is why others did not."""
        if not self._open:
            return
        self._open, meter = False, self._meter
        answers = [answer for stream in self._streams for answer in stream.stream.answers]
        meter.generation_tokens += sum(len(answer.drawn) for answer in answers) - self._tokens
        meter.reasoning_tokens += sum(answer.thought for answer in answers)
        for answer in answers:
            meter.generation_length.observe(len(answer.drawn))
        failed = any(answer.error is not None for answer in answers)
        why = "error" if failed else "cancelled" if problem is None else problem.code or "error"
        for reason in [*reasons, *[why] * (len(answers) - len(reasons))]:
            (meter.succeeded if reason in SUCCESSES else meter.failed)[reason] += 1
        if len(reasons) == len(answers):
            meter.whole.observe(meter.clock() - self._start)

    def _begin(self, stream: AsyncStream) -> None:
        """A prompt has been computed."""
        self._begun.add(stream)
        meter, tokens = self._meter, len(stream.stream.request.prompt)
        meter.prompt_tokens += tokens
        meter.prompt_length.observe(tokens)
        if stream.stream.waited is not None:
            meter.queued.observe(stream.stream.waited)
