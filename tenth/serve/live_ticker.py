"""The one ticker of all who look on: it looks at the server while somebody is there, and keeps its last look alone."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from tenth.serve.live_snapshot import Snapshot
from tenth.serve.live_source import ReadLimit, Source
from tenth.serve.problems import HttpProblem

if TYPE_CHECKING:
    from tenth.serve.service import Service

EVERY_S = 0.5
MOST = 100
"""Viewers at once: each is sent some 100 kB a second."""
log = logging.getLogger("tenth.serve")


class Tick:
    """A look at the server, as events for those who may see the same of it."""

    def __init__(self, number: int, snapshot: Snapshot) -> None:
        self.number, self.snapshot = number, snapshot
        self._frames = dict[str | None, bytes]()

    def frame(self, tenant: str | None) -> bytes:
        """The event for a tenant; None sees everybody's requests."""
        if tenant not in self._frames:
            content = json.dumps(self.snapshot.json(tenant), ensure_ascii=False, separators=(",", ":"))
            self._frames[tenant] = f"data: {content}\n\n".encode()
        return self._frames[tenant]


class Ticker:
    """Ticks from the first viewer until the last has gone, or the server stops."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._last: Tick | None = None
        self._changed, self._stop = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self._problem: HttpProblem | None = None

    async def after(self, number: int) -> Tick | None:
        """The newest tick once it is behind this one; None behind the last. HttpProblem where looking failed."""
        while self._last is None or self._last.number <= number:
            if self._problem is not None:
                raise self._problem
            if self._task.done():
                return None
            await self._changed.wait()
        return self._last

    def stop(self) -> None:
        """Look once more, now, and then never again."""
        self._stop.set()

    def cancel(self) -> None:
        """Nobody looks any more."""
        self._task.cancel()

    async def _run(self) -> None:
        try:
            stopping, number = False, 0
            while not stopping:
                stopping, number = self._stop.is_set(), number + 1
                self._last = Tick(number, await self._source.look())
                self._wake()
                with suppress(TimeoutError):
                    async with asyncio.timeout(EVERY_S):
                        await self._stop.wait()
        except Exception:
            log.exception("nobody can look on any more")
            self._problem = HttpProblem(500, "the server failed to look at itself; its log says more")
        finally:
            self._source.close()
            self._task.add_done_callback(lambda _: self._wake())

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Live:
    """Who looks on at a service."""

    def __init__(self, service: Service) -> None:
        self._service, self._limit = service, ReadLimit()
        self.viewers = 0
        self._ticker: Ticker | None = None

    def enter(self) -> Ticker:
        """One viewer more, who leaves. HttpProblem where there are too many."""
        if self.viewers >= MOST:
            raise HttpProblem(429, f"{MOST} viewers look on already", "queue_full", retry_after=5)
        self.viewers += 1
        if self._ticker is None:
            self._ticker = Ticker(Source(self._service, self._limit))
        return self._ticker

    def leave(self) -> None:
        """One viewer less; with the last one the ticks end."""
        self.viewers -= 1
        if not self.viewers and self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def close(self) -> None:
        """The server stops: viewers get a last look, and their streams end."""
        if self._ticker is not None:
            self._ticker.stop()
