"""What all requests share: the model, its engine, the options, the phase of the server, the work that is inside."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from starlette.requests import Request

from tenth.api.bodies import Rules
from tenth.api.model import Model
from tenth.engine.async_engine import AsyncEngine
from tenth.engine.request import MOST_ANSWERS
from tenth.errors import RequestError
from tenth.observe.profiling import profiled_model
from tenth.routing.profile import RoutingProfile
from tenth.routing.window import RoutingWindow
from tenth.serve.admission import Admission, AdmissionLimits
from tenth.serve.drift import DriftWatch
from tenth.serve.guards import Guards
from tenth.serve.live_ticker import Live
from tenth.serve.meter import Meter
from tenth.serve.problems import HttpProblem
from tenth.serve.readings import Readings

if TYPE_CHECKING:
    from tenth.serve.answering import Job
    from tenth.serve.review_queue import Reviews

Phase = Literal["loading", "warming up", "ready", "draining", "stopped"]
Result = TypeVar("Result")

_READERS = 2  # threads that read bodies: templates and tokenizers work outside of Python
log = logging.getLogger("tenth.serve")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `tenth serve` was told. Sizes are in bytes, times in seconds.

    `names` are what the model goes by, `tool_form` how it writes calls of tools. `context` bounds the tokens of prompt
    and answer together. `answers` bounds those of one request (`n` times its prompts), `queue` those at work and
    waiting in all, `queue_fill` the tokens that these may ask for, as a multiple of what the cache holds.
    `body_seconds` is for a body to come, `request_seconds` for all of a request, `send_seconds` for a client to take
    what it is sent. After `heartbeat_seconds` of silence a stream says that it is alive; `drain_seconds` is what
    running requests get when the server stops. `origins` are allowed by CORS. `hosts` are names that requests may
    be sent to, beside this machine's own; None takes any. Without `metrics` nothing is counted, without `console`
    there is no page at `/`. `drift_alarm` is how far the experts' work may be from a stored profile, in bits beyond
    chance (`tenth.routing.drift`).
    """

    names: tuple[str, ...] = ("default",)
    tool_form: str = "auto"
    context: int | None = None
    answers: int = MOST_ANSWERS
    queue: int = 256
    queue_fill: float = 8.0
    body_bytes: int = 16 << 20
    body_seconds: float = 60.0
    request_seconds: float = 3600.0
    send_seconds: float = 60.0
    heartbeat_seconds: float = 15.0
    drain_seconds: float = 30.0
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    log_prompts: bool = False
    metrics: bool = True
    console: bool = True
    drift_alarm: float = 0.1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, float) and not 0 <= value < math.inf:
                name = name.removesuffix("_seconds")
                raise RequestError(f"{name} is {value}, it must be a number that is not negative")


class Service:
    """One model behind one port. `begin` gives it the model; until then, and when it drains, there is no new work.

    Its `guards` and `reviews` are the caller's to close. `profile` is what routing is held against.
    """

    def __init__(
        self,
        options: ServeOptions,
        guards: Guards | None = None,
        clock: Callable[[], float] = time.monotonic,
        profile: RoutingProfile | None = None,
        reviews: Reviews | None = None,
    ) -> None:
        self.options, self.guards, self.clock = options, guards or Guards(), clock
        self.reviews = reviews
        if profile is not None and not options.metrics:
            raise RequestError("a routing profile is compared with what metrics count: it does not go without them")
        self._stored = profile
        self.drift: DriftWatch | None = None  # once there is a model
        self.meter = Meter() if options.metrics else None
        self.phase: Phase = "loading"
        self.started, self.begun = int(time.time()), clock()
        self.jobs: set[Job] = set()
        self.reading = 0
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="tenth-reader")
        self._model: Model | None = None
        self._engine: AsyncEngine | None = None
        self._emptied = asyncio.Event()
        self.live = Live(self)

    def begin(self, model: Model, engine: AsyncEngine) -> None:
        """The model has been loaded; `warm_up` is next."""
        self._model, self._engine, self.phase = model, engine, "warming up"
        room = engine.engine.tokens
        context = min(model.config.context_length, room, self.options.context or room)
        self.rules = Rules(context, self.options.answers, fill=True, tool_form=self.options.tool_form)
        decoder = model.decoder
        computed = (model.kv, decoder.dtype, decoder.device, type(decoder.kernels).__name__, engine.engine.limit)
        self.identity = " ".join(map(str, (model.identity, *computed)))
        self.readings = Readings(None if model.template is None else model.template.source)
        limits = AdmissionLimits(self.options.queue, int(self.options.queue_fill * room))
        self.admission = Admission(limits, self.clock)
        if self.meter is not None and model.config.moe is not None:
            self.meter.experts = RoutingWindow(profiled_model(decoder, self.options.names[0]))
            engine.engine.watch(self.meter.experts)
        if self._stored is not None:
            self.drift = self._drift_from(self._stored)

    def _drift_from(self, stored: RoutingProfile) -> DriftWatch:
        if self.meter is None or self.meter.experts is None:
            raise RequestError(f"a routing profile ({stored.model.name}) needs a model with experts to compare with")
        return DriftWatch(self.meter.experts, stored, self.options.drift_alarm)

    @property
    def model(self) -> Model:
        """The model; HttpProblem 503 while there is none."""
        if self._model is None:
            raise self.closed()
        return self._model

    @property
    def engine(self) -> AsyncEngine:
        """Its engine; HttpProblem 503 while there is none."""
        if self._engine is None:
            raise self.closed()
        return self._engine

    @property
    def loaded(self) -> tuple[Model, AsyncEngine] | None:
        """Both, whatever the phase, once they are there."""
        return (self._model, self._engine) if self._model is not None and self._engine is not None else None

    @property
    def window(self) -> RoutingWindow | None:
        """What routers decide; None where nobody watches them (`unwatched`)."""
        return None if self.meter is None else self.meter.experts

    @property
    def unwatched(self) -> str:
        """Why there is no `window`."""
        if self.meter is None:
            return "the server runs with --no-metrics"
        return "the model is not loaded yet" if self.loaded is None else "the model has no experts"

    @property
    def failure(self) -> str | None:
        """Why nothing is answered any more: the engine's thread has died. None as long as it lives."""
        return None if self._engine is None else self._engine.failure

    def closed(self) -> HttpProblem:
        """Why there is no new work now."""
        if self.phase in ("draining", "stopped"):
            return HttpProblem(503, "the server is stopping and takes no new requests", "stopping", retry_after=5)
        return HttpProblem(503, f"the model is not ready yet: {self.phase}", "not_ready", retry_after=5)

    def check(self, body: Mapping[str, Any]) -> None:
        """HttpProblem where there is no new work now, or a body names another model."""
        if self.phase != "ready":
            raise self.closed()
        name = body.get("model")
        if name is not None and not isinstance(name, str):
            raise HttpProblem(400, f"model is {name!r:.40}, it must be a text", param="model")
        if name:
            self.check_name(name)
        if self.reading >= self.options.queue:
            raise HttpProblem(429, "the server is full: too many requests are being read", "queue_full", retry_after=1)

    def check_name(self, name: str) -> None:
        """HttpProblem 404 for a model that is not served here."""
        if name not in self.options.names:
            there = ", ".join(self.options.names)
            raise HttpProblem(
                404, f"the model {name!r:.80} is not served here (there is: {there})", "model_not_found", "model"
            )

    @property
    def model_context(self) -> int | None:
        """Tokens that prompt and answer may have together; None until the model is there."""
        return self.rules.context if self._model is not None else None

    async def apart(self, work: Callable[[], Result]) -> Result:
        """Do something that takes a while in another thread, so that no other request waits for it."""
        self.reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, work)
        finally:
            self.reading -= 1

    def enter(self, job: Job) -> None:
        """A request is at work."""
        self.jobs.add(job)
        self._emptied.clear()

    def leave(self, job: Job) -> None:
        """It has ended."""
        self.jobs.discard(job)
        if not self.jobs:
            self._emptied.set()

    async def drain(self) -> None:
        """Take no new work, let what runs come to its end, and end what has not in time."""
        self.phase = "draining"
        self.live.close()
        try:
            async with asyncio.timeout(self.options.drain_seconds):
                while self.jobs or self.reading:
                    self._emptied.clear()
                    if self.jobs:
                        await self._emptied.wait()
                    else:
                        await asyncio.sleep(0.01)
        except TimeoutError:
            log.warning("%d requests had not ended after %g seconds", len(self.jobs), self.options.drain_seconds)
        self.stop()

    def stop(self) -> None:
        """End everything now; streams get a last event that says so."""
        self.phase = "stopped"
        self.live.close()
        for job in list(self.jobs):
            job.fail(HttpProblem(503, "the server has stopped before the answer was whole", "stopping", retry_after=5))


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service
