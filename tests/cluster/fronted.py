"""A front and replicas in threads of this process: all of a cluster but Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tenth.api import Model
from tenth.cluster.front_process import FrontLife, FrontOptions
from tenth.cluster.hosted import Hosted, ReplicaOptions
from tenth.cluster.routing import Policy
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.scheduler import SchedulerOptions
from tenth.serve.guards import GuardOptions, open_guards
from tenth.serve.loading import LoadOptions
from tenth.serve.review_queue import ReviewOptions
from tenth.serve.runner import listening_socket, loop_factory
from tenth.serve.service import ServeOptions
from tests.serve.proving import proving_model

SECRET = "the cluster's own secret"


class Fronted:
    """One that serves; `replicas` are by name."""

    reviews = ReviewOptions()

    def __init__(self, folder: Path, serve: ServeOptions, guards: GuardOptions, route: Policy) -> None:
        self._folder, self._serve, self._guards, self._route = folder, serve, guards, route
        self._outer, self._inner = listening_socket("127.0.0.1", 0), listening_socket("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._outer.getsockname()[1]}"
        self.inner = f"http://127.0.0.1:{self._inner.getsockname()[1]}"
        self.port = self._outer.getsockname()[1]
        self.replicas = dict[str, Hosted]()
        self._begun = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self._begun.wait(20)

    def add(self, name: str, model: Model | None = None, *, keyed: bool = False) -> Hosted:
        """A replica more, which is ready."""

        def load() -> tuple[Model, Engine]:
            used = model or proving_model(self._folder)
            return used, used.engine(EngineOptions(600, 16, SchedulerOptions(sequences=16, wait=0)))

        load_options, own = LoadOptions("proving"), {"keyed": keyed, "reviews": self.reviews}
        options = ReplicaOptions(load_options, self._serve, self._guards, self.inner, SECRET, **own)  # type: ignore[arg-type]
        self.replicas[name] = hosted = Hosted(options, name, "127.0.0.1", load)
        hosted.wait_ready()
        self.until(lambda: name in {member.id for member in self.life.members.ready()})
        return hosted

    def until(self, true: Any, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end
            time.sleep(0.01)

    def stop(self) -> None:
        """What SIGTERM does to the front."""
        self.loop.call_soon_threadsafe(self.life.stop)

    def close(self) -> None:
        if self.thread.is_alive():
            self.stop()
            self.thread.join(0.3)
        if self.thread.is_alive():
            self.stop()
        self.thread.join(20)
        for hosted in self.replicas.values():
            hosted.drain()
        assert not self.thread.is_alive()

    def _run(self) -> None:
        async def live() -> None:
            with open_guards(self._guards) as guards:
                options = FrontOptions(self._serve, self._guards, self._route, SECRET, "human")
                self.life = FrontLife(options, guards, self._outer, self._inner)
                self.loop = asyncio.get_running_loop()
                self.loop.call_soon(self._begun.set)
                await self.life.live()

        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(live())


@contextmanager
def fronted(
    folder: Path,
    *names: str,
    serve: ServeOptions | None = None,
    guards: GuardOptions | None = None,
    route: Policy = "prefix",
    reviews: ReviewOptions | None = None,
) -> Iterator[Fronted]:
    """A front with replicas of these names."""
    guards = guards or GuardOptions(state=folder)
    running = Fronted(folder, serve or ServeOptions(drain_seconds=20.0), guards, route)
    running.reviews = reviews or ReviewOptions()
    try:
        for name in names:
            running.add(name, keyed=guards.keys is not None)
        yield running
    finally:
        running.close()


def post(running: Fronted, path: str, body: dict[str, Any], key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.post(running.url + path, json=body, headers=headers, timeout=30)
