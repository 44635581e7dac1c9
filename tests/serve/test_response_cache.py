"""Kept answers: what enters the key, stores and their limits, restarts, kills, damage, single flight, Redis."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tenth.engine.grammar import Grammar
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.thinking import Thinking
from tenth.errors import ConfigError, MachineError, RequestError
from tenth.routing.limit import ExpertLimit
from tenth.serve.response_cache import Entry, Question, ResponseCache
from tenth.serve.response_store import FileStore, RedisStore

REQUEST = Request((1, 2, 3), 10, Sampling(temperature=0.0), end_ids=frozenset({7, 5}))
FORM = {"endpoint": "chat", "stop": ["x"], "kv": "bf16", "privacy": "off", "tools": None}
QUESTION = Question("model-1", (REQUEST,), FORM, "alice")
ENTRY = Entry([{"delta": "é"}, {"delta": "b", "x": [1, None, 2.5]}], {"prompt": 3, "completion": 2})


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


async def answered(cache: ResponseCache, question: Question, entry: Entry | None = ENTRY) -> Entry | None:
    """What was found; else the entry is stored."""
    with closing(await cache.ask(cache.key_of(question))) as flight:
        assert flight.mark == ("miss" if flight.entry is None else "hit")
        if flight.entry is None and entry is not None:
            await flight.store(entry)
        return flight.entry


def ask(cache: ResponseCache, question: Question = QUESTION, entry: Entry | None = ENTRY) -> Entry | None:
    return asyncio.run(answered(cache, question, entry))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.db"


def test_equal_questions_have_one_answer(path: Path) -> None:
    cache = ResponseCache.open(str(path))
    assert ask(cache) is None
    assert ask(cache) == ENTRY
    again = replace(QUESTION, requests=(replace(REQUEST, end_ids=frozenset({5, 7}), priority=3, tenant="x"),))
    assert ask(cache, replace(again, form=dict(reversed(FORM.items())))) == ENTRY
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.stored, stats.tokens_saved) == (2, 1, 1, 10)
    cache.close()
    assert path.stat().st_mode & 0o777 == 0o600


OTHERS: dict[str, Any] = {
    "prompt": (1, 2, 4),
    "max_tokens": 11,
    "sampling": Sampling(temperature=0.0, seed=3),
    "end_ids": frozenset({5}),
    "min_tokens": 1,
    "n": 2,
    "beams": 2,
    "length_penalty": 0.5,
    "logit_bias": {3: 1.0},
    "forbidden": frozenset({9}),
    "logprobs": 0,
    "prompt_logprobs": 0,
    "thinking": Thinking(1, 2, None, (), begun=False),
    "grammar": Grammar.regex("a+"),
    "rolling": 64,
    "record": "choice",
    "limit": ExpertLimit(cap=2),
}

SAMPLINGS = {"top_k": 3, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.1}
SAMPLINGS |= {"frequency_penalty": 0.1, "seed": 4}


def test_every_field_of_a_request_is_in_the_key() -> None:
    """And one that the engine gains is, without anybody's doing: this table says so loudly."""
    assert {*OTHERS, "priority", "tenant"} == {one.name for one in fields(Request)}
    questions = [replace(QUESTION, requests=(replace(REQUEST, **{name: value}),)) for name, value in OTHERS.items()]
    for name, value in SAMPLINGS.items():
        sampling = Sampling(**{"temperature": 0.0, name: value})  # type: ignore[arg-type]
        questions.append(replace(QUESTION, requests=(replace(REQUEST, sampling=sampling),)))
    questions += [replace(QUESTION, form={**FORM, name: "other"}) for name in [*FORM, "new"]]
    questions += [QUESTION, replace(QUESTION, model="model-2"), replace(QUESTION, tenant="bob")]
    assert len({question.key(shared=False) for question in questions}) == len(questions)


def test_likeness_is_no_equality() -> None:
    forms: list[dict[str, Any]] = [
        {"a": "1"},
        {"a": 1},
        {"a": True},
        {"a": 1.0},
        {"a": [1]},
        {"a": {"1": 1}},
        {"a": None},
        {},
    ]
    forms += [{"a": ["map", []]}, {"a": {}}, {"a": "\ud800"}]
    assert len({replace(QUESTION, form=form).key(shared=False) for form in forms}) == len(forms)
    with pytest.raises(RequestError, match="holds bytes"):
        replace(QUESTION, form={"a": b""}).key(shared=False)


def test_callers_are_apart_unless_they_share(path: Path) -> None:
    cache = ResponseCache.open(str(path))
    bob = replace(QUESTION, tenant="bob")
    assert [ask(cache), ask(cache, bob), ask(cache, bob)] == [None, None, ENTRY]
    cache.close()
    shared = ResponseCache.open(str(path), share=True)
    assert [ask(shared), ask(shared, bob), ask(shared, replace(QUESTION, tenant=""))] == [None, ENTRY, ENTRY]
    shared.close()


def test_age(path: Path) -> None:
    clock = Clock()
    cache = ResponseCache(FileStore(path, 1 << 20), max_age_s=100, clock=clock)
    assert ask(cache) is None
    clock.now += 99
    assert ask(cache) == ENTRY
    clock.now += 2
    assert ask(cache, entry=None) is None
    clock.now -= 50  # it is gone, not only hidden
    assert ask(cache, entry=None) is None
    cache.close()


def test_size_and_what_goes_first(path: Path) -> None:
    store = FileStore(path, 10_000)
    for number in range(9):
        assert store.put(bytes([number]), b"x" * 1000, 1.0) == (1 if number > 7 else 0)
        assert store.get(b"\0", 0.0) is not None or number > 7
        if number > 1:
            store.get(b"\1", 0.0)
    assert [store.get(bytes([number]), 0.0) is not None for number in range(9)] == [True, True, False, *[True] * 6]
    assert store.put(b"big", b"x" * 9_900, 1.0) == 8  # its row does not fit: nothing is kept
    assert store.get(b"big", 0.0) is None
    for number in range(300):
        store.put(number.to_bytes(2, "big"), b"y" * 1000, 1.0)
    assert store._database.execute("SELECT sum(size) FROM answers").fetchone()[0] <= 10_000
    assert store._database.execute("SELECT bytes FROM clock").fetchone()[0] <= 10_000
    assert path.stat().st_size < 100_000
    store.put(b"a", b"1", 1.0)
    store.put(b"a", b"22", 1.0)
    assert store.get(b"a", 0.0) == b"22"
    store.close()


def test_one_entry_is_no_more_than_an_eighth(path: Path) -> None:
    cache = ResponseCache.open(str(path), max_bytes=8000)
    assert [ask(cache, entry=Entry(["x" * 1000], {})), ask(cache, entry=None)] == [None, None]
    assert cache.stats().stored == 0
    cache.close()


def test_a_restart_forgets_nothing(path: Path) -> None:
    for found in (None, ENTRY, ENTRY):
        cache = ResponseCache.open(str(path))
        assert ask(cache) == found
        cache.close()


_WRITER = """
import sys
from pathlib import Path
from tenth.serve.response_store import FileStore
store = FileStore(Path(sys.argv[1]), 1 << 28)
for number in range(10**6):
    store.put(number.to_bytes(4, "big"), number.to_bytes(4, "big") * 20_000, 1.0)
    print(number, flush=True)
"""


def test_kills_while_writing(path: Path) -> None:
    """Whatever was told to be stored is there, whole; of what was in work nothing or all."""
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(30):
            writer.stdout.readline()
        time.sleep(0.003)
        writer.send_signal(signal.SIGKILL)
        told = [line for line in writer.stdout.read().split("\n") if line]
        writer.wait(30)
        last = int(told[-1]) if told else 29
        store = FileStore(path, 1 << 28)
        assert store._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for number in range(last + 2):
            name = number.to_bytes(4, "big")
            value = store.get(name, 0.0)
            assert value == name * 20_000 or (value is None and number > last)
        store.close()
    assert not path.with_name("answers.db.damaged").exists()


def test_damaged_entries_are_misses(path: Path) -> None:
    cache = ResponseCache.open(str(path))
    ask(cache)
    other = sqlite3.connect(path)
    (value,) = other.execute("SELECT value FROM answers").fetchone()
    for damaged in (value[:-1], value[:40] + b"!" + value[41:], b"", b"{}", b"\0" * 40):
        other.execute("UPDATE answers SET value = ?", (damaged,))
        other.commit()
        assert ask(cache) is None
        assert ask(cache) == ENTRY
    other.execute("UPDATE answers SET key = ?", (replace(QUESTION, model="other").key(shared=False),))
    other.commit()
    assert ask(cache, replace(QUESTION, model="other"), None) is None  # another's answer, whole as it is
    assert cache.stats().damaged == 6
    cache.close()


def test_a_damaged_file_is_begun_anew(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    cache = ResponseCache.open(str(path))
    assert [ask(cache), ask(cache)] == [None, ENTRY]
    cache.close()
    assert path.with_name("answers.db.damaged").read_bytes().startswith(b"no database")


def test_a_file_damaged_in_use(path: Path) -> None:
    cache = ResponseCache.open(str(path))
    for number in range(40):
        ask(cache, replace(QUESTION, model=str(number)), Entry(["x" * 5000], {}))
    cache.close()
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
    cache = ResponseCache.open(str(path))
    for number in range(40):
        found = ask(cache, replace(QUESTION, model=str(number)), ENTRY)
        assert found in (None, Entry(["x" * 5000], {}))
    assert ask(cache, replace(QUESTION, model="39")) == ENTRY
    cache.close()


def test_a_store_that_fails_is_no_store(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def get(self, key: bytes, oldest: float) -> bytes | None:
            raise MachineError("Redis: TimeoutError")

        def put(self, key: bytes, value: bytes, now: float) -> int:
            raise OSError(28, "no space left")

        def drop(self, key: bytes) -> None: ...

        def close(self) -> None: ...

    cache = ResponseCache(Broken())
    assert [ask(cache), ask(cache)] == [None, None]
    assert (cache.stats().errors, cache.stats().stored) == (4, 0)
    assert len([record for record in caplog.records if "response cache fails" in record.message]) == 1


def test_equal_questions_at_once_are_computed_once(path: Path) -> None:
    cache = ResponseCache.open(str(path))
    computed = list[str]()

    async def one(name: str, question: Question) -> list[Any]:
        with closing(await cache.ask(cache.key_of(question))) as flight:
            if flight.entry is not None:
                return flight.entry.events
            computed.append(name)
            await asyncio.sleep(0.02)
            await flight.store(Entry([name], {}))
            return [name]

    async def run() -> list[list[Any]]:
        other = replace(QUESTION, tenant="bob")
        questions = [QUESTION, QUESTION, other, QUESTION, other]
        return await asyncio.gather(*(one(str(number), asked) for number, asked in enumerate(questions)))

    assert asyncio.run(run()) == [["0"], ["0"], ["2"], ["0"], ["2"]]
    assert computed == ["0", "2"]
    assert cache._flights == {}
    cache.close()


@pytest.mark.parametrize("how", ["fails", "leaves", "stores nothing"])
def test_who_waits_computes_if_the_first_does_not(path: Path, how: str) -> None:
    cache = ResponseCache.open(str(path))
    begun = asyncio.Event()

    async def first() -> None:
        with closing(await cache.ask(cache.key_of(QUESTION))) as flight:
            assert flight.entry is None
            begun.set()
            if how == "leaves":
                await asyncio.sleep(60)
            await asyncio.sleep(0.01)
            if how == "fails":
                raise RuntimeError("the engine has died")

    async def run() -> Entry | None:
        leader = asyncio.ensure_future(first())
        await begun.wait()
        second = asyncio.ensure_future(answered(cache, QUESTION))
        third = asyncio.ensure_future(answered(cache, QUESTION))
        await asyncio.sleep(0.005)
        if how == "leaves":
            leader.cancel()
        await asyncio.gather(leader, return_exceptions=True)
        assert await second is None
        return await third

    assert asyncio.run(run()) == ENTRY
    assert cache._flights == {}
    cache.close()


def test_nothing_is_pickled(path: Path) -> None:
    cache = ResponseCache.open(str(path))
    ask(cache)
    (value,) = cache._store._database.execute("SELECT value FROM answers").fetchone()  # type: ignore[attr-defined]
    assert json.loads(value[32:]) == [ENTRY.events, ENTRY.usage]
    cache.close()


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("redis")
    if shutil.which("redis-server") is None:
        apt = [
            "apt-get",
            "-qq",
            "-o",
            "DPkg::Lock::Timeout=120",
            "-o",
            "Acquire::Retries=1",
            "install",
            "-y",
            "redis-server",
        ]
        environment = {"DEBIAN_FRONTEND": "noninteractive", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "RUNLEVEL": "1"}
        try:
            done = subprocess.run(apt, env=environment, capture_output=True, text=True, timeout=240)
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"redis-server is not here, and apt cannot install it: {error}")
        if done.returncode:
            pytest.skip(f"redis-server is not here, and apt cannot install it: {done.stderr.strip()[-200:]}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(10)


def test_redis(redis_url: str) -> None:
    cache = ResponseCache.open(redis_url, max_age_s=1000)
    assert isinstance(cache._store, RedisStore)
    assert [ask(cache), ask(cache), ask(cache, replace(QUESTION, tenant="bob"), None)] == [None, ENTRY, None]
    name = f"tenth:answer:{QUESTION.key(shared=False).hex()}"
    raw = cache._store._redis
    assert 990_000 < raw.pttl(name) <= 1_000_000
    raw.set(name, raw.get(name)[:-1])
    assert ask(cache, entry=None) is None
    assert raw.get(name) is None
    cache.close()
    again = ResponseCache.open(redis_url)
    assert [ask(again), ask(again)] == [None, ENTRY]
    again.close()


def test_redis_that_does_not_answer() -> None:
    cache = ResponseCache.open("redis://:hush-hush@127.0.0.1:1/0")
    assert [ask(cache), ask(cache)] == [None, None]
    assert cache.stats().errors == 4
    cache.close()
    with pytest.raises(MachineError) as raised:
        RedisStore("redis://:hush-hush@127.0.0.1:1/0", 1.0).get(b"x", 0.0)
    assert "hush" not in str(raised.value)


def test_a_wrong_address() -> None:
    with pytest.raises(ConfigError, match="no address of Redis"):
        ResponseCache.open("redis://127.0.0.1:port/0")
