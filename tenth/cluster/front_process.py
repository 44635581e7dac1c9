"""`python -m tenth.cluster.front_process`: the front, in a process of its own that loads no model and knows no Ray.

Its options come as a line of JSON on standard input, its sockets from the process that started it: they listen on while
a front that was killed is started again. Where standard input ends, so has that process, and the front stops.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from tenth.cluster.front import Front
from tenth.cluster.front_inner import Inner
from tenth.cluster.front_leases import OpenLeases
from tenth.cluster.members import Members
from tenth.cluster.relay import new_session
from tenth.cluster.routing import Policy
from tenth.serve.app import around
from tenth.serve.console_page import PUBLIC
from tenth.serve.guard import Guard
from tenth.serve.guards import GuardOptions, Guards, open_guards
from tenth.serve.logs import LogForm, log_to_stderr
from tenth.serve.protocol import BoundedProtocol
from tenth.serve.runner import loop_factory
from tenth.serve.service import ServeOptions

_LOOK_S = 1.0  # between two looks for replicas that have fallen silent
log = logging.getLogger("tenth.serve")


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """What the front is told: how requests are served, who may ask, and the cluster's secret.

    `outer` and `inner` are the numbers of two open sockets, for clients and for replicas.
    """

    serve: ServeOptions
    guards: GuardOptions
    route: Policy
    secret: str
    log: LogForm
    outer: int = -1
    inner: int = -1

    def line(self) -> str:
        """As `read` takes it."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def read(cls, line: str) -> FrontOptions:
        """Of what `line` has written."""
        found: dict[str, Any] = json.loads(line)
        serve, guards = found.pop("serve"), found.pop("guards")
        for name in ("names", "origins", "hosts"):
            serve[name] = None if serve[name] is None else tuple(serve[name])
        for name in ("keys", "state"):
            guards[name] = None if guards[name] is None else Path(guards[name])
        return cls(serve=ServeOptions(**serve), guards=GuardOptions(**guards), **found)


class _Server(uvicorn.Server):
    """uvicorn's server, whose signals are ours to handle."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class FrontLife:
    """A front from the moment it listens to its end; told to stop, it drains, told again, it stops at once."""

    def __init__(self, options: FrontOptions, guards: Guards, outer: socket.socket, inner: socket.socket) -> None:
        self.members, leases = Members(), OpenLeases()
        self.front = Front(options.serve, self.members, leases, options.route, options.secret, guards.keys)
        http: Counter[tuple[str, int]] = self.front.counts.http
        public = PUBLIC if options.serve.console else None
        guarded = cast(ASGIApp, Guard(self.front, guards.keys, guards.limiter, public))
        app = around(
            guarded, options.serve, lambda scope, record: http.update([(scope["method"], record.status or 499)])
        )
        self._options, self._sockets = options, (outer, inner)
        self._servers = (_server(app), _server(Inner(self.members, leases, options.secret)))
        self._stopping: asyncio.Task[None] | None = None

    async def live(self) -> None:
        """Serve until it is told to stop."""
        self._loop = asyncio.get_running_loop()
        async with new_session() as session:
            self.front.open(session)
            serving = [
                asyncio.create_task(server.serve([bound]))
                for server, bound in zip(self._servers, self._sockets, strict=True)
            ]
            looking = asyncio.create_task(self._look())
            await asyncio.gather(*serving)
            looking.cancel()

    def stop(self) -> None:
        """Drain, or where it drains already stop at once. To be called where the event loop runs."""
        if self._stopping is None:
            log.info("stopping: %d requests come to their end first", self.front.inside)
            self._stopping = self._loop.create_task(self._drain())
        else:
            self.front.cut()
            self._end()

    async def _drain(self) -> None:
        front, end = self.front, self._loop.time() + self._options.serve.drain_seconds
        front.draining = True
        while front.inside and self._loop.time() < end:
            await asyncio.sleep(0.02)
        if front.inside:
            log.warning("%d requests had not ended after %g seconds", front.inside, self._options.serve.drain_seconds)
            front.cut()
        self._end()

    def _end(self) -> None:
        for server in self._servers:
            server.should_exit = True

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for member in self.members.forget_the_silent():
                log.warning("replica %s has fallen silent", member.id)


def _server(app: ASGIApp) -> _Server:
    config = uvicorn.Config(
        app, http=BoundedProtocol, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        timeout_keep_alive=75, timeout_graceful_shutdown=2,
    )  # fmt: skip
    return _Server(config)


async def _live(options: FrontOptions, guards: Guards) -> None:
    outer, inner = (socket.socket(fileno=number) for number in (options.outer, options.inner))
    life = FrontLife(options, guards, outer, inner)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, life.stop)
    loop.add_signal_handler(signal.SIGINT, life.stop)

    def starter_has_ended() -> None:
        loop.remove_reader(sys.stdin)
        life.stop()

    loop.add_reader(sys.stdin, starter_has_ended)  # nothing more is ever written there: it ends
    await life.live()


def main() -> None:
    """Serve as the first line of standard input says."""
    options = FrontOptions.read(sys.stdin.readline())
    with open_guards(options.guards) as guards, suppress(KeyboardInterrupt):
        log_to_stderr(options.log, masked=options.guards.privacy != "off")
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_live(options, guards))


if __name__ == "__main__":
    main()
