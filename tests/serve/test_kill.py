"""A server that is killed or told to stop under load: what was kept stays, and everyone gets an end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from tenth.serve.keys import new_key
from tenth.serve.limits import Limits
from tests.serve.asks import PATHS, Ask, streamed, whole
from tests.serve.crowd import BODY, Crowd
from tests.serve.loaded import ROOT, Loaded
from tests.serve.test_load import CALLERS, DAY, books
from tests.serve.wire import Broken, Wire, request

KNOWN = [Ask("chat", f"kept{number}", 40, more={"temperature": 0}) for number in range(6)]
SMALL = 200  # tokens that dave may use on a day: one question, not two


def keys_of(state: Path) -> dict[str, str]:
    limits = {**CALLERS, "dave": Limits(tokens_per_day=SMALL)}
    return {name: new_key(state / "keys.toml", name, one) for name, one in limits.items()}


def started(state: Path, port: int = 0, **more: Any) -> Loaded:
    return Loaded(state, keys=state / "keys.toml", port=port, body_bytes=BODY, queue=64, **more)


def put(running: Loaded, ask: Ask, key: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    answer = httpx.post(running.url + PATHS[ask.api], content=ask.body(), headers=headers, timeout=60)
    if answer.status_code == 200:
        whole(ask, answer.json()).check(ask)
    return answer


def damage_the_first(state: Path) -> None:
    with sqlite3.connect(state / "answers.db") as database:
        ((key, value),) = database.execute("SELECT key, value FROM answers ORDER BY rowid LIMIT 1")
        spoiled = value[:-3] + bytes([value[-3] ^ 1]) + value[-2:]
        database.execute("UPDATE answers SET value = ? WHERE key = ?", (spoiled, key))


def test_a_kill_under_load_forgets_nothing(tmp_path: Path) -> None:
    keys = keys_of(tmp_path)
    first = started(tmp_path)
    for ask in KNOWN:
        assert put(first, ask, keys["alice"]).headers["x-tenth-cache"] == "miss"
    assert put(first, Ask("chat", "dave", 40, most=50), keys["dave"]).status_code == 200
    assert put(first, Ask("chat", "daves", 40, most=50), keys["dave"]).status_code == 429
    crowd = Crowd(first.port, keys)
    killer = threading.Timer(2.5, first.kill)
    killer.start()
    asyncio.run(crowd.run(32, 3.5))
    killer.join()
    strange = [one for one in crowd.wrong if "Broken: " not in one and "Error: [Errno" not in one]
    assert not strange
    before, unended = books(tmp_path)
    damage_the_first(tmp_path)
    second = started(tmp_path, first.port)
    try:
        check_after_the_kill(second, tmp_path, keys, before, crowd)
        assert unended > 0  # it was killed at work
    finally:
        assert second.stop() == 0


def check_after_the_kill(
    second: Loaded, state: Path, keys: dict[str, str], before: dict[str, int], crowd: Crowd
) -> None:
    assert second.seconds < 10
    assert books(state) == (before, 0)  # those that died hold no places, and what they were charged stays
    hits = {name for name, (line, *_) in second.requests.items() if line.get("cache") == "hit"}
    paid = [one for one in crowd.told if one.said is not None and one.name not in hits]
    for key in ("alice", "carol"):
        least = sum(one.said.prompt + one.said.completion for one in paid if one.key == key and one.said is not None)
        assert before.get(key, 0) >= least
    assert put(second, Ask("chat", "daves", 40, most=50), keys["dave"]).status_code == 429
    assert put(second, Ask("chat", "new", 30, more={"temperature": 1}), keys["bob"]).status_code == 200
    assert put(second, Ask("chat", "newer", 30, more={"temperature": 1}), keys["carol"]).status_code == 200
    marks = [put(second, ask, keys["alice"]).headers["x-tenth-cache"] for ask in KNOWN]
    assert marks == ["miss", *["hit"] * 5]
    assert second.idle()["stats"]["damaged"] == 1


async def _one(port: int, key: str, number: int) -> str:
    """How a long stream ends: whole, stopped with a last event, refused, or not even heard."""
    ask = Ask("chat", f"late{number}", 390, stream=True, more={"temperature": 1})
    try:
        wire = await Wire.open(port)
        await wire.send(request("POST", PATHS["chat"], ask.body(), name=f"late{number}", key=key))
        if await wire.head() != 200:
            assert (wire.status, (await wire.whole())["error"]["code"]) == (503, "stopping")
            return "refused"
        events = await wire.events()
    except (Broken, OSError):
        return "cut"
    if "error" in events[-2][1]:
        assert (events[-2][1]["error"]["code"], events[-1][1]) == ("stopping", "[DONE]")
        return "stopped"
    streamed(ask, events).check(ask)
    return "whole"


async def _stopped(running: Loaded, key: str, signals: int) -> list[str]:
    """Forty streams; once many are at work, so many signals."""
    tasks = [asyncio.create_task(_one(running.port, key, number)) for number in range(40)]
    while (await asyncio.to_thread(running.held))["jobs"] < 20:
        await asyncio.sleep(0.05)
    for _ in range(signals):
        running.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
    late = asyncio.create_task(_one(running.port, key, 1000))
    return await asyncio.wait_for(asyncio.gather(*tasks, late), 60)


def test_told_to_stop_under_load_all_come_to_their_end(tmp_path: Path) -> None:
    keys = keys_of(tmp_path)
    running = started(tmp_path, drain_seconds=40.0)
    *ends, late = asyncio.run(_stopped(running, keys["alice"], 1))
    assert running.process.wait(20) == 0
    running.stop()
    assert set(ends) <= {"whole", "refused"}
    assert ends.count("whole") >= 20
    assert late in ("refused", "cut")
    assert books(tmp_path)[1] == 0


def test_told_twice_under_load_it_stops_at_once(tmp_path: Path) -> None:
    keys = keys_of(tmp_path)
    running = started(tmp_path, drain_seconds=40.0)
    begun = time.monotonic()
    ends = asyncio.run(_stopped(running, keys["alice"], 2))
    assert running.process.wait(10) == 1
    assert time.monotonic() - begun < 8
    running.stop()
    assert {"stopped", "cut"} & set(ends)
    spent, unended = books(tmp_path)
    assert (spent["alice"] > 0, unended) == (True, 0)


def serve(state: Path) -> tuple[subprocess.Popen[str], str, float]:
    """`tenth serve` of the default model; where it listens, and how long it took to be ready."""
    begun = time.monotonic()
    options = ["--port", "0", "--keys", str(state / "keys.toml"), "--state", str(state), "--response-cache", "on"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tenth", "serve", *options, "--max-model-len", "1024"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    found = re.match(r"(http://127\.0\.0\.1:\d+)/v1 serves default", process.stderr.readline())
    assert found is not None
    while httpx.get(found[1] + "/ready", timeout=60).status_code != 200:
        assert time.monotonic() - begun < 120
        time.sleep(0.05)
    return process, found[1], time.monotonic() - begun


def test_the_default_model_is_back_within_ten_seconds_of_a_kill(tmp_path: Path) -> None:
    headers = {"authorization": f"Bearer {new_key(tmp_path / 'keys.toml', 'alice', Limits(tokens_per_day=DAY))}"}
    body = {"messages": [{"role": "user", "content": "What is 2+2?"}], "max_tokens": 6, "temperature": 0}
    process, url, _ = serve(tmp_path)
    try:
        one = httpx.post(url + "/v1/chat/completions", json=body, headers=headers, timeout=60)
        assert one.headers["x-tenth-cache"] == "miss"
        longer = {**body, "max_tokens": 500, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", url + "/v1/chat/completions", json=longer, headers=headers, timeout=60) as stream:
            lines = stream.iter_lines()  # held: without it the stream is closed, and the request ends in order
            assert json.loads(next(line for line in lines if line).removeprefix("data: "))["choices"]
            process.kill()
            process.communicate(timeout=60)
        (spent, unended) = books(tmp_path)
        assert (spent["alice"] > one.json()["usage"]["total_tokens"] + 500, unended) == (True, 1)
        process, url, seconds = serve(tmp_path)
        assert seconds < 10
        assert books(tmp_path) == (spent, 0)
        two = httpx.post(url + "/v1/chat/completions", json=body, headers=headers, timeout=60)
        assert two.headers["x-tenth-cache"] == "hit"
        assert two.json()["choices"] == one.json()["choices"]
        assert httpx.post(url + "/v1/chat/completions", json=body, timeout=60).status_code == 401
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
