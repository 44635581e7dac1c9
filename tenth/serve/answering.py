"""A request at work: from a body that was read to the events of its answers, and its end, however that comes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request

from tenth.api.answer_body import Form, Usage
from tenth.api.answer_events import Finish, Said, Whole
from tenth.api.bodies import Asked, Kind
from tenth.engine.async_engine import AsyncStream, Update
from tenth.engine.stream import Stream
from tenth.serve.admission import Ticket
from tenth.serve.guard import caller_of
from tenth.serve.kept_answer import Told, question_of, told_again
from tenth.serve.live_snapshot import Row
from tenth.serve.meter import JobMeter
from tenth.serve.private_answer import PrivateEvents
from tenth.serve.problems import HttpProblem
from tenth.serve.readings import Reading
from tenth.serve.response_cache import Flight
from tenth.serve.review_watch import Watch
from tenth.serve.service import Service, service_of
from tenth.serve.trace import record_of

Result = TypeVar("Result")

_OPEN = 1024  # tokens set aside for an answer whose length is not said: few fill the context, and what came is charged


class Job:
    """The answers to one request, of one prompt or several. Whoever has it closes it.

    With a `flight` that has landed they had been kept: there are no streams. Else they are kept for the next time.
    """

    def __init__(
        self,
        request: Request,
        asked: Sequence[Asked],
        streams: Sequence[AsyncStream] = (),
        ticket: Ticket | None = None,
        flight: Flight | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        self.service, self.asked, self._ticket, self._flight = service_of(request), list(asked), ticket, flight
        self.id, self.created = uuid.uuid4().hex, int(time.time())
        self._streams, self._record = list(streams), record_of(request.scope)
        self._caller = caller_of(request.scope)
        self._events = [events for one in asked for events in one.events()]
        self._private = [PrivateEvents(self.service.guards.privacy) for _ in self._events]
        self._told = Told(len(self._events))
        self._kept = told_again(flight.entry) if flight is not None and flight.entry is not None else None
        self._record.cache = None if flight is None else flight.mark
        meter = self.service.meter
        self._watch = _watch(request, self, body or {}) if streams else None
        self._meter = JobMeter(meter, self._streams, self._record.start) if meter is not None and streams else None
        self._problem: HttpProblem | None = None
        seconds = self.service.options.request_seconds
        late = HttpProblem(504, f"the request was not answered within {seconds:g} seconds", "timeout")
        self._timer = asyncio.get_running_loop().call_later(seconds, self.fail, late)
        self.service.enter(self)

    @property
    def found(self) -> bool:
        """Whether nothing is computed: the answers had been kept."""
        return self._kept is not None

    @property
    def model(self) -> str:
        """The model's name, as the client calls it."""
        return self.asked[0].label or self.service.options.names[0]

    @property
    def row(self) -> Row:
        """How it stands, for those who look on. A request that had begun and waits again is at work."""
        begun = self.found or any(stream.stream.waited is not None for stream in self._streams)
        usage, seconds = self.usage(), time.perf_counter() - self._record.start
        who = self._caller.name, self._caller.tenant
        return Row(self._record.id, *who, "running" if begun else "waiting", usage.prompt, usage.completion, seconds)

    def form(self, prefix: str) -> Form:
        """How its answers look in OpenAI's API; ids begin with `prefix`."""
        return Form(self.asked[0].kind, prefix + self.id, self.created, self.model, self.service.model.tokenizer)

    async def rounds(self) -> AsyncIterator[list[Said]]:
        """What each step adds, until every answer has its `Finish`.

        TenthError where the engine failed; HttpProblem where the time is up or the server stops.
        """
        if self._kept is not None:
            self._note(self._kept[0])
            yield self._kept[0]
            return
        async for first, stream, update in self._updates():
            if self._meter is not None:
                self._meter.round(stream, update)
            found = self._found(first + update.answer, stream.stream, update)
            if found:
                yield found
        if self._flight is not None and (entry := self._told.entry(self.usage())) is not None:
            await self._flight.store(entry)

    def _found(self, choice: int, stream: Stream, update: Update) -> list[Said]:
        """What an update of an answer tells the client."""
        events, private, answer = self._events[choice], self._private[choice], stream.answers[update.answer]
        if self._watch is not None and not events.over:
            self._watch.drawn(choice, update.drawn)
        found = events.push(update.drawn, stream.prompt)
        if update.finish_reason is not None:
            if answer.error is not None:
                raise answer.error
            if self._problem is not None and update.finish_reason == "cancelled" and not events.over:
                raise self._problem
            found += events.finish(update.finish_reason)
        shown = private.take(found) if self.service.guards.privacy.on else found
        if update.finish_reason is None and (events.over or private.refused):
            answer.cancel()
        if self._watch is not None:
            self._watch.told(choice, shown, answer.thought, private.finds)
        told = [Said(choice, event) for event in shown]
        self._note(told)
        if self._flight is not None:
            self._told.take(told)
        return told

    def _note(self, told: list[Said]) -> None:
        self._record.reasons += [said.event.reason for said in told if isinstance(said.event, Finish)]

    async def said(self) -> AsyncIterator[Said]:
        """The same, event by event."""
        async for found in self.rounds():
            for said in found:
                yield said

    async def whole(self, request: Request, told: Callable[[Said], object] | None = None) -> list[Whole]:
        """All answers, whole; `told` hears each event. Closed behind them, and where the client leaves before."""
        try:
            return await unless_left(request, self._whole(told))
        finally:
            self.close()

    def usage(self) -> Usage:
        """Tokens so far."""
        if self._kept is not None:
            return self._kept[1]
        return Usage.of(stream.stream for stream in self._streams)

    def fail(self, problem: HttpProblem) -> None:
        """End it with an error, at the next step."""
        self._problem = self._problem or problem
        self._record.ending = "timeout" if self._problem.code == "timeout" else "stopping"
        for stream in self._streams:
            stream.close()

    def close(self) -> None:
        """It is over: what still runs is cancelled. Again does nothing."""
        for stream in self._streams:
            stream.close()
        self._timer.cancel()
        self._record.usage = usage = self.usage()
        if self._ticket is not None:
            self._ticket.leave(usage.completion)
            self._caller.lease.used(usage.prompt, usage.completion)
        if self._flight is not None:
            self._flight.close()
        if self._meter is not None:
            self._meter.close(self._record.reasons, self._problem)
        self.service.leave(self)

    async def _whole(self, told: Callable[[Said], object] | None) -> list[Whole]:
        wholes = [Whole() for _ in self._events]
        async for said in self.said():
            wholes[said.choice].take(said.event)
            if told is not None:
                told(said)
        return wholes

    async def _updates(self) -> AsyncIterator[tuple[int, AsyncStream, Update]]:
        """Of all streams, as they come, each with the number of its stream's first answer."""
        if len(self._streams) == 1:
            async for update in self._streams[0]:
                yield 0, self._streams[0], update
            return
        news: asyncio.Queue[tuple[int, AsyncStream, Update] | None] = asyncio.Queue()

        async def pump(first: int, stream: AsyncStream) -> None:
            async for update in stream:
                news.put_nowait((first, stream, update))
            news.put_nowait(None)

        firsts = [sum(one.request.n for one in self.asked[:number]) for number in range(len(self.asked))]
        pumps = [asyncio.create_task(pump(*pair)) for pair in zip(firsts, self._streams, strict=True)]
        try:
            for _ in self._streams:
                while (one := await news.get()) is not None:
                    yield one
        finally:
            for task in pumps:
                task.cancel()


async def begin(request: Request, kind: Kind, body: Mapping[str, Any]) -> Job:
    """Read a body in OpenAI's form, and begin its answers.

    HttpProblem where there is no new work now, or no room for it; RequestError where the body cannot be served.
    """
    service = service_of(request)
    service.check(body)
    return await start(request, await _read(service, kind, body), body)


async def _read(service: Service, kind: Kind, body: Mapping[str, Any]) -> Reading:
    """A body, as it is read; where answers are kept, equal bodies come again."""
    key, reading = "", None
    if service.guards.cache is not None:
        key, reading = service.readings.find(kind, body)
    if reading is None:
        reading = Reading(await service.apart(lambda: Asked.read_all(service.model, kind, body, service.rules)))
        if key:
            service.readings.keep(key, reading)
    return reading


async def start(request: Request, reading: Reading, body: Mapping[str, Any] | None = None) -> Job:
    """Begin the answers to what was read, or find them; as above. `body` is for whoever reviews them."""
    service, asked = service_of(request), reading.asked
    answers = sum(one.request.n for one in asked)
    if answers > service.options.answers:
        raise HttpProblem(400, f"n: {answers} answers are asked for, there may be {service.options.answers}", param="n")
    flight = await _flight(request, reading)
    try:
        if flight is not None and flight.entry is not None:
            return Job(request, asked, flight=flight)
        return await _compute(request, asked, flight, body)
    except BaseException:
        if flight is not None:
            flight.close()
        raise


async def _flight(request: Request, reading: Reading) -> Flight | None:
    """Where answers are kept: these, or the turn to compute them; None where these are not to be kept."""
    service, tenant = service_of(request), caller_of(request.scope).tenant
    cache, privacy = service.guards.cache, service.guards.privacy
    if cache is None or not all(one.keep for one in reading.asked):
        return None
    if tenant not in reading.keys:
        reading.keys[tenant] = cache.key_of(question_of(reading.asked, service.identity, privacy, tenant))
    key = reading.keys[tenant]
    if not cache.busy(key):
        return await cache.ask(key)
    return await _turn(request, service, cache.ask(key))


async def _turn(request: Request, service: Service, asking: Coroutine[Any, Any, Flight]) -> Flight:
    """Somebody computes the answer: wait for it, or for the turn to do so. A turn that comes too late is given back."""
    come = list[Flight]()

    async def ask() -> None:
        come.append(await asking)

    try:
        async with asyncio.timeout(service.options.request_seconds):
            await unless_left(request, ask())
        return come[0]
    except BaseException as error:
        for flight in come:
            flight.close()
        if isinstance(error, TimeoutError):
            words = "an equal request, for which this one waited, was not answered in time"
            raise HttpProblem(504, words, "timeout") from None
        raise


async def _compute(request: Request, asked: list[Asked], flight: Flight | None, body: Mapping[str, Any] | None) -> Job:
    service = service_of(request)
    for one in asked:
        if one.request.grammar is not None:
            await service.engine.prepare(one.request)
    if service.phase != "ready":  # the server was told to stop meanwhile
        raise service.closed()
    caller = caller_of(request.scope)
    wanted = [replace(one.request, tenant=caller.tenant) for one in asked]
    if service.guards.keys is not None:  # nobody goes ahead of others by asking for it
        wanted = [replace(one, priority=max(one.priority, 0)) for one in wanted]
    if service.reviews is not None:
        wanted = [service.reviews.scored(one) for one in wanted]
    lengths = [one.request.max_tokens if one.bounded else min(one.request.max_tokens, _OPEN) for one in asked]
    answers = sum(one.n * length for one, length in zip(wanted, lengths, strict=True))
    await caller.lease.set_aside(sum(len(one.prompt) for one in wanted), answers)
    ticket = service.admission.enter(wanted)
    streams = list[AsyncStream]()
    try:
        for each in wanted:
            streams.append(service.engine.submit(each))
        return Job(request, asked, streams, ticket, flight, body)
    except BaseException:
        ticket.leave(0)
        for stream in streams:
            stream.close()
        raise


def _watch(request: Request, job: Job, body: Mapping[str, Any]) -> Watch | None:
    """What looks at the answers of a job for rules to judge, if there are any."""
    reviews, caller = job.service.reviews, caller_of(request.scope)
    if reviews is None or not reviews.rules:
        return None
    return reviews.watch(job.asked, body, job.model, (caller.name, caller.owner or ""))


async def unless_left(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled where the client leaves before: HttpProblem 499, which nobody reads."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(left(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            record_of(request.scope).ending = "left"
            raise HttpProblem(499, "the client left", "client_closed_request")
        return task.result()
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def left(receive: Any) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
