"""Looks at a service again and again: what came since the last look, and how fast.

Records of routing are summed up, and everything else is read, in a thread beside the engine's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tenth.api.model import Model
from tenth.engine.async_engine import AsyncEngine
from tenth.engine.engine import Engine
from tenth.engine.part import Counts
from tenth.errors import TenthError
from tenth.model.decoder import Decoder
from tenth.observe.weight_reads import StepWeights, read_speed, weight_walks
from tenth.routing.window import Fresh, RoutingReader
from tenth.serve.live_snapshot import CacheUse, DriftSeen, Experts, Row, Snapshot, Speed

if TYPE_CHECKING:
    from tenth.kernels.cpu.limits import StepWalk
    from tenth.serve.service import Service

_SPAN = 4  # looks that speeds are over
_DRIFT_S = 5.0  # between two looks at drift, which moves as slowly as the window
log = logging.getLogger("tenth.serve")


class ReadLimit:
    """What steps of a model read of its weights, and how fast the machine reads them: found out once in its life.

    `speed` is measured between two steps, once there were some: weights that no step has used may not be in memory yet.
    """

    def __init__(self) -> None:
        self.weights: StepWeights | None = None
        self.speed: float | None = None
        self.walks: list[StepWalk] = []  # to be measured
        self._looked = self._measured = False

    def look(self, decoder: Decoder, fresh: Fresh | None, *, routed: bool) -> None:
        """Prepare what is not known yet; `routed` is whether the model has experts, whose work `fresh` tells."""
        if routed and fresh is None:
            return
        if not self._looked:
            self._looked, self.weights = True, StepWeights.of(decoder)
        if self.weights is None or self._measured or (fresh is not None and not fresh.steps):
            return
        self._measured = True
        self.walks = weight_walks(decoder, None if fresh is None else fresh.at_work_LE)

    async def measure(self, engine: AsyncEngine) -> None:
        """Do the walks that are prepared, in the engine's thread."""
        walks, self.walks = self.walks, []
        try:
            self.speed = await engine.between_steps(partial(read_speed, walks))
        except TenthError as error:
            log.info("the speed of memory is not known: %s", error)
        except asyncio.CancelledError:  # nobody looks any more: next time
            self._measured = False
            raise


@dataclass(frozen=True, slots=True)
class _Mark:
    """Counts since the beginning at a moment."""

    at: float
    generated: int
    prompt: int
    read: int


class Source:
    """One who looks at a service; whoever has it closes it."""

    def __init__(self, service: Service, limit: ReadLimit) -> None:
        self._service, self._limit = service, limit
        self._reader: RoutingReader | None = None
        self._marks = deque[_Mark](maxlen=_SPAN + 1)
        self._read = self._steps = 0
        self._drift: tuple[float, DriftSeen] | None = None
        self._closed = False
        self._measuring: asyncio.Task[None] | None = None

    async def look(self) -> Snapshot:
        """How it is now. Where the event loop runs, as requests come and go there."""
        rows = tuple(job.row for job in self._service.jobs)
        snapshot = await asyncio.to_thread(self._look, rows)
        if self._limit.walks and self._service.loaded is not None:
            self._measuring = asyncio.create_task(self._limit.measure(self._service.loaded[1]))
        return snapshot

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        if self._reader is not None:
            self._reader.close()
        if self._measuring is not None:
            self._measuring.cancel()

    def _look(self, rows: tuple[Row, ...]) -> Snapshot:
        service = self._service
        phase = "failed" if service.failure is not None else service.phase
        fresh = self._fresh()
        experts = None if fresh is None else self._experts(fresh)
        cache, speed = CacheUse(), Speed()
        if service.loaded is not None:
            model, running = service.loaded
            cache = _cache_use(running.engine)
            speed = self._speed(model, running.engine.scheduler.counts, fresh)
        why = service.unwatched if experts is None else None
        uptime = service.clock() - service.begun
        return Snapshot(service.options.names[0], phase, uptime, experts, why, rows, cache, speed)

    def _fresh(self) -> Fresh | None:
        if self._reader is None and self._service.window is not None:
            self._reader = self._service.window.reader()
            if self._closed:  # meanwhile, by another thread
                self._reader.close()
        return None if self._reader is None else self._reader.take()

    def _experts(self, fresh: Fresh) -> Experts:
        window = self._service.window
        assert window is not None, "there is a reader of it"
        return Experts(fresh.counts, window.recent(), window.seconds, self._drift_seen())

    def _drift_seen(self) -> DriftSeen | None:
        """Of the last look, if that was not long ago."""
        watch, now = self._service.drift, self._service.clock()
        if watch is None:
            return None
        if self._drift is None or now - self._drift[0] >= _DRIFT_S:
            drift = watch.look()
            self._drift = now, DriftSeen(drift, watch.threshold, watch.alarm)
        return self._drift[1]

    def _speed(self, model: Model, counts: Counts, fresh: Fresh | None) -> Speed:
        """Over the last looks; nothing is known at the first."""
        limit = self._limit
        limit.look(model.decoder, fresh, routed=model.config.moe is not None)
        if limit.weights is not None:
            steps, at_work_LE = (counts.steps - self._steps, None) if fresh is None else (fresh.steps, fresh.at_work_LE)
            self._read += limit.weights.read(steps, at_work_LE)
        self._steps = counts.steps
        mark = _Mark(self._service.clock(), counts.drawn, counts.prompt, self._read)
        self._marks.append(mark)
        first = self._marks[0]
        if (seconds := mark.at - first.at) <= 0:
            return Speed()
        read = None if limit.weights is None else (mark.read - first.read) / seconds
        generated, prompt = mark.generated - first.generated, mark.prompt - first.prompt
        return Speed(generated / seconds, prompt / seconds, read, limit.speed)


def _cache_use(engine: Engine) -> CacheUse:
    scheduler = engine.scheduler
    used = len(scheduler.held_pages) * (engine.tokens // scheduler.pages)
    return CacheUse(used, engine.tokens, scheduler.counts.sought, scheduler.counts.found)
