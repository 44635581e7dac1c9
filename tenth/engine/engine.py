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
from tenth.engine.captured import Runner, runner_of
from tenth.engine.draws import draw
from tenth.engine.generate import check_room
from tenth.engine.grammar_compiler import GrammarCompiler
from tenth.engine.grammar_matcher import Matcher
from tenth.engine.masks import Masks
from tenth.engine.pages import PagePool
from tenth.engine.progress import Progress
from tenth.engine.request import Request
from tenth.engine.sampler import Drawn, Sampler
from tenth.engine.scheduler import Part, Scheduler, SchedulerOptions
from tenth.engine.speculation import MakeProposer, Speculation
from tenth.engine.stream import Answer, FinishReason, Stream
from tenth.engine.thinking import Thought
from tenth.engine.work import Work, note_prompt, note_routing, works_of
from tenth.errors import RequestError, TenthError
from tenth.kernels.contract import KVType
from tenth.kernels.cpu.operations import CpuKernels
from tenth.model.batch import Output
from tenth.model.cache import KVCache, bytes_per_page


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`pages` of `page_size` tokens for keys and values of type `kv`, and the scheduler's limits."""

    pages: int = 256
    page_size: int = 32
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    kv: KVType = "bf16"

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

        `grammars` knows the vocabulary, for requests with a grammar.
        """
        options = options or EngineOptions()
        self._decoder, self._runner, self._clock = decoder, runner_of(decoder), clock
        self._cache = KVCache(
            decoder.config, options.pages, options.page_size, decoder.dtype, decoder.device, decoder.kernels, options.kv
        )
        self.scheduler = Scheduler(PagePool(options.pages), self._cache.page_size, options.scheduler)
        self._numbers = count()
        self._searches: dict[Stream, BeamGroup] = {}
        self._grammars, self._masks = grammars, Masks()
        self._speculation = None if proposer is None else Speculation(proposer, clock)
        self._submitted: deque[Progress] = deque()

    def submit(self, request: Request) -> Stream:
        """Let a request wait for its turn; RequestError where it does not fit model or cache, or its grammar is bad."""
        room = self._room(request)
        samplers = self._samplers(request)
        stream = Stream(request, [Answer(sampler.seed) for sampler in samplers])
        for sampler, answer in zip(samplers[:1] if request.beams else samplers, stream.answers, strict=False):
            # a search begins as one sequence
            progress = Progress(stream, answer, sampler, next(self._numbers), self._clock(), room, list(request.prompt))
            if request.thinking is not None:
                progress.thought = Thought(request.thinking)
            if request.grammar is not None:
                progress.matcher = self._start(request)
            self._submitted.append(progress)
        return stream

    def abort(self, error: TenthError) -> None:
        """End everything with an error, so that a step that failed holds nothing."""
        self._arrive()
        for progress in self.scheduler.sequences:
            progress.answer.error = error
            self._finish(progress, "error")

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._submitted or self.scheduler.running or self.scheduler.waiting)

    @torch.inference_mode()
    def step(self) -> bool:
        """Schedule, run, commit; whether there was anything to compute."""
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

    def _room(self, request: Request) -> int:
        """Tokens that may follow; RequestError where the context or the cache is too small."""
        if request.rolling is None:
            room = check_room(self._decoder, request.prompt, request.max_tokens)
            self.scheduler.check(len(request.prompt) + room, request.beams or 1)
            return room
        visible, context = self.scheduler.visible(request.rolling), self._decoder.config.context_length
        if visible > context:
            raise RequestError(f"rolling sees {visible} tokens, first page included, the model's context is {context}")
        self.scheduler.check(min(len(request.prompt) + request.max_tokens, visible), 1)
        return request.max_tokens

    def _samplers(self, request: Request) -> list[Sampler]:
        """One for each answer, each with a seed of its own."""
        vocab_size, kernels = self._decoder.config.vocab_size, self._decoder.kernels
        for token in request.token_ids:
            if not 0 <= token < vocab_size:
                raise RequestError(f"token id {token} is outside the vocabulary, 0 to {vocab_size - 1}")
        team = kernels.machine if isinstance(kernels, CpuKernels) else True

        def sampler(number: int) -> Sampler:
            seed = request.sampling.seed
            options = request.sampling if seed is None else replace(request.sampling, seed=(seed + number) % (1 << 63))
            return Sampler(options, request.prompt, vocab_size, request.forbidden, native=team)

        return [sampler(number) for number in range(request.n)]

    def _arrive(self) -> None:
        while self._submitted:
            progress = self._submitted.popleft()
            if progress.request.beams:
                self._searches[progress.stream] = BeamGroup(progress, self.scheduler, self._cache.copy_page)
            self.scheduler.submit(progress)
            self._force(progress)

    def _drop_cancelled(self) -> None:
        for progress in self.scheduler.sequences:
            if progress.answer.cancelled or progress.stream.cancelled:
                self._finish(progress, "cancelled")

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
            chosen_NV = logits_NV if places == list(range(len(logits_NV))) else logits_NV[places]  # rarely a copy
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
        if progress.thought is not None:
            progress.thought.take(drawn.token)
            answer.thought = progress.thought.tokens
        if matcher is not None and constrained and progress.constrained and not forced:
            matcher.take(drawn.token)
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
        self.scheduler.finish(progress)
        if progress.stream in self._searches:
            self._close(progress.stream, reason)

    def _close(self, stream: Stream, reason: FinishReason) -> None:
        """End a search; `reason` is for answers that have none."""
        self._searches.pop(stream).close()
        for answer in stream.answers:
            answer.finish_reason = answer.finish_reason or reason
