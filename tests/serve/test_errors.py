"""What clients do wrong over HTTP: the right status, an error object, and the next request is served."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tenth.serve.service import ServeOptions
from tests.serve.served import scripted, serving, within

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]


def words(text: str) -> str | None:
    return "fine" if text.endswith(("assistant\n", "</think>\n\n", "Hi")) else None


BAD: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    (CHAT, {}, 400, "messages is missing", "messages"),
    (CHAT, {"messages": "Hi"}, 400, "messages must be a list", "messages"),
    (CHAT, {"messages": []}, 400, "at least one message", "messages"),
    (CHAT, {"messages": [1]}, 400, "messages must be a list of objects", "messages"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content must be a string", "messages"),
    (CHAT, {"messages": MESSAGES, "n": 10**6}, 400, "between 1 and 128", "n"),
    (CHAT, {"messages": MESSAGES, "n": 0}, 400, "between 1 and 128", "n"),
    (CHAT, {"messages": MESSAGES, "n": 1.5}, 400, "whole number", "n"),
    (CHAT, {"messages": MESSAGES, "n": True}, 400, "whole number", "n"),
    (CHAT, {"messages": MESSAGES, "temperature": -0.1}, 400, "between 0 and 100", "temperature"),
    (CHAT, {"messages": MESSAGES, "temperature": "hot"}, 400, "between 0 and 100", "temperature"),
    (CHAT, {"messages": MESSAGES, "top_p": 0}, 400, "above 0", "top_p"),
    (CHAT, {"messages": MESSAGES, "top_logprobs": 10**9, "logprobs": True}, 400, "between 0 and 64", "top_logprobs"),
    (CHAT, {"messages": MESSAGES, "top_logprobs": 3}, 400, "goes with logprobs", "top_logprobs"),
    (CHAT, {"messages": MESSAGES, "max_tokens": 0}, 400, "at least 1", "max_tokens"),
    (CHAT, {"messages": MESSAGES, "max_tokens": -5}, 400, "at least 1", "max_tokens"),
    (CHAT, {"messages": MESSAGES, "seed": 10**40}, 400, "whole number", "seed"),
    (CHAT, {"messages": MESSAGES, "stop": [""]}, 400, "not empty", "stop"),
    (CHAT, {"messages": MESSAGES, "stop": 7}, 400, "must be a text", "stop"),
    (CHAT, {"messages": MESSAGES, "stream": "yes"}, 400, "true or false", "stream"),
    (
        CHAT,
        {"messages": MESSAGES, "stream_options": {"include_usage": True}},
        400,
        "goes with stream",
        "stream_options",
    ),
    (CHAT, {"messages": MESSAGES, "temprature": 1}, 400, "no field of a chat.completion is named 'temprature'", None),
    (CHAT, {"messages": MESSAGES, "logit_bias": {"x": 1}}, 400, "must be a token id", "logit_bias"),
    (CHAT, {"messages": MESSAGES, "logit_bias": {"99999999": 1}}, 400, "outside the vocabulary", None),
    (CHAT, {"messages": MESSAGES, "logit_bias": {"1": 1e308}}, 400, "between -100 and 100", "logit_bias"),
    (CHAT, {"messages": MESSAGES, "stop_token_ids": [-1]}, 400, "outside the vocabulary", None),
    (CHAT, {"messages": MESSAGES, "response_format": {"type": "xml"}}, 400, "must be text", "response_format"),
    (CHAT, {"messages": MESSAGES, "guided_regex": "("}, 400, "regex grammar", None),
    (CHAT, {"messages": MESSAGES, "guided_regex": "a", "guided_json": {}}, 400, "do not go together", "guided_json"),
    (CHAT, {"messages": MESSAGES, "reasoning_effort": "huge"}, 400, "must be one of none", "reasoning_effort"),
    (CHAT, {"messages": MESSAGES, "thinking_token_budget": -1}, 400, "at least 0", None),
    (CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"messages": 1}}, 400, "reserved", None),
    (CHAT, {"messages": MESSAGES, "tools": "x"}, 400, "tools must be a list", "tools"),
    (CHAT, {"messages": MESSAGES, "tool_choice": "required"}, 400, "no tools", "tool_choice"),
    (CHAT, {"messages": MESSAGES, "model": 7}, 400, "must be a text", "model"),
    (CHAT, {"messages": MESSAGES, "model": "other"}, 404, "not served here", "model"),
    (CHAT, {"messages": [{"role": "usre", "content": "Hi"}]}, 400, "[0].role is 'usre', it must be one of", "messages"),
    (CHAT, {"messages": [{"content": "Hi"}]}, 400, "messages[0].role is missing, it must be one of sys", "messages"),
    (
        CHAT,
        {"messages": [*MESSAGES, {"role": "user", "cnotent": "x", "content": ""}]},
        400,
        "mean content?",
        "messages",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": "x", "audio": {"id": "a"}}]},
        400,
        "audio must be null",
        "messages",
    ),
    ("/tokenize", {"messages": [{"role": "usre", "content": "Hi"}]}, 400, "messages[0].role is 'usre'", "messages"),
    ("/tokenize", {"messages": [{"role": "user", "content": "Hi", "x": 1}]}, 400, "messages[0] has 'x'", "messages"),
    ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, 400, "goes with a text", "add_special_tokens"),
    ("/tokenize", {}, 400, "prompt is missing", "prompt"),
    ("/detokenize", {}, 400, "tokens is missing", "tokens"),
    ("/v1/completions", {}, 400, "prompt is missing", "prompt"),
    ("/v1/completions", {"prompt": ""}, 400, "the prompt is empty", None),
    ("/v1/completions", {"prompt": []}, 400, "the prompt is empty", None),
    ("/v1/completions", {"prompt": [[]]}, 400, "the prompt is empty", None),
    ("/v1/completions", {"prompt": [151_936]}, 400, "outside the vocabulary", None),
    ("/v1/completions", {"prompt": [-1]}, 400, "outside the vocabulary", None),
    ("/v1/completions", {"prompt": [1, "a"]}, 400, "prompt is 1", "prompt"),
    ("/v1/completions", {"prompt": ["a"] * 129}, 400, "129 prompts", "prompt"),
    ("/v1/completions", {"prompt": ["a"] * 65, "n": 2}, 400, "130 answers", "n"),
    ("/v1/completions", {"prompt": [1] * 256}, 400, "prompt has 256 tokens, the context is 256", "prompt"),
    ("/v1/completions", {"prompt": "a", "logprobs": 65}, 400, "between 0 and 64", "logprobs"),
    ("/v1/completions", {"prompt": "a", "suffix": "b", "echo": True}, 400, "echo does not go", "echo"),
    ("/infill", {"input_prefix": 1, "input_suffix": ""}, 400, "must be a text", "input_prefix"),
    ("/infill", {"input_prefix": "a" * 3000}, 400, "input_prefix, input_suffix and input_extra have", "input_prefix"),
    ("/infill", {"input_prefix": "", "repeat_penalty": 0}, 400, "repeat_penalty", "repeat_penalty"),
    ("/v1/responses", {"input": []}, 400, "at least one item", "input"),
    (
        "/v1/responses",
        {"input": "a", "previous_response_id": "resp_1"},
        400,
        "keeps no responses",
        "previous_response_id",
    ),
    ("/v1/responses", {"input": "a", "tools": [{"type": "web_search"}]}, 400, "'web_search'", "tools"),
    (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        400,
        "'input_image'",
        "input",
    ),
    ("/v1/embeddings", {"input": []}, 400, "input is empty, it must hold at least one text", "input"),
    ("/v1/embeddings", {}, 400, "input is missing", "input"),
    ("/v1/embeddings", {"input": ["a", ""]}, 400, "each text must have between 1 and 256 tokens", "input"),
    ("/v1/embeddings", {"input": "a", "dimensions": 5}, 400, "vectors have 2", "dimensions"),
    ("/tokenize", {"prompt": 7}, 400, "must be a text", "prompt"),
    ("/detokenize", {"tokens": ["a"]}, 400, "list of token ids", "tokens"),
    ("/detokenize", {"tokens": [10**9]}, 400, "", None),
]


def test_bodies_that_cannot_be_served() -> None:
    async def work() -> None:
        wrong = list[str]()
        async with serving(scripted(words, context=256), pages=64) as (service, client):
            for path, body, status, message, param in BAD:
                answer = await client.post(path, json=body)
                error = answer.json().get("error", {"message": "", "param": None})
                right = answer.status_code == status and message in error["message"] and error["param"] == param
                if not right or "\n" in error["message"]:
                    wrong.append(f"{path} {str(body)[:120]}: {answer.status_code} {answer.text[:300]}")
            assert not wrong, "\n".join(wrong)
            fine = await client.post(CHAT, json={"messages": MESSAGES, "enable_thinking": False, "temperature": 0})
            assert fine.json()["choices"][0]["message"]["content"] == "fine"
            assert (service.admission.answers, len(service.jobs), service.reading) == (0, 0, 0)

    within(120, work())


def test_http_that_is_refused() -> None:
    async def work() -> None:
        async with serving(scripted(words), ServeOptions(body_bytes=1000)) as (_, client):
            cases: list[tuple[int, dict[str, Any]]] = [
                (404, {"method": "POST", "url": "/v1/nothing"}),
                (405, {"method": "GET", "url": CHAT}),
                (415, {"method": "POST", "url": CHAT, "content": b"{}", "headers": {"content-type": "text/plain"}}),
                (415, {"method": "POST", "url": CHAT, "content": b"{}"}),
                (413, {"method": "POST", "url": CHAT, "json": {"messages": "x" * 2000}}),
                (400, {"method": "POST", "url": CHAT, "json": [1]}),
            ]
            for status, call in cases:
                answer = await client.request(**call)
                assert answer.status_code == status, call
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
                assert len(answer.headers["x-request-id"]) == 32
            assert (await client.get(CHAT)).headers["allow"] == "POST"

            async def endless() -> Any:
                for _ in range(10**6):
                    yield b" " * 100

            kind = {"content-type": "application/json"}
            assert (await client.post(CHAT, content=endless(), headers=kind)).status_code == 413

    within(60, work())


def test_a_body_that_does_not_come() -> None:
    async def work() -> None:
        async with serving(scripted(words), ServeOptions(body_seconds=0.05)) as (_, client):

            async def slow() -> Any:
                yield b"{"
                await asyncio.sleep(5)
                yield b"}"

            answer = await client.post(CHAT, content=slow(), headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (408, "timeout")

    within(60, work())


def test_request_ids_are_kept_where_they_are_words() -> None:
    async def work() -> None:
        async with serving(scripted(words)) as (_, client):
            answer = await client.get("/health", headers={"x-request-id": "abc-1.2"})
            assert answer.headers["x-request-id"] == "abc-1.2"
            answer = await client.get("/health", headers={"x-request-id": "a b"})
            assert len(answer.headers["x-request-id"]) == 32

    within(60, work())


def test_a_full_server_says_when_to_come_again() -> None:
    async def work() -> None:
        options = ServeOptions(queue=2)
        async with serving(scripted(lambda _: "a b c d e f g h i j" * 50), options) as (_, client):
            body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 300}
            answers = await asyncio.gather(*(client.post(CHAT, json=body) for _ in range(6)))
            assert sorted({answer.status_code for answer in answers}) == [200, 429]
            full = next(answer for answer in answers if answer.status_code == 429)
            assert int(full.headers["retry-after"]) >= 1
            assert full.json()["error"]["type"] == "rate_limit_error"
            assert (await client.post(CHAT, json=body)).status_code == 200

    within(60, work())


def test_a_request_that_takes_too_long_ends() -> None:
    async def work() -> None:
        options = ServeOptions(request_seconds=0.05)
        model = scripted(lambda _: "word " * 3000, context=8192)
        async with serving(model, options, pages=1200) as (service, client):
            body = {"messages": MESSAGES, "temperature": 0}
            answer = await client.post(CHAT, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
            streamed = await client.post(CHAT, json={**body, "stream": True})
            *_, last, done, _ = streamed.text.split("\n\n")
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
            assert done == "data: [DONE]"
            assert not service.jobs

    within(60, work())


def test_before_it_is_ready_and_while_it_drains() -> None:
    async def work() -> None:
        async with serving(scripted(words)) as (service, client):
            for phase, code in (("loading", "not_ready"), ("draining", "stopping")):
                service.phase = phase  # type: ignore[assignment]
                assert (await client.get("/health")).status_code == 200
                assert (await client.get("/ready")).status_code == 503
                answer = await client.post(CHAT, json={"messages": MESSAGES})
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
                assert answer.headers["retry-after"] == "5"

    within(60, work())


@pytest.mark.parametrize("origins", [(), ("https://page.example",)])
def test_pages_of_others_are_kept_out_unless_allowed(origins: tuple[str, ...]) -> None:
    async def work() -> None:
        async with serving(scripted(words), ServeOptions(origins=origins)) as (_, client):
            ask = {"origin": "https://page.example", "access-control-request-method": "POST"}
            answer = await client.options(CHAT, headers=ask)
            assert ("access-control-allow-origin" in answer.headers) == bool(origins)
            other = await client.get("/v1/models", headers={"origin": "https://other.example"})
            assert "access-control-allow-origin" not in other.headers

    within(60, work())


def test_messages_that_real_clients_send_back() -> None:
    """As `openai` and other clients dump an answer, with marks for caches and words for other servers."""
    from openai.types.chat import ChatCompletionMessage

    answer = ChatCompletionMessage(role="assistant", content="fine", annotations=[]).model_dump()
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    part = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "system", "content": "Be brief.", "name": "rules", "cache_control": {"type": "ephemeral"}},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [part], "name": "ann"},
        answer | {"audio": None, "function_call": None, "images": [], "refusal": None, "anything": None},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "a", "reasoning": "a"},
        {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "1"},
        {"role": "assistant", "content": "1", "provider_specific_fields": {}, "thinking_blocks": [{"type": "a"}]},
        {"role": "user", "content": "Hi"},
    ]

    async def work() -> None:
        async with serving(scripted(words)) as (_, client):
            said = await client.post(CHAT, json={"messages": messages, "temperature": 0, "enable_thinking": False})
            assert said.status_code == 200, said.text
        own = "{% for m in messages %}{% if m.role == 'critic' %}{{ m.mood }}{% endif %}{% endfor %}Hi"
        async with serving(scripted(words, template=own)) as (_, client):
            critic = {"role": "critic", "content": "", "mood": "sour"}
            answers = [await client.post(CHAT, json={"messages": [one]}) for one in (critic, critic | {"mod": 1})]
            assert [one.status_code for one in answers] == [200, 400]
            assert "messages[0] has 'mod'" in answers[1].json()["error"]["message"]

    within(60, work())


def test_a_page_may_see_what_the_server_says_in_headers() -> None:
    async def work() -> None:
        async with serving(scripted(words), ServeOptions(origins=("https://a.example",))) as (_, client):
            answer = await client.get("/v1/models", headers={"origin": "https://a.example"})
            exposed = answer.headers["access-control-expose-headers"].split(", ")
            assert {"x-request-id", "x-tenth-cache", "retry-after", "x-ratelimit-remaining-tokens"} <= {*exposed}

    within(60, work())


def test_messages_have_the_id_under_both_names() -> None:
    async def work() -> None:
        async with serving(scripted(words)) as (_, client):
            for path, both in (("/v1/messages", True), (CHAT, False)):
                answer = await client.post(path, json={}, headers={"x-request-id": "mine"})
                assert answer.headers["x-request-id"] == "mine"
                assert answer.headers.get("request-id") == ("mine" if both else None)

    within(60, work())
