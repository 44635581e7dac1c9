"""Chats over HTTP: whole and in chunks, each answer to its own prompt."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from tenth.serve.logs import JsonLines
from tenth.serve.service import ServeOptions
from tests.serve.served import scripted, serving, within


def echo(text: str) -> str | None:
    """What the last user said, in brackets; a thought where the template lets the model think."""
    turns = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", text, re.S)
    if not text.endswith("<|im_start|>assistant\n") and "</think>" not in text[-30:]:
        return None
    thought = "" if "</think>" in text[-30:] else f"<think>\nabout {turns[-1]}\n</think>\n\n"
    return f"{thought}[{turns[-1]}]"


def ask(words: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": words}], **fields}


async def events(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    async with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                found.append(line[6:] if line == "data: [DONE]" else json.loads(line[6:]))
    return found


def test_a_chat_is_answered_whole_and_in_chunks() -> None:
    async def work() -> None:
        async with serving(scripted(echo)) as (service, client):
            answer = await client.post("/v1/chat/completions", json=ask("Hallo", temperature=0))
            assert answer.status_code == 200
            body = answer.json()
            (choice,) = body["choices"]
            thought = "about Hallo"
            assert choice["message"] == {
                "role": "assistant",
                "content": "[Hallo]",
                "reasoning_content": thought,
                "reasoning": thought,
            }
            assert choice["finish_reason"] == "stop"
            assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
            assert body["object"] == "chat.completion"
            body = ask("Hallo", temperature=0, stream=True, stream_options={"include_usage": True})
            *chunks, usage, done = await events(client, "/v1/chat/completions", body)
            assert done == "data: [DONE]"[6:]
            assert usage["choices"] == []
            assert usage["usage"]["completion_tokens"] == answer.json()["usage"]["completion_tokens"]
            deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
            assert deltas[0] == {"role": "assistant", "content": ""}
            assert "".join(delta.get("content", "") for delta in deltas) == "[Hallo]"
            assert "".join(delta.get("reasoning_content", "") for delta in deltas) == thought
            assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"
            assert len({chunk["id"] for chunk in chunks}) == 1
            assert not service.jobs

    within(60, work())


def test_many_at_once_each_prove_their_own_prompt() -> None:
    async def one(client: httpx.AsyncClient, number: int) -> None:
        body = ask(f"number {number}", temperature=0, enable_thinking=number % 2 == 0, stream=number % 3 == 0)
        if body["stream"]:
            *chunks, _ = await events(client, "/v1/chat/completions", body)
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        else:
            answer = await client.post("/v1/chat/completions", json=body)
            text = answer.json()["choices"][0]["message"]["content"]
        assert text == f"[number {number}]"

    async def work() -> None:
        async with serving(scripted(echo), ServeOptions(queue_fill=100)) as (service, client):
            await asyncio.gather(*(one(client, number) for number in range(40)))
            assert not service.jobs
            assert (service.admission.answers, service.admission.tokens) == (0, 0)

    within(120, work())


def test_a_thought_ends_where_its_budget_does() -> None:
    async def work() -> None:
        async with serving(scripted(echo)) as (_, client):
            for fields in ({"thinking_token_budget": 2}, {"thinking_token_budget": 0}, {"include_reasoning": False}):
                answer = await client.post("/v1/chat/completions", json=ask("a b c d e f", temperature=0, **fields))
                message = answer.json()["choices"][0]["message"]
                assert message["content"].endswith("[a b c d e f]")
                thought = answer.json()["usage"]["completion_tokens_details"]["reasoning_tokens"]
                if "include_reasoning" in fields:
                    assert "reasoning" not in message
                    assert thought > 6
                else:
                    assert "a b c" not in message["reasoning"]
                    assert "limited time" in message["reasoning"]
            off = await client.post("/v1/chat/completions", json=ask("a", temperature=0, reasoning_effort="none"))
            assert off.json()["choices"][0]["message"] == {"role": "assistant", "content": "[a]"}

    within(60, work())


def test_the_log_has_numbers_and_no_words(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        for wanted in (False, True):
            async with serving(scripted(echo), ServeOptions(log_prompts=wanted)) as (_, client):
                await client.post("/v1/chat/completions", json=ask("secret"), headers={"x-request-id": "one"})

    with caplog.at_level("INFO", "tenth.serve.access"):
        within(60, work())
    silent, told = (json.loads(JsonLines().format(record)) for record in caplog.records if hasattr(record, "fields"))
    assert (silent["request_id"], silent["status"], silent["finish_reason"]) == ("one", 200, "stop")
    assert silent["prompt_tokens"] > 5
    assert "secret" not in json.dumps(silent)
    assert "secret" in told["prompt"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("GET", "/ready"), ("GET", "/version")])
def test_plain_routes(method: str, path: str) -> None:
    async def work() -> None:
        async with serving(scripted(echo)) as (_, client):
            assert (await client.request(method, path)).status_code == 200

    within(60, work())
