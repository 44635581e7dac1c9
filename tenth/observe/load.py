"""How many requests a model serves at once, and how long each one waits: the measuring of `tenth bench --concurrency`.

Requests of random tokens go to the engine, either so many at all times or as they arrive by chance (a Poisson process);
a token's time is when the step that gave it has ended. Waiting counts from the moment a request was due.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.stream import Stream
from tenth.errors import RequestError
from tenth.kernels.choice import choose_kernels
from tenth.kernels.contract import KVType
from tenth.model.decoder import Decoder
from tenth.routing.limit import ExpertLimit
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder

Progress = Callable[[int, int], None]

_PAGE = 32


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """So many `requests` of `prompt` tokens that generate `generate`: `concurrency` at all times, or `rate` a second.

    `warmup` requests come first and are not counted. RequestError for what cannot be.
    """

    prompt: int
    generate: int
    requests: int
    concurrency: int | None = None
    rate: float | None = None
    warmup: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt", "generate", "concurrency", "requests"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} is {value}, it must be at least 1")
        if (self.concurrency is None) == (self.rate is None):
            raise RequestError("a load is either a concurrency or a rate")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise RequestError(f"rate is {self.rate}, it must be above 0 requests a second")


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds: of all values half, 90 and 99 in a hundred are no longer (nearest rank)."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Of so many measurements; not a number where there is none."""
        ordered = sorted(seconds)

        def at(share: float) -> float:
            return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else math.nan

        return cls(at(0.5), at(0.9), at(0.99))


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did: generated tokens a second of all requests, seconds to the first token and between two."""

    settings: LoadSettings
    seconds: float
    tok_s: float
    prompt_tok_s: float
    first_token: Spread
    between_tokens: Spread
    whole: Spread
    preempted: int


def measure_loads(
    path: Path,
    loads: Sequence[LoadSettings],
    *,
    backend: str = "auto",
    threads: int | None = None,
    kv: KVType = "bf16",
    memory: int | None = None,
    limit: ExpertLimit | None = None,
    progress: Progress | None = None,
) -> list[LoadReport]:
    """Load a model, in `memory` bytes where that is stated, and run one load after the other, all within a limit."""
    with open_checkpoint(path) as checkpoint:
        head_dim = checkpoint.config.head_dim
        kernels = choose_kernels(backend, packed=checkpoint.packed is not None, head_dim=head_dim, threads=threads)
        decoder = load_decoder(checkpoint, kernels=kernels, memory=memory)
    total, found = sum(load.requests for load in loads), list[LoadReport]()
    for load in loads:
        before = sum(report.settings.requests for report in found)
        told = None if progress is None else partial(_further, progress, before, total)
        found.append(measure_load(decoder, load, kv=kv, limit=limit, progress=told))
    return found


def _further(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


@dataclass(slots=True)
class _Watched:
    """A request on its way, with the times of its tokens."""

    stream: Stream
    due: float
    times: list[float] = field(default_factory=list)


def measure_load(
    decoder: Decoder,
    settings: LoadSettings,
    options: SchedulerOptions | None = None,
    *,
    kv: KVType = "bf16",
    limit: ExpertLimit | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> LoadReport:
    """Run the load on an engine with room for all that work at once; RequestError where the context is too short.

    What ends a request with an error ends the load. `progress` is told the requests done, of how many.
    """
    options = options or SchedulerOptions(sequences=max(settings.concurrency or 0, SchedulerOptions().sequences))
    length = settings.prompt + settings.generate
    if length > decoder.config.context_length:
        raise RequestError(
            f"{length} tokens of a request do not fit the model's context, {decoder.config.context_length}"
        )
    pages = (1 + options.sequences) * (length // _PAGE + 2)
    engine = Engine(decoder, EngineOptions(pages, _PAGE, options, kv, limit), clock)
    chance = random.Random(settings.seed)
    for _ in range(settings.warmup):
        engine.submit(_request(decoder, settings, chance))
        while engine.busy:
            engine.step()
    before = engine.scheduler.counts.preempted
    start = clock()
    watched = list(_served(engine, _arrivals(decoder, settings, chance), start, settings, clock, progress))
    seconds = clock() - start
    return LoadReport(
        settings,
        seconds,
        sum(len(one.times) for one in watched) / seconds,
        settings.requests * settings.prompt / seconds,
        Spread.of([one.times[0] - one.due for one in watched]),
        Spread.of([later - sooner for one in watched for sooner, later in pairwise(one.times)]),
        Spread.of([one.times[-1] - one.due for one in watched]),
        engine.scheduler.counts.preempted - before,
    )


def _request(decoder: Decoder, settings: LoadSettings, chance: random.Random) -> Request:
    ids = tuple(chance.randrange(decoder.config.vocab_size) for _ in range(settings.prompt))
    return Request(ids, settings.generate, Sampling(temperature=0))


def _arrivals(decoder: Decoder, settings: LoadSettings, chance: random.Random) -> Iterator[tuple[float, Request]]:
    """Requests with the seconds after which each is due; all at once where the concurrency holds them back."""
    at = 0.0
    for _ in range(settings.requests):
        yield at, _request(decoder, settings, chance)
        at += chance.expovariate(settings.rate) if settings.rate is not None else 0.0


def _served(
    engine: Engine,
    arrivals: Iterator[tuple[float, Request]],
    start: float,
    settings: LoadSettings,
    clock: Callable[[], float],
    progress: Progress | None,
) -> Iterator[_Watched]:
    """The requests, each when it has ended."""
    at_work: list[_Watched] = []
    most, done = settings.concurrency or settings.requests, 0
    coming = next(arrivals, None)
    while at_work or coming is not None:
        while coming is not None and len(at_work) < most and start + coming[0] <= clock():
            due = start + coming[0] if settings.rate is not None else clock()
            at_work.append(_Watched(engine.submit(coming[1]), due))
            coming = next(arrivals, None)
        if not at_work and coming is not None:
            time.sleep(max(start + coming[0] - clock(), 0.0))
            continue
        engine.step()
        now = clock()
        for one in at_work:
            one.times += [now] * (len(one.stream.tokens) - len(one.times))
        ended = [one for one in at_work if one.stream.finished]
        for one in ended:
            if one.stream.answers[0].error is not None:  # a speed of requests that fail is none
                raise one.stream.answers[0].error
        at_work = [one for one in at_work if not one.stream.finished]
        done += len(ended)
        if ended and progress is not None:
            progress(done, settings.requests)
        yield from ended
