"""`/metrics`: counters add up after a load of all sorts, never shrink, have few labels; off it is not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from tenth.api import Model
from tenth.serve.guards import GuardOptions, open_guards
from tenth.serve.keys import new_key
from tenth.serve.limits import Limits
from tenth.serve.meter import Histogram
from tenth.serve.service import ServeOptions, Service
from tests.api.tiny import tiny_model
from tests.serve.scraped import Scrape
from tests.serve.served import scripted, serving, within

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


def says(text: str) -> str | None:
    if text.startswith("fail"):
        raise RuntimeError("on purpose")
    if text.startswith("long"):
        return "word " * 3000
    return " one two three four five" if text.startswith("count") else None


def prompt(text: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": text, "temperature": 0, "max_tokens": 2000, **fields}


async def left(client: httpx.AsyncClient, service: Service, body: dict[str, Any]) -> None:
    """Begin a request and leave it when some tokens have come."""
    task = asyncio.create_task(client.post(TEXT, json=body))
    while not any(job.usage().completion > 3 for job in service.jobs):
        await asyncio.sleep(0.002)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    while service.engine.engine.busy or service.jobs:
        await asyncio.sleep(0.002)


def test_counters_add_up() -> None:
    async def run() -> None:
        async with serving(scripted(says)) as (service, client):
            usages = [
                (await client.post(TEXT, json=body)).json()["usage"]
                for body in (
                    prompt("count", n=2),
                    prompt("count", max_tokens=3),
                    prompt("count", stop=[" three"]),
                    prompt(["count", "count on"]),
                )
            ]
            streamed = await client.post(TEXT, json=prompt("count", stream=True))
            assert streamed.text.endswith("data: [DONE]\n\n")
            middle = await Scrape.of(client)
            assert middle("tenth_generation_tokens_total") == sum(u["completion_tokens"] for u in usages) + 6
            assert middle("tenth_prompt_tokens_total") == sum(u["prompt_tokens"] for u in usages) + 1

            assert (await client.post(TEXT, json=prompt("fail"))).status_code == 503
            assert (await client.post(TEXT, json=prompt("count", n=0))).status_code == 400
            await left(client, service, prompt("long", n=2))
            after = await Scrape.of(client)

            assert after("tenth_request_success_total", finished_reason="stop") == 2 + 1 + 2 + 1
            assert after("tenth_request_success_total", finished_reason="length") == 1
            assert after("tenth_request_failure_total", reason="error") == 1
            assert after("tenth_request_failure_total", reason="cancelled") == 2
            answers = 2 + 1 + 1 + 2 + 1 + 1 + 2
            ended = after("tenth_request_success_total") + after("tenth_request_failure_total")
            assert ended == after("tenth_request_generation_tokens_count") == answers
            assert after("tenth_request_generation_tokens_sum") == after("tenth_generation_tokens_total")
            assert after("tenth_request_prompt_tokens_sum") == after("tenth_prompt_tokens_total")
            assert after("tenth_time_to_first_token_seconds_count") == answers - 1, "the one that failed had no token"
            assert after("tenth_e2e_request_latency_seconds_count") == 5, "requests that succeeded"
            assert after("tenth_request_queue_time_seconds_count") == 5 + 1 + 1, "and prompts that began"
            gaps = after("tenth_inter_token_latency_seconds_count")
            assert gaps <= after("tenth_generation_tokens_total") - (answers - 1)
            assert after("tenth_inter_token_latency_seconds_sum") > 0
            assert after("tenth_http_requests_total", path=TEXT, status="200") == 5
            assert after("tenth_http_requests_total", path=TEXT, status="400") == 1
            assert after("tenth_http_requests_total", path=TEXT, status="503") == 1
            assert after("tenth_http_requests_total", path=TEXT, status="499") == 1
            for name in ("tenth_num_requests_running", "tenth_num_requests_waiting", "tenth_kv_cache_usage_perc"):
                assert after(name) == 0
            assert 0 < after("tenth_kv_cache_filled_perc") < 1

    within(60, run())


def test_it_only_grows_and_is_whole_under_load() -> None:
    async def run() -> None:
        async with serving(scripted(says), sequences=4) as (_, client):
            load = [client.post(TEXT, json=prompt("long", max_tokens=120 + n)) for n in range(8)]
            work = asyncio.gather(*load)
            scrapes = list[Scrape]()
            while not work.done():
                scrapes.append(await Scrape.of(client))
                await asyncio.sleep(0.01)
            assert {answer.status_code for answer in await work} == {200}
            scrapes.append(await Scrape.of(client))
            assert len(scrapes) > 5
            assert max(scrape("tenth_num_requests_running") for scrape in scrapes) == 4
            assert max(scrape("tenth_num_requests_waiting") for scrape in scrapes) >= 3
            assert max(scrape("tenth_kv_cache_usage_perc") for scrape in scrapes) > 0
            for scrape in scrapes:
                for name in ("tenth_inter_token_latency_seconds", "tenth_request_generation_tokens"):
                    buckets = scrape.values(f"{name}_bucket")
                    assert buckets == sorted(buckets)
                    assert buckets[-1] == scrape(f"{name}_count")
            seen: dict[object, float] = {}
            for scrape in scrapes:
                for key, value in scrape.growing():
                    assert value >= seen.get(key, 0), key
                    seen[key] = value
            assert scrapes[-1]("tenth_generation_tokens_total") == sum(120 + n for n in range(8))
            between = {scrape("tenth_generation_tokens_total") for scrape in scrapes}
            assert len(between) > 3, "tokens are counted as they come"

    within(60, run())


def test_prompts_found_again_are_told() -> None:
    async def run() -> None:
        async with serving(scripted(says)) as (_, client):
            before = await Scrape.of(client)
            usages = [(await client.post(TEXT, json=prompt("long" * 50, max_tokens=1))).json()["usage"] for _ in "ab"]
            after = await Scrape.of(client)
            tokens, found = usages[1]["prompt_tokens"], usages[1]["prompt_tokens_details"]["cached_tokens"]
            assert found == tokens - 1

            def grown(name: str) -> float:
                return after(name) - before(name)

            assert grown("tenth_prefix_cache_hits_total") == found
            assert grown("tenth_prefix_cache_queries_total") == 2 * (tokens - 1)
            assert grown("tenth_computed_tokens_total") == tokens + 1

    within(60, run())


def test_what_nobody_knows_adds_no_label() -> None:
    async def run() -> None:
        async with serving(scripted(says), ServeOptions(names=("m",))) as (_, client):
            await client.get("/v1/models/m")
            for number in range(30):
                await client.get(f"/nothing/{number}")
                await client.get(f"/v1/models/none-{number}")
                await client.request("BREW", f"/{number}")
            scrape = await Scrape.of(client)
            paths = {dict(pairs)["path"] for name, pairs in scrape.samples if name == "tenth_http_requests_total"}
            assert paths == {"other", "/v1/models/{name:path}"}
            assert scrape("tenth_http_requests_total", path="other") == 60
            assert scrape("tenth_http_requests_total", path="/v1/models/{name:path}", status="404") == 30
            assert scrape.labels("tenth_http_requests_total") == {"path", "status"}
            assert scrape.labels("tenth_prompt_tokens_total") == {"model_name"}

    within(60, run())


def test_the_door(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    key = new_key(path, "alice", Limits(requests_per_minute=2))
    allowed = {"authorization": f"Bearer {key}"}

    async def run() -> None:
        with open_guards(GuardOptions(keys=path, state=tmp_path)) as guards:
            async with serving(scripted(says), guards=guards) as (_, client):
                assert (await client.get("/metrics")).status_code == 401
                client.headers.update(allowed)
                statuses = [(await client.post(TEXT, json=prompt("count"))).status_code for _ in range(3)]
                assert statuses == [200, 200, 429]
                scrape = await Scrape.of(client)
                assert scrape("tenth_requests_refused_total", code="invalid_api_key") == 1
                assert scrape("tenth_requests_refused_total", code="requests_per_minute") == 1
                assert scrape("tenth_requests_refused_total", code="queue_full") == 0
                assert "alice" not in str(scrape.samples)

    within(60, run())


def test_a_full_server() -> None:
    async def run() -> None:
        async with serving(scripted(says), ServeOptions(queue=1)) as (service, client):
            first = asyncio.create_task(client.post(TEXT, json=prompt("long", max_tokens=80)))
            while not service.jobs:
                await asyncio.sleep(0.002)
            assert (await client.post(TEXT, json=prompt("count"))).status_code == 429
            assert (await first).status_code == 200
            scrape = await Scrape.of(client)
            assert scrape("tenth_requests_refused_total", code="queue_full") == 1

    within(60, run())


def test_time_that_is_up() -> None:
    async def run() -> None:
        async with serving(scripted(says), ServeOptions(request_seconds=0.2)) as (_, client):
            assert (await client.post(TEXT, json=prompt("long"))).status_code == 504
            scrape = await Scrape.of(client)
            assert scrape("tenth_request_failure_total", reason="timeout") == 1
            assert scrape("tenth_e2e_request_latency_seconds_count") == 0

    within(60, run())


def test_thinking_is_counted() -> None:
    def thinks(text: str) -> str | None:
        return "<think>\nhm, well\n</think>\n\nyes" if text.endswith("assistant\n") else None

    async def run() -> None:
        async with serving(scripted(thinks)) as (_, client):
            answer = await client.post(CHAT, json={"messages": [{"role": "user", "content": "Hi"}], "temperature": 0})
            usage = answer.json()["usage"]
            scrape = await Scrape.of(client)
            reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
            assert scrape("tenth_reasoning_tokens_total") == reasoning > 0
            assert scrape("tenth_generation_tokens_total") == usage["completion_tokens"] > reasoning

    within(60, run())


def test_answers_that_were_kept_and_finds(tmp_path: Path) -> None:
    async def run() -> None:
        options = GuardOptions(state=tmp_path, cache="on", privacy="mask")
        with open_guards(options) as guards:
            async with serving(scripted(says, identity="one"), guards=guards) as (_, client):
                body = prompt("count jane.doe@example.org and joe@example.org")
                usages = [(await client.post(TEXT, json=body)).json()["usage"] for _ in range(3)]
                scrape = await Scrape.of(client)
                assert scrape("tenth_response_cache_misses_total") == 1
                assert scrape("tenth_response_cache_hits_total") == 2
                assert scrape("tenth_response_cache_tokens_saved_total") == 2 * usages[0]["total_tokens"]
                assert scrape("tenth_request_success_total") == 1, "only what was computed"
                assert scrape("tenth_generation_tokens_total") == usages[0]["completion_tokens"]
                assert scrape("tenth_privacy_finds_total", kind="EMAIL") % 2 == 0
                assert scrape("tenth_privacy_finds_total", kind="EMAIL") >= 2

    within(60, run())


def test_experts(tmp_path: Path) -> None:
    async def run() -> None:
        model = tiny_model(tmp_path)
        moe = model.config.moe
        assert moe is not None
        async with serving(model) as (service, client):
            warmed_up = (
                service.engine.engine.scheduler.counts.computed
            )  # which is no part of what routers are watched for
            bodies = [{"prompt": "abc" * n, "max_tokens": 20, "ignore_eos": True} for n in range(1, 6)]
            for answer in await asyncio.gather(*(client.post(TEXT, json=body) for body in bodies)):
                assert answer.status_code == 200
            scrape = await Scrape.of(client)
            computed = service.engine.engine.scheduler.counts.computed - warmed_up
            tokens = scrape("tenth_computed_tokens_total") - warmed_up
            assert tokens == scrape("tenth_expert_tokens_total") == scrape("tenth_expert_window_tokens") == computed
            assert 0 < scrape("tenth_expert_window_judged_tokens") <= tokens
            assert scrape("tenth_experts") == moe.num_experts
            layers = {str(index) for index in model.config.sparse_layers}
            for name in (
                "tenth_expert_balancedness",
                "tenth_expert_load_entropy_ratio",
                "tenth_router_entropy",
                "tenth_dead_experts",
            ):
                shown = {dict(pairs)["layer"] for sample, pairs in scrape.samples if sample == name}
                assert shown == layers
                most = moe.num_experts if name == "tenth_dead_experts" else 1
                assert all(0 <= value <= most for value in scrape.values(name))
            for layer in layers:
                assert scrape("tenth_expert_assignments_total", layer=layer) == moe.top_k * computed

    within(60, run())


def test_a_dense_model_has_no_experts_to_show() -> None:
    async def run() -> None:
        async with serving(scripted(says)) as (_, client):
            scrape = await Scrape.of(client)
            assert not [name for name in scrape.families if "expert" in name or "router" in name]

    within(60, run())


def test_the_server_and_its_phases() -> None:
    async def run() -> None:
        async with serving(scripted(says), ServeOptions(names=("one", "two"))) as (service, client):
            scrape = await Scrape.of(client)
            assert scrape("tenth_server_phase", phase="ready") == 1
            assert scrape("tenth_server_phase") == 1
            assert scrape("tenth_build_info", torch=str(torch.__version__)) == 1
            assert scrape("tenth_prompt_tokens_total", model_name="one") == 0
            assert scrape("process_resident_memory_bytes") > 1e7
            service.phase = "draining"
            assert (await Scrape.of(client))("tenth_server_phase", phase="draining") == 1
            accept = {"accept": "application/openmetrics-text; version=1.0.0"}
            answer = await client.get("/metrics", headers=accept)
            assert answer.headers["content-type"].startswith("application/openmetrics-text")
            assert {family.name for family in openmetrics(answer.text)} >= {"tenth_server_phase", "tenth_prompt_tokens"}

    within(60, run())


def test_a_server_that_loads_can_be_asked() -> None:
    async def run() -> None:
        from tenth.serve.app import create_app

        transport = httpx.ASGITransport(create_app(Service(ServeOptions())))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            scrape = await Scrape.of(client)
            assert scrape("tenth_server_phase", phase="loading") == 1
            assert scrape("tenth_request_success_total") == 0

    within(60, run())


@asynccontextmanager
async def two(model: Model) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    async with serving(model) as (_, one), serving(model) as (_, other):
        yield one, other


def test_services_of_one_process_do_not_mix() -> None:
    async def run() -> None:
        async with two(scripted(says)) as (one, other):
            await one.post(TEXT, json=prompt("count"))
            assert (await Scrape.of(one))("tenth_request_success_total") == 1
            assert (await Scrape.of(other))("tenth_request_success_total") == 0

    within(60, run())


def test_off_there_is_neither_a_path_nor_work(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tiny_model(tmp_path), ServeOptions(metrics=False)) as (service, client):
            assert (await client.post(TEXT, json={"prompt": "abc", "max_tokens": 5})).status_code == 200
            answer = await client.get("/metrics")
            assert answer.status_code == 404
            assert "/metrics" not in json.dumps((await client.get("/openapi.json")).json())
            assert service.meter is None
            assert service.engine.engine._runner is service.model.decoder, "nobody stands before the model"

    within(60, run())


@pytest.mark.parametrize("bounds", [(1.0, 2.0, 5.0), (0.5,)])
def test_a_histogram_counts_each_value_once(bounds: tuple[float, ...]) -> None:
    histogram = Histogram(bounds)
    values = [0.1, 0.5, 1.0, 1.0001, 2.0, 5.0, 5.1, 1e9]
    for value in values:
        histogram.observe(value, 2)
    expected = [(repr(bound), 2 * sum(value <= bound for value in values)) for bound in bounds]
    assert histogram.upto() == [*expected, ("+Inf", 2 * len(values))]
    assert histogram.sum == pytest.approx(2 * sum(values))
