"""Greedy answers of both models: how far they go together, and how many questions each answers as expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.errors import MachineError
from tenth.model.decoder import Decoder
from tenth.observe.parity_corpus import Question
from tenth.observe.parity_sides import Side

_PAGE = 32
_AT_ONCE = 16

Answers = list[list[int]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of each prompt: how many tokens both answers begin with, and how many the longer one has."""

    common: tuple[int, ...]
    longest: tuple[int, ...]

    @classmethod
    def of(cls, a: Sequence[Sequence[object]], b: Sequence[Sequence[object]]) -> Agreement:
        """Of answers to the same prompts."""
        pairs = list(zip(a, b, strict=True))
        return cls(tuple(_common(*pair) for pair in pairs), tuple(max(map(len, pair)) for pair in pairs))

    def facts(self, tokens: int) -> dict[str, object]:
        """As a report has them; `agreement` is the mean share of an answer before the first difference."""
        shares = [n / most if most else 1.0 for n, most in zip(self.common, self.longest, strict=True)]
        return {
            "prompts": len(self.common),
            "tokens": tokens,
            "mean": sum(self.common) / len(self.common),
            "min": min(self.common),
            "whole_share": sum(share == 1.0 for share in shares) / len(shares),
            "agreement": sum(shares) / len(shares),
            "lengths": list(self.common),
        }


def _common(a: Sequence[object], b: Sequence[object]) -> int:
    return next((n for n, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def greedy(
    side: Side, decoder: Decoder, prompts: Sequence[Sequence[int]], tokens: int, progress: Progress | None = None
) -> Answers:
    """The likeliest token after the likeliest token, up to `tokens` of them; RequestError beyond the context."""
    pages = sum(-(-(len(prompt) + tokens) // _PAGE) for prompt in prompts[:_AT_ONCE]) + _AT_ONCE
    longest = -(-(max(map(len, prompts)) + tokens) // _PAGE)
    options = EngineOptions(max(pages, _AT_ONCE * longest), _PAGE, SchedulerOptions(sequences=_AT_ONCE, wait=0.0))
    engine = Engine(decoder, options)
    unknown = [] if side.tokenizer is None else side.tokenizer.unknown_ids(side.config.vocab_size)
    streams = [
        engine.submit(
            Request(
                tuple(prompt),
                tokens,
                Sampling(temperature=0.0),
                end_ids=side.end_ids,
                forbidden=frozenset(unknown),
            )
        )
        for prompt in prompts
    ]
    done = 0
    while engine.step():
        if progress is not None and (now := sum(stream.finished for stream in streams)) != done:
            done = now
            progress(done, len(streams))
    failed = next((answer.error for stream in streams for answer in stream.answers if answer.error is not None), None)
    if failed is not None:
        raise failed
    return [list(stream.tokens) for stream in streams]


def pass_rate(side: Side, questions: Sequence[Question], answers: Answers) -> float:
    """The share of questions whose answer, as text, is what was expected."""
    assert side.tokenizer is not None, "questions are texts"
    texts = [side.tokenizer.decode([t for t in answer if t not in side.end_ids]) for answer in answers]
    return sum(question.passes(text) for question, text in zip(questions, texts, strict=True)) / len(questions)


def answers_of(
    side: Side,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    questions: Sequence[Question],
    answer_tokens: int,
    report: Callable[[str], Progress],
) -> tuple[Answers, Answers] | MachineError:
    """Answers to prompts and questions, by the whole model; the MachineError where it does not fit into memory."""
    try:
        decoder = side.whole()
    except MachineError as error:
        return error
    greedy_answers = greedy(side, decoder, prompts, tokens, report(f"greedy: {side.name}")) if prompts else []
    asked = [question.ids for question in questions]
    question_answers = greedy(side, decoder, asked, answer_tokens, report(f"questions: {side.name}")) if asked else []
    return greedy_answers, question_answers
