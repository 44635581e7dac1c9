"""The engine: any schedule gives every request the tokens that it gets alone, and every page comes back."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.generate import naive_generate
from tenth.engine.request import Request
from tenth.engine.sampler import Sampler, Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.stream import Stream
from tenth.errors import MachineError, RequestError
from tenth.kernels.choice import choose_kernels
from tenth.kernels.packed import PackedFormat
from tenth.model.cache import bytes_per_page
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.routing.record import Routing
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.synthetic import write_synthetic

CONFIG = preset("tiny-moe")
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    return initialise(Decoder(CONFIG, dtype=torch.float64), seed=1, std=0.2).requires_grad_(False)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    folder = tmp_path_factory.mktemp("packed") / "model"
    write_synthetic(folder, replace(CONFIG, head_dim=32), PackedFormat.parse("int4-g16-s4"), seed=1)
    with open_checkpoint(folder) as checkpoint:
        yield load_decoder(checkpoint, kernels=choose_kernels("cpu", packed=True, head_dim=32))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def alone(decoder: Decoder, request: Request) -> list[int]:
    sampler = Sampler(request.sampling, request.prompt, CONFIG.vocab_size)
    steps = naive_generate(decoder, request.prompt, sampler, max_tokens=request.max_tokens, end_ids=request.end_ids)
    return [step.token for step in steps]


REQUESTS = st.builds(
    lambda prompt, most, priority, seed: Request(
        tuple(prompt), most, Sampling(temperature=0.7, seed=seed) if seed else GREEDY, priority=priority
    ),
    st.lists(st.integers(0, 3), min_size=1, max_size=20),
    st.integers(1, 8),
    st.integers(0, 1),
    st.integers(0, 3),
)


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 6), REQUESTS, st.one_of(st.none(), st.integers(0, 12))), max_size=7),
    pages=st.integers(8, 24),
    page_size=st.integers(1, 6),
    tokens=st.integers(1, 24),
    sequences=st.integers(1, 4),
)
@settings(deadline=None, max_examples=60)
def test_any_schedule_gives_the_tokens_of_a_request_alone(
    tiny: Decoder,
    arrivals: list[tuple[int, Request, int | None]],
    pages: int,
    page_size: int,
    tokens: int,
    sequences: int,
) -> None:
    """Arrivals, cancels, small pools (preemption), chunks, page sizes, shared beginnings; an audit behind each step."""
    options = SchedulerOptions(tokens=tokens, sequences=sequences, wait=1.5)
    clock = Clock()
    engine = Engine(tiny, EngineOptions(max(pages, -(-28 // page_size)), page_size, options), clock)
    streams: list[tuple[Stream, Request]] = []
    cancels: dict[int, list[Stream]] = {}
    step = 0
    while engine.busy or step <= max((at for at, _, _ in arrivals), default=0):
        for at, request, cancelled in arrivals:
            if at == step:
                streams.append((engine.submit(request), request))
                if cancelled is not None:
                    cancels.setdefault(step + cancelled, []).append(streams[-1][0])
        for stream in cancels.get(step, ()):
            stream.cancel()
        engine.step()
        engine.scheduler.audit()
        step += 1
        clock.now += 1.0
        assert step < 2000
    for stream, request in streams:
        expected = alone(tiny, request)
        if stream.answers[0].finish_reason == "cancelled":
            assert stream.tokens == expected[: len(stream.tokens)]
        else:
            assert (stream.tokens, stream.answers[0].finish_reason) == (expected, "length")
    engine.scheduler.prefix.clear()
    assert engine.scheduler.free_pages == max(pages, -(-28 // page_size))


def run(engine: Engine) -> None:
    while engine.busy:
        engine.step()
        engine.scheduler.audit()


def ask(*prompt: int, most: int = 4, **options: object) -> Request:
    return Request(prompt, most, GREEDY, **options)  # type: ignore[arg-type]


def test_a_known_beginning_is_not_computed_again(tiny: Decoder) -> None:
    engine = Engine(tiny, EngineOptions(64, 4))
    first = engine.submit(ask(*range(20)))
    run(engine)
    assert (engine.scheduler.counts.computed, engine.scheduler.counts.found) == (23, 0)
    second = engine.submit(ask(*range(20)))
    other = engine.submit(ask(*range(20), tenant="other"))
    run(engine)
    assert first.tokens == second.tokens == other.tokens == alone(tiny, ask(*range(20)))
    assert (engine.scheduler.counts.computed, engine.scheduler.counts.found) == (23 + 4 + 23, 19)


def test_where_pages_run_out_the_last_one_waits_again_and_loses_nothing(tiny: Decoder) -> None:
    engine = Engine(tiny, EngineOptions(6, 4))
    requests = [ask(n, n + 1, n + 2, most=14, record="choice") for n in range(3)]
    streams = [engine.submit(request) for request in requests]
    run(engine)
    assert engine.scheduler.counts.preempted > 0
    for stream, request in zip(streams, requests, strict=True):
        assert stream.tokens == alone(tiny, request)
        assert Routing.join(stream.answers[0].routing).num_tokens == 3 + 14 - 1  # of each token once


def test_prompts_come_in_chunks_beside_those_that_generate(tiny: Decoder) -> None:
    engine = Engine(tiny, EngineOptions(64, 4, SchedulerOptions(tokens=5, wait=0)))
    first = engine.submit(ask(1, 2, most=9))
    engine.step()
    engine.submit(ask(*range(30)))
    for generated in range(2, 7):  # 4 tokens of the prompt beside each of the first one's
        engine.step()
        assert len(first.tokens) == generated
        assert engine.scheduler.running[1].computed == 4 * (generated - 1)
    run(engine)


def test_order_and_waiting(tiny: Decoder) -> None:
    """The lowest priority first, of equals the earliest; under load new ones wait a moment for others."""
    clock = Clock()
    engine = Engine(tiny, EngineOptions(64, 4, SchedulerOptions(sequences=2, wait=0.05, together=3)), clock)
    late, soon, next_one = (engine.submit(ask(n, most=3, priority=p)) for n, p in ((1, 5), (2, 1), (3, 1)))
    engine.step()  # an idle engine begins at once
    assert [len(stream.tokens) for stream in (late, soon, next_one)] == [0, 1, 1]
    run(engine)
    first = engine.submit(ask(1, most=20))
    engine.step()
    second = engine.submit(ask(2, most=1))
    clock.now = 0.04
    engine.step()
    assert (len(first.tokens), len(second.tokens)) == (2, 0)
    clock.now = 0.06
    engine.step()
    assert (len(first.tokens), len(second.tokens)) == (3, 1)


def test_what_is_cancelled_lets_go_at_the_next_step(tiny: Decoder) -> None:
    engine = Engine(tiny, EngineOptions(8, 4))
    streams = [engine.submit(ask(1, 2, 3, most=9)), engine.submit(ask(4, most=9))]
    engine.step()
    for stream in streams:
        stream.cancel()
    engine.step()
    assert not engine.busy
    assert [stream.answers[0].finish_reason for stream in streams] == ["cancelled"] * 2
    assert engine.scheduler.free_pages == 8 - len(engine.scheduler.prefix)


def test_ends_biases_and_log_probabilities(tiny: Decoder) -> None:
    engine = Engine(tiny, EngineOptions(64, 4))
    plain = engine.submit(ask(1, 2, 3, logprobs=2))
    run(engine)
    first = plain.tokens[0]
    assert plain.answers[0].drawn[0].top[0] == (first, plain.answers[0].drawn[0].logprob)
    streams = [
        engine.submit(ask(1, 2, 3, end_ids=frozenset({first}))),
        engine.submit(ask(1, 2, 3, end_ids=frozenset({first}), min_tokens=2, logprobs=1)),
        engine.submit(ask(1, 2, 3, logit_bias={7: 100.0}, logprobs=3)),
        engine.submit(ask(1, 2, 3)),
    ]
    run(engine)
    stopped, later, biased, other = streams
    assert (stopped.tokens, stopped.answers[0].finish_reason) == ([first], "stop")
    assert later.tokens[0] != first
    assert later.answers[0].drawn[0].top[0] == pytest.approx(
        plain.answers[0].drawn[0].top[0]
    )  # the model's own, before the bias
    assert biased.tokens == [7] * 4
    assert len(biased.answers[0].drawn[0].top) == 3
    assert (other.tokens, other.answers[0].drawn[0].logprob) == (plain.tokens, None)


def test_company_changes_no_token_of_native_kernels(packed: Decoder) -> None:
    """Sampled, not greedy: a bit of difference in a logit would show sooner or later."""
    kinds = ("none", "choice")
    requests = [Request(tuple(range(n, 3 * n + 2)), 12, Sampling(seed=n), record=kinds[n % 2]) for n in range(9)]
    found = []
    for tokens, together in ((2048, True), (7, True), (16, False)):
        engine = Engine(packed, EngineOptions(40, 32, SchedulerOptions(tokens=tokens, wait=0)))
        streams = []
        for request in requests:
            streams.append(engine.submit(request))
            if not together:
                run(engine)
        run(engine)
        for stream, request in zip(streams, requests, strict=True):
            assert bool(stream.answers[0].routing) == (request.record != "none")
        shown = [Routing.join(stream.answers[0].routing).layers for stream in streams if stream.answers[0].routing]
        found.append(([stream.tokens for stream in streams], shown))
    for other in found[1:]:
        assert other[0] == found[0][0]
        for mine, theirs in zip(other[1], found[0][1], strict=True):
            for index, layer in mine.items():
                assert torch.equal(layer.experts_TK, theirs[index].experts_TK)


def test_pages_of_bytes_in_a_budget_of_memory(packed: Decoder) -> None:
    """Twice as many and nearly; company and chunks change no token; beams copy their scales with the bytes."""
    size = dict.fromkeys(("bf16", "int8"), 0)
    for kv in ("bf16", "int8"):
        options = EngineOptions(page_size=32, kv=kv).within(1 << 20, packed)  # type: ignore[arg-type]
        cache = Engine(packed, options)._cache
        size[kv] = cache.pages * cache.page_size  # tokens
        assert (1 << 20) * 0.9 < cache.nbytes <= 1 << 20
    assert 1.7 < size["int8"] / size["bf16"] < 2
    requests = [Request(tuple(range(n, 3 * n + 2)), 12, Sampling(seed=n)) for n in range(6)]
    requests.append(Request((1, 2, 3), 12, GREEDY, beams=3, n=3))
    found = []
    for tokens in (2048, 7):
        engine = Engine(packed, EngineOptions(40, 32, SchedulerOptions(tokens=tokens, wait=0), "int8"))
        streams = [engine.submit(request) for request in requests]
        run(engine)
        found.append([[answer.tokens for answer in stream.answers] for stream in streams])
    assert found[0] == found[1]
    with pytest.raises(RequestError, match="1,000 bytes for keys and values are less than a page of"):
        EngineOptions().within(1000, packed)


def test_refusals(tiny: Decoder) -> None:
    engine = Engine(tiny, EngineOptions(4, 4))
    with pytest.raises(RequestError, match="prompt and answer are 17 tokens, the cache holds 16"):
        engine.submit(ask(1, most=16))
    with pytest.raises(RequestError, match="token id 9999 is outside"):
        engine.submit(ask(9999))
    for options in ({"logit_bias": {9999: 1.0}}, {"end_ids": frozenset({512})}, {"forbidden": frozenset({9999})}):
        with pytest.raises(RequestError, match="is outside the vocabulary, 0 to 511"):
            engine.submit(ask(1, **options))
    for values, words in (
        ({"logit_bias": {1: float("nan")}}, "logit_bias must lie between"),
        ({"prompt": ()}, "empty"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"min_tokens": 5}, "min_tokens is 5, it must lie between 0 and 4"),
        ({"logprobs": 65}, "logprobs is 65"),
        ({"end_ids": frozenset({-1})}, "token id -1 in end_ids is outside the vocabulary"),
        ({"prompt": (3, -1)}, "token id -1 in prompt is outside the vocabulary"),
        ({"prompt": (1.0, 2.0)}, "prompt holds 1.0, token ids are whole numbers"),
        ({"prompt": (1, True)}, "prompt holds True, token ids are whole numbers"),
        ({"prompt": [1, 2]}, r"prompt is \[1, 2\], it must be of type tuple"),
        ({"prompt": "text"}, "prompt is 'text', it must be of type tuple"),
        ({"priority": "x"}, "priority is 'x', it must be a whole number"),
        ({"n": 2.0}, "n is 2.0, it must be a whole number"),
        ({"max_tokens": True}, "max_tokens is True, it must be a whole number"),
        ({"rolling": "x"}, "rolling is 'x', it must be a whole number or None"),
        ({"record": "x"}, "record is 'x', it must be one of"),
        ({"record": None}, "record is None, it must be one of"),
        ({"sampling": None}, "sampling is None, it must be of type Sampling"),
        ({"sampling": {"seed": 1}}, "it must be of type Sampling"),
        ({"end_ids": 3}, "end_ids is 3, it must be of type frozenset"),
        ({"logit_bias": [1]}, "it must be of type Mapping"),
        ({"logit_bias": {"1": 1.0}}, "logit_bias holds '1', token ids are whole numbers"),
        ({"logit_bias": {1: "x"}}, "logit_bias must lie between"),
        ({"thinking": "x"}, "thinking is 'x', it must be of type Thinking or None"),
        ({"grammar": "[0-9]"}, "it must be of type Grammar or None"),
        ({"limit": 0.5}, "it must be of type ExpertLimit or None"),
        ({"length_penalty": "x"}, "length_penalty is 'x', it must lie between -10 and 10"),
    ):
        with pytest.raises(RequestError, match=words):
            Request(**{"prompt": (1,), "max_tokens": 4, **values})  # type: ignore[arg-type]
    assert not engine.busy


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SchedulerOptions(tokens=0), "SchedulerOptions.tokens is 0, it must be a whole number of at least 1"),
        (lambda: SchedulerOptions(sequences=0), "SchedulerOptions.sequences is 0, "),
        (lambda: SchedulerOptions(together=2.5), "SchedulerOptions.together is 2.5, "),  # type: ignore[arg-type]
        (lambda: SchedulerOptions(wait=-1), "SchedulerOptions.wait is -1, it must lie between 0 and 3600"),
        (lambda: SchedulerOptions(wait=float("nan")), "SchedulerOptions.wait is nan, "),
        (lambda: EngineOptions(pages=-1), "EngineOptions.pages is -1, it must be a whole number of at least 1"),
        (lambda: EngineOptions(page_size=0), "EngineOptions.page_size is 0, "),
        (lambda: EngineOptions(kv="int3"), "kv is 'int3', it must be one of bf16, int8"),  # type: ignore[arg-type]
    ],
)
def test_options_that_cannot_be(make: Callable[[], object], words: str) -> None:
    with pytest.raises(RequestError, match=f"^{words}"):
        make()


def test_more_pages_than_memory(tiny: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine says it has, what the allocator refuses, and what nothing could count: one line each."""
    with pytest.raises(MachineError, match=r"of 32,000,000,000,000 tokens need .+ GB, on cpu .+ GB are free"):
        Engine(tiny, EngineOptions(pages=10**12))
    page = bytes_per_page(CONFIG, 4, dtype=torch.float64)
    monkeypatch.setattr("tenth.engine.room.free_bytes", lambda _: 10 * page + 1)
    with pytest.raises(MachineError, match=r"GB are free, which is 40 tokens: ask for less room$"):
        Engine(tiny, EngineOptions(11, 4))
    Engine(tiny, EngineOptions(10, 4))
    monkeypatch.setattr("tenth.engine.room.free_bytes", lambda _: None)
    for pages in (10**12, 10**30):
        with pytest.raises(MachineError, match="GB, cpu does not have them: ask for less room"):
            Engine(tiny, EngineOptions(pages))


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_requests(packed: Decoder) -> None:
    """Of mixed length, some cancelled, some with equal beginnings; the last 8,000 take nothing more."""
    chance = random.Random(1)
    engine = Engine(packed, EngineOptions(64, 32, SchedulerOptions(wait=0)))
    resident: list[int] = []
    streams: list[Stream] = []
    for number in range(10_000):
        begin = chance.randrange(4)
        prompt = (*range(begin, begin + chance.choice((1, 40, 90))), chance.randrange(500))
        streams.append(engine.submit(Request(prompt, chance.randint(1, 9), Sampling(seed=number), n=1 + number % 2)))
        if chance.random() < 0.1:
            streams[-1].cancel()
        while len(streams) > 24:
            engine.step()
            streams = [stream for stream in streams if not stream.finished]
        if number % 500 == 0:
            gc.collect()
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    assert resident[-1] - resident[4] < 4 << 20, resident
