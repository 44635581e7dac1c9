"""Those who look on: what they are told is what plain counts say, and looking costs nobody anything."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tenth.routing.counts import RoutingCounts
from tenth.serve.guards import GuardOptions, open_guards
from tenth.serve.keys import new_key, remove_key
from tenth.serve.limits import Limits
from tenth.serve.live import PATH
from tenth.serve.live_ticker import EVERY_S, MOST
from tenth.serve.service import ServeOptions, Service
from tests.api.tiny import tiny_model
from tests.serve.real import Server, get, server
from tests.serve.served import scripted, serving, within
from tests.serve.test_profile import body, native, profile_of

TEXT = "/v1/completions"
Snapshots = Iterator[dict[str, Any]]


@contextmanager
def looking(running: Server, **headers: str) -> Iterator[Snapshots]:
    """The snapshots that one viewer is sent."""
    with httpx.stream("GET", running.url + PATH, headers=headers, timeout=20) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))


def ask(running: Server, **more: Any) -> httpx.Response:
    answer = httpx.post(running.url + TEXT, json=more.pop("json"), timeout=30, **more)
    assert answer.status_code == 200, answer.text
    return answer


def counts_of(told: dict[str, Any], layers: int) -> list[list[int]]:
    found: list[list[int]] = np.frombuffer(base64.b64decode(told["counts"]), "<u4").reshape(layers, -1).tolist()
    return found


def until(snapshots: Snapshots, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    return next(one for one in snapshots if wanted(one))


def window_of(service: Service) -> RoutingCounts:
    assert service.window is not None
    return service.window.recent()


# ---- experts


def test_what_is_told_now_adds_up_to_all_that_was_routed(tmp_path: Path) -> None:
    with server(native(tmp_path)) as running, looking(running) as snapshots:
        first = next(snapshots)
        layers = len(first["experts"]["layers"])
        found_LE, tokens, quiet = np.zeros((layers, first["experts"]["experts"]), np.int64), 0, 0
        assert first["experts"]["now"]["tokens"] == 0
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(ask, running, json=body(seed)) for seed in range(12)]
            while quiet < 2:
                now = next(snapshots)["experts"]["now"]
                found_LE += np.array(counts_of(now, layers))
                tokens += now["tokens"]
                quiet = quiet + 1 if all(one.done() for one in asked) else 0
            assert [one.result().status_code for one in asked] == [200] * 12
        assert running.service.window is not None
        total = running.service.window.total()
        assert tokens == total.tokens > 200
        assert found_LE.tolist() == total.counts_LE.tolist()


def test_layers_are_told_as_plain_counts_say(tmp_path: Path) -> None:
    with server(native(tmp_path)) as running, looking(running) as snapshots:
        empty = next(snapshots)["experts"]
        assert set(empty["entropy"] + empty["balance"]) == {None}
        assert empty["dead"] == [empty["experts"]] * len(empty["layers"])
        ask(running, json={"prompt": [7, 9], "max_tokens": 3, "temperature": 0, "ignore_eos": True})
        told = until(snapshots, lambda one: one["experts"]["recent"]["tokens"] == 4)["experts"]
        config = running.service.model.config
        assert config.moe is not None
        assert (told["layers"], told["experts"]) == (list(config.sparse_layers), config.moe.num_experts)
        rows = counts_of(told["recent"], len(told["layers"]))
        assert rows == window_of(running.service).counts_LE.tolist()
        assert (told["recent"]["seconds"], told["drift"]) == (300, None)
        for row, entropy, balance, dead in zip(rows, told["entropy"], told["balance"], told["dead"], strict=True):
            assert sum(row) == 4 * config.moe.top_k
            bits = -sum(n / sum(row) * math.log(n / sum(row)) for n in row if n)
            assert entropy == pytest.approx(bits / math.log(len(row)), abs=1e-5)
            assert balance == pytest.approx(max(row) / (sum(row) / len(row)), abs=1e-5)
            assert dead == row.count(0) > 0


def test_drift_is_that_of_the_watch(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    with server(model, ServeOptions(drift_alarm=0.02), profile=profile_of(model, list(range(60)))) as running:
        with looking(running) as snapshots:
            drift = next(snapshots)["experts"]["drift"]
            assert (drift["judged"], drift["alarm"], drift["layer"], drift["bits"]) == (False, False, None, 0)
        ask(running, json={"prompt": [7] * 300, "max_tokens": 5, "temperature": 0, "ignore_eos": True})
        with looking(running) as snapshots:
            drift = next(snapshots)["experts"]["drift"]
        watch = running.service.drift
        assert watch is not None
        seen = watch.look()
        assert (drift["judged"], drift["alarm"], drift["threshold"]) == (True, True, 0.02)
        assert drift["bits"] == pytest.approx(seen.excess, abs=1e-5)
        assert drift["bits"] > 0.02
        assert drift["by_layer"] == pytest.approx(np.maximum(seen.beyond_L, 0).tolist(), abs=1e-5)
        assert drift["layer"] == seen.worst == seen.layers[int(np.argmax(drift["by_layer"]))]


def test_a_model_without_experts_and_a_server_without_metrics_say_why(tmp_path: Path) -> None:
    with server(scripted(lambda text: "fine")) as running, looking(running) as snapshots:
        told = next(snapshots)
        assert (told["experts"], told["why"]) == (None, "the model has no experts")
        assert (told["phase"], told["model"], told["speed"]["limit"]) == ("ready", "default", None)
    with server(native(tmp_path), ServeOptions(metrics=False)) as running, looking(running) as snapshots:
        ask(running, json=body(2))
        told = until(snapshots, lambda one: one["speed"]["generated_per_s"])
        assert (told["experts"], told["why"]) == (None, "the server runs with --no-metrics")
        assert told["speed"]["limit"] is None


# ---- requests, cache, speed


def test_speed_and_cache_are_those_of_the_engine(tmp_path: Path) -> None:
    with server(native(tmp_path), pages=100) as running, looking(running) as snapshots:
        assert next(snapshots)["cache"] == {
            "used_tokens": 0,
            "tokens": running.service.engine.engine.tokens,
            "sought_tokens": running.service.engine.engine.scheduler.counts.sought,
            "prefix_hit_rate": 0.0,
        }
        with ThreadPoolExecutor(1) as pool:
            long = {"prompt": [5] * 90, "max_tokens": 400, "temperature": 0, "ignore_eos": True}
            asked = pool.submit(ask, running, json=long)
            start, found = time.monotonic(), list[dict[str, Any]]()
            while time.monotonic() < start + 15 and not (asked.done() and found[-1]["speed"]["generated_per_s"] == 0):
                found.append(next(snapshots))
            assert asked.result().json()["usage"]["completion_tokens"] == 400
        assert sum(one["speed"]["generated_per_s"] for one in found) > 100
        assert sum(one["speed"]["prompt_per_s"] for one in found) > 20
        limits = [limit for one in found if (limit := one["speed"]["limit"]) is not None]
        assert max(limit["bytes_per_s"] for limit in limits) > 0
        for limit in limits:
            assert limit["machine_bytes_per_s"] == limits[0]["machine_bytes_per_s"] > 1e6
            share = limit["bytes_per_s"] / limit["machine_bytes_per_s"]
            assert limit["share"] == pytest.approx(share, abs=1e-4)


def waiting(text: str) -> str | None:
    if "wait" in text:
        time.sleep(2)
    return "fine"


def test_with_keys_only_ones_own_requests_are_told(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    made = {name: f"Bearer {new_key(keys, name, Limits())}" for name in ("alice", "bob")}
    with (
        open_guards(GuardOptions(state=tmp_path, keys=keys)) as guards,
        server(scripted(waiting), guards=guards) as running,
        ThreadPoolExecutor(2) as pool,
    ):
        assert get(running, PATH).status_code == 401
        asked = list[Any]()
        for name in made:
            headers = {"authorization": made[name], "x-request-id": f"of-{name}"}
            asked.append(pool.submit(ask, running, json={"prompt": "wait", "max_tokens": 5}, headers=headers))
            time.sleep(0.3)
        with looking(running, authorization=made["alice"]) as alice, looking(running, authorization=made["bob"]) as bob:
            seen = {"alice": next(alice)["requests"], "bob": next(bob)["requests"]}
            for name, state in (("alice", "running"), ("bob", "waiting")):
                assert (seen[name]["running"], seen[name]["waiting"]) == (1, 1)
                (row,) = seen[name]["list"]
                assert (row["id"], row["key"], row["state"]) == (f"of-{name}", name, state)
                assert (row["prompt_tokens"], row["generated_tokens"]) == (1, 0)
                assert 0.2 < row["seconds"] < 2
            remove_key(keys, "bob")
            assert list(bob)[-1]["error"]["code"] == "invalid_api_key"
            assert next(alice)["phase"] == "ready"
        assert [one.result().status_code for one in asked] == [200, 200]


# ---- viewers


def test_many_viewers_have_one_ticker_and_none_has_none(tmp_path: Path) -> None:
    with server(native(tmp_path)) as running:
        window = running.service.window
        assert window is not None
        with ExitStack() as stack:
            start = time.monotonic()
            viewers = [stack.enter_context(looking(running)) for _ in range(10)]
            told = [json.dumps(next(viewer)) for _ in range(4) for viewer in viewers]
            ticks = (time.monotonic() - start) / EVERY_S
            assert running.service.live.viewers == 10
            assert len(set(told)) <= ticks + 2
            assert len(window._readers) == 1
        end = time.monotonic() + 5
        while running.service.live.viewers or window._readers:
            assert time.monotonic() < end, "somebody still looks"
            time.sleep(0.01)


def viewer(service: Service, client: Any, takes: Callable[[int], Any]) -> Any:
    """A viewer of the application itself, who takes what is sent so; all that it was sent, when it is over."""
    scope = {"type": "http", "method": "GET", "path": PATH, "headers": [], "query_string": b""}
    sent = list[Any]()

    async def receive() -> Any:
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)
        await takes(len(sent))

    async def work() -> list[Any]:
        await client._transport.app(scope, receive, send)
        return sent

    return work()


def test_a_viewer_who_takes_nothing_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
    async def never(count: int) -> None:
        if count > 2:
            await asyncio.Event().wait()

    async def work() -> None:
        options = ServeOptions(send_seconds=1.2, heartbeat_seconds=2 * EVERY_S)
        async with serving(scripted(lambda _: None), options) as (service, client):
            with caplog.at_level(logging.INFO, "tenth.serve.access"):
                sent = await viewer(service, client, never)
            assert (len(sent), service.live.viewers) == (3, 0)  # nothing piled up behind what it did not take
            assert caplog.records[-1].fields["error"] == "the client does not read"  # type: ignore[attr-defined]

    within(20, work())


def test_a_slow_viewer_misses_ticks(tmp_path: Path) -> None:
    async def slowly(count: int) -> None:
        await asyncio.sleep(3 * EVERY_S if count > 1 else 0)

    async def work() -> None:
        async with serving(scripted(lambda _: None)) as (service, client):
            asyncio.get_running_loop().call_later(8 * EVERY_S, service.live.close)
            sent = await viewer(service, client, slowly)
            told = [json.loads(message["body"][6:])["uptime_s"] for message in sent if message.get("body")]
            assert len(told) <= 5
            assert min(later - sooner for sooner, later in pairwise(told[:-1])) > 1.5 * EVERY_S
            assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}

    within(20, work())


def test_a_server_that_drains_ends_it_with_a_last_look(tmp_path: Path) -> None:
    with server(scripted(waiting)) as running, looking(running) as snapshots, ThreadPoolExecutor(1) as pool:
        assert next(snapshots)["phase"] == "ready"
        asked = pool.submit(ask, running, json={"prompt": "wait", "max_tokens": 5})
        until(snapshots, lambda one: one["requests"]["running"])
        running.life.stop()
        start, left = time.monotonic(), [one["phase"] for one in snapshots]
        assert left[-1] == "draining"
        assert time.monotonic() - start < 1, "nobody waits for the requests"
        refused = get(running, PATH)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert asked.result().status_code == 200
        running.thread.join(5)
        assert running.ended


def test_there_are_not_too_many_and_a_failure_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with serving(scripted(lambda _: None)) as (service, client):
            service.live.viewers = MOST
            refused = await client.get(PATH)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            service.live.viewers = 0
            service.jobs.add(object())  # type: ignore[arg-type]  # nothing that can be looked at
            broken = await client.get(PATH)
            assert "look at itself" in json.loads(broken.text[6:])["error"]["message"]
            service.jobs.clear()
            asyncio.get_running_loop().call_later(0.1, service.live.close)
            whole = await client.get(PATH)
            assert [line[:9] for line in whole.text.split("\n") if line] == ['data: {"m'] * 2  # the next one sees again

    with caplog.at_level(logging.ERROR, logger="tenth.serve"):
        within(20, work())
    assert any("nobody can look on" in record.getMessage() for record in caplog.records)


def test_a_server_that_still_loads_is_seen() -> None:
    async def work() -> None:
        service = Service(ServeOptions())
        from tenth.serve.app import create_app

        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asyncio.get_running_loop().call_later(0.1, service.live.close)
            told = json.loads((await client.get(PATH)).text.split("\n")[0][6:])
        assert (told["phase"], told["experts"], told["why"]) == ("loading", None, "the model is not loaded yet")
        assert told["cache"] == {"used_tokens": 0, "tokens": 0, "sought_tokens": 0, "prefix_hit_rate": None}

    within(20, work())
