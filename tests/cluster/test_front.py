"""A front and its replicas in one process: answers as the plain server's, whatever happens to a replica."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

pytest.importorskip("aiohttp", reason="the front needs aiohttp, which ray[serve] brings")

from tenth.serve.guards import GuardOptions
from tenth.serve.keys import new_key, remove_key
from tenth.serve.limits import Limits
from tenth.serve.review_queue import ReviewOptions
from tenth.serve.service import ServeOptions
from tests.cluster.fronted import Fronted, fronted, post
from tests.serve.asks import PATHS, Api, Ask, streamed, whole
from tests.serve.wire import Wire, request


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    with fronted(tmp_path_factory.mktemp("two"), "one", "two") as running:
        yield running


async def _streamed(port: int, ask: Ask, key: str | None = None) -> Any:
    wire = await Wire.open(port)
    await wire.send(request("POST", PATHS[ask.api], ask.body(), name=ask.nonce, key=key))
    assert await wire.head() == 200, await wire.whole()
    assert wire.headers["x-request-id"] == ask.nonce
    return streamed(ask, await wire.events())


@pytest.mark.parametrize("api", list(PATHS))
def test_answers_of_all_apis_prove_their_prompts(two: Fronted, api: Api) -> None:
    asks = [Ask(api, f"{api}{number}", 30 + number) for number in range(4)]
    for ask in asks:
        answer = httpx.post(
            two.url + PATHS[api], content=ask.body(), headers={"content-type": "application/json"}, timeout=30
        )
        assert answer.status_code == 200, answer.text
        whole(ask, answer.json()).check(ask)
        ask = Ask(api, f"{ask.nonce}s", ask.length, stream=True)
        asyncio.run(_streamed(two.port, ask)).check(ask)


def test_many_at_once_are_shared_out_and_none_is_crossed(two: Fronted) -> None:
    async def all_of_them() -> None:
        asks = [Ask("chat", f"many{number}", 200, stream=True) for number in range(24)]
        for ask, said in zip(asks, await asyncio.gather(*(_streamed(two.port, ask) for ask in asks)), strict=True):
            said.check(ask)

    before = {member.id: member.given for member in two.life.members.ready()}
    asyncio.run(asyncio.wait_for(all_of_them(), 60))
    shares = [member.given - before[member.id] for member in two.life.members.ready()]
    assert sum(shares) == 24
    assert min(shares) >= 8
    assert all(member.flights == member.unread == 0 for member in two.life.members.ready())


def test_a_beginning_goes_where_it_is_known(two: Fronted) -> None:
    text = "One and the same long beginning, which costs time to compute. " * 12
    cached = []
    for number in range(6):
        body = {"prompt": f"{text} {number}", "max_tokens": 2}
        usage = post(two, "/v1/completions", body).json()["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == 0
    assert min(cached[1:]) >= len(text)


def test_errors_are_the_replicas_own_or_the_fronts(two: Fronted) -> None:
    answer = post(two, "/v1/chat/completions", {"messages": []})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert post(two, "/v1/completions", {"prompt": "a", "model": "other"}).status_code == 404
    assert httpx.get(two.url + "/nothing").status_code == 404
    assert httpx.get(two.url + "/v1/chat/completions").status_code == 405
    large = httpx.post(two.url + "/v1/completions", content=b"x" * ((16 << 20) + 1))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
    assert httpx.post(two.url + "/v1/completions", content=b"{").status_code == 415


def test_what_is_no_prompt_passes_through(two: Fronted) -> None:
    assert httpx.get(two.url + "/v1/models").json()["data"][0]["id"] == "default"
    assert httpx.get(two.url + "/openapi.json").status_code == 200
    assert httpx.head(two.url + "/ready").status_code == 200
    assert httpx.get(two.url + "/health").json() == {"status": "alive", "phase": "ready", "replicas": 2}
    assert post(two, "/tokenize?x=1", {"prompt": "ab"}).json()["count"] == 2


def test_nobody_goes_round_the_front(two: Fronted) -> None:
    member = two.life.members.ready()[0]
    for headers in ({}, {"x-tenth-cluster": "guessed"}):
        assert httpx.get(member.news.url + "/v1/models", headers=headers).status_code == 403
        assert httpx.post(two.inner + "/announce", json={}, headers=headers).status_code == 403
    named = {"x-tenth-caller": "alice", "x-tenth-cluster": "guessed"}
    assert httpx.get(two.url + "/v1/models", headers=named).status_code == 200  # and goes no further than the front


def test_one_metrics_for_all(two: Fronted) -> None:
    post(two, "/v1/completions", {"prompt": "#m:5#\x01", "max_tokens": 3})
    text = httpx.get(two.url + "/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    tokens = [s for s in families["tenth_generation_tokens"].samples if s.name.endswith("_total")]
    assert {sample.labels["replica"] for sample in tokens} == {"one", "two"}
    generated = sum(hosted.service.meter.generation_tokens for hosted in two.replicas.values())  # type: ignore[union-attr]
    assert sum(sample.value for sample in tokens) == generated > 0
    given = families["tenth_cluster_requests_given"].samples
    assert sum(sample.value for sample in given) >= 1
    assert text.count("# TYPE tenth_generation_tokens_total counter") == 1
    assert "tenth_replica_process_resident_memory_bytes" in families


def test_a_client_who_leaves_ends_the_work(two: Fronted) -> None:
    async def leave() -> None:
        wire = await Wire.open(two.port)
        ask = Ask("chat", "leaver", 400, stream=True, more={"temperature": 1})
        await wire.send(request("POST", PATHS["chat"], ask.body(), name="leaver", key=None))
        assert await wire.head() == 200
        await anext(wire.body())
        wire.leave()

    asyncio.run(leave())
    two.until(lambda: all(hosted.jobs == 0 for hosted in two.replicas.values()))
    assert two.life.front.inside == 0


def test_reviews_are_the_same_whoever_is_asked(tmp_path: Path) -> None:
    keys = {name: new_key(tmp_path / "keys.toml", name, Limits(), reviews=name == "bob") for name in ("alice", "bob")}
    guards, kept = GuardOptions(keys=tmp_path / "keys.toml", state=tmp_path), ReviewOptions(str(tmp_path / "r.db"))
    flag = {"messages": [{"role": "user", "content": "Why?"}], "answer": "Because."}
    with fronted(tmp_path, "one", "two", guards=guards, reviews=kept) as running:
        made = [post(running, "/v1/reviews", flag | {"answer": f"{n}"}, keys["alice"]) for n in range(4)]
        assert [answer.status_code for answer in made] == [201] * 4
        for answer in made:
            place, decision = f"/v1/reviews/{answer.json()['id']}", {"decision": "approve"}
            forged = {"authorization": f"Bearer {keys['alice']}", "x-tenth-reviewer": "1"}
            assert httpx.post(running.url + place, json=decision, headers=forged).status_code == 403
            assert post(running, place, decision, keys["bob"]).json()["state"] == "approved"
            seen = httpx.get(running.url + place, headers={"authorization": f"Bearer {keys['alice']}"})
            assert seen.json()["state"] == "approved"


def test_the_console_is_public_and_what_it_shows_is_not(tmp_path: Path) -> None:
    new_key(tmp_path / "keys.toml", "alice", Limits())
    with fronted(tmp_path, "one", guards=GuardOptions(keys=tmp_path / "keys.toml", state=tmp_path)) as running:
        page = httpx.get(running.url + "/")
        assert (page.status_code, page.headers["content-type"].split(";")[0]) == (200, "text/html")
        assert httpx.get(running.url + "/v1/live").status_code == 401


def test_who_has_lost_the_key_looks_on_no_more(tmp_path: Path) -> None:
    key = new_key(tmp_path / "keys.toml", "bob", Limits())
    guards = GuardOptions(keys=tmp_path / "keys.toml", state=tmp_path)
    with fronted(tmp_path, "one", guards=guards) as running:
        headers, told = {"authorization": f"Bearer {key}"}, list[str]()
        with httpx.stream("GET", running.url + "/v1/live", headers=headers, timeout=20) as answer:
            for line in answer.iter_lines():
                told += [line] if line else []
                if line and len(told) == 1:
                    remove_key(tmp_path / "keys.toml", "bob")
        assert "invalid_api_key" in told[-1]
        assert "invalid_api_key" not in "".join(told[:-1])


def test_what_replicas_warn_of_is_in_the_fronts_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def found() -> list[logging.LogRecord]:
        return [one for one in caplog.records if one.getMessage().startswith("replica talker: a look has failed")]

    with fronted(tmp_path, "talker") as running:
        try:
            raise ValueError("on purpose")
        except ValueError:
            logging.getLogger("tenth.serve").exception("a look has failed")
        running.until(found)
        time.sleep(0.7)
        (told,) = found()
    assert (told.name, told.levelno) == ("tenth.cluster.replicas", logging.ERROR)
    assert "failed\nTraceback" in told.getMessage()
    assert told.getMessage().endswith("ValueError: on purpose")


def test_limits_are_kept_once_in_front(tmp_path: Path) -> None:
    limits = {"small": Limits(tokens_per_day=300), "free": Limits(), "one": Limits(concurrent_requests=1)}
    keys = {name: new_key(tmp_path / "keys.toml", name, one) for name, one in limits.items()}
    with fronted(tmp_path, "one", "two", guards=GuardOptions(keys=tmp_path / "keys.toml", state=tmp_path)) as running:
        body = {"prompt": "ab", "max_tokens": 20, "ignore_eos": True, "temperature": 1}
        assert post(running, "/v1/completions", body).status_code == 401
        assert httpx.get(running.url + "/health").status_code == 200
        used = 0
        while (answer := post(running, "/v1/completions", body, keys["small"])).status_code == 200:
            used += answer.json()["usage"]["total_tokens"]
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
        assert 300 - 22 < used <= 300  # what was set aside and not used is given back, whoever computed
        assert post(running, "/v1/completions", body, keys["free"]).status_code == 200
        ask = Ask("chat", "slow", 400, stream=True, more={"temperature": 1})
        first = threading.Thread(target=lambda: asyncio.run(_streamed(running.port, ask, keys["one"])))
        first.start()
        running.until(lambda: running.life.front.inside == 1)
        assert post(running, "/v1/completions", body, keys["one"]).status_code == 429
        first.join(30)
        assert post(running, "/v1/completions", body, keys["one"]).status_code == 200


def test_told_to_stop_streams_come_to_their_end_and_new_ones_are_refused(tmp_path: Path) -> None:
    with fronted(tmp_path, "one") as running:
        asks = [Ask("chat", f"late{number}", 300, stream=True) for number in range(6)]

        async def all_of_them() -> list[Any]:
            tasks = [asyncio.create_task(_streamed(running.port, ask)) for ask in asks]
            while running.life.front.inside < 6:
                await asyncio.sleep(0.01)
            running.stop()
            await asyncio.sleep(0.05)
            late = await asyncio.to_thread(post, running, "/v1/completions", {"prompt": "a"})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "stopping")
            return await asyncio.gather(*tasks)

        for ask, said in zip(asks, asyncio.run(asyncio.wait_for(all_of_them(), 40)), strict=True):
            said.check(ask)
        running.thread.join(10)
        assert not running.thread.is_alive()


def test_told_twice_streams_get_a_last_event(tmp_path: Path) -> None:
    async def ends() -> Any:
        wire = await Wire.open(running.port)
        ask = Ask("chat", "cut", 2000, most=2000, stream=True, more={"temperature": 1})
        await wire.send(request("POST", PATHS["chat"], ask.body(), name="cut", key=None))
        assert await wire.head() == 200
        running.stop()
        running.stop()
        return await wire.events()

    with fronted(tmp_path, "one") as running:
        events = asyncio.run(asyncio.wait_for(ends(), 20))
        assert (events[-2][1]["error"]["code"], events[-1][1]) == ("stopping", "[DONE]")


def test_a_request_waits_for_the_first_replica(tmp_path: Path) -> None:
    with fronted(tmp_path) as running:
        assert httpx.get(running.url + "/ready").status_code == 503
        found = list[httpx.Response]()
        asking = threading.Thread(
            target=lambda: found.append(
                post(running, PATHS["completion"], json.loads(Ask("completion", "w", 9).body()))
            )
        )
        asking.start()
        time.sleep(0.3)
        running.add("late")
        asking.join(20)
        assert found[0].status_code == 200, found[0].text
        whole(Ask("completion", "w", 9), found[0].json()).check(Ask("completion", "w", 9))


def test_other_hosts_and_origins_are_judged_in_front(tmp_path: Path) -> None:
    serve = ServeOptions(hosts=("box.lan",), origins=("https://app.example",))
    with fronted(tmp_path, "one", serve=serve) as running:
        refused = httpx.get(running.url + "/v1/models", headers={"host": "evil.example"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")
        allowed = httpx.get(running.url + "/v1/models", headers={"host": "box.lan", "origin": "https://app.example"})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://app.example")
