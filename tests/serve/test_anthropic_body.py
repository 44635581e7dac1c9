"""Bodies of Anthropic's API as chats, and answers as blocks, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tenth.api.answer_body import Usage
from tenth.api.answer_events import Event, Finish, ReasoningText
from tenth.api.tool_events import ArgumentsText, CallBegin, CallEnd, ContentText
from tenth.errors import RequestError
from tenth.serve.anthropic_answer import SIGNATURE, Blocks, anthropic_form, usage_body
from tenth.serve.anthropic_body import chat_body
from tenth.serve.problems import HttpProblem

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "Weather.", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}
OFF = {"enable_thinking": False, "include_reasoning": False}


def body(messages: Any = HELLO, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 2000, "messages": messages, **fields}


def chat(messages: Any = HELLO, **fields: Any) -> dict[str, Any]:
    return chat_body(body(messages, **fields), thinks=True)


def use(name: str, city: str = "Oslo") -> dict[str, Any]:
    return {"type": "tool_use", "id": name, "name": "weather", "input": {"city": city}}


def result(name: str, content: Any = "20", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": name, "content": content, **more}


def test_texts_and_settings() -> None:
    assert chat() == {"model": "m", "max_tokens": 2000, "messages": HELLO, **OFF}
    marked = {"cache_control": {"type": "ephemeral"}}
    found = chat(
        [
            {"role": "user", "content": [{"type": "text", "text": "a", **marked}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
            {"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "e"}}]},
        ],
        system=[{"type": "text", "text": "one"}, {"type": "text", "text": "two", **marked}],
        stop_sequences=["END"],
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        stream=True,
        metadata={"user_id": "x"},
        service_tier="auto",
    )
    assert found == {
        "model": "m",
        "max_tokens": 2000,
        "messages": [
            {"role": "system", "content": "one\ntwo"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "cd"},
            {"role": "user", "content": "e"},
        ],
        "stop": ["END"],
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "stream": True,
        **OFF,
    }


def test_calls_and_their_results() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": SIGNATURE}
    hidden = {"type": "redacted_thinking", "data": "..."}
    found = chat(
        [
            *HELLO,
            {
                "role": "assistant",
                "content": [thought, hidden, {"type": "text", "text": "Look."}, use("a"), use("b", "Lima")],
            },
            {
                "role": "user",
                "content": [
                    result("b", [{"type": "text", "text": "30"}]),
                    {"type": "text", "text": "And?"},
                    result("a", "none", is_error=True),
                ],
            },
            {"role": "assistant", "content": [use("c")]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c"}]},
        ]
    )["messages"]
    assert found[1]["reasoning_content"] == "hm"
    assert found[1]["content"] == "Look."
    assert [(call["id"], call["function"]["arguments"]) for call in found[1]["tool_calls"]] == [
        ("a", {"city": "Oslo"}),
        ("b", {"city": "Lima"}),
    ]
    assert found[2:5] == [
        {"role": "tool", "tool_call_id": "a", "content": "Error: none"},
        {"role": "tool", "tool_call_id": "b", "content": "30"},
        {"role": "user", "content": "And?"},
    ]
    assert (found[5]["content"], found[6]) == (None, {"role": "tool", "tool_call_id": "c", "content": ""})
    assert len(found) == 7


def test_tools_and_choices() -> None:
    shown = {"type": "function", "function": {"name": "weather", "description": "Weather.", "parameters": SCHEMA}}
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, wanted in (
        (None, {}),
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"type": "tool", "name": "weather"}, {"tool_choice": named}),
    ):
        found = chat(tools=[TOOL], tool_choice=choice)
        assert found.pop("tools") == [shown]
        assert found == {"model": "m", "max_tokens": 2000, "messages": HELLO, **OFF, **wanted}


def test_thinking_and_effort() -> None:
    def thinking(thinks: bool = True, **fields: Any) -> dict[str, Any]:
        found = chat_body(body(**fields), thinks=thinks)
        return {name: found[name] for name in found if name not in ("model", "max_tokens", "messages")}

    on = {"enable_thinking": True, "include_reasoning": True}
    enabled = {"type": "enabled", "budget_tokens": 1024}
    assert thinking(thinking=enabled) == {**on, "thinking_token_budget": 1024}
    assert thinking(thinking=enabled, thinks=False) == on
    assert thinking(thinking={**enabled, "display": "omitted"})["include_reasoning"] is False
    assert thinking(thinking={"type": "disabled"}) == thinking() == OFF
    adaptive = {"type": "adaptive"}
    assert thinking(thinking=adaptive, output_config={"effort": "low"}) == {**on, "reasoning_effort": "low"}
    assert thinking(output_config={"effort": "low"}) == OFF
    form = {"type": "json_schema", "schema": SCHEMA}
    assert thinking(output_config={"format": form}) == {
        **OFF,
        "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
    }


def test_counting_needs_no_length() -> None:
    assert chat_body({"messages": HELLO}, thinks=True, counting=True) == {"messages": HELLO, **OFF}
    with pytest.raises(RequestError, match="max_tokens is None"):
        chat_body({"messages": HELLO}, thinks=True)


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": []}, "messages must be a list of at least one message"),
        ({"messages": ["a"]}, r"messages\[0\] must be an object whose role is user or assistant"),
        ({"messages": [{"role": "tool", "content": "a"}]}, r"messages\[0\] must be an object whose role"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content must be a text or a list of blocks, not NoneType"),
        (
            {"messages": [{"role": "user", "content": ["a"]}]},
            r"messages\[0\].content\[0\] must be an object with a type",
        ),
        (
            {"messages": [{"role": "user", "content": [IMAGE]}]},
            r"content\[0\] is of type 'image'; this model reads text only",
        ),
        ({"messages": [{"role": "user", "content": [result("a", [IMAGE])]}]}, "tool_use_id 'a' is no tool_use of the"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "I"}]}, "messages must end with the user's turn"),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": [use("a")]}, *HELLO]},
            r"messages\[2\] must have a tool_result for the tool_use 'a'",
        ),
        ({"messages": [{"role": "assistant", "content": [use("a"), use("a")]}]}, "has the tool_use id 'a' twice"),
        ({"messages": [{"role": "assistant", "content": [{**use("a"), "input": "x"}]}]}, "input must be an object"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [use("a")]},
                    {"role": "user", "content": [result("a"), result("a")]},
                ]
            },
            r"messages\[1\].content\[1\] is a second result of 'a'",
        ),
        ({"max_tokens": 0}, "max_tokens is 0, it must be a whole number of at least 1"),
        ({"max_token": 5}, "no field of a message is named 'max_token'"),
        ({"stop_sequences": [" "]}, "stop_sequences must be a list of texts"),
        ({"system": 5}, "system must be a text or a list of blocks, not int"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            r"tools\[0\].type is 'web_search_20250305'",
        ),
        ({"tools": [{"name": "a"}]}, r"tools\[0\].input_schema must be a JSON schema"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, r"tools\[0\] has 'defer_loading', which is not done here"),
        ({"tools": {}}, "tools must be a list, not dict"),
        ({"tool_choice": "auto"}, "tool_choice is 'auto', its type must be auto, any, tool or none"),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}}, "disable_parallel_tool_use is 1"),
        ({"thinking": {"type": "always"}}, "its type must be enabled, adaptive or disabled"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens is None"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            "budget_tokens is 2000, it must be less than max_tokens",
        ),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format must be"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort is 'huge'"),
    ],
)
def test_what_cannot_be(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        chat_body({**body(), **fields}, thinks=True)


def test_events_become_blocks() -> None:
    blocks = Blocks()
    events: list[Event] = [
        ReasoningText("h"),
        ReasoningText("m"),
        ContentText("Lo"),
        ContentText("ok."),
        CallBegin(0, "call_1", "f"),
        ArgumentsText(0, '{"a"'),
        ArgumentsText(0, ": 1}"),
        CallEnd(0, True),
        CallBegin(1, "call_2", "g"),
        ArgumentsText(1, "{}"),
        CallEnd(1, True),
        ContentText("!"),
        Finish("tool_calls"),
    ]
    stream = [one for event in events for one in blocks.take(event)]
    assert blocks.content == [
        {"type": "thinking", "thinking": "hm", "signature": SIGNATURE},
        {"type": "text", "text": "Look."},
        {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "call_2", "name": "g", "input": {}},
        {"type": "text", "text": "!"},
    ]
    opened: list[int] = []
    for event in stream:
        if event["type"] == "content_block_start":
            assert event["index"] == len(opened)
            assert not event["content_block"].get("text")
            opened.append(event["index"])
        assert event["index"] == opened[-1]
    kinds = [event["delta"]["type"] for event in stream if event["type"] == "content_block_delta"]
    assert kinds == ["thinking_delta"] * 2 + ["signature_delta"] + ["text_delta"] * 2 + ["input_json_delta"] * 3 + [
        "text_delta"
    ]
    assert sum(event["type"] == "content_block_stop" for event in stream) == 5
    assert json.loads(
        "".join(
            e["delta"]["partial_json"] for e in stream if e.get("delta", {}).get("partial_json") and e["index"] == 2
        )
    ) == {"a": 1}


@pytest.mark.parametrize(
    ("finish", "drawn", "reason"),
    [
        (Finish("stop"), 5, "end_turn"),
        (Finish("stop", "END"), 5, "stop_sequence"),
        (Finish("tool_calls"), 5, "tool_use"),
        (Finish("length"), 10, "max_tokens"),
        (Finish("length"), 9, "model_context_window_exceeded"),
        (Finish("content_filter"), 9, "refusal"),
    ],
)
def test_why_an_answer_ends(finish: Finish, drawn: int, reason: str) -> None:
    blocks = Blocks()
    assert blocks.take(finish) == []
    assert blocks.stop(Usage(7, drawn), 10) == {"stop_reason": reason, "stop_sequence": finish.stopped_by}


def test_usage_and_errors() -> None:
    found = usage_body(Usage(100, 20, cached=64, reasoning=5))
    assert (found["input_tokens"], found["cache_read_input_tokens"], found["output_tokens"]) == (36, 64, 20)
    kinds = {
        status: anthropic_form(HttpProblem(status, "x"))["error"]["type"] for status in (400, 404, 413, 429, 500, 503)
    }
    assert kinds == {
        400: "invalid_request_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        503: "overloaded_error",
    }
