"""An engine in a thread of its own, for programs that wait for many answers at once (asyncio)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from tenth.engine.engine import Engine
from tenth.engine.request import Request
from tenth.engine.sampler import Drawn
from tenth.engine.stream import FinishReason, Stream
from tenth.errors import EngineError, MachineError, TenthError

_PAUSE = 0.001  # seconds, where nobody can go on for a moment
_log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Update:
    """What is new in one answer of a stream: `finish_reason` comes with its last tokens."""

    answer: int
    drawn: Sequence[Drawn]
    finish_reason: FinishReason | None


class AsyncStream:
    """The updates of one request as they come; leave with `close`, or by ending the task that reads."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._seen = [0] * len(stream.answers)
        self._ended = [False] * len(stream.answers)
        self._changed = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Update]:
        try:
            while not all(self._ended):
                await self._changed.wait()
                self._changed.clear()
                for update in self._news():
                    yield update
        finally:
            self.close()

    def close(self) -> None:
        """Stop what has not ended."""
        self.stream.cancel()

    def wake(self) -> None:
        """Something may have come; called where the event loop runs."""
        self._changed.set()

    def _news(self) -> list[Update]:
        found = []
        for number, answer in enumerate(self.stream.answers):
            reason = answer.finish_reason  # before the tokens: none comes behind it
            drawn = answer.drawn[self._seen[number] :]
            if self._ended[number] or not (drawn or reason):
                continue
            self._seen[number] += len(drawn)
            self._ended[number] = reason is not None
            found.append(Update(number, drawn, reason))
        return found


class AsyncEngine:
    """Use it as `async with AsyncEngine(engine) as engine`; the thread runs in between.

    Whatever ends the thread, no reader waits for ever: all streams end with an error, and `failure` says which.
    """

    def __init__(self, engine: Engine, *, audit_every: float = 60.0) -> None:
        """The books are looked at between steps every so many seconds, if there was a step since."""
        self.engine, self._audit_every = engine, audit_every
        self.failure: str | None = None
        self._readers: dict[Stream, AsyncStream] = {}
        self._between: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._audited, self._unaudited = time.monotonic(), False
        self._thread = threading.Thread(target=self._live, name="tenth-engine", daemon=True)

    async def __aenter__(self) -> AsyncEngine:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What has not ended is cancelled; the step that runs is waited for."""
        for reader in list(self._readers.values()):
            reader.close()
        self._closing = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)
        self._publish(list(self._readers))

    async def prepare(self, request: Request) -> None:
        """Compile a request's grammar beside the event loop, so that `submit` is quick; RequestError for a bad one."""
        await asyncio.to_thread(self.engine.prepare, request)

    def submit(self, request: Request) -> AsyncStream:
        """Begin a request; RequestError where it does not fit the model or the cache, MachineError behind a failure.

        `prepare` those with a grammar first: it is compiled here otherwise, while the event loop waits.
        """
        self._check_open()
        reader = AsyncStream(self.engine.submit(request))
        self._readers[reader.stream] = reader
        self._wake.set()
        return reader

    async def between_steps(self, work: Callable[[], Result]) -> Result:
        """Do something else with the model, in the engine's thread: nothing runs beside a step."""
        self._check_open()
        done: Future[Result] = Future()
        self._between.append((work, done))
        self._wake.set()
        return await asyncio.wrap_future(done)

    def _check_open(self) -> None:
        if self.failure is not None:
            raise EngineError(self.failure)
        if self._closing:
            raise MachineError("the engine is closing and takes no more requests")

    def _live(self) -> None:
        """The thread."""
        try:
            self._run()
        except BaseException as error:  # nothing is behind this that could tell those who wait
            _log.exception("the engine's thread has ended")
            self.failure = f"the engine has ended and takes no more requests: {_said(error)}"
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._lose)

    def _run(self) -> None:
        """Steps as long as there is work, else sleep."""
        while True:
            if self._unaudited and time.monotonic() - self._audited >= self._audit_every:
                self.engine.scheduler.audit()
                self._audited, self._unaudited = time.monotonic(), False
            if self._between:
                self._work(*self._between.popleft())
            if self.engine.busy:
                self._step()
            elif self._closing and not self._between:
                return
            elif not self._between:
                self._wake.wait(self._audit_every if self._unaudited else None)
                self._wake.clear()

    def _step(self) -> None:
        self._unaudited = True
        try:
            if not self.engine.step():
                time.sleep(_PAUSE)
        except TenthError as error:  # an expert that cannot be read, for one
            self.engine.abort(error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a library's panic is no Exception; nobody may wait for ever, others may come
            _log.exception("a step failed: all requests end")
            self.engine.abort(EngineError(f"the engine failed: {_said(error)}"))
        if self.engine.changed:
            self._loop.call_soon_threadsafe(self._publish, self.engine.changed)
            self.engine.changed = set()  # an engine that sleeps keeps none of them

    def _work(self, work: Callable[[], Any], done: Future[Any]) -> None:
        if done.set_running_or_notify_cancel():
            try:
                done.set_result(work())
            except Exception as error:  # it is for whoever waits
                done.set_exception(error)
            except BaseException as error:
                done.set_exception(EngineError(f"the engine failed: {_said(error)}"))
                raise

    def _publish(self, streams: Iterable[Stream]) -> None:
        """Wake those who read them."""
        for stream in streams:
            reader = self._readers.get(stream)
            if reader is not None:
                reader.wake()
                if stream.finished:
                    del self._readers[stream]

    def _lose(self) -> None:
        """Tell all who wait, where the event loop runs, that the thread has ended."""
        assert self.failure is not None, "it is why"
        while self._between:
            _, done = self._between.popleft()
            if done.set_running_or_notify_cancel():
                done.set_exception(EngineError(self.failure))
        for stream in self._readers:
            stream.fail(EngineError(self.failure))
        self._publish(list(self._readers))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
