"""The life of the process: listen, load, warm up, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import uvicorn

from tenth.api.model import Model
from tenth.engine.async_engine import AsyncEngine
from tenth.engine.engine import Engine
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.errors import MachineError, TemplateError
from tenth.serve.app import Door, create_app
from tenth.serve.protocol import BoundedProtocol
from tenth.serve.service import Service

Result = TypeVar("Result")
Loader = Callable[[], tuple[Model, Engine]]
log = logging.getLogger("tenth.serve")
_TWICE = 0.1  # seconds in which two signals are one: some that start others send theirs to the whole group too
_WARM = 64  # tokens of the prompt that warms up: some pages, and every operation once


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound; MachineError where the address cannot be had. Port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise MachineError(f"cannot listen at {host}, port {port}: {error}; --host and --port choose another") from None
    return bound


def run(service: Service, load: Loader, bound: socket.socket) -> bool:
    """Serve until a signal says to stop; whether all requests came to their end.

    The socket listens at once; `load` runs in a thread of its own meanwhile. What it raises ends the server.
    """
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(Life(service, load, bound).live())


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loops, where there is uvloop."""
    try:
        import uvloop
    except ImportError:  # not on Windows
        return None
    return uvloop.new_event_loop


class _Server(uvicorn.Server):
    """uvicorn's server, whose signals are ours to handle."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Life:
    """A server from the moment it listens to its end; `door` as `create_app` has it."""

    def __init__(self, service: Service, load: Loader, bound: socket.socket, door: Door | None = None) -> None:
        self._service, self._load, self._bound = service, load, bound
        config = uvicorn.Config(
            create_app(service, door),
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=2,
        )
        self._server = _Server(config)
        self._signals, self._told = 0, -_TWICE
        self._draining: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None  # held: a task that nobody holds may be collected

    def stop(self) -> None:
        """What SIGTERM does, from any thread: drain, or where it drains already stop at once."""
        self._loop.call_soon_threadsafe(self._told_to_stop)

    async def live(self) -> bool:
        """Serve until it is told to stop; whether all requests came to their end."""
        self._loop = loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._told_to_stop)
        serving = asyncio.create_task(self._server.serve([self._bound]))
        loading = asyncio.create_task(self._serve_model())
        try:
            await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()  # raises what loading raised
        finally:
            self._server.should_exit = True
            await serving
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        return self._signals < 2

    async def _serve_model(self) -> None:
        """Load, warm up, then wait for the end with the engine at work."""
        model, engine = await in_daemon_thread(self._load)
        async with AsyncEngine(engine) as running:
            self._service.begin(model, running)
            await warm_up(self._service)
            if self._service.drift is not None:
                self._watching = asyncio.create_task(self._service.drift.watch())
            if self._service.phase == "warming up":
                self._service.phase = "ready"
                log.info("ready: %s, %s tokens of context", self._service.options.names[0], self._service.model_context)
            await asyncio.Event().wait()

    def _told_to_stop(self) -> None:
        last, self._told = self._told, self._loop.time()
        if self._told - last < _TWICE:
            return
        self._signals += 1
        if self._signals == 1:
            log.info("stopping: %d requests come to their end first", len(self._service.jobs))
            self._draining = asyncio.create_task(self._drain())
        else:
            log.warning("stopping at once")
            self._service.stop()
            self._server.should_exit = self._server.force_exit = True

    async def _drain(self) -> None:
        await self._service.drain()
        self._server.should_exit = True


async def in_daemon_thread(work: Callable[[], Result]) -> Result:
    """In a thread that does not keep the process alive: what was interrupted is not waited for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def tell(say: Callable[[], None]) -> None:
        if not done.cancelled():
            say()

    def target() -> None:
        try:
            say = partial(done.set_result, work())
        except BaseException as error:
            say = partial(done.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(tell, say)

    threading.Thread(target=target, name="tenth-load", daemon=True).start()
    return await done


async def warm_up(service: Service) -> None:
    """A first answer: what is made on first use is made now, the template's process too."""
    model = service.model
    if model.template is not None:
        message = [{"role": "user", "content": "Hello"}]
        try:
            await service.apart(lambda: model.encode(message))
        except TemplateError as error:
            log.warning("the chat template fails: %s", error)
    count = min(_WARM, (service.model_context or _WARM) - 2)
    ids = (model.tokenizer.encode("The quick brown fox jumps over the lazy dog. ") * count)[: max(count, 1)]
    request = Request(tuple(ids), 2, Sampling(temperature=0.0), tenant="warm-up")
    async for _ in service.engine.submit(request):
        pass
    if service.meter is not None and service.meter.experts is not None:
        service.meter.experts.clear()
