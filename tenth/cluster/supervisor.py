"""The life of `tenth cluster`: it holds the sockets, starts Ray and the front, and a front that was killed again.

While a front is missing, connections wait at the socket: nobody is refused, and who had no answer yet asks again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tenth.cluster.admin import AdminServer, Tell
from tenth.cluster.front_process import FrontOptions
from tenth.cluster.hosted import ReplicaOptions
from tenth.cluster.on_ray import OnRay
from tenth.errors import MachineError, TenthError
from tenth.serve.runner import in_daemon_thread

_PAUSE_S = 0.5  # before a front that has ended by itself is started again
_TWICE = 0.1  # seconds in which two signals are one: some that start others send theirs to the whole group too
log = logging.getLogger("tenth.serve")


@dataclass
class Supervisor:
    """One cluster. `outer` and `inner` are bound sockets, for clients and for replicas; `admin` is another's path."""

    front: FrontOptions
    replicas: ReplicaOptions
    ray: OnRay
    outer: socket.socket
    inner: socket.socket
    admin: Path
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _signals: int = 0
    _told: float = -_TWICE
    _process: asyncio.subprocess.Process | None = None
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def live(self) -> bool:
        """Serve until a signal says to stop; whether it was one alone."""
        self._listen()
        keeping = asyncio.create_task(self._keep_front())
        try:
            await asyncio.to_thread(self.ray.open)  # by a thread that stays: with it Ray's processes would end
            self._listen()  # again: Ray has put handlers of its own in their place
            await self._until_stopped()
        finally:
            await self._end_front(keeping)
            await asyncio.to_thread(self.ray.close)
        return self._signals < 2

    async def _until_stopped(self) -> None:
        deploying = asyncio.create_task(in_daemon_thread(partial(self.ray.deploy, self.replicas)))
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({deploying, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if self._stopping.is_set():
            deploying.cancel()
        else:
            deploying.result()
            log.info("ready: %s", self.replicas.serve.names[0])
            async with AdminServer(self.admin, self._status, self._replaced):
                await stopped
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            await self._process.wait()

    def _listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._told_to_stop)

    def _told_to_stop(self) -> None:
        last, self._told = self._told, time.monotonic()
        if self._told - last < _TWICE:
            return
        self._signals += 1
        self._stopping.set()
        if self._signals > 1 and self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    # ---- the front

    async def _keep_front(self) -> None:
        """Start it, and again whenever it has ended, until all is to stop."""
        while not self._stopping.is_set():
            await self._start_front()
            assert self._process is not None
            code = await self._process.wait()
            if not self._stopping.is_set():
                log.error("the front has ended (%d) and is started again", code)
                if code >= 0:  # not killed: it may well end again
                    await asyncio.sleep(_PAUSE_S)

    async def _start_front(self) -> None:
        numbers = self.outer.fileno(), self.inner.fileno()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tenth.cluster.front_process"),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=numbers,
            start_new_session=True,  # Ctrl-C is for this process, which tells the front
            env={name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"},
        )
        options = replace(self.front, outer=numbers[0], inner=numbers[1])
        assert self._process.stdin is not None
        self._process.stdin.write(options.line().encode() + b"\n")
        await self._process.stdin.drain()

    async def _end_front(self, keeping: asyncio.Task[None]) -> None:
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    # ---- what the administrator asks

    def _status(self) -> dict[str, object]:
        load = self.replicas.load
        same = {name: getattr(load, name) for name in ("model", "dtype", "backend", "threads")}
        return {**same, "generation": self.replicas.generation, "names": list(self.replicas.serve.names)}

    async def _replaced(self, model: str, tell: Tell) -> None:
        """Another model in the place of the one that is served, replica by replica; TenthError, and the old one."""
        if self._changing.locked():
            raise MachineError("the model is being replaced already")
        async with self._changing:
            old = self.replicas
            new = replace(old, load=replace(old.load, model=model), generation=old.generation + 1)
            await tell(f"{self.ray.scale.least} replicas are replaced, one by one")
            try:
                await in_daemon_thread(partial(self.ray.deploy, new))
            except TenthError as error:
                await tell(f"going back to {old.load.model}: {error}")
                await in_daemon_thread(partial(self.ray.deploy, old))
                raise
            self.replicas = new
