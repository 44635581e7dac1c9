"""One sequence with guesses: the tokens and the routing of `cached_generate`, in fewer steps; and who is told what."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.draft import Draft, PromptLookup, Proposer
from tenth.engine.draft_estimates import Tried
from tenth.engine.draft_follower import Follower
from tenth.engine.draft_length import DraftLength
from tenth.engine.draft_model import DraftModel, Vocabulary
from tenth.engine.drafted import Drafting, drafted_generate
from tenth.engine.generate import Step, cached_generate
from tenth.engine.sampler import Sampler, Sampling
from tenth.engine.sequence import CachedSequence
from tenth.errors import RequestError
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.routing.limit import ExpertLimit
from tenth.routing.record import Routing

CONFIG = preset("tiny-moe")
WORDS = Vocabulary(CONFIG.vocab_size, "one tokenizer")
PROMPT = [1, 2, 3, 1, 2, 3, 1, 2]


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    return initialise(Decoder(CONFIG, dtype=torch.float64), seed=1, std=0.2).requires_grad_(False)


class Ticks:
    """A clock that goes on by one each time it is read: whatever is timed takes about the same."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Free(Ticks):
    """A step takes a second, the books and the proposers nothing."""

    def __call__(self) -> float:
        return self.now


def timed(sequence: CachedSequence, clock: Free) -> CachedSequence:
    """Every step of this sequence takes a second."""
    judge = sequence.judge

    def a_second(*arguments: object) -> object:
        clock.now += 1.0
        return judge(*arguments)  # type: ignore[arg-type]

    setattr(sequence, "judge", a_second)  # noqa: B010  (mypy takes no assignment to a method)
    return sequence


class Oracle:
    """Knows the answer, but for every so many-th token."""

    def __init__(self, answer: Sequence[int], wrong: int) -> None:
        self.answer, self.wrong, self.closed = answer, wrong, 0
        self.tokens: list[int] = []

    def begin(self, prompt: Sequence[int]) -> None:
        self.start = len(prompt)
        self.tokens = list(prompt)

    def take(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens

    def propose(self, most: int) -> Draft:
        at = len(self.tokens) - self.start
        tokens = [0 if at + n and (at + n) % self.wrong == 0 else t for n, t in enumerate(self.answer[at : at + most])]
        return Draft(tokens, [0.9] * len(tokens), "oracle")

    def close(self) -> None:
        self.closed += 1


def generated(
    steps: Sequence[Step],
) -> tuple[list[int], Routing]:
    return [step.token for step in steps], Routing.join([step.routing for step in steps if step.routing is not None])


@given(
    seed=st.integers(0, 2**20),
    name=st.sampled_from(["lookup", "oracle", "itself"]),
    temperature=st.sampled_from([0.0, 0.9]),
    ends=st.integers(0, 8),
    limit=st.sampled_from([None, ExpertLimit(mass=0.8, cap=2)]),
)
@settings(deadline=None, max_examples=6)
def test_the_same_tokens_and_the_same_routing(
    tiny: Decoder, seed: int, name: str, temperature: float, ends: int, limit: ExpertLimit | None
) -> None:
    """Penalties and ends beside; then a second turn that begins like the first one and finds it in the cache."""
    rng = random.Random(seed)
    sampling = Sampling(temperature=temperature, top_p=0.9, presence_penalty=0.3, seed=seed)
    limits = {"max_tokens": 14, "end_ids": frozenset(rng.choices(range(512), k=ends)), "record": "full", "limit": limit}
    plain, drafted, length = CachedSequence(tiny), CachedSequence(tiny), DraftLength()
    prompt = PROMPT
    for _ in range(2):
        expected = list(cached_generate(plain, prompt, Sampler(sampling, prompt, 512), **limits))  # type: ignore[arg-type]
        tokens, routing = generated(expected)
        makers: dict[str, Proposer] = {
            "lookup": PromptLookup(2, 1),
            "oracle": Oracle(tokens, 7),
            "itself": DraftModel(tiny, WORDS, WORDS).sequence(),
        }
        drafting = Drafting(makers[name], length, clock=Free())
        sampler = Sampler(sampling, prompt, 512)
        got, record = generated(list(drafted_generate(drafted, prompt, sampler, drafting, **limits)))  # type: ignore[arg-type]
        assert got == tokens
        assert record.num_tokens == routing.num_tokens
        for index, layer in routing.layers.items():
            assert torch.equal(layer.experts_TK, record.layers[index].experts_TK)
            dropped = layer.dropped_TK, record.layers[index].dropped_TK
            assert torch.equal(*(mask for mask in dropped if mask is not None))
        prompt = [*prompt, *tokens, 5]


def test_right_guesses_save_steps_and_are_counted(tiny: Decoder) -> None:
    greedy = Sampling(temperature=0)
    expected = [
        s.token for s in cached_generate(CachedSequence(tiny), PROMPT, Sampler(greedy, [], 512), max_tokens=100)
    ]
    for wrong, least, most in ((1000, 20, 45), (1, 99, 99)):
        clock = Free()
        oracle = Oracle(expected, wrong)
        drafting = Drafting(oracle, DraftLength(), clock=clock)
        sequence = timed(CachedSequence(tiny), clock)
        steps = list(drafted_generate(sequence, PROMPT, Sampler(greedy, [], 512), drafting, max_tokens=100))
        assert [step.token for step in steps] == expected
        counts = drafting.counts
        assert least <= counts.steps <= most
        assert counts.steps + counts.accepted == 99  # the first token comes with the prompt
        assert counts.tokens_per_step == pytest.approx(99 / counts.steps)
        assert oracle.closed == 1
        assert oracle.tokens[-1] == expected[-1]
    assert counts.accepted == 0
    assert counts.drafted <= 12  # of 792 that were proposed


def test_a_second_generation_takes_the_sequence(tiny: Decoder) -> None:
    sequence, greedy = CachedSequence(tiny), Sampling(temperature=0)

    def begun() -> list[int]:
        drafting = Drafting(PromptLookup(), DraftLength(), clock=Ticks())
        steps = drafted_generate(sequence, PROMPT, Sampler(greedy, [], 512), drafting, max_tokens=9)
        return [step.token for step in steps]

    drafting = Drafting(PromptLookup(), DraftLength(), clock=Ticks())
    first = drafted_generate(sequence, PROMPT, Sampler(greedy, [], 512), drafting, max_tokens=9)
    next(first)
    assert len(begun()) == 9
    with pytest.raises(RequestError, match="another generation"):
        list(first)


def test_what_a_watched_draft_was_worth() -> None:
    follower = Follower(PromptLookup(), [7])
    draft = Draft([1, 2, 3], [0.5] * 3, "lookup")
    follower.watch(draft)
    assert follower.tell([7, 1]) is None  # not known yet
    follower.watch(Draft([9], [0.5], "lookup"))  # one at a time
    assert follower.tell([7, 1, 2, 4]) == Tried(draft, 2)
    follower.watch(draft)
    assert follower.tell([7, 1, 2, 4, 1, 2, 3, 5]) == Tried(draft, 3)
    follower.watch(draft)
    assert follower.tell([7, 1, 2, 4, 1, 2, 3, 5, 5]) == Tried(draft, 0)
    assert follower.tell([7, 1, 2, 4, 1, 2, 3, 5, 5, 1]) is None
