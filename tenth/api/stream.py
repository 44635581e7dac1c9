"""A generation as it comes, and as a whole: text, tokens, routing, times."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tenth.engine.draft import DraftCounts
from tenth.engine.generate import Step
from tenth.engine.sampler import Sampler
from tenth.routing.record import Routing
from tenth.weights.text_stream import TextStream


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a stream: text that is safe to show, and the token behind it (its text may come with a later one)."""

    text: str
    token: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What was generated, why it ended, and what it took (seconds).

    `finish_reason` is `stop` (an end token, or the stop string in `stopped_by`), `length`, or `interrupted` where the
    reader left. `routing` covers the prompt's tokens that were computed, then the generated ones but the last. `drafts`
    is what came of tokens guessed ahead, None where nobody was to guess.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: Literal["stop", "length", "interrupted"]
    stopped_by: str | None
    routing: Routing | None
    seed: int
    prefill_seconds: float
    decode_seconds: float
    drafts: DraftCounts | None = None

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens behind the first, over the time they took (0 where there are none)."""
        return (len(self.tokens) - 1) / self.decode_seconds if len(self.tokens) > 1 else 0.0


class Stream:
    """An iterator of `Chunk`s; `result` is the `Generation` so far, whole once the iteration has ended.

    A reader who has enough just leaves, or calls `close`.
    """

    def __init__(
        self,
        steps: Generator[Step],
        text: TextStream,
        sampler: Sampler,
        prompt_tokens: int,
        end_ids: frozenset[int],
        drafts: DraftCounts | None = None,
    ) -> None:
        self._steps, self._text, self._end_ids, self._drafts = steps, text, end_ids, drafts
        self._seed, self._prompt_tokens = sampler.seed, prompt_tokens
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self._records: list[Routing] = []
        self._reason: Literal["stop", "length", "interrupted"] = "interrupted"
        self._prefill = self._decode = 0.0
        self._chunks = self._run()

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        """End the generation here; `result` keeps what there is."""
        self._chunks.close()

    def _run(self) -> Generator[Chunk]:
        try:
            yield from self._read()
        finally:
            self._steps.close()  # the cached sequence goes back to the model now, not when the stream is forgotten

    def _read(self) -> Iterator[Chunk]:
        while (step := self._next()) is not None:
            if step.token in self._end_ids:
                self._reason = "stop"
                break
            text = self._text.push(step.token)
            self._pieces.append(text)
            if self._text.stopped is not None:
                self._reason = "stop"
                yield Chunk(text, step.token)
                return
            yield Chunk(text, step.token)
        else:
            self._reason = "length"
        rest = self._text.finish()
        self._pieces.append(rest)
        if rest:
            yield Chunk(rest)

    def _next(self) -> Step | None:
        """The next step, noted; only the time it takes counts, not what the reader does between two."""
        start = time.perf_counter()
        step = next(self._steps, None)
        spent = time.perf_counter() - start
        if step is None:
            return None
        if self._tokens:
            self._decode += spent
        else:
            self._prefill += spent
        self._tokens.append(step.token)
        if step.routing is not None:
            self._records.append(step.routing)
        return step

    @property
    def result(self) -> Generation:
        """Everything so far."""
        return Generation(
            text="".join(self._pieces),
            tokens=tuple(self._tokens),
            prompt_tokens=self._prompt_tokens,
            finish_reason=self._reason,
            stopped_by=self._text.stopped,
            routing=Routing.join(self._records) if self._records else None,
            seed=self._seed,
            prefill_seconds=self._prefill,
            decode_seconds=self._decode,
            drafts=None if self._drafts is None else replace(self._drafts),
        )
