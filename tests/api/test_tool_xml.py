"""Qwen3-Coder's calls: the same in every cut, values by their schema, tags in values told from tags."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenth.api.tool_events import ArgumentsText, CallBegin
from tenth.api.tool_xml import XmlParser
from tests.api.tool_texts import Found, cut, every_cut, read

SCHEMAS: dict[str, dict[str, Any]] = {
    "write": {
        "type": "object",
        "properties": {"path": {"type": "string"}, "text": {"type": "string"}},
        "additionalProperties": False,
    },
    "any": {"type": "object"},
    "now": {"type": "object", "properties": {}},
    "typed": {
        "type": "object",
        "properties": {
            "i": {"type": "integer"},
            "f": {"type": "number"},
            "b": {"type": "boolean"},
            "z": {"type": "null"},
            "a": {"type": "array"},
            "o": {"$ref": "#/$defs/point"},
            "s": {"type": "string"},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "either": {"type": ["integer", "string"]},
            "few": {"enum": [1, 2, "three"]},
            "texts": {"enum": ["1", "2"]},
            "list": {"oneOf": [{"type": "array"}, {"type": "null"}]},
        },
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    },
}


def parser() -> XmlParser:
    return XmlParser(SCHEMAS)


def call(name: str, *parameters: tuple[str, str]) -> str:
    inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters)
    return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"


def whole(name: str, arguments: Any) -> tuple[Any, ...]:
    return ("call", name, json.dumps(arguments, ensure_ascii=False), True)


LITERAL = [
    "</parameter>",
    "a </parameter> b",
    "\n</parameter>\n",
    "</parameter>\n</function>\nand on",
    "</parameter>\n</tool_call>\nand on",
    "</tool_call>",
    "</function>\n</tool_call>",
    "<parameter=path>",
    "</parameter>\n<parameter=path>\n",  # it has been given
    "</parameter>\n<parameter=other>\n",  # there is none
    "</parameter>\n<parameter=>",
    "</parameter",
    "</para</parameter></param",
    "</parameter></parameter>",
    "</parameter>\n</function>\n<function=none>",
    "<tool_call>\n<function=now>\n</function>\n</tool_call>",
]

GOOD: dict[str, tuple[str, Found]] = {
    "text": (
        call("write", ("path", "/tmp/ä 🎉"), ("text", "  a\n\n\tb\n")),
        [whole("write", {"path": "/tmp/ä 🎉", "text": "  a\n\n\tb\n"})],
    ),
    "nothing": (call("now"), [whole("now", {})]),
    "an empty value": (
        "<tool_call><function=write><parameter=text>\n</parameter></function></tool_call>",
        [whole("write", {"text": ""})],
    ),
    "on one line": (
        "<tool_call><function=write><parameter=path>a</parameter><parameter=text>b</parameter></function></tool_call>",
        [whole("write", {"path": "a", "text": "b"})],
    ),
    "quotes": (call("write", ("text", 'say "\\n" \u0007 \\')), [whole("write", {"text": 'say "\\n" \u0007 \\'})]),
    "parallel": (
        f"Look:\n{call('now')}\n{call('any', ('x', '1'))}\n",
        [("text", "Look:"), whole("now", {}), whole("any", {"x": 1})],
    ),
    "text around": (f"\n\na\n\n{call('now')} b\n", [("text", "\n\na\n"), whole("now", {}), ("text", " b\n")]),
    "functions in one tag": (
        "<tool_call>\n<function=now>\n</function>\n<function=any>\n<parameter=k>\nv\n</parameter>\n</function>\n</tool_call>",
        [whole("now", {}), whole("any", {"k": "v"})],
    ),
    "no tag around": (
        "<function=write>\n<parameter=text>\na\n</parameter>\n</function> and",
        [whole("write", {"text": "a"}), ("text", " and")],
    ),
    "no tag before": ("<function=now>\n</function>\n</tool_call>", [whole("now", {})]),
    "no tag behind": (call("now")[:-12] + call("now"), [whole("now", {}), whole("now", {})]),
    "no end of the function": (
        call("write", ("text", "a")).replace("</function>\n", ""),
        [whole("write", {"text": "a"})],
    ),
    "no > behind the names": (
        "<tool_call>\n<function=write\n<parameter=text\na\n</parameter>\n</function>\n</tool_call>",
        [whole("write", {"text": "a"})],
    ),
    "a parameter that there is not": (call("write", ("other", "a")), [whole("write", {"other": "a"})]),
    "broken off behind the function": (call("write", ("text", "a"))[:-13], [whole("write", {"text": "a"})]),
}

BROKEN: dict[str, tuple[str, Found]] = {
    "in a text": (call("write", ("text", "so fa"))[:-40], [("call", "write", '{"text": "so "}', False)]),
    "in a number": (call("typed", ("s", "x"), ("i", "12"))[:-41], [("call", "typed", '{"s": "x"}', False)]),
    "behind a value": (call("write", ("text", "a"))[:-25], [("call", "write", '{"text": "a"}', False)]),
    "behind a key": ("<tool_call>\n<function=write>\n<parameter=text>", [("call", "write", "{}", False)]),
}

CONTENT = {
    "an unknown function": call("rm", ("path", "/")),
    "no name": "<tool_call>\n<function=>\n</function>\n</tool_call>",
    "no key": "<tool_call>\n<function=any>\n<parameter=>\n1\n</parameter>\n</function>\n</tool_call>",
    "no function": "<tool_call>\n</tool_call>",
    "the other form": '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "something else": "<tool_call>\n<function=now>\nnow!\n</function>\n</tool_call>",
    "a broken tag": "<tool_call\n<function now>\n</function>\n</tool_call>",
    "text": "Use <function=now> or <parameter=a>b</parameter> in <tool_call> tags.",
    "half": "x <tool_call>\n<function=no",
    "half of the first parameter": "x <tool_call>\n<function=write>\n<param",
}


@pytest.mark.parametrize("name", GOOD)
def test_calls(name: str) -> None:
    text, wanted = GOOD[name]
    assert every_cut(parser, text) == wanted


@pytest.mark.parametrize("value", LITERAL)
def test_tags_within_a_value_are_text(value: str) -> None:
    text = call("write", ("path", "p"), ("text", f"before {value} behind"))
    assert every_cut(parser, text) == [whole("write", {"path": "p", "text": f"before {value} behind"})]


def test_where_no_rule_can_tell() -> None:
    """A value that holds what the end of its call looks like: the first end counts."""
    text = call("write", ("text", "a\n</parameter>\n</function>\n</tool_call>\nb"))
    assert read(parser(), [text]) == [
        whole("write", {"text": "a"}),
        ("text", "\nb\n</parameter>\n</function>\n</tool_call>"),
    ]


@pytest.mark.parametrize("name", BROKEN)
def test_text_that_breaks_off(name: str) -> None:
    text, wanted = BROKEN[name]
    assert every_cut(parser, text) == wanted


@pytest.mark.parametrize("name", CONTENT)
def test_what_is_no_call_is_content(name: str) -> None:
    assert every_cut(parser, CONTENT[name]) == [("text", CONTENT[name])]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("i", "5", 5),
        ("i", " -12 ", -12),
        ("i", "5.0", 5),
        ("i", "five", "five"),
        ("i", "1" * 5000, "1" * 5000),
        ("f", "2.5e3", 2500.0),
        ("f", "7", 7),
        ("f", ".5", ".5"),
        ("b", "true", True),
        ("b", "False", False),
        ("b", "yes", "yes"),
        ("z", "null", None),
        ("z", "None", None),
        ("a", '[1, {"a": "]"}]', [1, {"a": "]"}]),
        ("a", "[1, 2", "[1, 2"),
        ("a", '["</parameter>"]', ["</parameter>"]),
        (
            "a",
            '["</parameter> <parameter=i>5</parameter> </function></tool_call>"]',
            ["</parameter> <parameter=i>5</parameter> </function></tool_call>"],
        ),
        ("o", '{\n  "x": 1\n}', {"x": 1}),
        ("o", "[1]", "[1]"),
        ("o", '{"x": "open', '{"x": "open'),
        ("s", "5", "5"),
        ("s", "null", "null"),
        ("s", '{"a": 1}', '{"a": 1}'),
        ("maybe", "null", None),
        ("maybe", "nullable", "nullable"),
        ("maybe", "", ""),
        ("maybe", "5", "5"),
        ("either", "5", 5),
        ("either", "a5", "a5"),
        ("few", "2", 2),
        ("few", "three", "three"),
        ("texts", "1", "1"),
        ("list", "null", None),
        ("list", "[]", []),
        ("list", "none of them", "none of them"),
        ("unknown", "5", 5),
        ("unknown", "a", "a"),
    ],
)
def test_values_by_their_schema(key: str, text: str, value: object) -> None:
    spelt = call("typed", (key, text), ("s", "behind")) if key != "s" else call("typed", (key, text))
    wanted = {key: value} if key == "s" else {key: value, "s": "behind"}
    ((kind, name, arguments, sound),) = read(parser(), [spelt])
    assert (kind, name, sound) == ("call", "typed", True)
    assert json.loads(arguments) == wanted
    assert json.dumps(json.loads(arguments)) == json.dumps(wanted)  # 5 is no 5.0, and true no 1
    assert read(parser(), spelt) == [(kind, name, arguments, sound)]


def test_text_comes_while_it_is_written() -> None:
    reader = parser()
    text = call("write", ("path", "/tmp"), ("text", "one two\nthree"))
    begun = ""
    pieces: dict[str, str] = {}
    for at, letter in enumerate(text):
        for event in reader.push(letter):
            if isinstance(event, CallBegin):
                begun = text[: at + 1]
            elif isinstance(event, ArgumentsText):
                pieces[text[: at + 1][-3:]] = event.text
    assert begun.endswith("<parameter=path>")
    assert (pieces["one"], pieces["two"], pieces["o\nt"]) == ("e", "o", "\\nt")


def test_no_more_calls_than_there_may_be() -> None:
    reader = XmlParser(SCHEMAS, 1)
    for letter in f"{call('now')}\n{call('now')}":
        reader.push(letter)
    assert (reader.calls, reader.complete) == (1, True)


def test_long_values_take_time_by_their_length() -> None:
    reader = parser()
    text = "</parameter> <" * 20_000
    assert read(reader, cut(call("write", ("text", text)), range(0, 280_000, 7))) == [whole("write", {"text": text})]


@given(st.text(), st.text(), st.lists(st.integers(0), max_size=8))
def test_any_text_in_any_cut(path: str, text: str, places: list[int]) -> None:
    spelt = call("write", ("path", path), ("text", text))
    ((_, _, arguments, sound),) = read(parser(), cut(spelt, places))
    assert sound
    assert json.loads(arguments) == {"path": path, "text": text}


PIECES = [
    "<tool_call>",
    "</tool_call>",
    "<function=write>",
    "<function=",
    "write",
    ">",
    "<parameter=text>",
    "</function>",
    "<parameter=path>",
    "</parameter>",
    "<parameter=",
    "\n",
    " ",
    "x",
    "é",
    "<",
    "</",
    "{",
    '"',
    "null",
]


@given(st.lists(st.sampled_from(PIECES), max_size=25), st.lists(st.integers(0), max_size=8))
def test_anything_in_any_cut(pieces: list[str], places: list[int]) -> None:
    text = "".join(pieces)
    seen = read(parser(), [text])
    assert read(parser(), cut(text, places)) == seen
    assert read(parser(), text) == seen
    if not any(one[0] == "call" for one in seen):
        assert "".join(one[1] for one in seen) == text
