"""Anthropic's own client against the server: whole and streamed, in a coroutine and in a thread."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.serve.listening import Listening, listening
from tests.serve.served import scripted, serving, within

TOOLS: Any = [
    {
        "name": "weather",
        "description": "The weather in a city.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    {"name": "now", "input_schema": {"type": "object", "properties": {}}},
]
CALLS = (
    'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)

GREEDY = {"temperature": 0}


def answers(prompt: str) -> str | None:
    """By the last turn of the user: a thought, calls, their results, a count, or its words."""
    turn = prompt.rfind("<|im_start|>user\n")
    if turn < 0 or not prompt.endswith(("<|im_start|>assistant\n", "</think>\n\n")):
        return None  # it was made to say something else: it ends as soon as it may
    asked = prompt[turn + len("<|im_start|>user\n") : prompt.index("<|im_end|>", turn)]
    if "<tool_response>" in asked:
        return "Results: " + " and ".join(re.findall(r"<tool_response>\n(.*?)\n</tool_response>", asked, re.S))
    thought = "" if "</think>" in prompt[turn:] else f"<think>\nabout {asked}\n</think>\n\n"
    if asked == "Tools?":
        return thought + CALLS
    if asked == "Count.":
        return thought + " ".join(map(str, range(100)))
    return f"{thought}You said: {asked}"


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


Client = anthropic.AsyncAnthropic


@pytest.fixture(scope="module")
def server() -> Iterator[Listening]:
    with listening(answers, context=4096) as found:
        yield found


def run(server: Listening, work: Callable[[Client], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with Client(api_key="x", base_url=server.url, max_retries=0) as client:
            await work(client)

    within(120, inside())


def test_texts_thoughts_stops_and_lengths(server: Listening) -> None:
    async def work(client: Client) -> None:
        async def ask(text: str, most: int = 500, **fields: Any) -> Any:
            return await client.messages.create(
                model="default", max_tokens=most, messages=user(text), extra_body=GREEDY, **fields
            )

        said = await ask("Hallo")
        assert (said.type, said.role, said.model, said.stop_reason) == ("message", "assistant", "default", "end_turn")
        assert [block.to_dict() for block in said.content] == [{"type": "text", "text": "You said: Hallo"}]
        assert said.id.startswith("msg_")
        thinking: Any = {"type": "enabled", "budget_tokens": 100}
        thought = await ask("Hallo", thinking=thinking)
        assert [block.type for block in thought.content] == ["thinking", "text"]
        assert (thought.content[0].thinking, bool(thought.content[0].signature)) == ("about Hallo", True)
        assert thought.usage.output_tokens_details.thinking_tokens > 3
        hidden = await ask("Hallo", thinking={**thinking, "display": "omitted"})
        assert [block.type for block in hidden.content] == ["text"]
        stopped = await ask("Count.", stop_sequences=[" 7 "])
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " 7 ")
        assert stopped.content[0].text == "0 1 2 3 4 5 6"
        cut = await ask("Count.", 5)
        assert (cut.stop_reason, cut.usage.output_tokens, cut.stop_sequence) == ("max_tokens", 5, None)
        system = await ask("Hallo", system="Be brief.")
        counted = await client.messages.count_tokens(model="default", messages=user("Hallo"), system="Be brief.")
        usage = system.usage
        assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens > said.usage.input_tokens
        long = "word " * 100
        first, again = await ask(long), await ask(long)
        assert (first.usage.cache_read_input_tokens or 0) < 32 <= again.usage.cache_read_input_tokens
        assert again.usage.input_tokens + again.usage.cache_read_input_tokens > 100

    run(server, work)


def test_tools_whole_and_streamed_and_their_results(server: Listening) -> None:
    async def work(client: Client) -> None:
        fields: Any = {"model": "default", "max_tokens": 500, "tools": TOOLS, "extra_body": GREEDY}
        said = await client.messages.create(messages=user("Tools?"), **fields)
        assert said.stop_reason == "tool_use"
        text, weather, now = said.content
        assert (text.type, weather.type, now.type) == ("text", "tool_use", "tool_use")
        assert (text.text, weather.name, weather.input, now.input) == ("I look.", "weather", {"city": "Zürich"}, {})
        async with client.messages.stream(messages=user("Tools?"), **fields) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_message()
        assert [(block.type, getattr(block, "input", None)) for block in final.content] == [
            (block.type, getattr(block, "input", None)) for block in said.content
        ]
        assert (final.stop_reason, final.usage.output_tokens) == ("tool_use", said.usage.output_tokens)
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
        assert "input_json" in kinds  # how many depends on how fast they are fetched
        results: Any = [
            {"type": "tool_result", "tool_use_id": now.id, "content": "noon"},
            {"type": "tool_result", "tool_use_id": weather.id, "content": [{"type": "text", "text": "20"}]},
        ]
        turn: Any = [
            *user("Tools?"),
            {"role": "assistant", "content": said.content},
            {"role": "user", "content": results},
        ]
        answer = await client.messages.create(messages=turn, **fields)
        assert answer.content[0].text == "Results: 20 and noon"

    run(server, work)


def test_tools_that_must_be_called(server: Listening) -> None:
    """The model would rather talk: the grammar makes it call."""

    async def work(client: Client) -> None:
        fields: Any = {
            "model": "default",
            "max_tokens": 300,
            "tools": TOOLS,
            "messages": user("Hallo"),
            "extra_body": GREEDY,
        }
        named = await client.messages.create(**fields, tool_choice={"type": "tool", "name": "now"})
        assert named.stop_reason == "tool_use"
        assert {block.name for block in named.content} == {"now"}
        alone: Any = {"type": "any", "disable_parallel_tool_use": True}
        one = await client.messages.create(**fields, tool_choice=alone)
        assert [block.type for block in one.content] == ["tool_use"]
        none = await client.messages.create(**fields, tool_choice={"type": "none"})
        assert none.content[0].text == "You said: Hallo"

    run(server, work)


def test_errors_are_anthropics(server: Listening) -> None:
    async def work(client: Client) -> None:
        with pytest.raises(anthropic.NotFoundError, match="'claude' is not served here"):
            await client.messages.create(model="claude", max_tokens=5, messages=user("a"))
        with pytest.raises(anthropic.BadRequestError) as wrong:
            await client.messages.create(model="default", max_tokens=0, messages=user("a"))
        assert wrong.value.body["type"] == "error"  # type: ignore[index]
        assert wrong.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
        twice: Any = [TOOLS[0], TOOLS[0]]
        with pytest.raises(anthropic.BadRequestError, match=r"tools\[1\].name 'weather' comes twice"):
            await client.messages.create(model="default", max_tokens=5, messages=user("a"), tools=twice)
        with pytest.raises(anthropic.BadRequestError, match="the context is 4096"):
            await client.messages.create(model="default", max_tokens=5, messages=user("word " * 5000))
        count = await client.messages.count_tokens(model="default", messages=user("word " * 5000))
        assert count.input_tokens > 5000

    run(server, work)


def test_the_events_as_they_are_written() -> None:
    async def inside() -> None:
        async with serving(scripted(answers)) as (_, client):
            thinking = {"type": "enabled", "budget_tokens": 100}
            body = {
                "max_tokens": 200,
                "messages": user("Hallo"),
                "temperature": 0,
                "stream": True,
                "thinking": thinking,
            }
            answer = await client.post("/v1/messages", json=body)
        events = [block.split("\n") for block in answer.text.strip().split("\n\n")]
        kinds = []
        for name, data in events:
            content = json.loads(data.removeprefix("data: "))
            assert name == f"event: {content['type']}"
            if not kinds or kinds[-1] != content["type"]:
                kinds.append(content["type"])
        assert kinds == [
            "message_start",
            "ping",
            *["content_block_start", "content_block_delta", "content_block_stop"] * 2,
            "message_delta",
            "message_stop",
        ]

    within(60, inside())


def test_the_client_that_waits(server: Listening) -> None:
    with anthropic.Anthropic(api_key="x", base_url=server.url, max_retries=0) as client:
        fields: Any = {"model": "default", "max_tokens": 200, "extra_body": GREEDY}
        said = client.messages.create(messages=user("Hallo"), **fields)
        assert said.content[0].text == "You said: Hallo"  # type: ignore[union-attr]
        with client.messages.stream(messages=user("Hallo"), **fields) as stream:
            assert "".join(stream.text_stream) == "You said: Hallo"
            assert stream.get_final_message().stop_reason == "end_turn"
        pieces = [
            event.delta.text
            for event in client.messages.create(messages=user("Count."), stream=True, **fields)
            if event.type == "content_block_delta" and event.delta.type == "text_delta"
        ]
        assert len(pieces) > 50
        assert "".join(pieces).startswith("0 1 2 3")


def test_a_client_that_leaves_ends_its_answer(server: Listening) -> None:
    body = {"max_tokens": 500, "messages": user("Count."), "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/messages", json=body) as answer:
        assert next(answer.iter_lines()) == "event: message_start"
    assert httpx.get(f"{server.url}/v1/models").status_code == 200
