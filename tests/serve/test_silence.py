"""Streams in which nobody says anything: a model that is silent, and a client that takes nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tenth.serve.service import ServeOptions, Service
from tests.serve.served import scripted, serving, within

SILENT = 0.6  # seconds
BEAT = 0.05
CHAT = {"messages": [{"role": "user", "content": "wait"}], "max_tokens": 20}
FORMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "/v1/chat/completions": (CHAT, ": still at work", "data: [DONE]"),
    "/v1/completions": ({"prompt": "wait"}, ": still at work", "data: [DONE]"),
    "/v1/responses": ({"input": "wait"}, ": still at work", "event: response.completed"),
    "/v1/messages": (CHAT, 'event: ping\ndata: {"type":"ping"}', "event: message_stop"),
}


def slow(text: str) -> str | None:
    if "wait" in text:
        time.sleep(SILENT)
    return "fine"


@pytest.mark.parametrize("path", FORMS)
def test_a_silent_stream_says_that_it_is_alive(path: str) -> None:
    async def frames(beat: float) -> list[str]:
        async with serving(scripted(slow), ServeOptions(heartbeat_seconds=beat)) as (_, client):
            answer = await client.post(path, json={"stream": True, "temperature": 0, **FORMS[path][0]})
            assert answer.status_code == 200, answer.text
            return answer.text.removesuffix("\n\n").split("\n\n")

    _, alive, last = FORMS[path]
    found = within(30, frames(BEAT))
    assert found.count(alive) > SILENT / BEAT / 3
    assert any("fine" in frame for frame in found[found.index(alive) :])  # the answer comes behind it
    assert found[-1].startswith(last)
    assert within(30, frames(15.0)).count(alive) == int(path == "/v1/messages")  # which begins with one


def stalling(service: Service, client: Any, takes: Callable[[int], Awaitable[None]]) -> Any:
    """A streamed chat of a client that takes its events so: what it was sent, and the job's usage at the end."""
    raw = json.dumps({"messages": [{"role": "user", "content": "go on"}], "temperature": 0, "stream": True}).encode()
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    bodies, sent, jobs = [raw], list[Any](), list[Any]()

    async def receive() -> Any:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        jobs.extend(service.jobs)
        sent.append(message)
        await takes(len(sent))

    async def work() -> Any:
        await client._transport.app(scope, receive, send)
        return sent, jobs[0].usage()

    return work()


def test_a_client_that_takes_nothing_frees_what_it_held(caplog: pytest.LogCaptureFixture) -> None:
    async def never(count: int) -> None:
        if count > 3:
            await asyncio.Event().wait()

    async def work() -> None:
        options = ServeOptions(send_seconds=0.3, heartbeat_seconds=0.05)
        async with serving(scripted(lambda _: "word " * 6000, context=8192), options, pages=1200) as (service, client):
            start = time.monotonic()
            with caplog.at_level(logging.INFO, "tenth.serve.access"):
                sent, usage = await stalling(service, client, never)
            assert 0.3 <= time.monotonic() - start < 10
            assert len(sent) == 4
            assert usage.completion < 6000
            assert (len(service.jobs), service.admission.answers, service.admission.tokens) == (0, 0, 0)
            while service.engine.engine.busy:
                await asyncio.sleep(0.01)
            fields = caplog.records[-1].fields  # type: ignore[attr-defined]
            assert (fields["error"], fields["finish_reason"]) == ("the client does not read", "unread")

    within(60, work())


def test_a_sign_of_life_that_nobody_takes_ends_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    """The model says nothing for longer than a client may take nothing."""

    async def never(count: int) -> None:
        if count > 1:
            await asyncio.Event().wait()

    def silent(text: str) -> str | None:
        if "go on" in text:
            time.sleep(3 * SILENT)
        return "fine"

    async def work() -> None:
        options = ServeOptions(send_seconds=0.2, heartbeat_seconds=BEAT)
        async with serving(scripted(silent), options) as (service, client):
            start = time.monotonic()
            with caplog.at_level(logging.INFO, "tenth.serve.access"):
                sent, _ = await stalling(service, client, never)
            assert 0.2 <= time.monotonic() - start < 2 * SILENT
            assert [message.get("body") for message in sent] == [None, b": still at work\n\n"]
            assert caplog.records[-1].fields["finish_reason"] == "unread"  # type: ignore[attr-defined]
            assert not service.jobs

    within(20, work())


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("why", ["left", "timeout", "stopping"])
def test_why_an_answer_has_no_end_is_in_the_log(why: str, stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Only a client that left has left."""
    options = ServeOptions(request_seconds=0.3 if why == "timeout" else 60.0)
    raw = json.dumps({"messages": [{"role": "user", "content": "go"}], "temperature": 0, "stream": stream}).encode()
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}

    async def work() -> None:
        model = scripted(lambda _: "word " * 30_000, context=32_768)
        async with serving(model, options, pages=2100) as (service, client):
            bodies = [raw]

            async def receive() -> Any:
                if bodies:
                    return {"type": "http.request", "body": bodies.pop(), "more_body": False}
                while not service.jobs:
                    await asyncio.sleep(0.01)
                if why == "stopping":
                    service.stop()
                if why != "left":
                    await asyncio.Event().wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                pass

            with caplog.at_level(logging.INFO, "tenth.serve.access"):
                await client._transport.app(scope, receive, send)  # type: ignore[attr-defined]
            assert caplog.records[-1].fields["finish_reason"] == why  # type: ignore[attr-defined]

    within(30, work())


def test_a_client_that_is_only_slow_gets_all() -> None:
    async def slowly(count: int) -> None:
        await asyncio.sleep(0.15)

    async def work() -> None:
        async with serving(scripted(lambda _: "a b c d e f"), ServeOptions(send_seconds=0.5)) as (service, client):
            start = time.monotonic()
            sent, _ = await stalling(service, client, slowly)
            assert time.monotonic() - start > 0.5
            text = b"".join(message.get("body", b"") for message in sent)
            assert text.endswith(b"data: [DONE]\n\n")
            assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}

    within(60, work())
