"""What the routers of a running engine decide: sums since the beginning, and over the last minutes.

The engine's thread hands over each step's record; records are summed up when somebody looks, or by the engine's thread
when those of many tokens have come and nobody else is at it. K active experts, L sparse layers, E experts.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from tenth.routing.counts import Assignments, Ints, RoutingCounts
from tenth.routing.profile import SERVED, ProfiledModel, RoutingProfile, Span
from tenth.routing.record import RecordKind, Routing
from tenth.routing.stacked import StackedLayers, stacked

_MANY = 1024  # tokens that may wait to be summed up, beside a step: some megabytes
_SAMPLED = 32  # of so many steps one is judged by its router logits
_FEW = 64  # tokens: longer steps are never the judged ones, for logits of all experts take memory


@dataclass(slots=True, eq=False)
class Fresh:
    """What came since somebody looked last: `counts`, of `steps`, and in how many of them each expert had work."""

    counts: RoutingCounts
    steps: int
    at_work_LE: Ints


class RoutingWindow:
    """Sums of what a model's routers decide; recent is what came in the last `seconds`.

    One thread calls `wish` and `note`; any may look. The window moves on by a thirtieth of itself.
    """

    def __init__(
        self,
        model: ProfiledModel,
        *,
        seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.seconds = model, seconds
        self._clock, self._slice = clock, seconds / 30
        self._total, self._slices = RoutingProfile.empty(model), deque[tuple[int, RoutingCounts]]()
        self._pending = deque[tuple[int, Routing]]()
        self._steps = self._waiting = 0  # tokens wait
        self._readers = set[RoutingReader]()
        self._lock = threading.Lock()  # of the sums, and of what readers have not taken yet

    def wish(self, tokens: int) -> RecordKind:
        """What the record of the next step, of so many tokens, should hold; `note` is shown it."""
        self._steps += tokens <= _FEW
        return "full" if tokens <= _FEW and self._steps % _SAMPLED == 1 else "choice"

    def note(self, routing: Routing) -> None:
        """The record of a step, which nobody changes any more."""
        self._pending.append((int(self._clock() / self._slice), routing))
        self._waiting += routing.num_tokens
        if self._waiting > _MANY and self._lock.acquire(blocking=False):  # whoever has it sums up what has come
            try:
                self._waiting = 0
                self._sum_up()
            finally:
                self._lock.release()

    def total(self) -> RoutingCounts:
        """Of all steps so far."""
        with self._lock:
            self._sum_up()
            return self._total.counts.copy()

    def profile(self) -> RoutingProfile:
        """Of all steps so far, with pairs of experts: as one domain, `SERVED`, in one block."""
        with self._lock:
            self._sum_up()
            return self._total.copy()

    def clear(self) -> None:
        """Forget everything, as of a warm-up."""
        with self._lock:
            self._sum_up()
            self._total, self._steps = RoutingProfile.empty(self.model), 0
            self._slices.clear()
            for reader in self._readers:
                reader.fresh = self._nothing()

    def reader(self) -> RoutingReader:
        """One more who looks again and again, from now on; whoever has it closes it."""
        return RoutingReader(self)

    def enter(self, reader: RoutingReader) -> None:
        """Keep for a reader what comes from now on."""
        with self._lock:
            self._sum_up()
            reader.fresh = self._nothing()
            self._readers.add(reader)

    def leave(self, reader: RoutingReader) -> None:
        """Keep nothing for it any more."""
        with self._lock:
            self._readers.discard(reader)

    def take(self, reader: RoutingReader) -> Fresh:
        """What a reader has not taken yet."""
        with self._lock:
            self._sum_up()
            fresh, reader.fresh = reader.fresh, self._nothing()
        return fresh

    def recent(self) -> RoutingCounts:
        """Of the steps within the window."""
        found = self._empty()
        with self._lock:
            self._sum_up()
            self._forget()
            for _, counts in self._slices:
                found.add(counts)
        return found

    def _empty(self) -> RoutingCounts:
        return RoutingCounts.empty(self.model.layers, self.model.experts)

    def _nothing(self) -> Fresh:
        shape = (len(self.model.layers), self.model.experts)
        return Fresh(self._empty(), 0, np.zeros(shape, np.int64))

    def _sum_up(self) -> None:
        pending = [self._pending.popleft() for _ in range(len(self._pending))]
        for number, group in groupby(pending, key=lambda one: one[0]):
            if not self._slices or self._slices[-1][0] != number:
                self._slices.append((number, self._empty()))
            steps = [layers for _, routing in group if (layers := stacked(routing)) is not None]
            fresh = self._empty()
            work = Assignments.of(steps) if steps else None
            fresh.take(steps, work)
            self._slices[-1][1].add(fresh)
            self._total.take_steps(steps, [Span(0, fresh.tokens, SERVED)], work)
            if work is not None and self._readers:
                self._tell(steps, fresh, work)
        self._forget()

    def _tell(self, steps: list[StackedLayers], counts: RoutingCounts, work: Assignments) -> None:
        """Keep it for those who look again and again."""
        at_work_LE = work.steps_at_work([step.experts_LTK.shape[1] for step in steps])
        for reader in self._readers:
            reader.fresh.counts.add(counts)
            reader.fresh.steps += len(steps)
            reader.fresh.at_work_LE += at_work_LE

    def _forget(self) -> None:
        oldest = int((self._clock() - self.seconds) / self._slice)
        while self._slices and self._slices[0][0] <= oldest:
            self._slices.popleft()


class RoutingReader:
    """Looks at a window again and again; each time it is given what has come since the last."""

    fresh: Fresh  # the window's to write

    def __init__(self, window: RoutingWindow) -> None:
        self._window = window
        window.enter(self)

    def take(self) -> Fresh:
        """What came since the last time: nothing is left out, and nothing comes twice."""
        return self._window.take(self)

    def close(self) -> None:
        """Look no more: nothing is kept any longer."""
        self._window.leave(self)
