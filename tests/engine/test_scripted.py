"""The scripted model through the whole engine, with the real Qwen vocabulary; and that it sees wrong pages."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

import pytest
import torch

from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.generate import cached_generate, naive_generate
from tenth.engine.prefix import PrefixCache
from tenth.engine.request import Request
from tenth.engine.sampler import Sampler, Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.scripted import ScriptedModel, replay, thinking
from tenth.engine.sequence import CachedSequence
from tenth.engine.stream import Stream
from tests.weights.vocabularies import qwen

VOCABULARY = 151_936
END = 151_645
GREEDY = Sampling(temperature=0)


def streams_of(seed: int, count: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers; some prompts begin alike, so that they share pages."""
    random_ids = random.Random(seed)
    shared = [random_ids.randrange(VOCABULARY) for _ in range(40)]
    made = []
    for n in range(count):
        own = [random_ids.randrange(VOCABULARY - 300) for _ in range(random_ids.randrange(1, 60))]
        prompt = [*shared[: random_ids.randrange(41)], n, *own]
        made.append((prompt, [random_ids.randrange(END) for _ in range(random_ids.randrange(1, 50))]))
    return made


def run(engine: Engine) -> None:
    while engine.busy:
        engine.step()
        engine.scheduler.audit()


def submit(engine: Engine, prompt: list[int], most: int, sampling: Sampling = GREEDY) -> Stream:
    return engine.submit(Request(tuple(prompt), most, sampling, end_ids=frozenset({END})))


@pytest.mark.parametrize("seed", range(4))
def test_streams_pass_unchanged_through_chunks_small_pages_and_preemption(seed: int) -> None:
    pairs = streams_of(seed, 12)
    model = ScriptedModel(VOCABULARY, [replay(*pair) for pair in pairs], END)
    engine = Engine(model, EngineOptions(40, 4, SchedulerOptions(tokens=37, sequences=8, wait=0)))
    streams = [submit(engine, prompt, 60) for prompt, _ in pairs]
    run(engine)
    for stream, (_, answer) in zip(streams, pairs, strict=True):
        assert (stream.tokens, stream.answers[0].finish_reason) == ([*answer, END], "stop")
    assert engine.scheduler.counts.preempted > 0
    assert engine.scheduler.counts.found > 0


def test_text_comes_back_as_it_was() -> None:
    tokenizer = qwen()
    prompt, answer = tokenizer.encode("Count: "), tokenizer.encode("eins, zwei, drei — fertig 🎉\n")
    model = ScriptedModel(VOCABULARY, [replay(prompt, answer)], END)
    engine = Engine(model, EngineOptions(32, 4))
    stream = submit(engine, prompt, 100)
    run(engine)
    assert tokenizer.decode(stream.tokens) == "eins, zwei, drei — fertig 🎉\n"


def test_the_simple_ways_to_generate_say_the_same() -> None:
    (prompt, answer), *_ = streams_of(7, 1)
    model = ScriptedModel(VOCABULARY, [replay(prompt, answer)], END)
    for generate, subject in ((naive_generate, model), (cached_generate, CachedSequence(model))):
        sampler = Sampler(GREEDY, prompt, VOCABULARY)
        steps = generate(subject, prompt, sampler, max_tokens=80, end_ids={END})  # type: ignore[operator]
        assert [step.token for step in steps] == [*answer, END]


def test_sampling_follows_the_script_nearly_always() -> None:
    pairs = streams_of(3, 8)
    model = ScriptedModel(VOCABULARY, [replay(*pair) for pair in pairs], END, margin=30)
    engine = Engine(model, EngineOptions(200, 8))
    streams = [submit(engine, prompt, 60, Sampling(seed=n)) for n, (prompt, _) in enumerate(pairs)]
    run(engine)
    assert [stream.tokens[:-1] for stream in streams] == [answer for _, answer in pairs]


def test_biases_and_ends_act_on_it() -> None:
    model = ScriptedModel(100, [replay([1], [5, 6, 7])], 2)
    engine = Engine(model, EngineOptions(32, 4))
    request = Request((1,), 8, GREEDY, end_ids=frozenset({2}), logit_bias={6: -100.0, 9: 1.0})
    stream = engine.submit(request)
    run(engine)
    assert stream.tokens == [5, 9, 2]  # 9 instead of 6 has left the script, which then knows no more


def test_thinking_ends_wherever_the_tag_comes() -> None:
    close, thought, answer = 99, [5, 6, 7], [20, 21]
    model = ScriptedModel(100, [thinking([1, close], thought, answer, close)], 2)

    def follow(tokens: list[int]) -> list[int]:
        engine = Engine(model, EngineOptions(32, 4))
        stream = engine.submit(Request(tuple(tokens), 9, GREEDY, end_ids=frozenset({2})))
        run(engine)
        return stream.tokens

    assert follow([1, close]) == [5, 6, 7, close, 20, 21, 2]
    assert follow([1, close, 5, 50, 51, close]) == [20, 21, 2]  # an engine has cut the thought short
    assert follow([3]) == [2]


def test_a_page_of_somebody_else_shows() -> None:
    pairs = streams_of(5, 2)
    model = ScriptedModel(VOCABULARY, [replay(*pair) for pair in pairs], END)
    engine = Engine(model, EngineOptions(64, 4, SchedulerOptions(wait=0)))
    streams = [submit(engine, prompt, 60) for prompt, _ in pairs]
    for _ in range(3):  # one waits for the pages that both begin with
        engine.step()
    first, second = engine.scheduler.running
    page = min(len(first.pages), len(second.pages)) - 2
    first.pages[page] = second.pages[page]
    while engine.busy:
        engine.step()
    assert streams[0].tokens[:-1] != pairs[0][1]
    assert streams[1].tokens[:-1] == pairs[1][1]


def test_a_slot_that_nobody_wrote_shows() -> None:
    (pair,) = streams_of(6, 1)
    engine = Engine(ScriptedModel(VOCABULARY, [replay(*pair)], END), EngineOptions(64, 4))
    submit(engine, pair[0], 60)
    engine.step()
    engine.scheduler.running[0].pages[0] = engine.scheduler._pool.take(1)[0]
    with pytest.raises(AssertionError, match="another sequence"):
        engine.step()
    assert torch.is_inference_mode_enabled() is False


def test_hundreds_that_wait_for_a_prompt_are_not_searched_for_it_at_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once each, until it is there; then all find it."""
    asked = list[int]()
    known = PrefixCache.known

    def counted(cache: PrefixCache, key: Hashable, tokens: Sequence[int]) -> int:
        asked.append(len(tokens))
        return known(cache, key, tokens)

    monkeypatch.setattr(PrefixCache, "known", counted)
    engine = Engine(ScriptedModel(VOCABULARY, [], END), EngineOptions(400, 4, SchedulerOptions(tokens=16, wait=0)))
    prompt = tuple(n % 7 + 1 for n in range(160))
    streams = [engine.submit(Request((*prompt, 1 + n % 5), 1, Sampling(temperature=0))) for n in range(200)]
    for _ in range(10):
        engine.step()
    assert len(engine.scheduler.running) == 1
    assert len(asked) <= 200
    while engine.busy:
        engine.step()
        engine.scheduler.audit()
    assert all(stream.finished for stream in streams)
    assert engine.scheduler.counts.computed < 160 + 200 * 5
