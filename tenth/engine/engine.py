"""Many requests at once: schedule, run, commit.

T tokens of a step, N rows with logits, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count

import numpy as np
import torch
from torch import Tensor

from tenth.engine.captured import runner_of
from tenth.engine.generate import check_room
from tenth.engine.pages import PagePool
from tenth.engine.progress import FinishReason, Progress
from tenth.engine.request import Request
from tenth.engine.sampler import Drawn, Sampler, draw_rows
from tenth.engine.scheduler import Part, Scheduler, SchedulerOptions
from tenth.errors import RequestError
from tenth.model.batch import Batch, Output, Placement, Want
from tenth.model.cache import KVCache
from tenth.model.decoder import Decoder
from tenth.routing.record import Routing


@dataclass(slots=True)
class Stream:
    """What has come of a request so far; `routing` is of the tokens that were computed, each once, in order."""

    progress: Progress
    drawn: list[Drawn] = field(default_factory=list)
    routing: list[Routing] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: RequestError | None = None

    @property
    def tokens(self) -> list[int]:
        """The tokens that were generated."""
        return [one.token for one in self.drawn]

    def cancel(self) -> None:
        """Stop: nothing comes behind the next step, which frees all that it holds."""
        self.progress.cancelled = True


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`pages` of `page_size` tokens for keys and values, and the scheduler's limits."""

    pages: int = 256
    page_size: int = 32
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)


class Engine:
    """One model and its cache. Not for several threads: one calls `submit` and `step`."""

    def __init__(
        self, decoder: Decoder, options: EngineOptions | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        options = options or EngineOptions()
        self._decoder, self._runner, self._clock = decoder, runner_of(decoder), clock
        self._cache = KVCache(
            decoder.config, options.pages, options.page_size, decoder.dtype, decoder.device, decoder.kernels
        )
        self.scheduler = Scheduler(PagePool(options.pages), self._cache.page_size, options.scheduler)
        self._streams: dict[int, Stream] = {}
        self._numbers = count()

    def submit(self, request: Request) -> Stream:
        """Let a request wait for its turn; RequestError where it does not fit the model or the cache."""
        room = check_room(self._decoder, request.prompt, request.max_tokens)
        vocab_size = self._decoder.config.vocab_size
        for token in (*request.logit_bias, *request.end_ids, *request.forbidden):
            if not 0 <= token < vocab_size:
                raise RequestError(f"token id {token} is outside the vocabulary, 0 to {vocab_size - 1}")
        sampler = Sampler(request.sampling, request.prompt, vocab_size, request.forbidden)
        progress = Progress(request, sampler, next(self._numbers), self._clock(), room, list(request.prompt))
        self.scheduler.submit(progress)
        stream = self._streams[progress.number] = Stream(progress)
        return stream

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._streams)

    @torch.inference_mode()
    def step(self) -> None:
        """Schedule, run, commit."""
        self._drop_cancelled()
        parts = self.scheduler.schedule(self._clock())
        if parts:
            self._commit(parts, self._run(parts))

    def _drop_cancelled(self) -> None:
        for stream in [s for s in self._streams.values() if s.progress.cancelled]:
            self._finish(stream, "cancelled")

    def _run(self, parts: Sequence[Part]) -> Output:
        size = self._cache.page_size
        tokens, positions, slots, pages = [], [], [], []
        for part in parts:
            progress, start = part.progress, part.progress.computed
            tokens += progress.tokens[start : start + part.count]
            positions_T = np.arange(start, start + part.count)
            table = np.asarray(progress.pages)
            positions.append(positions_T)
            slots.append(table[positions_T // size] * size + positions_T % size)
            pages.append(torch.from_numpy(table))
        bounds = tuple(accumulate((part.count for part in parts), initial=0))
        batch = Batch(
            bounds,
            torch.from_numpy(np.concatenate(positions)),
            torch.tensor(tokens),
            placement=Placement(
                torch.from_numpy(np.concatenate(slots)),
                tuple(pages),
                tuple(part.progress.computed + part.count for part in parts),
            ),
        )
        last_N = torch.tensor([bounds[i + 1] - 1 for i, part in enumerate(parts) if part.draws], dtype=torch.int64)
        kinds = {part.progress.request.record for part in parts}
        record = next(kind for kind in ("full", "choice", "none") if kind in kinds)
        return self._runner(batch, self._cache, Want(logits=last_N, routing=record))

    def _commit(self, parts: Sequence[Part], output: Output) -> None:
        drawing = [part.progress for part in parts if part.draws]
        if output.routing is not None:
            self._note_routing(parts, output.routing)
        for part in parts:
            self.scheduler.computed(part)
        if drawing:
            assert output.logits_NV is not None, "asked for"
            for progress, drawn in zip(drawing, self._drawn(drawing, output.logits_NV), strict=True):
                self._take(self._streams[progress.number], drawn)

    def _note_routing(self, parts: Sequence[Part], routing: Routing) -> None:
        at = 0
        for part in parts:
            progress, start = part.progress, part.progress.computed
            again = max(progress.recorded - start, 0)  # behind a preemption
            if progress.request.record != "none" and again < part.count:
                own = routing.select(slice(at + again, at + part.count)).detach()
                self._streams[progress.number].routing.append(own)
                progress.recorded = start + part.count
            at += part.count

    def _drawn(self, drawing: Sequence[Progress], logits_NV: Tensor) -> list[Drawn | RequestError]:
        """A token for each; log-probabilities are the model's own, before biases."""
        wanted = [progress.request.logprobs for progress in drawing]
        most = max((number for number in wanted if number is not None), default=None)
        changed = {row for row, progress in enumerate(drawing) if _bias(progress)}
        plain = [row for row in range(len(drawing)) if row not in changed]
        drawn: dict[int, Drawn | RequestError] = {}
        rows_NV = logits_NV if not changed else logits_NV[plain]
        samplers = [drawing[row].sampler for row in plain]
        drawn.update(zip(plain, draw_rows(samplers, rows_NV, logprobs=most), strict=True))
        for row in changed:
            drawn[row] = _draw_biased(drawing[row], logits_NV[row], most)
        return [_trimmed(drawn[row], number) for row, number in enumerate(wanted)]

    def _take(self, stream: Stream, drawn: Drawn | RequestError) -> None:
        progress, request = stream.progress, stream.progress.request
        if isinstance(drawn, RequestError):
            stream.error = drawn
            self._finish(stream, "error")
            return
        progress.tokens.append(drawn.token)
        stream.drawn.append(drawn)
        if drawn.token in request.end_ids:
            self._finish(stream, "stop")
        elif progress.generated >= progress.room:
            self._finish(stream, "length")

    def _finish(self, stream: Stream, reason: FinishReason) -> None:
        stream.finish_reason = reason
        self.scheduler.finish(stream.progress)
        del self._streams[stream.progress.number]


def _bias(progress: Progress) -> dict[int, float]:
    """What is added to logits before the next draw."""
    request = progress.request
    early = request.end_ids if progress.generated < request.min_tokens else ()
    return dict(request.logit_bias) | dict.fromkeys(early, -math.inf)


def _draw_biased(progress: Progress, logits_V: Tensor, logprobs: int | None) -> Drawn | RequestError:
    biased_V = logits_V.clone()
    for token, bias in _bias(progress).items():
        biased_V[token] += bias
    drawn = draw_rows([progress.sampler], biased_V[None])[0]
    if logprobs is None or isinstance(drawn, RequestError):
        return drawn
    logprobs_V = torch.log_softmax(logits_V.double(), -1)
    values, ids = logprobs_V.sort(descending=True, stable=True)
    top = list(zip(ids[:logprobs].tolist(), values[:logprobs].tolist(), strict=True))
    return Drawn(drawn.token, float(logprobs_V[drawn.token]), top)


def _trimmed(drawn: Drawn | RequestError, logprobs: int | None) -> Drawn | RequestError:
    """As many log-probabilities as this request wants."""
    if isinstance(drawn, RequestError) or logprobs is None:
        return drawn if isinstance(drawn, RequestError) else Drawn(drawn.token)
    return Drawn(drawn.token, drawn.logprob, drawn.top[:logprobs])
