"""A real server on a free port, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx

from tenth.api import Model
from tenth.engine.engine import EngineOptions
from tenth.engine.scheduler import SchedulerOptions
from tenth.routing.profile import RoutingProfile
from tenth.serve.guards import Guards
from tenth.serve.review_queue import Reviews
from tenth.serve.runner import Life, listening_socket, loop_factory
from tenth.serve.service import ServeOptions, Service


class Server:
    """One that serves."""

    def __init__(
        self,
        model: Model,
        options: ServeOptions,
        pages: int,
        guards: Guards | None = None,
        profile: RoutingProfile | None = None,
        reviews: Reviews | None = None,
    ) -> None:
        self.ended: bool | None = None
        self._bound = listening_socket("127.0.0.1", 0)
        self.port = self._bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._model, self._options, self._pages = model, options, pages
        self._guards, self._profile, self._reviews = guards, profile, reviews
        self._begun = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self._begun.wait(30)
        self.wait_until("ready")

    def wait_until(self, phase: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while self.service.phase != phase:
            assert time.monotonic() < end, f"still {self.service.phase}"
            time.sleep(0.01)

    def close(self) -> None:
        if self.thread.is_alive():
            self.life.stop()
            self.thread.join(0.15)
        if self.thread.is_alive():
            with suppress(RuntimeError):  # it has just ended
                self.life.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def _run(self) -> None:
        import asyncio

        async def live() -> bool:
            self.service = Service(self._options, self._guards, profile=self._profile, reviews=self._reviews)
            self.life = Life(self.service, self._load, self._bound)
            self._begun.set()
            return await self.life.live()

        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            self.ended = runner.run(live())

    def _load(self) -> tuple[Model, object]:
        scheduler = SchedulerOptions(sequences=16, wait=0)
        return self._model, self._model.engine(EngineOptions(self._pages, 16, scheduler))


@contextmanager
def server(
    model: Model,
    options: ServeOptions | None = None,
    pages: int = 600,
    *,
    guards: Guards | None = None,
    profile: RoutingProfile | None = None,
    reviews: Reviews | None = None,
) -> Iterator[Server]:
    running = Server(model, options or ServeOptions(), pages, guards, profile, reviews)
    try:
        yield running
    finally:
        running.close()


def get(running: Server, path: str) -> httpx.Response:
    return httpx.get(running.url + path, timeout=20)
