"""An engine in a thread of its own, for programs that wait for many answers at once (asyncio)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from tenth.engine.engine import Engine
from tenth.engine.request import Request
from tenth.engine.sampler import Drawn
from tenth.engine.stream import FinishReason, Stream
from tenth.errors import MachineError, TenthError

_AUDITS = 60.0  # seconds between two looks at the books of an engine without work
_PAUSE = 0.001  # seconds, where nobody can go on for a moment
_log = logging.getLogger(__name__)


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
    """Use it as `async with AsyncEngine(engine) as engine`; the thread runs in between."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._readers: set[AsyncStream] = set()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="tenth-engine", daemon=True)

    async def __aenter__(self) -> AsyncEngine:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What has not ended is cancelled; the step that runs is waited for."""
        for reader in list(self._readers):
            reader.close()
        self._closing = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)
        self._publish()

    def submit(self, request: Request) -> AsyncStream:
        """Begin a request; RequestError where it does not fit the model or the cache."""
        if self._closing:
            raise MachineError("the engine is closing and takes no more requests")
        reader = AsyncStream(self.engine.submit(request))
        self._readers.add(reader)
        self._wake.set()
        return reader

    def _run(self) -> None:
        """In the thread: steps as long as there is work, else sleep."""
        audited = time.monotonic()
        while True:
            if self.engine.busy:
                self._step()
            elif self._closing:
                return
            else:
                if time.monotonic() - audited > _AUDITS:
                    self.engine.scheduler.audit()
                    audited = time.monotonic()
                self._wake.wait()
                self._wake.clear()

    def _step(self) -> None:
        try:
            if not self.engine.step():
                time.sleep(_PAUSE)
        except TenthError as error:  # an expert that cannot be read, for one
            self.engine.abort(error)
        except Exception as error:  # whatever it is, nobody may wait for ever, and others may come
            _log.exception("a step failed: all requests end")
            self.engine.abort(MachineError(f"the engine failed: {type(error).__name__}: {error}"))
        self._loop.call_soon_threadsafe(self._publish)

    def _publish(self) -> None:
        for reader in list(self._readers):
            reader.wake()
            if reader.stream.finished:
                self._readers.discard(reader)
