"""What tools and tool_choice come to, messages with calls, and the way of a call through a template and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tenth.api.tool_messages import tool_messages
from tenth.api.tool_plan import ToolPlan, form_taught
from tenth.errors import RequestError
from tenth.weights.template import ChatTemplate
from tests.api.tool_texts import read

QWEN3 = (Path(__file__).parent.parent / "weights" / "templates" / "qwen3.jinja").read_text()
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
HELLO = {"role": "user", "content": "Hello"}


def tool(name: str = "weather", parameters: Any = CITY, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def plan(tools: Any = None, choice: Any = None, parallel: Any = None, form: str = "auto") -> ToolPlan:
    return ToolPlan.read([tool(), tool("now", None)] if tools is None else tools, choice, parallel, template=QWEN3,
                         form=form)  # fmt: skip


def test_the_form_is_what_the_template_teaches() -> None:
    assert form_taught(QWEN3) == "hermes"
    assert form_taught("... <tool_call>\n<function=example> ...") == "qwen3_coder"
    assert form_taught("{{ messages }}") is None
    assert form_taught(None) is None
    assert (plan().form, plan(form="qwen3_coder").form) == ("hermes", "qwen3_coder")


def test_what_the_template_is_given() -> None:
    given = plan([tool(strict=True, description=None), {"function": {"name": "now"}}]).tools
    assert given == [tool(), tool("now", {"type": "object", "properties": {}})]
    assert plan(choice="none") == ToolPlan.read(None, template=None) == plan([]) == ToolPlan()
    assert plan(choice="none").parser() is None


def test_choices() -> None:
    named = {"type": "function", "function": {"name": "now"}}
    some = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    callable_names = [
        ([one.name for one in found.callable], found.grammar is not None, found.most)
        for found in (plan(), plan(choice="auto", parallel=False), plan(choice="required"), plan(choice=named),
                      plan(choice=some))
    ]  # fmt: skip
    assert callable_names == [
        (["weather", "now"], False, None),
        (["weather", "now"], False, 1),
        (["weather", "now"], True, None),
        (["now"], True, None),
        (["now"], False, None),
    ]
    assert len(plan(choice=named).tools or []) == 2  # the prompt does not depend on the choice


@pytest.mark.parametrize(
    ("tools", "choice", "says"),
    [
        ("weather", None, "tools must be a list, not str"),
        ([tool(f"f{n}") for n in range(513)], None, "tools has 513 of them, there may be 512"),
        (["weather"], None, r"tools\[0\] must be an object, not str"),
        ([{"type": "web_search"}], None, r"tools\[0\].type is 'web_search', it must be 'function'"),
        ([{"type": "function"}], None, r"tools\[0\].function must be an object with a name, not NoneType"),
        ([tool("a b")], None, r"tools\[0\].function.name is 'a b'"),
        ([tool("x" * 129)], None, "must be 1 to 128"),
        ([tool(), tool("now"), tool()], None, r"tools\[2\].function.name 'weather' comes twice"),
        ([tool(parameters=[])], None, r"tools\[0\].function.parameters must be a JSON schema of an object, not list"),
        ([tool(parameters={"type": "string"})], None, "parameters.type is 'string', it must be 'object'"),
        ([tool(parameters={"properties": []})], None, "parameters.properties must be an object of schemas, not list"),
        ([tool(description=5)], None, r"tools\[0\].function.description must be text"),
        (None, "always", "tool_choice is 'always', it must be none, auto, required or"),
        (None, {"type": "function", "function": {"name": "rm"}}, r"names 'rm', which is not among the tools \(weather"),
        (None, {"type": "function"}, "tool_choice names None"),
        (None, {"type": "allowed_tools"}, "allowed_tools must be an object with mode"),
        (None, {"type": "allowed_tools", "allowed_tools": {"tools": [tool()]}}, "mode is None"),
        ([], "required", "tool_choice is 'required', but there are no tools"),
        ([tool(parameters={"properties": {"a": {"not": {}}}})], "required", "call of weather cannot be forced: 'not'"),
    ],
)  # fmt: skip
def test_what_cannot_be(tools: Any, choice: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        plan(tools, choice)


def test_templates_without_tools() -> None:
    with pytest.raises(RequestError, match="the model's chat template knows none"):
        ToolPlan.read([tool()], template="{{ messages }}")
    with pytest.raises(RequestError, match="teaches no form of calls that is known"):
        ToolPlan.read([tool()], template="{{ tools }}")
    with pytest.raises(RequestError, match="it must be auto, hermes or qwen3_coder"):
        plan(form="pythonic")
    with pytest.raises(RequestError, match="parallel_tool_calls is 'no', it must be true or false"):
        plan(parallel="no")


def call(name: str | None, arguments: Any = "{}", function: str = "weather") -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}


def asked(*calls: dict[str, Any], content: Any = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def result(name: str | None, content: Any = "20") -> dict[str, Any]:
    return {"role": "tool", "content": content} | ({} if name is None else {"tool_call_id": name})


def test_results_come_in_the_order_of_their_calls() -> None:
    messages = [
        HELLO,
        asked(call("a"), call("b"), call("c")),
        result("c", "3"),
        result("a", "1"),
        result("b", "2"),
        HELLO,
    ]
    ordered = tool_messages(messages)
    assert isinstance(ordered, list)
    assert [one["content"] for one in ordered] == ["Hello", None, "1", "2", "3", "Hello"]
    assert tool_messages([HELLO, asked(call(None), call(None)), result(None, "1"), result("x", "2")])
    assert tool_messages([HELLO, asked(call("a"))])  # a call at the end waits for nothing
    for other in ("text", None, 5, [], [HELLO, 5]):
        assert tool_messages(other) == other


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([HELLO, result("a")], r"messages\[1\] is a tool's result, but no message before it has calls"),
        ([asked(call("a")), result("b")], r"messages\[1\].tool_call_id 'b' is none of the calls before it \(a\)"),
        ([asked(call("a")), result("a"), result("a")], r"messages\[2\] is a second result of the call 'a'"),
        ([asked(call("a"), call("b")), result("a")], r"the call 'b' of messages\[0\] has no result"),
        ([asked(call("a")), HELLO], r"the call 'a' of messages\[0\] has no result"),
        ([asked(call("a"), call("a"))], r"tool_calls\[1\].id 'a' comes twice"),
        ([asked(call(None)), result(None), result(None)], r"messages\[2\] is one result too many"),
        ([asked({"id": "a"})], r"messages\[0\].tool_calls\[0\] must be an object with a function that has a name"),
        ([asked(call("a", 5))], "arguments must be JSON in a string, or an object"),
        ([asked(call("a", function=""))], "a function that has a name"),
        ([asked(call(5))], r"tool_calls\[0\].id must be text"),  # type: ignore[arg-type]
        ([asked(call("a")), result(5)], "tool_call_id must be text"),  # type: ignore[arg-type]
        ([{"role": "assistant", "tool_calls": {"a": 1}}], "tool_calls must be a list, not dict"),
    ],
)  # fmt: skip
def test_messages_that_do_not_fit(messages: list[Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        tool_messages(messages)


@pytest.mark.parametrize("content", [None, "Let me look.", "Two\nlines.\n"])
def test_what_a_model_wrote_is_what_the_next_prompt_shows(content: str | None) -> None:
    """The template writes the calls that were read as the model wrote them: the prompt's beginning is in the cache."""
    arguments = [{"city": 'Zürich "x"\n</tool_call>', "n": [1, 2.5, None]}, {}]
    calls = [f'<tool_call>\n{{"name": "weather", "arguments": {json.dumps(one, ensure_ascii=False)}}}\n</tool_call>'
             for one in arguments]  # fmt: skip
    written = "\n".join(([] if content is None else [content]) + calls)
    parser = plan().parser()
    assert parser is not None
    seen = read(parser, written)
    message = {
        "role": "assistant",
        "content": "".join(one[1] for one in seen if one[0] == "text") or None,
        "tool_calls": [call(str(n), one[2]) for n, one in enumerate(one for one in seen if one[0] == "call")],
    }
    assert message["content"] == content
    chat = ChatTemplate(QWEN3)
    before = chat.render([HELLO], tools=plan().tools)
    after = chat.render([HELLO, message, result("1"), result("0")], tools=plan().tools)
    assert after.startswith(f"{before}{written}<|im_end|>\n")
