"""The engine in its thread: many readers, readers who leave, steps that fail, a loop that ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import torch

from tenth.engine.async_engine import AsyncEngine, AsyncStream
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
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
