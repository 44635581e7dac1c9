"""The server under load: 64 clients of all manners, each answer proves its own prompt, and nothing stays behind."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenth.serve.keys import new_key
from tenth.serve.limits import Limits
from tests.serve.asks import PATHS
from tests.serve.crowd import BODY, MANNERS, Crowd
from tests.serve.loaded import Loaded
from tests.serve.scraped import Scrape

CLIENTS = 64
DAY = 10**9
CALLERS = {
    "alice": Limits(tokens_per_day=DAY),
    "bob": Limits(),
    "carol": Limits(tokens_per_day=DAY, concurrent_requests=2),
}
KEPT = {"Asked": 128, "Request": 128}
"""What may live on between requests: the last bodies, as they were read."""


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    return {name: new_key(tmp_path / "keys.toml", name, limits) for name, limits in CALLERS.items()}


@pytest.fixture
def running(tmp_path: Path, keys: dict[str, str]) -> Iterator[Loaded]:
    found = Loaded(tmp_path, keys=tmp_path / "keys.toml", body_bytes=BODY, queue=CLIENTS)
    try:
        yield found
    finally:
        found.stop()


def books(state: Path) -> tuple[dict[str, int], int]:
    """Tokens of today by key, and requests that run."""
    with sqlite3.connect(state / "limits.db") as database:
        spent = dict(database.execute("SELECT key, SUM(tokens) FROM totals GROUP BY key"))
        ((running,),) = database.execute("SELECT COUNT(*) FROM charges WHERE owner IS NOT NULL")
    return spent, running


def check_rest(held: dict[str, Any]) -> None:
    """Nothing is at work, and every page is in its place."""
    assert (held["jobs"], held["reading"], held["answers"], held["tokens"], held["busy"]) == (0, 0, 0, 0, False)
    assert held["free"] + held["kept"] == held["pages"]
    assert {name: count for name, count in held["alive"].items() if count > KEPT.get(name, 0)} == {}


def check_growth(before: dict[str, Any], after: dict[str, Any], sent: int) -> None:
    """Memory is flat: half of a prompt left behind by each request would show, and so would objects."""
    assert after["memory"] - before["memory"] < (4 << 20) + sent // 2
    assert after["template_memory"] - before["template_memory"] < (2 << 20)
    assert after["objects"] - before["objects"] < 2000
    assert after["tasks"] == before["tasks"]
    assert after["threads"] <= 16


def check_counts(crowd: Crowd, running: Loaded, state: Path) -> None:
    """The server's log, its books and its cache tell what the clients tell."""
    logged = running.requests
    assert not [name for name, lines in logged.items() if len(lines) != 1]
    lines = {name: one for name, (one,) in logged.items()}
    assert set(lines) <= {one.name for one in crowd.told}
    tokens = Counter[str]()
    for one in crowd.told:
        line = lines.get(one.name)
        if one.status and one.kind != "looks":
            assert line is not None, one
            assert line["status"] == one.status, (one, line)
        if one.said is not None:
            assert line is not None
            assert (line["prompt_tokens"], line["completion_tokens"]) == (one.said.prompt, one.said.completion)
            tokens["told"] += one.said.prompt + one.said.completion
            tokens["logged"] += line["prompt_tokens"] + line["completion_tokens"]
    assert tokens["told"] == tokens["logged"] > 0
    charged = Counter[str]()
    for line in lines.values():
        if line.get("cache") != "hit" and "prompt_tokens" in line and line["key"] in ("alice", "carol"):
            charged[line["key"]] += line["prompt_tokens"] + line["completion_tokens"]
    assert books(state) == (dict(charged), 0)
    hits = sum(line.get("cache") == "hit" for line in lines.values())
    assert scraped(running, crowd.keys["bob"], lines.values())
    stats = running.held()["stats"]
    assert stats["hits"] == hits > 0
    assert (stats["damaged"], stats["errors"]) == (0, 0)
    assert not [line for line in running.lines if line["level"] != "info"]


async def _scrape(running: Loaded, key: str) -> Scrape:
    async with httpx.AsyncClient(base_url=running.url, headers={"authorization": f"Bearer {key}"}) as client:
        return await Scrape.of(client)


def scraped(running: Loaded, key: str, lines: Iterable[dict[str, Any]]) -> bool:
    """Whether `/metrics` tells what the log tells: requests by status, and tokens that were computed.

    Those that were refused at the door, for want of a key or by its limits, came to no route: their path is `other`.
    """
    scrape = asyncio.run(_scrape(running, key))
    by_status = Counter(str(line["status"] or 499) for line in lines if line["path"] in PATHS.values())
    for status, count in by_status.items():
        paths = {*PATHS.values(), *(["other"] if status in ("401", "429") else [])}
        counted = sum(sum(scrape.values("tenth_http_requests_total", path=path, status=status)) for path in paths)
        assert counted == count, status
    computed = sum(line.get("completion_tokens", 0) for line in lines if line.get("cache") != "hit")
    return scrape("tenth_generation_tokens_total") == computed > 0


def endure(crowd: Crowd, running: Loaded, rounds: list[float], state: Path) -> None:
    """Rounds of so many seconds, of which the first is to warm up."""
    before: dict[str, Any] = {}
    begun = 0
    for seconds in rounds:
        asyncio.run(crowd.run(CLIENTS, seconds))
        assert not crowd.wrong, f"{len(crowd.wrong)} of {len(crowd.told)}: {crowd.wrong[:5]}"
        held = running.idle()
        check_rest(held)
        if not before:
            before, begun = held, crowd.sent
    check_growth(before, held, crowd.sent - begun)
    assert set(crowd.kinds) == set(MANNERS)
    assert Counter(one.end for one in crowd.told)["answered"] > 100
    check_counts(crowd, running, state)


def test_sixty_four_clients_of_all_manners(running: Loaded, keys: dict[str, str], tmp_path: Path) -> None:
    endure(Crowd(running.port, keys), running, [8.0, 14.0], tmp_path)
    assert running.stop() == 0


@pytest.mark.slow
def test_five_minutes_of_them(running: Loaded, keys: dict[str, str], tmp_path: Path) -> None:
    endure(Crowd(running.port, keys, seed=1000), running, [60.0] * 5, tmp_path)
    assert running.stop() == 0
