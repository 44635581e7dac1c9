"""The profile of a running server: that of the same tokens offline; and drift from a stored one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tenth.api import Model
from tenth.engine.engine import EngineOptions
from tenth.errors import RequestError
from tenth.model.batch import Batch, Want
from tenth.observe.profiling import Part, Profiler
from tenth.routing.drift import Drift
from tenth.routing.profile import ProfiledModel, RoutingProfile
from tenth.routing.profile_file import from_bytes
from tenth.routing.window import RoutingWindow
from tenth.serve import drift
from tenth.serve.drift import DriftWatch
from tenth.serve.profile import PATH
from tenth.serve.service import ServeOptions, Service
from tests.api.tiny import tiny_model
from tests.serve.scraped import Scrape
from tests.serve.served import scripted, serving, within
from tests.weights.packed_models import write_dense

TEXT = "/v1/completions"


def native(folder: Path) -> Model:
    """Native kernels: a row's bits do not depend on its neighbours."""
    from tenth.kernels.choice import choose_kernels
    from tenth.weights.checkpoint import open_checkpoint
    from tenth.weights.load import load_decoder

    model = tiny_model(folder)
    write_dense(folder / "packed", model.decoder)
    with open_checkpoint(folder / "packed") as checkpoint:
        head_dim = checkpoint.config.head_dim
        decoder = load_decoder(checkpoint, kernels=choose_kernels("cpu", packed=True, head_dim=head_dim))
    return Model(decoder, model.tokenizer)


def body(seed: int) -> dict[str, Any]:
    prompt = [(seed * 37 + n * n * 11) % 250 for n in range(5 + 7 * seed)]  # no two begin alike: nothing is found kept
    return {"prompt": prompt, "max_tokens": 9 + seed, "temperature": 0, "ignore_eos": True}


def tokens_of(model: Model, asked: dict[str, Any]) -> list[int]:
    """Prompt and answer, but for the last token, which is never shown to the model."""
    engine = model.engine(EngineOptions(100, 16))
    settings = model.defaults.updated({"temperature": 0.0, "max_tokens": asked["max_tokens"]})
    stream = engine.submit(replace(model.request(asked["prompt"], settings), end_ids=frozenset()))
    while engine.busy:
        engine.step()
    return [*asked["prompt"], *stream.tokens][:-1]


def test_what_was_served_is_what_is_profiled_offline(tmp_path: Path) -> None:
    model = native(tmp_path)

    bodies = [body(seed) for seed in range(8)]

    async def run() -> RoutingProfile:
        async with serving(model) as (_, client):
            answers = await asyncio.gather(*(client.post(TEXT, json=one) for one in bodies))
            assert [answer.status_code for answer in answers] == [200] * 8, answers[0].text
            got = await client.get(PATH)
            assert got.status_code == 200
            assert got.headers["content-type"] == "application/octet-stream"
            return from_bytes(got.content, "there")[0]

    served = within(60, run())
    shown = [tokens_of(model, one) for one in bodies]
    profiler = Profiler(model.decoder, "default", outputs=False)
    profiler.show([Part(ids, "served") for ids in shown])
    offline = profiler.profile
    assert served.model == offline.model
    assert served.counts.tokens == offline.counts.tokens == sum(map(len, shown))
    assert served.counts.counts_LE.tolist() == offline.counts.counts_LE.tolist()
    assert served.pairs_LEE.tolist() == offline.pairs_LEE.tolist()
    assert served.by_domain()["served"].counts_LE.tolist() == offline.counts.counts_LE.tolist()
    assert abs(served.counts.gates_LE - offline.counts.gates_LE).max() < 1e-9
    assert (served + offline).counts.tokens == 2 * served.counts.tokens


def test_where_there_is_none() -> None:
    async def run() -> None:
        async with serving(scripted(lambda text: None)) as (_, client):
            answer = await client.get(PATH)
            assert (answer.status_code, answer.json()["error"]["message"]) == (
                404,
                "there is no routing profile: the model has no experts",
            )

    within(60, run())


def test_no_metrics_no_profile(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tiny_model(tmp_path), ServeOptions(metrics=False)) as (_, client):
            assert "--no-metrics" in (await client.get(PATH)).json()["error"]["message"]

    within(60, run())


def profile_of(model: Model, ids: list[int]) -> RoutingProfile:
    profiler = Profiler(model.decoder, "model", outputs=False)
    profiler.show([Part([*ids, number], "text", number) for number in range(8)])
    return profiler.profile


def test_drift_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(tmp_path)
    stored = profile_of(model, list(range(60)))

    async def run() -> None:
        async with serving(model, ServeOptions(drift_alarm=0.02), profile=stored) as (_, client):
            scrape = await Scrape.of(client)
            assert (scrape("tenth_routing_drift_alarm"), scrape("tenth_routing_drift_excess_bits")) == (0, 0)
            one = {"prompt": [7] * 300, "max_tokens": 5, "temperature": 0, "ignore_eos": True}
            assert (await client.post(TEXT, json=one)).status_code == 200
            scrape = await Scrape.of(client)
            assert scrape("tenth_routing_drift_alarm") == 1
            assert scrape("tenth_routing_drift_excess_bits") > 0.02
            for layer in map(str, model.config.sparse_layers):
                assert 0 < scrape("tenth_routing_drift_bits", layer=layer) <= 1

    with caplog.at_level(logging.INFO, logger="tenth.serve"):
        within(60, run())
    told = [record.getMessage() for record in caplog.records if "drift" in record.getMessage()]
    assert len(told) == 1  # not again with every look
    assert told[0].startswith("routing drifts from its profile: 0.")


def test_an_alarm_ends_where_routing_is_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(tmp_path)
    stored = profile_of(model, list(range(60)))
    clock = [1000.0]
    window = RoutingWindow(stored.model, seconds=300, clock=lambda: clock[0])
    watch = DriftWatch(window, stored, 0.02)

    def seen(ids: list[int]) -> None:
        output = model.decoder(Batch.of([ids]), want=Want(logits="none", routing="choice"))
        assert output.routing is not None
        window.note(output.routing)

    with caplog.at_level(logging.INFO, logger="tenth.serve"):
        seen([7] * 300)
        assert watch.look().excess > 0.02
        assert watch.alarm
        clock[0] += 400
        assert watch.look().excess == 0  # nobody asks: nothing is known, the alarm stands
        assert watch.alarm
        for number in range(8):
            seen([*range(60), number])
        assert watch.look().excess < 0.016
        assert not watch.alarm
    told = [record.getMessage().split(":")[0] for record in caplog.records]
    assert told == [
        "routing drifts from its profile",
        "routing is as profiled again",
    ]


def test_a_look_that_fails_is_told_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "_EVERY_S", 0.01)
    looked = 0

    class Failing(DriftWatch):
        def __init__(self) -> None: ...

        def look(self) -> Drift:
            nonlocal looked
            looked += 1
            raise ValueError("no numbers")

    async def run() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(Failing().watch(), 0.5)

    asyncio.run(run())
    assert looked > 2
    assert [record.getMessage() for record in caplog.records] == ["how far routing has drifted cannot be told"]


def test_a_profile_of_another_model_is_refused_or_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(tmp_path)

    async def run(profile: RoutingProfile) -> None:
        async with serving(model, profile=profile):
            pass

    with pytest.raises(RequestError, match="profiles do not compare"):
        within(60, run(RoutingProfile.empty(ProfiledModel("other", "x", (0,), 3, 1))))
    other = profile_of(model, [1, 2])
    same = RoutingProfile.empty(other.model)
    object.__setattr__(same.model, "version", "f" * 32)
    with caplog.at_level(logging.WARNING, logger="tenth.serve"):
        within(60, run(same))
    assert any("of other weights" in record.getMessage() for record in caplog.records)
    with pytest.raises(RequestError, match="does not go without them"):
        Service(ServeOptions(metrics=False), profile=other)
