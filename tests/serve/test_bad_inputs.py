"""What hostile or careless callers send over HTTP: a clear error for them, and nothing for anybody else."""

from __future__ import annotations

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from tenth.serve import protocol
from tenth.serve.service import ServeOptions
from tests.serve.asks import PATHS, Ask, whole
from tests.serve.proving import proving_model
from tests.serve.real import server
from tests.serve.served import scripted, serving, within
from tests.serve.test_life import until
from tests.serve.wire import Broken, Wire, request

CHAT = PATHS["chat"]
HELLO = [{"role": "user", "content": "Hi"}]

TEMPLATES = {
    "an escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a loop without end": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a huge range": "{{ range(10**12) | list }}",
    "an error": "{{ messages[3].content }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_fail_end_in_time_and_alone(name: str) -> None:
    async def work() -> None:
        async with serving(scripted(lambda _: "fine", template=TEMPLATES[name])) as (service, client):
            begun = time.monotonic()
            answers = await asyncio.gather(*(client.post(CHAT, json={"messages": HELLO}) for _ in range(2)))
            assert [one.status_code for one in answers] == [400, 400]
            for one in answers:
                message = one.json()["error"]["message"]
                assert message.startswith("chat template")
                assert "\n" not in message
            text = await client.post("/v1/completions", json={"prompt": "a", "temperature": 0, "max_tokens": 4})
            assert text.json()["choices"][0]["text"] == "fine"
            assert time.monotonic() - begun < 20
            assert (service.reading, len(service.jobs)) == (0, 0)

    within(60, work())


def test_arguments_that_a_template_does_not_know() -> None:
    async def work() -> None:
        async with serving(scripted(lambda _: "fine")) as (_, client):
            for given, status in [
                ({"unknown": [1, {"a": None}]}, 200),
                ({"tokenize": False, "chat_template": "{{ 1 }}"}, 200),
                ({"raise_exception": 1}, 400),
                ({"__class__": 1}, 400),
                ({"tools": []}, 400),
                ([1], 400),
            ]:
                body = {"messages": HELLO, "chat_template_kwargs": given, "temperature": 0, "max_tokens": 4}
                answer = await client.post(CHAT, json=body)
                assert answer.status_code == status, (given, answer.text)

    within(60, work())


SCHEMAS: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}, words)
    for schema, words in [
        (json.loads('{"items":' * 70 + "{}" + "}" * 70), "nested more than 64 deep"),
        ({"$ref": "#"}, "no text fits it"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "grammar"),
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": "object", "properties": {"a": 3}}, "must be an object or a boolean"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "json_schema grammar"),
    ]
]
SCHEMAS += [
    ({"structured_outputs": {"regex": "(a"}}, "unclosed group"),
    ({"structured_outputs": {"regex": "((a{1,1000}){1,1000}){1,1000}"}}, "grammar"),
    ({"structured_outputs": {"grammar": "start: nothing"}}, "lark grammar"),
]


def test_bad_grammars_between_good_ones() -> None:
    """Each bad one is refused by name; the good one behind it, and the classic `(a+)+b`, hold for their own answers."""

    async def work() -> None:
        async with serving(scripted(lambda _: '{"a": [1, 2]}')) as (service, client):
            base = {"messages": HELLO, "temperature": 0, "max_tokens": 60, "enable_thinking": False}
            schema = {"type": "object", "properties": {"a": {"items": {"type": "integer"}}}, "required": ["a"]}
            good = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
            for fields, words in SCHEMAS:
                bad, fine = await asyncio.gather(
                    client.post(CHAT, json=base | fields), client.post(CHAT, json=base | {"response_format": good})
                )
                assert bad.status_code == 400, (fields, bad.text)
                message = bad.json()["error"]["message"]
                assert words in message
                assert "\n" not in message
                assert json.loads(fine.json()["choices"][0]["message"]["content"]) == {"a": [1, 2]}
            classic = await client.post(CHAT, json=base | {"structured_outputs": {"regex": "(a+)+b"}})
            assert set(classic.json()["choices"][0]["message"]["content"]) <= {"a", "b"}
            assert (service.admission.answers, len(service.jobs)) == (0, 0)

    within(120, work())


NUMBERS: list[tuple[str, dict[str, Any]]] = [
    *((path, {"n": 10**6}) for path in (CHAT, "/v1/completions")),
    *((path, {"temperature": -1}) for path in (*PATHS.values(), "/infill")),
    *((path, {"top_p": -0.5}) for path in PATHS.values()),
    *((path, {"top_p": 1.5}) for path in PATHS.values()),
    (CHAT, {"seed": 10**400}),
    (CHAT, {"min_p": -1}),
    (CHAT, {"top_k": -5}),
    (CHAT, {"repetition_penalty": 0}),
    (CHAT, {"presence_penalty": 10**9}),
    (CHAT, {"max_tokens": -1}),
    (CHAT, {"min_tokens": 10**9, "max_tokens": 5}),
    (CHAT, {"logit_bias": {"0": 101}}),
    (CHAT, {"logprobs": True, "top_logprobs": 10**9}),
    (CHAT, {"max_experts": 0}),
    (CHAT, {"expert_mass": -1}),
    ("/v1/responses", {"top_logprobs": 10**9}),
    ("/v1/responses", {"max_output_tokens": -1}),
    ("/v1/messages", {"max_tokens": 0}),
    ("/v1/messages", {"top_k": -5}),
    ("/v1/completions", {"prompt": [0, 10**30]}),
    ("/v1/completions", {"prompt": [0, 0.5]}),
    ("/v1/completions", {"prompt": [0] * 257}),
    ("/v1/completions", {"prompt": [0] * 256}),
    ("/v1/completions", {"logprobs": 10**9}),
    ("/v1/completions", {"logprobs": -1}),
]
PLAIN: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HELLO},
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 4},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
}


def test_numbers_that_cannot_be_in_every_api() -> None:
    async def work() -> None:
        wrong = []
        async with serving(scripted(lambda _: "fine", context=256), pages=64) as (service, client):
            kind = {"content-type": "application/json"}
            for path, fields in NUMBERS:
                answer = await client.post(path, content=json.dumps(PLAIN[path] | fields), headers=kind)
                message = answer.json()["error"]["message"] if answer.status_code != 200 else "answered"
                if answer.status_code != 400 or "\n" in message or len(message) > 400:
                    wrong.append(f"{path} {str(fields)[:80]}: {answer.status_code} {message[:300]}")
            for path in PATHS.values():
                for number in (math.nan, math.inf, -math.inf):
                    raw = json.dumps(PLAIN[path] | {"temperature": number})
                    assert (await client.post(path, content=raw, headers=kind)).status_code == 400
            assert not wrong, "\n".join(wrong)
            longest = await client.post("/v1/completions", json={"prompt": [0] * 255, "max_tokens": 9})
            assert longest.json()["usage"]["completion_tokens"] == 1  # the last place of the context
            assert (service.admission.answers, len(service.jobs), service.reading) == (0, 0, 0)

    within(120, work())


WORDS = 'Zürich 🎉 </parameter> "</tool_call>" <tool'
CALL = json.dumps({"name": "note", "arguments": {"text": WORDS}}, ensure_ascii=False)
TOOL = {"type": "function", "function": {"name": "note", "parameters": {"type": "object", "properties": {}}}}
TEACHES = "{{ tools }}<tool_call>{% for m in messages %}{{ m.content or '' }}{% endfor %} > "


@pytest.mark.parametrize("stream", [True, False])
def test_calls_of_tools_that_come_byte_by_byte(tmp_path: Path, stream: bool) -> None:
    """A token is a byte: every tag, escape and character is cut wherever it can be."""
    from tenth.api import Model
    from tenth.engine.scripted import ScriptedModel
    from tests.api.tiny import tiny_tokenizer
    from tests.serve.served import said

    tokenizer = tiny_tokenizer(tmp_path, TEACHES)
    answers = said(lambda text: f"é🎉<tool_call>\n{CALL}\n</tool_call>" if text.endswith(" > ") else None, tokenizer)
    decoder: Any = ScriptedModel(512, [answers], 258, margin=40.0, context_length=2048)
    body = {"tools": [TOOL], "temperature": 0, "stream": stream}
    turns: list[dict[str, Any]] = [{"role": "user", "content": "go"}]

    async def work() -> None:
        async with serving(Model(decoder, tokenizer)) as (_, client):
            answer = await client.post(CHAT, json=body | {"messages": turns})
            assert answer.status_code == 200, answer.text
            message = _message(answer.text) if stream else answer.json()["choices"][0]["message"]
            assert message["content"] == "é🎉"
            (call,) = message["tool_calls"]
            assert json.loads(call["function"]["arguments"]) == {"text": WORDS}
            back = [*turns, {"role": "assistant", "content": None, "tool_calls": [call | {"type": "function"}]}]
            back.append({"role": "tool", "tool_call_id": call["id"], "content": "done"})
            assert (await client.post(CHAT, json=body | {"messages": back})).status_code == 200

    within(60, work())


def _message(text: str) -> dict[str, Any]:
    """The message that chunks make."""
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line and not line.endswith("[DONE]")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    parts = [part for delta in deltas for part in delta.get("tool_calls", [])]
    arguments = "".join(part["function"].get("arguments", "") for part in parts)
    name = "".join(part["function"].get("name", "") for part in parts)
    content = "".join(delta.get("content") or "" for delta in deltas)
    return {
        "content": content,
        "tool_calls": [{"id": parts[0]["id"], "function": {"name": name, "arguments": arguments}}],
    }


def test_a_head_that_does_not_come_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SECONDS", 0.3)

    async def ask(port: int) -> None:
        slow = await Wire.open(port)
        await slow.send(b"GET /health HTTP/1.1\r\nhost: 127")
        assert await slow.head() == 408
        assert (await slow.whole())["error"]["message"].startswith("the request did not come")
        assert await slow.silent()
        mute = await Wire.open(port)
        assert await asyncio.wait_for(mute.silent(), 5)

    with server(proving_model(tmp_path)) as running:
        asyncio.run(ask(running.port))


def test_a_client_that_reads_nothing_is_ended(tmp_path: Path) -> None:
    """What it leaves unread fills the buffers; then its answer ends, and others have never waited for it."""
    ask = Ask("chat", "mute", 12_000, most=12_000, stream=True, more={"logprobs": True, "top_logprobs": 20})

    async def work(port: int) -> None:
        mute = await Wire.open(port, small=True)
        await mute.send(request("POST", CHAT, ask.body(), name="mute", key=None))
        other = await Wire.open(port)
        quick = Ask("chat", "quick", 30)
        await other.send(request("POST", CHAT, quick.body(), name="quick", key=None))
        assert await other.head() == 200
        whole(quick, await other.whole()).check(quick)
        await asyncio.to_thread(until, lambda: not running.service.jobs, 30)
        try:
            await mute.head()
            events = [piece async for piece in mute.body()]
        except Broken:
            events = []
        assert b"[DONE]" not in b"".join(events)

    options = ServeOptions(send_seconds=0.5)
    with server(proving_model(tmp_path, context=16384), options, pages=1200) as running:
        asyncio.run(work(running.port))
        until(lambda: not running.service.engine.engine.busy)
