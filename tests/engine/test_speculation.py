"""Proposers in the engine: no token changes whoever guesses, right guesses save steps, and what ends lets go."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.draft import PromptLookup, Proposer
from tenth.engine.draft_model import DraftModel, Vocabulary
from tenth.engine.draft_suffix import AnswerStore, SuffixMatch
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.speculation import MakeProposer
from tenth.engine.stream import Stream
from tenth.engine.thinking import Thinking
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset

CONFIG = preset("tiny-moe")
GREEDY = Sampling(temperature=0)
WORDS = Vocabulary(CONFIG.vocab_size, "one tokenizer")


def decoder(seed: int) -> Decoder:
    return initialise(Decoder(CONFIG, dtype=torch.float64), seed=seed, std=0.2).requires_grad_(False)


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    return decoder(1)


class Clock:
    """A step takes the same time whatever is in it: guesses cost nothing."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def served(
    engine: Engine, clock: Clock, requests: Sequence[Request], audit: Callable[[], None] = lambda: None
) -> tuple[list[Stream], int]:
    """All requests at once, and the steps they took."""
    run, steps = engine._run, 0

    def a_second(*arguments: object) -> object:
        clock.now += 1.0
        return run(*arguments)  # type: ignore[arg-type]

    setattr(engine, "_run", a_second)  # noqa: B010  (mypy takes no assignment to a method)
    streams = [engine.submit(request) for request in requests]
    while engine.busy:
        engine.step()
        engine.scheduler.audit()
        audit()
        steps += 1
        assert steps < 4000
    setattr(engine, "_run", run)  # noqa: B010
    return streams, steps


def makers(tiny: Decoder) -> dict[str, MakeProposer]:
    store, same, other = AnswerStore(), *(DraftModel(m, WORDS, WORDS) for m in (tiny, decoder(2)))
    return {
        "lookup": lambda _: PromptLookup(2, 1),
        "suffix": lambda request: SuffixMatch(store, request.tenant),
        "itself": lambda _: same.sequence(),
        "another": lambda _: other.sequence(),
    }


@given(
    seed=st.integers(0, 2**20),
    name=st.sampled_from(["lookup", "suffix", "itself", "another"]),
    pages=st.integers(10, 40),
    tokens=st.integers(3, 30),
    temperature=st.sampled_from([0.0, 0.8]),
)
@settings(deadline=None, max_examples=20)
def test_no_token_changes(tiny: Decoder, seed: int, name: str, pages: int, tokens: int, temperature: float) -> None:
    """With penalties, ends, thinking, several answers and beams beside, in tight pages and small steps."""
    chance = random.Random(seed)
    ends = frozenset(chance.choices(range(512), k=30))
    requests = [
        Request(
            tuple(chance.choices(range(4), k=chance.randint(1, 9))),
            chance.randint(1, 24),
            Sampling(temperature=temperature, seed=n, presence_penalty=n / 4),
            ends,
            n=1 + n % 2,
            thinking=Thinking(500, 501, 7, (400, 501), begun=True) if n == 2 else None,
        )
        for n in range(4)
    ]
    requests.append(Request((1, 2, 3), 9, GREEDY, ends, n=2, beams=2))
    options = EngineOptions(pages, 4, SchedulerOptions(tokens=tokens, wait=0))
    plain, _ = served(Engine(tiny, options), Clock(), requests)
    clock = Clock()
    engine = Engine(tiny, options, clock, proposer=makers(tiny)[name])
    for _ in range(2):  # the second time earlier answers are known
        streams, _ = served(engine, clock, requests)
        for stream, other in zip(streams, plain, strict=True):
            assert [answer.tokens for answer in stream.answers] == [answer.tokens for answer in other.answers]
            reasons = [answer.finish_reason for answer in stream.answers]
            assert reasons == [answer.finish_reason for answer in other.answers]
    engine.scheduler.prefix.clear()
    assert engine.scheduler.free_pages == pages


def test_right_guesses_save_steps(tiny: Decoder) -> None:
    """A model that drafts for itself is always right: nine tokens a step, once the length has been tried."""
    request = Request((1, 2, 3), 200, GREEDY)
    for name, most in (("itself", 80), ("another", 205)):
        clock = Clock()
        engine = Engine(tiny, EngineOptions(64, 4), clock, proposer=makers(tiny)[name])
        _, steps = served(engine, clock, [request])
        assert steps < most
    clock = Clock()
    engine = Engine(tiny, EngineOptions(128, 4), clock, proposer=makers(tiny)["suffix"])
    first = served(engine, clock, [request])[1]
    assert served(engine, clock, [request])[1] < first / 2  # it was answered before


def test_what_ends_lets_go(tiny: Decoder) -> None:
    model = DraftModel(tiny, WORDS, WORDS, pages=40, page_size=4)
    made: list[Proposer] = []

    def make(_: Request) -> Proposer:
        made.append(model.sequence())
        return made[-1]

    clock = Clock()
    engine = Engine(tiny, EngineOptions(64, 4), clock, proposer=make)
    stays, leaves = (engine.submit(Request((n,), 40, GREEDY)) for n in range(2))
    for _ in range(20):
        engine.step()
        clock.now += 1
    leaves.cancel()
    served(engine, clock, [])
    assert stays.finished
    assert len(made) == 2
    engine.submit(Request((5,), 2, GREEDY))
    served(engine, clock, [])
    served(engine, clock, [Request((5,), 2, GREEDY)])
    assert model.free_pages >= 38  # of the last request's at most
