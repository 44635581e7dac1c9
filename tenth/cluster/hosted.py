"""A replica's server: the same application as `tenth serve`'s, in a thread beside whatever hosts it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from starlette.types import ASGIApp

from tenth.api.model import Model
from tenth.cluster.door import JudgedKeys, TrustedDoor
from tenth.cluster.far_log import FarLog
from tenth.cluster.to_front import ToFront
from tenth.cluster.wire import ANNOUNCE, News
from tenth.engine.engine import Engine
from tenth.errors import MachineError, TenthError
from tenth.routing.profile_file import read_profile
from tenth.serve.guards import GuardOptions, open_guards
from tenth.serve.loading import LoadOptions, load_engine
from tenth.serve.review_queue import ReviewOptions, open_reviews
from tenth.serve.runner import Life, listening_socket, loop_factory
from tenth.serve.service import ServeOptions, Service

_EVERY_S, _LOOK_S = 0.5, 0.1  # between two announcements; between two looks whether the phase has changed
log = logging.getLogger("tenth.serve")


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """What a replica is told. `front` is the front's inner address; `keyed` says that the cluster asks for keys.

    Of `guards` the privacy filter and kept answers are the replica's, keys and their books are the front's.
    """

    load: LoadOptions
    serve: ServeOptions
    guards: GuardOptions
    front: str
    secret: str
    keyed: bool = False
    generation: int = 1
    profile: Path | None = None
    reviews: ReviewOptions = field(default_factory=ReviewOptions)


class Hosted:
    """One replica at work; `host` is where the front reaches it. It announces itself from the first moment on."""

    def __init__(
        self, options: ReplicaOptions, name: str, host: str, load: Callable[[], tuple[Model, Engine]] | None = None
    ) -> None:
        self.options, self.name = options, name
        self._load = load or partial(load_engine, options.load)
        self._bound = listening_socket(host, 0)
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{self._bound.getsockname()[1]}"
        self.service: Service | None = None
        self.error: BaseException | None = None
        self._life: Life | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tenth-replica", daemon=True)
        self._thread.start()

    @property
    def jobs(self) -> int:
        """Requests at work and waiting."""
        return 0 if self.service is None else len(self.service.jobs) + self.service.reading

    def check(self) -> None:
        """MachineError where it does not work any more."""
        if self.service is not None and self.service.failure is not None:
            raise MachineError(self.service.failure)
        if not self._thread.is_alive():
            raise MachineError(f"the replica's server has ended: {self.error or 'it was told to'}")

    def wait_ready(self, looks: threading.Event | None = None) -> None:
        """Returns when it is ready; raises what loading raised."""
        pause = looks or threading.Event()
        while self._thread.is_alive() and (self.service is None or self.service.phase in ("loading", "warming up")):
            pause.wait(_LOOK_S)
        if self.error is not None:
            raise self.error

    def drain(self) -> None:
        """Let what runs come to its end, and end; returns when it has."""
        if self._begun.wait(1) and self._life is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # the loop has just ended
                self._life.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(self._live())
        except BaseException as error:  # whoever waits is told
            self.error = error
            if not isinstance(error, TenthError):
                log.exception("the replica has ended")

    async def _live(self) -> None:
        options = self.options
        stored = None if options.profile is None else read_profile(options.profile)
        front, self._said = ToFront(options.front, options.secret), FarLog(self.name)
        logging.getLogger("tenth").addHandler(self._said)
        bare, serve = replace(options.guards, keys=None, api_key=None), replace(options.serve, hosts=None, origins=())
        with open_guards(bare) as guards, open_reviews(options.reviews) as queue:
            if options.keyed:
                guards = replace(guards, keys=JudgedKeys())
            self.service = Service(serve, guards, profile=stored, reviews=queue)
            self._life = Life(self.service, self._load, self._bound, partial(_door, front, options.secret))
            announcing = asyncio.create_task(self._announce(front))
            try:
                self._begun.set()
                await self._life.live()
            finally:
                announcing.cancel()
                await asyncio.gather(announcing, return_exceptions=True)
                await self._tell(front, "stopped")
                await self._said.send(front)
                logging.getLogger("tenth").removeHandler(self._said)
                await front.close()

    async def _announce(self, front: ToFront) -> None:
        assert self.service is not None, "it is there before the task"
        loop = asyncio.get_running_loop()
        last, at = "", 0.0
        while True:
            phase = "failed" if self.service.failure is not None else self.service.phase
            if phase != last or loop.time() - at >= _EVERY_S:
                last, at = phase, loop.time()
                await self._tell(front, phase)
                await self._said.send(front)
            await asyncio.sleep(_LOOK_S)

    async def _tell(self, front: ToFront, phase: str) -> None:
        loaded = None if self.service is None else self.service.loaded
        room = 0 if loaded is None else loaded[1].engine.tokens
        where = socket.gethostname(), os.getpid()
        news = News(self.name, self._url, self.options.generation, phase, room, self.jobs, *where)
        with suppress(MachineError):  # the front comes back, and is told again
            await front.say(ANNOUNCE, tries=1, **asdict(news))


def _door(front: ToFront, secret: str, app: ASGIApp) -> ASGIApp:
    return TrustedDoor(app, front, secret)
