"""The contract: OpenAI's own client against a real server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serve.real import Server, server
from tests.serve.served import scripted

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn, \\"am Rhein\\""}}\n</tool_call>'
CITIES = ['Bonn, "am Rhein"', "Kiel"]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"enum": CITIES}}, "required": ["city"]},
        },
    }
]


def say(text: str) -> str | None:
    turns = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", text, re.S)
    if not turns:
        return text[::-1][:20]  # a completion: the text backwards
    if "<tool_response>" in text:
        return "It rains in " + re.findall(r"<tool_response>\n(.*?)\n</tool_response>", text, re.S)[-1]
    if turns[-1] == "weather?":
        return CALL
    thought = "" if "</think>" in text[-30:] else f"<think>\nabout {turns[-1]}\n</think>\n\n"
    return f"{thought}[{turns[-1]}]"


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with server(scripted(say)) as found:
        yield found


@pytest.fixture(scope="module")
def client(running: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0, timeout=30)


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, client.models.retrieve("default").id) == ("default", "default")
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("other")


def test_a_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    body: Any = {"model": "default", "messages": [{"role": "user", "content": "Grüße 🎉"}], "temperature": 0}
    whole = client.chat.completions.create(**body)
    message = whole.choices[0].message
    assert (message.content, message.model_extra["reasoning_content"]) == ("[Grüße 🎉]", "about Grüße 🎉")
    assert whole.usage is not None
    text, thought, usage = "", "", None
    for chunk in client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            thought += (choice.delta.model_extra or {}).get("reasoning", "")
        usage = chunk.usage or usage
    assert (text, thought) == ("[Grüße 🎉]", "about Grüße 🎉")
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 8


def test_many_clients_at_once_each_get_their_own(running: Server) -> None:
    async def work() -> None:
        async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="none", timeout=60) as client:

            async def one(number: int) -> None:
                question = f"question {number}"
                stream = await client.chat.completions.create(
                    model="default",
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    stream=True,
                    extra_body={"enable_thinking": number % 2 == 1},
                )
                text = ""
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
                assert text == f"[{question}]"

            await asyncio.gather(*(one(number) for number in range(32)))

    asyncio.run(work())


def test_tools_are_called_and_their_results_read(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "weather?"}]
    body: Any = {"model": "default", "tools": TOOLS, "temperature": 0, "extra_body": {"enable_thinking": False}}
    whole = client.chat.completions.create(messages=messages, **body).choices[0]
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    assert whole.message.tool_calls is not None
    (call,) = whole.message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": 'Bonn, "am Rhein"'}
    pieces, name, reason = "", "", None
    for chunk in client.chat.completions.create(messages=messages, stream=True, **body):
        (choice,) = chunk.choices
        for part in choice.delta.tool_calls or []:
            assert part.function is not None
            name += part.function.name or ""
            pieces += part.function.arguments or ""
        reason = choice.finish_reason or reason
    assert (name, json.loads(pieces), reason) == ("weather", {"city": 'Bonn, "am Rhein"'}, "tool_calls")
    messages += [whole.message.model_dump(exclude_none=True)]  # has no content
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "Bonn"}]
    answer = client.chat.completions.create(messages=messages, **body).choices[0]
    assert answer.message.content == "It rains in Bonn"


def test_a_call_that_must_come(client: openai.OpenAI) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "hello"}],
            tools=TOOLS,
            tool_choice=choice,  # type: ignore[arg-type]
            parallel_tool_calls=False,
            max_tokens=100,
            temperature=0,
            extra_body={"enable_thinking": False},
        ).choices[0]
        assert answer.message.tool_calls is not None
        assert answer.message.tool_calls[0].function.name == "weather"  # type: ignore[union-attr]


def test_several_answers_with_logprobs_and_stops(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "one two three"}],
        n=2,
        stop=[" three"],
        logprobs=True,
        top_logprobs=2,
        temperature=0,
        extra_body={"enable_thinking": False},
    )
    assert [choice.message.content for choice in answer.choices] == ["[one two"] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 2
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert [len(one.top_logprobs) for one in choice.logprobs.content] == [2] * len(choice.logprobs.content)
        assert "".join(one.token for one in choice.logprobs.content).startswith("[one two")


def test_structured_output(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"const": 7}}, "required": ["n"], "additionalProperties": False}
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "x"}],
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
        max_tokens=200,
        temperature=0,
        extra_body={"enable_thinking": False},
    )
    assert json.loads(answer.choices[0].message.content or "") == {"n": 7}


def test_completions_of_many_prompts(client: openai.OpenAI) -> None:
    prompts = ["first text", "second text"]
    answer = client.completions.create(model="default", prompt=prompts, n=2, temperature=0, echo=True, max_tokens=30)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [p + p[::-1] for p in prompts for _ in range(2)]
    texts = dict.fromkeys(range(2), "")
    for chunk in client.completions.create(
        model="default", prompt=prompts, temperature=0, max_tokens=30, stream=True, extra_body={"ignore_eos": False}
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert list(texts.values()) == [p[::-1] for p in prompts]


def test_fill_in_the_middle(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="default", prompt="def f(", suffix="return", temperature=0, max_tokens=30)
    whole = "<|fim_prefix|>def f(<|fim_suffix|>return<|fim_middle|>"
    assert answer.choices[0].text == whole[::-1][:20]


def test_embeddings_need_states(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="must be last or mean"):
        client.embeddings.create(model="default", input="x", extra_body={"pooling": "max"})


def test_responses_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="default", input="Hello", temperature=0)
    assert (whole.status, whole.output_text) == ("completed", "[Hello]")
    thought, message = whole.output
    assert thought.type == "reasoning"
    assert thought.content is not None
    assert thought.content[0].text == "about Hello"
    assert message.type == "message"
    kinds, text = [], ""
    with client.responses.stream(
        model="default", input=[{"role": "user", "content": "Hello"}], temperature=0
    ) as stream:
        for event in stream:
            kinds.append(event.type)
            text += event.delta if event.type == "response.output_text.delta" else ""
        last = stream.get_final_response()
    assert (text, last.output_text) == ("[Hello]", "[Hello]")
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-1] == "response.completed"
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.output_tokens == whole.usage.output_tokens


def test_responses_call_functions(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", **TOOLS[0]["function"], "strict": False}
    items: list[Any] = [{"role": "user", "content": "weather?"}]
    body: Any = {"model": "default", "tools": [tool], "temperature": 0, "extra_body": {"enable_thinking": False}}
    answer = client.responses.create(input=items, **body)
    (call,) = answer.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": 'Bonn, "am Rhein"'}
    streamed = list(client.responses.create(input=items, stream=True, **body))
    arguments = "".join(e.delta for e in streamed if e.type == "response.function_call_arguments.delta")
    assert json.loads(arguments) == {"city": 'Bonn, "am Rhein"'}
    items += [call.model_dump(exclude_none=True)]
    items += [{"type": "function_call_output", "call_id": call.call_id, "output": "Bonn"}]
    assert client.responses.create(input=items, **body).output_text == "It rains in Bonn"


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    body: Any = {"model": "default", "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**body, temperature=-1)
    assert (refused.value.param, refused.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**{**body, "model": "gpt-9"})
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="default", prompt=[5] * 5000)
    assert long.value.code == "context_length_exceeded"
    image: Any = [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]
    with pytest.raises(openai.BadRequestError, match="'image_url'; this model reads text parts only"):
        client.chat.completions.create(model="default", messages=[{"role": "user", "content": image}])
