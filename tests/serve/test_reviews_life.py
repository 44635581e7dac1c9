"""Reviews in a server of its own: what was answered is there after a kill, and no database is in an answer's way."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx

from tests.serve.asks import PATHS, Ask, whole
from tests.serve.loaded import Loaded
from tests.serve.postgres import postgres
from tests.serve.test_full_disk import room

URL = "/v1/reviews"


def rules_of(folder: Path) -> Path:
    path = folder / "rules.toml"
    path.write_text("[[rule]]\nname = 'every'\nanswer = '.'\n")
    return path


def put(running: Loaded, ask: Ask) -> None:
    """An answer must come, and be right."""
    headers = {"content-type": "application/json"}
    answer = httpx.post(running.url + PATHS[ask.api], content=ask.body(), headers=headers, timeout=30)
    assert answer.status_code == 200
    whole(ask, answer.json()).check(ask)


def asked(name: str) -> Ask:
    return Ask("chat", name, 30, more={"temperature": 1})


def listed(running: Loaded, state: str, count: int) -> list[dict[str, Any]]:
    """Reviews of a state, as soon as there are so many."""
    end = time.monotonic() + 20
    while True:
        answer = httpx.get(running.url + URL, params={"state": state, "limit": 200}, timeout=20)
        if answer.status_code == 200 and len(answer.json()["data"]) >= count:
            found: list[dict[str, Any]] = answer.json()["data"]
            assert len(found) == count
            return found
        assert time.monotonic() < end, answer.text
        time.sleep(0.05)


def errors(running: Loaded, words: str) -> int:
    return sum(line["message"].startswith(words) for line in running.lines)


def test_a_kill_loses_no_decision(reviews_url: str, tmp_path: Path) -> None:
    """Fifty clients flag and decide until the server is killed; what they were told is what is found again."""
    running = Loaded(tmp_path, reviews=reviews_url)
    told = dict[str, dict[str, Any]]()

    async def one(client: httpx.AsyncClient, number: int) -> None:
        for turn in range(1000):
            body = {"messages": [{"role": "user", "content": f"{number}"}], "answer": f"{turn}"}
            try:
                made = (await client.post(URL, json=body)).json()
                told[made["id"]] = made
                decision = {"decision": "correct", "correction": f"{number} {turn}", "seen": 1}
                told[made["id"]] = (await client.post(f"{URL}/{made['id']}", json=decision)).json()
            except httpx.HTTPError:
                return

    async def work() -> None:
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
            tasks = [asyncio.create_task(one(client, number)) for number in range(50)]
            while sum(review["state"] == "corrected" for review in told.values()) < 60:
                await asyncio.sleep(0.01)
            running.kill()
            await asyncio.gather(*tasks)

    asyncio.run(asyncio.wait_for(work(), 60))
    again = Loaded(tmp_path, reviews=reviews_url)
    try:
        with httpx.Client(base_url=again.url, timeout=30) as client:
            for name, review in told.items():
                kept = client.get(f"{URL}/{name}").json()
                if review["state"] == "corrected":
                    assert kept == review
                else:  # a decision whose answer did not come may have been kept
                    assert kept["answer"] == review["answer"]
        assert sum(review["state"] == "corrected" for review in told.values()) >= 60
    finally:
        assert again.stop() == 0


def test_a_database_that_goes_away_is_in_nobodys_way(tmp_path: Path) -> None:
    with postgres() as database:
        running = Loaded(tmp_path, reviews=database.url, rules=rules_of(tmp_path))
        try:
            put(running, asked("before"))
            listed(running, "waiting", 1)
            database.stop()
            begun = time.monotonic()
            for number in range(8):
                put(running, asked(f"meanwhile{number}"))
            assert time.monotonic() - begun < 10
            refused = httpx.get(running.url + URL, timeout=30)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
            assert str(tmp_path) not in refused.text
            assert "host" not in refused.text
            database.start()
            found = listed(running, "waiting", 9)
            assert [one["answer"] for one in found[1:]] == [asked(f"meanwhile{n}").text for n in range(8)]
            assert errors(running, "flagged answers are stored later") == 1
            assert errors(running, "flagged answers are stored again") == 1
        finally:
            assert running.stop() == 0


def test_a_full_disk_is_in_nobodys_way(tmp_path: Path) -> None:
    running = Loaded(tmp_path, reviews=f"{tmp_path}/q.db", rules=rules_of(tmp_path), cache="off")
    try:
        put(running, asked("before"))
        listed(running, "waiting", 1)
        room(running, False)
        for number in range(4):
            put(running, asked(f"meanwhile{number}"))
        body = {"messages": [{"role": "user", "content": "x"}], "answer": "y"}
        assert httpx.post(running.url + URL, json=body, timeout=30).status_code == 503
        assert len(httpx.get(running.url + URL, timeout=30).json()["data"]) == 1, "what is there can be read"
        room(running, True)
        listed(running, "waiting", 5)
        assert httpx.post(running.url + URL, json=body, timeout=30).status_code == 201
    finally:
        assert running.stop() == 0


def test_what_ends_while_the_server_stops_is_stored(tmp_path: Path) -> None:
    running = Loaded(tmp_path, reviews=f"{tmp_path}/q.db", rules=rules_of(tmp_path))
    for number in range(5):
        put(running, asked(f"last{number}"))
    assert running.stop() == 0
    again = Loaded(tmp_path, reviews=f"{tmp_path}/q.db")
    try:
        assert len(listed(again, "waiting", 5)) == 5
    finally:
        assert again.stop() == 0
