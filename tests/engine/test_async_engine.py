"""The engine in its thread: many readers, readers who leave, steps that fail, a loop that ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest
import torch

from tenth.engine.async_engine import AsyncEngine, AsyncStream
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.grammar import Grammar
from tenth.engine.grammar_compiler import GrammarCompiler
from tenth.engine.grammar_vocabulary import Vocabulary
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.stream import FinishReason
from tenth.errors import MachineError, RequestError
from tenth.model.batch import Output
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset

CONFIG = preset("tiny-moe")


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    return initialise(Decoder(CONFIG, dtype=torch.float64), seed=1, std=0.2).requires_grad_(False)


def ask(seed: int, most: int = 6, n: int = 1) -> Request:
    return Request((seed, 2, 3), most, Sampling(seed=seed), n=n)


def within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, seconds))


async def read(stream: AsyncStream) -> tuple[list[list[int]], list[FinishReason | None]]:
    tokens: list[list[int]] = [[] for _ in stream.stream.answers]
    reasons: list[FinishReason | None] = [None] * len(tokens)
    async for update in stream:
        assert reasons[update.answer] is None
        tokens[update.answer] += [one.token for one in update.drawn]
        reasons[update.answer] = update.finish_reason
    return tokens, reasons


def test_many_readers_each_read_their_own(tiny: Decoder) -> None:
    plain = Engine(tiny, EngineOptions(256, 4))
    expected = []
    for seed in range(12):
        stream = plain.submit(ask(seed, n=1 + seed % 3))
        while plain.busy:
            plain.step()
        expected.append([answer.tokens for answer in stream.answers])

    async def work() -> None:
        async with AsyncEngine(Engine(tiny, EngineOptions(64, 4))) as engine:
            streams = [engine.submit(ask(seed, n=1 + seed % 3)) for seed in range(12)]
            found = await asyncio.gather(*map(read, streams))
            assert [tokens for tokens, _ in found] == expected
            assert all(reason == "length" for _, reasons in found for reason in reasons)
            late = await read(engine.submit(ask(3)))  # it has slept meanwhile
            assert late[0] == expected[3][:1]

    within(60, work())


def test_a_reader_who_leaves_frees_what_it_held(tiny: Decoder) -> None:
    async def work() -> None:
        async with AsyncEngine(Engine(tiny, EngineOptions(64, 4))) as engine:
            stay, leave = engine.submit(ask(1, 60)), engine.submit(ask(2, 200))
            async for _ in leave:
                break
            leave.close()
            impatient = asyncio.create_task(read(engine.submit(ask(4, 200))))
            await asyncio.sleep(0.05)
            impatient.cancel()
            tokens, reasons = await read(stay)
            assert (len(tokens[0]), reasons) == (60, ["length"])
            await read(engine.submit(ask(5)))
            assert not engine.engine.busy
            assert leave.stream.answers[0].finish_reason == "cancelled"
            engine.engine.scheduler.prefix.clear()
            assert engine.engine.scheduler.free_pages == 64

    within(60, work())


def test_a_refused_request_harms_nobody(tiny: Decoder) -> None:
    async def work() -> None:
        async with AsyncEngine(Engine(tiny, EngineOptions(64, 4))) as engine:
            stream = engine.submit(ask(1))
            with pytest.raises(RequestError, match="outside the vocabulary"):
                engine.submit(ask(99999))
            assert (await read(stream))[1] == ["length"]

    within(60, work())


def test_a_step_that_fails_ends_what_was_there_and_the_engine_goes_on(
    tiny: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny, EngineOptions(64, 4))
    run, failing = engine._run, [True]

    def fail(*arguments: Any) -> Output:
        if failing:
            raise MemoryError("no room")
        return run(*arguments)

    monkeypatch.setattr(engine, "_run", fail)

    async def work() -> None:
        async with AsyncEngine(engine) as running:
            streams = [running.submit(ask(1)), running.submit(ask(2, n=3))]
            for stream in streams:
                assert set((await read(stream))[1]) == {"error"}
                error = stream.stream.answers[-1].error
                assert isinstance(error, MachineError)
                assert str(error) == "the engine failed: MemoryError: no room"
            failing.clear()
            assert (await read(running.submit(ask(1))))[1] == ["length"]

    within(60, work())


def test_closing_ends_what_runs(tiny: Decoder) -> None:
    async def work() -> None:
        engine = AsyncEngine(Engine(tiny, EngineOptions(64, 4)))
        async with engine:
            stream = engine.submit(ask(1, 200))
            await asyncio.sleep(0.02)
        assert (await read(stream))[1] == ["cancelled"]
        with pytest.raises(MachineError, match="closing"):
            engine.submit(ask(1))

    within(60, work())


def test_a_grammar_is_prepared_beside_the_loop(tiny: Decoder) -> None:
    made = []

    class Slow(GrammarCompiler):
        def _make(self, grammar: Grammar):  # type: ignore[no-untyped-def]
            made.append(grammar)
            time.sleep(0.2)
            return super()._make(grammar)

    tokens = [bytes([n]) if n < 256 else None for n in range(CONFIG.vocab_size)]
    compiler = Slow(Vocabulary(tokens, (), CONFIG.vocab_size, lambda text: list(text.encode())))
    request = Request((1,), 9, Sampling(seed=1), frozenset({300}), grammar=Grammar.regex("[0-9]{3}"))

    async def work() -> None:
        async with AsyncEngine(Engine(tiny, grammars=compiler)) as engine:
            preparing, turns = asyncio.create_task(engine.prepare(request)), 0
            while not preparing.done():
                await asyncio.sleep(0.01)
                turns += 1
            assert turns >= 5
            tokens, reasons = await read(engine.submit(request))
            assert bytes(tokens[0][:3]).isdigit()
            assert reasons == ["stop"]
            with pytest.raises(RequestError, match="regex grammar"):
                await engine.prepare(Request((1,), 9, grammar=Grammar.regex("(")))

    within(20, work())
    assert [grammar.text for grammar in made] == ["[0-9]{3}", "("]


def refuse(error: BaseException) -> Any:
    def call(*_: Any) -> Any:
        raise error

    return call


class Panic(BaseException):
    """As libraries of Rust raise it."""


@pytest.mark.parametrize("broken", ["step", "abort", "audit", "between", "arrival"])
def test_whatever_ends_the_thread_is_told_to_all_who_wait(
    tiny: Decoder, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Streams that are open, work between steps, requests and work that come later; and closing returns."""
    engine = Engine(tiny, EngineOptions(64, 4))
    if broken == "step":
        monkeypatch.setattr(engine, "_run", refuse(SystemExit("enough")))
    elif broken == "abort":
        monkeypatch.setattr(engine, "_run", refuse(ValueError("first")))
        monkeypatch.setattr(engine, "abort", refuse(AssertionError("books\nare wrong")))
    elif broken == "audit":
        monkeypatch.setattr(engine.scheduler, "audit", refuse(AssertionError("a page is kept twice")))
    elif broken == "arrival":
        monkeypatch.setattr(engine.scheduler, "submit", refuse(SystemExit("enough")))
    said = {"abort": "AssertionError: books are wrong", "audit": "AssertionError: a page is kept twice"}
    words = f"the engine has ended and takes no more requests: {said.get(broken, 'SystemExit: enough')}"

    async def work() -> None:
        async with AsyncEngine(engine, audit_every=0.001) as running:
            gate = threading.Event()
            calls = [gate.wait, refuse(SystemExit("enough")) if broken == "between" else lambda: None, lambda: None]
            works = [asyncio.ensure_future(running.between_steps(call)) for call in calls]
            await asyncio.sleep(0.01)  # they are there, and the thread waits at the gate
            streams = [running.submit(ask(1, 200)), running.submit(ask(2, 200, n=3))]
            beams = running.submit(Request((1, 2), 200, Sampling(temperature=0), beams=3, n=2))
            gate.set()
            for stream in (*streams, beams):
                assert set((await read(stream))[1]) == {"error"}
                assert [str(answer.error) for answer in stream.stream.answers] == [words] * len(stream.stream.answers)
            await asyncio.wait(works)
            assert running.failure == words
            with pytest.raises(MachineError) as refused:
                running.submit(ask(1))
            assert str(refused.value) == words
            with pytest.raises(MachineError, match="the engine has ended"):
                await running.between_steps(lambda: 1)

    within(20, work())


def test_a_panic_in_a_step_is_a_step_that_failed(tiny: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny, EngineOptions(64, 4))

    async def work() -> None:
        async with AsyncEngine(engine) as running:
            with monkeypatch.context() as patch:
                patch.setattr(engine, "_run", refuse(Panic("index out of bounds")))
                stream = running.submit(ask(1))
                assert (await read(stream))[1] == ["error"]
                assert str(stream.stream.answers[0].error) == "the engine failed: Panic: index out of bounds"
            assert (await read(running.submit(ask(1))))[1] == ["length"]

    within(20, work())


def test_the_books_are_looked_at_once_in_a_while(tiny: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load, and behind the last step of it; not again where nothing has run since."""
    engine, audits = Engine(tiny, EngineOptions(64, 4)), list[bool]()
    audit = engine.scheduler.audit
    monkeypatch.setattr(engine.scheduler, "audit", lambda: (audits.append(engine.busy), audit()))

    async def work() -> None:
        async with AsyncEngine(engine, audit_every=0.02) as running:
            await read(running.submit(ask(1, 200)))
            await asyncio.sleep(0.2)
            assert audits.count(True) >= 2
            assert audits.count(False) == 1
            await running.between_steps(lambda: None)
            await asyncio.sleep(0.1)
            assert audits.count(False) == 1

    within(20, work())


def test_only_those_with_news_are_woken(tiny: Decoder) -> None:
    """Of many that wait for their turn none is."""
    options = EngineOptions(64, 4, SchedulerOptions(sequences=1, wait=0))
    woken = list[AsyncStream]()

    class Noted(AsyncStream):
        def wake(self) -> None:
            woken.append(self)
            super().wake()

    async def work() -> None:
        async with AsyncEngine(Engine(tiny, options)) as engine:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tenth.engine.async_engine.AsyncStream", Noted)
                streams = [engine.submit(ask(seed, 20)) for seed in range(10)]
            await asyncio.gather(*map(read, streams))
            assert len(woken) <= 200
            assert set(woken) == set(streams)

    within(60, work())
