"""Streams without end: the first page and a window, every key where it stands for the query that reads it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.errors import RequestError
from tenth.model.batch import Batch, Placement, Want
from tenth.model.cache import KVCache
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset

CONFIG = preset("tiny-moe")
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    return initialise(Decoder(CONFIG, dtype=torch.float64), seed=1, std=0.2).requires_grad_(False)


@torch.inference_mode()
def slow(decoder: Decoder, prompt: tuple[int, ...], count: int, first: int, window: int, oldest: int) -> list[int]:
    """Token by token: the first ones anew for every token, in places of their own, then the token behind its window.

    Every token has a slot for ever; what a token sees is a list of slots.
    """
    tokens, slots = list(prompt), len(prompt) + count
    cache = KVCache(decoder.config, slots + first, 1, torch.float64)

    def show(shown: list[int], positions: range, at: list[int], seen: list[int]) -> torch.Tensor:
        place = Placement(torch.tensor(at), (torch.tensor(seen),), (len(seen),))
        batch = Batch((0, len(shown)), torch.tensor(positions), torch.tensor(shown), placement=place)
        logits_NV = decoder(batch, cache, Want(logits="last")).logits_NV
        assert logits_NV is not None
        return logits_NV[0]

    dropped = place = 0
    while len(tokens) < slots:
        while place + 1 - dropped > first + window:
            dropped += oldest
        turned = list(range(slots, slots + first))
        if dropped:
            show(tokens[:first], range(dropped, dropped + first), turned, turned)
        seen = [*turned, *range(first + dropped, place + 1)] if dropped else list(range(place + 1))
        logits_V = show(tokens[place : place + 1], range(place, place + 1), [place], seen)
        place += 1
        if place == len(tokens):
            tokens.append(int(logits_V.argmax()))
    return tokens[len(prompt) :]


@given(
    prompt=st.lists(st.integers(0, 511), min_size=1, max_size=40),
    page=st.integers(1, 5),
    window=st.integers(1, 22),
    budget=st.integers(1, 30),
    beside=st.integers(0, 2),
    tight=st.booleans(),
)
@settings(deadline=None, max_examples=25)
def test_a_window_rolls_the_same_way_in_any_schedule(
    tiny: Decoder, prompt: list[int], page: int, window: int, budget: int, beside: int, tight: bool
) -> None:
    """Chunks, neighbours and preemption; what was forgotten is free again at once."""
    pages = -(-window // page)
    expected = slow(tiny, tuple(prompt), 30, page, pages * page, max(pages // 4, 1) * page)
    own = 1 + pages
    room = max(own, -(-20 // page)) + (1 if tight else 60)
    engine = Engine(tiny, EngineOptions(room, page, SchedulerOptions(tokens=budget, wait=0)))
    stream = engine.submit(Request(tuple(prompt), 30, GREEDY, rolling=window))
    others = [engine.submit(Request((n, 7), 9, GREEDY, priority=n - 1)) for n in range(beside)]
    steps = 0
    while engine.busy:
        engine.step()
        engine.scheduler.audit()
        assert all(len(p.pages) <= own for p in engine.scheduler.running if p.request.rolling)
        steps += 1
        assert steps < 5000
    assert list(stream.tokens) == expected
    for other in others:
        assert len(other.tokens) == 9
    engine.scheduler.prefix.clear()
    assert engine.scheduler.free_pages == room


def test_a_stream_goes_on_behind_the_context(tiny: Decoder) -> None:
    """Longer than the model's context, and far behind it the tokens are those of a window, not of nonsense."""
    most = CONFIG.context_length + 100
    engine = Engine(tiny, EngineOptions(8, 16))
    stream = engine.submit(Request((1, 2, 3), most, GREEDY, rolling=64, prompt_logprobs=1, record="choice"))
    while engine.busy:
        engine.step()
    assert len(stream.tokens) == most
    assert list(stream.tokens) == slow(tiny, (1, 2, 3), most, 16, 64, 16)
    assert sum(routing.num_tokens for routing in stream.answers[0].routing) == 3 + most - 1
    with pytest.raises(RequestError, match="rolling sees 528 tokens, first page included, the model's context is 512"):
        engine.submit(Request((1,), 4, GREEDY, rolling=512))
    with pytest.raises(RequestError, match="the cache holds 128"):
        engine.submit(Request((1,), 400, GREEDY, rolling=200))
    with pytest.raises(RequestError, match="goes without rolling"):
        Request((1,), 4, GREEDY, rolling=64, beams=2)
