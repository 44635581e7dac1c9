"""Agents that others have written finish a task with two calls, each needing the result of the one before."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.serve.listening import Listening, listening

TEMPLATE = """
{%- macro turn(role, text) -%}
<|im_start|>{{ role }}\n{{ text }}<|im_end|>\n
{%- endmacro -%}
{%- set asked = messages[0].content if messages[0].role in ('system', 'developer') else '' -%}
{%- if tools or asked -%}
<|im_start|>system\n{{ asked }}
{%- if tools -%}
{{ '\n' }}Functions:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}
Call as <tool_call>\n{"name": name, "arguments": object}\n</tool_call>
{%- endif -%}
<|im_end|>{{ '\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}<|im_start|>user{{ '\n' + message.content }}<|im_end|>{{ '\n' }}
{%- elif message.role == 'assistant' -%}
<|im_start|>assistant{{ '\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] -%}
{{- '\n' if message.content or not loop.first }}<tool_call>{{ '\n' -}}
{"name": "{{ call.function.name }}", "arguments":{{ ' ' -}}
{{- call.function.arguments | tojson }}}{{ '\n' }}</tool_call>
{%- endfor -%}
<|im_end|>{{ '\n' }}
{%- elif message.role == 'tool' -%}
{%- if messages[loop.index0 - 1].role != 'tool' -%}<|im_start|>user{%- endif -%}
{{ '\n' }}<tool_response>{{ '\n' + message.content + '\n' }}</tool_response>
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}<|im_end|>{{ '\n' }}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}
"""
"""Writes calls and results as Qwen3's template does; what it says of tools are its own words."""

TASK = "How many people live in Oslo, and a thousand more?"
RESULT = re.compile(r"<tool_response>\n(.*?)\n</tool_response>", re.S)


def calls(prompt: str) -> str | None:
    """The model: looks the number up, adds to what it was told, and says what came."""
    if TASK not in prompt:
        return None
    results = RESULT.findall(prompt)
    if not results:
        return '<tool_call>\n{"name": "population", "arguments": {"city": "Oslo"}}\n</tool_call>'
    if len(results) == 1:
        arguments = f'{{"a": {results[0]}, "b": 1000}}'
        return f'I have it.\n<tool_call>\n{{"name": "add", "arguments": {arguments}}}\n</tool_call>'
    return f"It is {results[1]}."


def population(city: str) -> int:
    """The people who live in a city.

    Args:
        city: The city's name.
    """
    return {"Oslo": 717_710}[city]


def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


@pytest.fixture
def server() -> Iterator[Listening]:
    with listening(calls, template=TEMPLATE) as found:
        yield found


def check(server: Listening, answer: str, work: Callable[[], Coroutine[Any, Any, str]]) -> None:
    """Run an agent; the model must have been shown the results, and the beginnings that it has seen before."""
    server.prompts.clear()
    assert asyncio.run(asyncio.wait_for(work(), 60)) == answer
    first, second, third = server.prompts
    assert '"name": "population"' in first
    assert RESULT.findall(first) == []
    assert RESULT.findall(second) == ["717710"]
    assert RESULT.findall(third) == ["717710", "718710"]
    assert second.startswith(first)
    assert third.startswith(second)
    assert 'I have it.\n<tool_call>\n{"name": "add", "arguments": {"a": 717710, "b": 1000}}\n</tool_call>' in third


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_of_openai(server: Listening, streamed: bool) -> None:
    agents = pytest.importorskip("agents")
    import openai

    async def work() -> str:
        agents.set_tracing_disabled(True)
        async with openai.AsyncOpenAI(api_key="x", base_url=f"{server.url}/v1", max_retries=0) as client:
            agent = agents.Agent(
                name="counter",
                instructions="Use your functions.",
                model=agents.OpenAIChatCompletionsModel("default", client),
                model_settings=agents.ModelSettings(temperature=0),
                tools=[agents.function_tool(population), agents.function_tool(add)],
            )
            if not streamed:
                return str((await agents.Runner.run(agent, TASK)).final_output)
            run = agents.Runner.run_streamed(agent, TASK)
            kinds = [event.type async for event in run.stream_events()]
            assert kinds.count("run_item_stream_event") >= 5
            return str(run.final_output)

    check(server, "It is 718710.", work)


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_of_pydantic_that_speaks_to_anthropic(server: Listening, streamed: bool) -> None:
    pydantic_ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    async def work() -> str:
        provider = AnthropicProvider(api_key="x", base_url=server.url)
        agent = pydantic_ai.Agent(
            AnthropicModel("default", provider=provider),
            instructions="Use your functions.",
            tools=[population, add],
            model_settings={"max_tokens": 500, "extra_body": {"temperature": 0}},
        )
        if not streamed:
            return str((await agent.run(TASK)).output)
        kinds = set[str]()

        async def see(_: Any, events: AsyncIterable[Any]) -> None:
            kinds.update([event.event_kind async for event in events])

        answer = (await agent.run(TASK, event_stream_handler=see)).output
        assert {"part_start", "part_delta", "function_tool_call", "function_tool_result"} <= kinds
        return str(answer)

    check(server, "It is 718710.", work)
