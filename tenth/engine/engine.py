"""Many requests at once: schedule, run, commit.

T tokens of a step, N rows with logits, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from torch import Tensor

from tenth.engine.assemble import batch_of, rows_of, want_of
from tenth.engine.beam_group import BeamGroup
from tenth.engine.bounds import whole
from tenth.engine.captured import Runner, runner_of
from tenth.engine.draft import DraftCounts
from tenth.engine.draws import draw
from tenth.engine.grammar_compiler import GrammarCompiler
from tenth.engine.grammar_matcher import Matcher
from tenth.engine.masks import Masks
from tenth.engine.pages import PagePool
from tenth.engine.part import Part
from tenth.engine.progress import Progress, biases_of
from tenth.engine.request import Request
from tenth.engine.room import cache_of, room_of
from tenth.engine.sampler import Drawn, Sampler
from tenth.engine.scheduler import Scheduler, SchedulerOptions
from tenth.engine.speculation import MakeProposer, Speculation
from tenth.engine.stream import Answer, FinishReason, Stream
from tenth.engine.thinking import Thought
from tenth.engine.watched import WatchedRunner
from tenth.engine.work import Work, note_prompt, note_routing, rows_at, works_of
from tenth.errors import RequestError, TenthError
from tenth.kernels.contract import KVType
from tenth.kernels.cpu.operations import CpuKernels
from tenth.model.batch import Output
from tenth.model.cache import bytes_per_page, checked_kv
from tenth.model.config import fitted_limit
from tenth.routing.limit import ExpertLimit
from tenth.routing.window import RoutingWindow


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`pages` of `page_size` tokens for keys and values of type `kv`, and the scheduler's limits.

    `limit` is that of requests that have none of their own. RequestError for what cannot be.
    """

    pages: int = 256
    page_size: int = 32
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    kv: KVType = "bf16"
    limit: ExpertLimit | None = None

    def __post_init__(self) -> None:
        whole("EngineOptions.pages", self.pages, 1)
        whole("EngineOptions.page_size", self.page_size, 1)
        checked_kv(self.kv)

    def within(self, memory: int, decoder: Runner) -> EngineOptions:
        """As many pages as so many bytes have room for; RequestError where that is none."""
        page = bytes_per_page(decoder.config, self.page_size, self.kv, dtype=decoder.dtype, kernels=decoder.kernels)
        if memory < page:
            raise RequestError(f"{memory:,} bytes for keys and values are less than a page of {page:,}")
        return replace(self, pages=memory // page)


class Engine:
    """One model and its cache. One thread calls `step`; any may `submit`."""

    def __init__(
        self,
        decoder: Runner,
        options: EngineOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        proposer: MakeProposer | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        """With `proposer` tokens are guessed ahead where that pays; the tokens that come stay the same.

        `grammars` knows the vocabulary, for requests with a grammar. MachineError where pages are more than memory.
        """
        options = options or EngineOptions()
        self.limit = fitted_limit(options.limit, decoder.config)
        self._decoder, self._runner, self._clock = decoder, runner_of(decoder), clock
        self._cache = cache_of(decoder, options.pages, options.page_size, options.kv)
        self.scheduler = Scheduler(
            PagePool(options.pages), self._cache.page_size, options.scheduler, self._cache.copy_page
        )
        self.tokens = options.pages * self._cache.page_size  # that the cache has room for
        self._numbers = count()
        self._searches: dict[Stream, BeamGroup] = {}
        self._grammars, self._masks = grammars, Masks()
        self._speculation = None if proposer is None else Speculation(proposer, clock)
        self._submitted: deque[Progress] = deque()
        self.changed: set[Stream] = set()  # by the last step, and by `abort` behind it

    def prepare(self, request: Request) -> None:
        """Compile a request's grammar, which may take seconds, so that `submit` is quick; any thread may."""
        if request.grammar is not None and self._grammars is not None:
            self._grammars.compile(request.grammar)

    def submit(self, request: Request) -> Stream:
        """Let a request wait for its turn; RequestError where it does not fit model or cache, or its grammar is bad."""
        own = self.limit if request.limit is None else fitted_limit(request.limit, self._decoder.config)
        request = request if own == request.limit else replace(request, limit=own)
        room = room_of(request, self._decoder, self.scheduler)
        samplers = self._samplers(request)
        stream, sequences = Stream(request, [Answer(sampler.seed) for sampler in samplers]), list[Progress]()
        biases = biases_of(request)
        for sampler, answer in zip(samplers[:1] if request.beams else samplers, stream.answers, strict=False):
            # a search begins as one sequence
            number, tokens = next(self._numbers), list(request.prompt)
            progress = Progress(stream, answer, sampler, number, self._clock(), room, tokens, biases)
            if request.thinking is not None:
                progress.thought = Thought(request.thinking)
            if request.grammar is not None:
                progress.matcher = self._start(request)
            sequences.append(progress)
        self._submitted.extend(sequences)  # all or, where a grammar fails, none
        return stream

    def abort(self, error: TenthError) -> None:
        """End everything with an error, so that a step that failed holds nothing."""
        new = list[Progress]()
        while self._submitted:
            new.append(self._submitted.popleft())
        for progress in [*self.scheduler.sequences, *new]:
            progress.stream.fail(error)
            self._finish(progress, "error")

    def watch(self, window: RoutingWindow) -> None:
        """Show it what routers decide, from the next step on."""
        self._runner = WatchedRunner(self._runner, window)

    @property
    def load(self) -> tuple[int, int]:
        """Sequences at work, and waiting."""
        return len(self.scheduler.running), len(self.scheduler.waiting) + len(self._submitted)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return any(self.load)

    @property
    def draft_counts(self) -> DraftCounts | None:
        """What came of tokens guessed ahead so far; None where nobody guesses."""
        return None if self._speculation is None else self._speculation.counts

    @torch.inference_mode()
    def step(self) -> bool:
        """Schedule, run, commit; whether there was anything to compute."""
        self.changed = set()
        self._arrive()
        self._drop_cancelled()
        if self._speculation is not None:
            self._speculation.guess(self.scheduler.running)
        start = self._clock()
        parts = self.scheduler.schedule(start)
        if parts:
            rows = rows_of(parts)
            self._masks.begin([part.progress for part in parts if part.draws])
            works = self._commit(works_of(parts, rows), self._run(parts, rows))
            if self._speculation is not None:
                self._speculation.note(works, self._clock() - start)
        return bool(parts)

    def _start(self, request: Request) -> Matcher:
        if self._grammars is None or request.grammar is None:
            raise RequestError("this engine has no vocabulary for grammars: make it with one")
        return self._grammars.start(request.grammar, request.end_ids)

    def _samplers(self, request: Request) -> list[Sampler]:
        """One for each answer, each with a seed of its own."""
        vocab_size, kernels = self._decoder.config.vocab_size, self._decoder.kernels
        highest = max(request.token_ids, default=0)
        if highest >= vocab_size:
            raise RequestError(f"token id {highest} is outside the vocabulary, 0 to {vocab_size - 1}")
        team = kernels.machine if isinstance(kernels, CpuKernels) else True

        first = Sampler(request.sampling, request.prompt, vocab_size, request.forbidden, native=team)
        seed = request.sampling.seed
        seeds = [None if seed is None else (seed + number) % (1 << 63) for number in range(1, request.n)]
        return [first, *map(first.beside, seeds)]

    def _arrive(self) -> None:
        while self._submitted:
            progress = self._submitted[0]
            if progress.request.beams:
                self._searches[progress.stream] = BeamGroup(progress, self.scheduler)
            self.scheduler.submit(progress)
            self._submitted.popleft()  # only now: who is nowhere would never end where this fails
            self._force(progress)

    def _drop_cancelled(self) -> None:
        for progress in self.scheduler.sequences:
            searched = progress.request.beams is not None  # for all answers, as long as one of them is wanted
            if progress.stream.cancelled if searched else progress.answer.cancelled:
                self._finish(progress, "cancelled")
        for stream in self._searches:
            if stream.drop():
                self.changed.add(stream)

    def _run(self, parts: Sequence[Part], rows: Sequence[range]) -> Output:
        return self._runner(batch_of(parts, self._cache.page_size), self._cache, want_of(parts, rows))

    def _commit(self, works: list[Work], output: Output) -> list[Work]:
        """Take what was computed: what is asked of prompts, then tokens, one behind the other where guesses hold."""
        logits_NV = output.logits_NV
        assert logits_NV is not None, "asked for"
        for work in works:
            if work.progress.reads_prompt and not work.part.turns:
                note_prompt(work, logits_NV)
            self.scheduler.computed(work.part)
        drawing = [work for work in works if work.draws]
        while drawing:
            for work in [work for work in drawing if work.progress.stream in self._searches]:
                self._search(work.progress, logits_NV[work.row])
            drawing = [work for work in drawing if work.progress.request.beams is None]
            places = [work.row for work in drawing]
            chosen_NV = rows_at(logits_NV, places)
            masks = [self._masks.of(work.progress) for work in drawing]
            drawn = draw([work.progress for work in drawing], chosen_NV, masks)
            for work, one in zip(drawing, drawn, strict=True):
                work.right += self._take(work.progress, one)
            drawing = [work for work in drawing if work.progress.computed == len(work.progress.tokens)]
        if output.routing is not None:
            note_routing(works, output.routing)
        return works

    def _take(self, progress: Progress, drawn: Drawn | RequestError) -> bool:
        """Add a token; whether the guess at it was right, so that the one behind it was computed too."""
        guess, progress.draft = progress.draft[:1], progress.draft[1:]
        if isinstance(drawn, RequestError):
            progress.answer.error = drawn
            self._finish(progress, "error")
            return False
        self._append(progress, drawn)
        forced, right = self._force(progress), guess == [drawn.token] and progress.answer.finish_reason is None
        if right:
            self.scheduler.confirmed(progress)
        if forced or not right:
            progress.draft = []
        return right

    def _append(self, progress: Progress, drawn: Drawn, *, forced: bool = False) -> None:
        answer, matcher, constrained = progress.answer, progress.matcher, progress.constrained
        progress.tokens.append(drawn.token)
        answer.drawn.append(drawn)
        self.changed.add(progress.stream)
        if progress.thought is not None:
            progress.thought.take(drawn.token)
            answer.thought = progress.thought.tokens
        if matcher is not None and constrained and progress.constrained and not forced:
            try:
                matcher.take(drawn.token)
            except RequestError as error:  # it was allowed, but what follows is too much for the grammar's limits
                answer.error = error
                self._finish(progress, "error")
                return
        if drawn.token in progress.request.end_ids or (matcher is not None and matcher.stopped):
            self._finish(progress, "stop")
        elif progress.generated >= progress.room:
            self._finish(progress, "length")

    def _force(self, progress: Progress) -> bool:
        """Put in what must follow now, if anything: the end of a thought whose budget is spent."""
        forced = progress.thought.forced if progress.thought is not None else ()
        for token in forced:
            if progress.answer.finish_reason is None:
                progress.sampler.note(token)
                self._append(progress, Drawn(token), forced=True)
        return bool(forced)

    def _search(self, progress: Progress, logits_V: Tensor) -> None:
        search = self._searches.get(progress.stream)
        if search is not None and search.take(progress, logits_V, self._masks.of(progress)):
            self._close(progress.stream, "error")

    def _finish(self, progress: Progress, reason: FinishReason) -> None:
        progress.answer.finish_reason = reason
        self.changed.add(progress.stream)
        self.scheduler.finish(progress)
        if progress.stream in self._searches:
            self._close(progress.stream, reason)

    def _close(self, stream: Stream, reason: FinishReason) -> None:
        """End a search; `reason` is for answers that have none."""
        self.changed.add(stream)
        self._searches.pop(stream).close()
        for answer in stream.answers:
            answer.finish_reason = answer.finish_reason or reason
