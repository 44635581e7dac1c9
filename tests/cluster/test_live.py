"""`/v1/live` of several replicas as one, against plain sums."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("aiohttp", reason="the front needs aiohttp, which ray[serve] brings")

from tenth.cluster.live_merge import Heard, merged
from tests.cluster.fronted import fronted
from tests.cluster.test_broken import HEAD, Player, answer, chunk, played
from tests.serve.wire import Wire, request

E = 4
COUNTS = st.lists(st.integers(0, 3), min_size=2 * E, max_size=2 * E)


def packed(counts: list[int]) -> str:
    return base64.b64encode(struct.pack(f"<{len(counts)}I", *counts)).decode()


def unpacked(text: str) -> list[int]:
    raw = base64.b64decode(text)
    return list(struct.unpack(f"<{len(raw) // 4}I", raw))


def event(now: list[int], recent: list[int], **more: Any) -> dict[str, Any]:
    experts = {
        "layers": [1, 3],
        "experts": E,
        "now": {"tokens": sum(now), "counts": packed(now)},
        "recent": {"tokens": sum(recent), "seconds": 300.0, "counts": packed(recent)},
        "entropy": [None, None],
        "balance": [None, None],
        "dead": [E, E],
        "drift": None,
    }
    limit = {"bytes_per_s": 100, "machine_bytes_per_s": 1000, "share": 0.1}
    return {
        "model": "m",
        "phase": "ready",
        "uptime_s": 5.0,
        "experts": experts,
        "requests": {"running": 1, "waiting": 2, "list": [{"id": "r", "seconds": 1.0}]},
        "cache": {"used_tokens": 10, "tokens": 100, "sought_tokens": 40, "prefix_hit_rate": 0.5},
        "speed": {"generated_per_s": 1.5, "prompt_per_s": 0.25, "limit": limit},
        **more,
    }


@given(st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=4))
def test_counts_add_up_and_measures_are_of_the_sums(parts: list[tuple[list[int], list[int]]]) -> None:
    found = merged([event(*part) for part in parts], ["box"] * len(parts))
    experts = found["experts"]
    now, recent = ([sum(column) for column in zip(*(part[n] for part in parts), strict=True)] for n in (0, 1))
    assert (unpacked(experts["now"]["counts"]), experts["now"]["tokens"]) == (now, sum(now))
    assert (unpacked(experts["recent"]["counts"]), experts["recent"]["tokens"]) == (recent, sum(recent))
    for layer in range(2):
        row = recent[layer * E : layer * E + E]
        assert experts["dead"][layer] == row.count(0)
        if not sum(row):
            assert (experts["entropy"][layer], experts["balance"][layer]) == (None, None)
            continue
        entropy = -sum(one / sum(row) * math.log(one / sum(row)) for one in row if one) / math.log(E)
        assert experts["entropy"][layer] == pytest.approx(entropy, abs=1e-5)
        assert experts["balance"][layer] == pytest.approx(max(row) * E / sum(row), abs=1e-5)
    count = len(parts)
    assert found["requests"]["running"] == count
    assert len(found["requests"]["list"]) == count
    sums = {"used_tokens": 10 * count, "tokens": 100 * count, "sought_tokens": 40 * count}
    assert found["cache"] == {**sums, "prefix_hit_rate": 0.5}
    assert found["speed"]["generated_per_s"] == 1.5 * count


def test_a_replica_that_has_looked_for_more_counts_for_more() -> None:
    busy, idle, new = (event([0] * 8, [1] * 8) for _ in range(3))
    busy["cache"] |= {"sought_tokens": 900, "prefix_hit_rate": 0.9}
    idle["cache"] |= {"sought_tokens": 100, "prefix_hit_rate": 0.1}
    new["cache"] |= {"sought_tokens": 0, "prefix_hit_rate": None}
    assert merged([busy, idle, new], ["a", "a", "b"])["cache"]["prefix_hit_rate"] == 0.82
    assert merged([new], ["a"])["cache"]["prefix_hit_rate"] is None


def test_a_machine_is_counted_once() -> None:
    events = [event([0] * 8, [1] * 8) for _ in range(3)]
    assert merged(events, ["a", "a", "b"])["speed"]["limit"] == {
        "bytes_per_s": 300,
        "machine_bytes_per_s": 2000,
        "share": 0.15,
    }
    events[1]["speed"]["limit"] = None
    assert merged(events, ["a", "a", "b"])["speed"]["limit"] is None


def test_without_experts_or_with_others_there_are_none() -> None:
    dense = event([0] * 8, [0] * 8, experts=None, why="the model is dense")
    assert merged([dense, dense], ["a", "a"])["why"] == "the model is dense"
    other = event([0] * 8, [0] * 8)
    other["experts"]["layers"] = [0, 1]
    assert merged([event([0] * 8, [0] * 8), other], ["a", "a"])["experts"] is None


def test_drift_is_that_of_the_furthest_and_the_first_that_is_ready_names_the_model() -> None:
    events = [event([0] * 8, [1] * 8, phase="draining", model="old"), event([0] * 8, [1] * 8, model="new")]
    events[0]["experts"]["drift"], events[1]["experts"]["drift"] = {"bits": 0.1}, {"bits": 0.4}
    found = merged(events, ["a", "a"])
    assert (found["model"], found["phase"], found["experts"]["drift"]["bits"]) == ("new", "ready", 0.4)


def test_what_was_counted_between_two_looks_is_taken_once() -> None:
    heard = Heard("box")
    assert heard.take() is None
    for _ in range(3):
        heard.hear(event([1] * 8, [5] * 8))
    for expected in ([3] * 8, [0] * 8):
        found = heard.take()
        assert found is not None
        assert unpacked(found["experts"]["now"]["counts"]) == expected
        assert unpacked(found["experts"]["recent"]["counts"]) == [5] * 8


def test_the_front_adds_up_what_replicas_show(tmp_path: Path) -> None:
    async def look(port: int) -> dict[str, Any]:
        wire = await Wire.open(port)
        await wire.send(request("GET", "/v1/live", None, name="viewer", key=None))
        assert (await wire.head(), wire.headers["content-type"]) == (200, "text/event-stream")
        found: dict[str, Any] = {}
        async for piece in wire.body():
            found = json.loads(piece.removeprefix(b"data: "))
            if found["replicas"] == 2:
                wire.leave()
                return found
        raise AssertionError("a stream that ended")

    shown = [HEAD + chunk(b"data: " + json.dumps(event([n] * 8, [n] * 8)).encode() + b"\n\n") for n in (1, 2)]
    one, two = (Player(said, hangs=True) for said in shown)
    with fronted(tmp_path) as running:
        with played(running, ("one", one), ("two", two)):
            found = asyncio.run(asyncio.wait_for(look(running.port), 20))
            assert unpacked(found["experts"]["recent"]["counts"]) == [3] * 8
        running.until(lambda: not running.life.members.ready() or running.life.front.inside == 0)


def test_where_replicas_show_nothing_their_own_answer_says_so(tmp_path: Path) -> None:
    with fronted(tmp_path) as running:
        nothing = Player(answer(404, {"error": {"message": "there is nothing"}}))
        with played(running, ("one", nothing)):
            found = httpx.get(running.url + "/v1/live", timeout=20)
    assert (found.status_code, found.json()["error"]["message"]) == (404, "there is nothing")
