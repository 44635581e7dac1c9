"""Grammars in the engine: answers obey them, thinking does not, neighbours never notice."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from tenth.engine import masks
from tenth.engine.draft import PromptLookup
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.grammar import Grammar
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.scripted import ScriptedModel, replay, thinking
from tenth.engine.stream import Answer, Stream
from tenth.engine.thinking import Thinking
from tenth.errors import RequestError
from tests.engine.grammar_text import END, QWEN, qwen_compiler
from tests.weights.vocabularies import qwen

GREEDY = Sampling(temperature=0)
ENDS = frozenset({END})
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Lima"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
prepare = masks.MaskWorker.prepare
COUNTS = Grammar.regex(r"[0-9]{1,3}( [0-9]{1,3}){2}")


def ids(text: str) -> list[int]:
    return qwen().encode(text)


def text(answer: Answer) -> str:
    spelt = (qwen().bytes_by_id[token] or b"" for token in answer.tokens if token != END)
    return b"".join(spelt).decode()


def engine_of(scripts: Sequence[Any], pages: int = 200, **options: Any) -> Engine:
    model = ScriptedModel(QWEN, scripts, END)
    scheduler = SchedulerOptions(tokens=options.pop("tokens", 64), wait=0)
    return Engine(model, EngineOptions(pages, 4, scheduler), grammars=qwen_compiler(), **options)


def run(engine: Engine) -> None:
    steps = 0
    while engine.busy:
        engine.step()
        engine.scheduler.audit()
        steps += 1
        assert steps < 5000


def ask(prompt: str, most: int = 60, sampling: Sampling = GREEDY, **options: Any) -> Request:
    return Request(tuple(ids(prompt)), most, sampling, ENDS, **options)


def check_document(answer: Answer) -> None:
    found = json.loads(text(answer))
    assert set(found) == {"city", "days"}
    assert found["city"] in ("Oslo", "Lima")
    assert 1 <= found["days"] <= 9


@pytest.mark.parametrize("pages", [200, 24])
def test_what_the_model_wants_to_say_counts_as_far_as_it_may(pages: int) -> None:
    """One wants to say what is allowed, one something else, one has no grammar; in small pages they are preempted."""
    good = '{"city": "Lima", "days": 7}'
    free = "I would rather talk about the weather, at some length and without any braces at all."
    scripts = [replay(ids(f"{n}?"), ids(said)) for n, said in ((1, good), (2, free), (3, free))]
    engine = engine_of(scripts, pages)
    schema = Grammar.json_schema(SCHEMA)
    streams = [engine.submit(ask(f"{n}?", grammar=schema if n < 3 else None)) for n in (1, 2, 3)]
    run(engine)
    assert json.loads(text(streams[0].answers[0])) == json.loads(good)
    check_document(streams[1].answers[0])
    assert text(streams[2].answers[0]) == free
    assert {stream.answers[0].finish_reason for stream in streams} == {"stop"}


def test_thinking_is_free_and_its_forced_end_is_no_answer() -> None:
    opened, closed = (qwen().token_id(tag) for tag in ("<think>", "</think>"))
    assert opened is not None
    assert closed is not None
    thought, answer = ids("Seven days, or is it eight? " * 9), ids('{"city": "Oslo", "days": 8}')
    prompt = [*ids("Where?"), opened]
    stop = (*ids("Enough."), closed, *ids("\n\n"))
    begun = Thinking(opened, closed, 11, stop, begun=True)
    own = Thinking(opened, closed)
    engine = engine_of(
        [
            thinking(prompt, thought, [*ids("\n\n"), *answer], closed),
            thinking(prompt[:-1], [opened, *thought], answer, closed),
        ]
    )
    schema = Grammar.json_schema(SCHEMA)
    cut = engine.submit(Request(tuple(prompt), 400, GREEDY, ENDS, grammar=schema, thinking=begun))
    free = engine.submit(Request(tuple(prompt[:-1]), 400, GREEDY, ENDS, grammar=schema, thinking=own))
    run(engine)
    for stream, thoughts in ((cut, [*thought[:11], *stop]), (free, [opened, *thought, closed])):
        found = stream.answers[0]
        assert found.tokens[: len(thoughts)] == thoughts
        assert found.finish_reason == "stop"
        behind = b"".join(qwen().bytes_by_id[t] or b"" for t in found.tokens[len(thoughts) :] if t != END)
        assert json.loads(behind) == {"city": "Oslo", "days": 8}


def sampled(engine: Engine, count: int, **options: Any) -> list[Stream]:
    streams = []
    for n in range(count):
        sampling = Sampling(temperature=9.0, seed=n)  # nearly anything that is allowed
        streams.append(engine.submit(ask(f"{n} ", sampling=sampling, grammar=COUNTS, n=2, **options)))
    run(engine)
    return streams


def test_neither_company_nor_guesses_change_a_token() -> None:
    plain = [sampled(engine_of([]), 1 + n)[n] for n in range(4)]
    for engine in (engine_of([]), engine_of([], 20, tokens=9), engine_of([], proposer=lambda _: PromptLookup(2, 1))):
        for stream, alone in zip(sampled(engine, 4), plain, strict=True):
            for answer, other in zip(stream.answers, alone.answers, strict=True):
                assert answer.tokens == other.tokens
                assert len(text(answer).split()) == 3
                assert all(number.isdecimal() and len(number) < 4 for number in text(answer).split())


def test_every_beam_has_its_own_state() -> None:
    engine = engine_of([replay(ids("1?"), ids("12 34 56"))])
    stream = engine.submit(ask("1?", beams=6, n=6, grammar=COUNTS))
    run(engine)
    assert len({text(answer) for answer in stream.answers}) == 6
    for answer in stream.answers:
        assert answer.finish_reason == "stop"
        assert len(text(answer).split()) == 3
    assert text(stream.answers[0]) == "12 34 56"


def test_bad_grammars_are_refused_and_what_cannot_go_on_ends_alone() -> None:
    engine = engine_of([replay(ids("1?"), ids("fine"))])
    beside = engine.submit(ask("1?"))
    with pytest.raises(RequestError, match="regex grammar"):
        engine.submit(ask("2?", grammar=Grammar.regex("(")))
    with pytest.raises(RequestError, match="goes without min_tokens"):
        ask("2?", grammar=COUNTS, min_tokens=3)
    with pytest.raises(RequestError, match="beam search with a grammar needs end_ids"):
        Request((1,), 4, GREEDY, beams=2, grammar=COUNTS)
    with pytest.raises(RequestError, match="no vocabulary for grammars"):
        Engine(ScriptedModel(QWEN, [], END)).submit(ask("2?", grammar=COUNTS))
    digits = frozenset(token for n in range(10) for token in ids(str(n)))
    stuck = engine.submit(ask("3?", grammar=COUNTS, forbidden=digits))
    run(engine)
    assert text(beside.answers[0]) == "fine"
    assert stuck.answers[0].finish_reason == "error"
    assert "no token to draw" in str(stuck.answers[0].error)


@pytest.mark.parametrize("slow", [0.0, 9.0])
def test_masks_made_beside_the_network_are_those_made_behind_it(monkeypatch: pytest.MonkeyPatch, slow: float) -> None:
    plain = [stream.tokens for stream in sampled(engine_of([]), 3)]
    monkeypatch.setattr(masks, "SLOW", slow)
    begun = []
    monkeypatch.setattr(masks.MaskWorker, "prepare", lambda self, some: begun.extend(some) or prepare(self, some))
    assert [stream.tokens for stream in sampled(engine_of([]), 3)] == plain
    assert bool(begun) == (slow == 0)


def test_a_bad_grammar_between_good_ones_harms_neither() -> None:
    """The neighbour is in the middle of its document when bad ones come; the next one is served."""
    engine = engine_of([])
    alone, schema = engine_of([]), Grammar.json_schema(SCHEMA)
    expected = alone.submit(ask("1?", sampling=Sampling(temperature=2.0, seed=5), grammar=schema))
    run(alone)
    beside = engine.submit(ask("1?", sampling=Sampling(temperature=2.0, seed=5), grammar=schema))
    deep: Any = {}
    for _ in range(100):
        deep = {"items": deep}
    bad = [
        lambda: Grammar.json_schema(deep),
        lambda: Grammar.json_schema({"$ref": "#"}),
        lambda: Grammar.json_schema({"type": "strin"}),
        lambda: Grammar.json_schema({"type": "string", "pattern": "(a"}),
        lambda: Grammar.lark("start: start"),
    ]
    for make in bad:
        engine.step()
        with pytest.raises(RequestError):
            engine.submit(ask("2?", grammar=make()))
    after = engine.submit(ask("3?", grammar=COUNTS))
    run(engine)
    assert beside.answers[0].tokens == expected.answers[0].tokens
    assert after.answers[0].finish_reason == "stop"


def test_a_step_that_failed_leaves_no_masks_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "SLOW", 0.0)  # all are begun before the network runs
    engine = engine_of([])
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_run", lambda *_: 1 / 0)
        stream = engine.submit(ask("1?", grammar=COUNTS))
        with pytest.raises(ZeroDivisionError):
            engine.step()
        engine.abort(RequestError("the step failed"))
    assert stream.answers[0].finish_reason == "error"
    for stream in sampled(engine, 2):
        assert len(text(stream.answers[0]).split()) == 3


@pytest.mark.slow
def test_hundreds_of_documents_in_one_engine() -> None:
    chance = random.Random(0)
    engine = engine_of([], 400, tokens=256)
    schema = Grammar.json_schema(SCHEMA)
    streams = []
    for n in range(200):
        sampling = Sampling(temperature=chance.uniform(0.5, 20), seed=n)
        streams.append(engine.submit(ask(f"{n} ", 300, sampling, grammar=schema)))
        engine.step()
    run(engine)
    ended = [stream.answers[0] for stream in streams if stream.answers[0].finish_reason == "stop"]
    assert len(ended) > 150
    for answer in ended:
        check_document(answer)


@pytest.mark.parametrize("beams", [None, 2])
def test_a_grammar_that_is_too_much_behind_an_allowed_token_ends_alone(beams: int | None) -> None:
    """The first mask is cheap, what follows the first token is not: its limits are met when the token is taken."""
    engine = engine_of([replay(ids("Count:"), [*ids("12 34 5"), END])])
    bomb = engine.submit(ask("a:", grammar=Grammar.regex("(a{1000}){1000}"), beams=beams))
    good = engine.submit(ask("Count:", grammar=COUNTS))
    run(engine)
    assert bomb.answers[0].finish_reason == "error"
    assert "the grammar cannot go on" in str(bomb.answers[0].error)
    assert text(good.answers[0]) == "12 34 5"


def test_masks_that_failed_are_not_waited_for_again() -> None:
    engine = engine_of([replay(ids("Count:"), [*ids("12 34 5"), END])])
    broken = engine.submit(ask("Count:", grammar=COUNTS))
    engine.step()
    engine.scheduler.running[0].matcher.mask_W = None  # type: ignore[assignment, union-attr]
    with pytest.raises(TypeError):
        engine.step()
    engine.abort(RequestError("failed"))
    good = engine.submit(ask("Count:", grammar=COUNTS))
    run(engine)
    assert [broken.answers[0].finish_reason, text(good.answers[0])] == ["error", "12 34 5"]


def test_answers_are_all_submitted_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, started = engine_of([]), []
    start = engine._start

    def second_fails(request: Request) -> Any:
        started.append(request)
        if len(started) == 2:
            raise RequestError("too much")
        return start(request)

    monkeypatch.setattr(engine, "_start", second_fails)
    with pytest.raises(RequestError, match="too much"):
        engine.submit(ask("How many?", grammar=COUNTS, n=3))
    assert not engine.busy
