"""Qwen3's calls: the same in every cut, never broken JSON, and nothing lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenth.api.tool_events import ArgumentsText, CallBegin, ContentText, ToolAnswer
from tenth.api.tool_hermes import HermesParser
from tests.api.tool_texts import Found, cut, every_cut, read

NAMES = ("get_weather", "f", "g")


def parser() -> HermesParser:
    return HermesParser(NAMES)


def call(arguments: Any, name: str = "f") -> str:
    spelt = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {spelt}}}\n</tool_call>'


def whole(arguments: Any, name: str = "f") -> tuple[Any, ...]:
    return ("call", name, json.dumps(arguments, ensure_ascii=False), True)


NESTED = {"a": [1, -2.5e3, {"b": None, "c": [True, False, []]}, "x"], "d": {}, "": 'quote " backslash \\ / end'}
TAGS = {"code": '</tool_call>\n<tool_call>{"name": "g", "arguments": {}}</tool_call> <think>'}

GOOD: dict[str, tuple[str, Found]] = {
    "one": (call({"city": "Zürich 🎉"}, "get_weather"), [whole({"city": "Zürich 🎉"}, "get_weather")]),
    "nested": (call(NESTED), [whole(NESTED)]),
    "tags in a value": (call(TAGS), [whole(TAGS)]),
    "no arguments": ('<tool_call>{"name": "f"}</tool_call>', [whole({})]),
    "empty": (call({}), [whole({})]),
    "null": (call("null"), [whole({})]),
    "an empty string": (call('""'), [whole({})]),
    "JSON in a string": (call(json.dumps(json.dumps(NESTED))), [("call", "f", json.dumps(NESTED), True)]),
    "name behind": ('<tool_call>{"arguments": {"a": [1]}, "name": "f"}</tool_call>', [whole({"a": [1]})]),
    "other keys": (
        '<tool_call>{"id": [{}], "name": "f", "arguments": {"a": 1}, "x": 5}</tool_call>',
        [whole({"a": 1})],
    ),
    "other spacing": (
        '<tool_call> { "name" :"f","arguments":{"a":1 , "b":[ 2,3 ] } }\n\n</tool_call>\n',
        [whole({"a": 1, "b": [2, 3]})],
    ),
    "escapes": (
        call('{"a": "\\u00e4\\n\\"\\ud83d\\ude00"}'),
        [("call", "f", '{"a": "\\u00e4\\n\\"\\ud83d\\ude00"}', True)],
    ),
    "parallel": (
        f"{call({'a': 1})}\n{call({}, 'g')}\n{call({'a': 2})}",
        [whole({"a": 1}), whole({}, "g"), whole({"a": 2})],
    ),
    "text before": (f"\n\nLet me look.\n\n{call({})}", [("text", "\n\nLet me look.\n"), whole({})]),
    "text between": (f"a\n{call({})} and\n\n{call({})}", [("text", "a"), whole({}), ("text", " and\n"), whole({})]),
    "text behind": (f"\n\n{call({})}\n\nDone.\n", [whole({}), ("text", "\n\nDone.\n")]),
    "two objects": (
        '<tool_call>{"name": "f", "arguments": {}}\n{"name": "g"}</tool_call>!',
        [whole({}), whole({}, "g"), ("text", "!")],
    ),
    "no closing tag": (call({"a": 1})[:-12] + call({}), [whole({"a": 1}), whole({})]),
}

MENDED: dict[str, tuple[str, Found]] = {
    "a comma too many": (call('{"a": [1, 2,], "b": {"c": 3,},}'), [whole({"a": [1, 2], "b": {"c": 3}})]),
    "a comma behind the arguments": ('<tool_call>{"name": "f", "arguments": {},}</tool_call>', [whole({})]),
    "line breaks in a string": (call('{"a": "x\ny\tz"}'), [whole({"a": "x\ny\tz"})]),
    "escapes that are none": (call(r'{"a": "\d+ it\'s \u12"}'), [whole({"a": r"\d+ it's \u12"})]),
    "half characters": (
        call(r'{"a": "\ud83d b \udc00 \ud83d\n"}'),
        [("call", "f", '{"a": "\ufffd b \ufffd \ufffd\\n"}', True)],
    ),
    "a bracket too few": ('<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', [whole({"a": 1})]),
    "two brackets too few": (
        '<tool_call>{"name": "f", "arguments": {"a": [1</tool_call>b',
        [("call", "f", '{"a": [1]}', False), ("text", "b")],
    ),
    "a bracket too many": (call({"a": 1}).replace("}\n", "}}\n"), [whole({"a": 1}), ("text", "}\n</tool_call>")]),
    "a word that is none": (
        call('{"a": 1, "b": flase}'),
        [("call", "f", '{"a": 1}', False), ("text", ', "b": flase}}\n</tool_call>')],
    ),
    "a value left out": (
        call('{"a": , "b": 2}'),
        [("call", "f", "{}", False), ("text", '"a": , "b": 2}}\n</tool_call>')],
    ),
    "numbers that are none": (call('{"a": 01}'), [("call", "f", "{}", False), ("text", '"a": 01}}\n</tool_call>')]),
    "text broken off": (call({"a": 1, "b": "so fa"})[:-15], [("call", "f", '{"a": 1, "b": "so fa"}', False)]),
    "an escape broken off": (call('{"a": "x\\u00e')[:-14], [("call", "f", '{"a": "x"}', False)]),
    "a number broken off": (call('{"a": 1, "b": 12')[:-14], [("call", "f", '{"a": 1}', False)]),
    "a key broken off": (call('{"a": 1, "bc')[:-14], [("call", "f", '{"a": 1}', False)]),
    "nested": (f"<tool_call>\n{call({})}</tool_call>", [("text", "<tool_call>"), whole({}), ("text", "</tool_call>")]),
}

CONTENT = {
    "nothing": "",
    "white space": " \n\n ",
    "text": "a < b, <tool> and </tool_call>\n",
    "the name of the tag": "Use `<tool_call>` and </tool_call> <tool_call> <tool_call",
    "half a tag": "so <tool_ca",
    "an unknown function": call({"a": 1}, "rm"),
    "no name": '<tool_call>{"arguments": {"a": 1}}</tool_call>',
    "a name that is no text": '<tool_call>{"name": {"f": 1}, "arguments": {}}</tool_call>',
    "arguments that are no object": call("[1, 2]"),
    "a string that is no object": call('"a"'),
    "a string of half an object": call('"{\\"a\\": "'),
    "a list of calls": '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>',
    "no JSON": "<tool_call>\nf(a=1)\n</tool_call>",
    "single quotes": "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>",
    "no bracket": '<tool_call{"name": "f", "arguments": {}}</tool_call>',
    "a name twice": '<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>',
    "broken off before the arguments": '<tool_call>\n{"name": "f", "argum',
    "broken off in the name": '<tool_call>\n{"name": "f',
    "broken off in arguments without a name": '<tool_call>\n{"arguments": {"a": "b',
    "no opening tag": '{"name": "f", "arguments": {}}\n</tool_call>',
}


@pytest.mark.parametrize("name", GOOD)
def test_calls(name: str) -> None:
    text, wanted = GOOD[name]
    assert every_cut(parser, text) == wanted


@pytest.mark.parametrize("name", MENDED)
def test_malformed_calls_are_mended_or_closed(name: str) -> None:
    text, wanted = MENDED[name]
    assert every_cut(parser, text) == wanted


@pytest.mark.parametrize("name", CONTENT)
def test_what_is_no_call_is_content(name: str) -> None:
    text = CONTENT[name]
    assert every_cut(parser, text) == ([("text", text)] if text else [])


def test_a_call_inside_of_what_is_none_is_found() -> None:
    text = '<tool_call>{"name": "' + call({"a": 1})
    assert every_cut(parser, text) == [("text", '<tool_call>{"name": "'), whole({"a": 1})]


def test_arguments_come_while_they_are_written() -> None:
    reader = parser()
    text = call({"a": "one two", "b": [10, 20]})
    seen = {}
    for at, letter in enumerate(text):
        for event in reader.push(letter):
            if isinstance(event, ArgumentsText):
                seen[text[: at + 1][-3:]] = event.text
            if isinstance(event, CallBegin):
                assert text[: at + 1].endswith('"arguments": {')
    assert seen["one"] == "e"
    assert seen["10,"] == "10"  # a number is known to be whole behind it
    assert seen["20]"] == ", 20]"


def test_content_is_not_held_back() -> None:
    reader = parser()
    assert [reader.push(piece) for piece in ("Hel", "lo <", "b>\n")] == [
        [ContentText("Hel")],
        [ContentText("lo ")],
        [ContentText("<b>")],
    ]


def test_no_more_calls_than_there_may_be() -> None:
    reader = HermesParser(NAMES, 1)
    text = f"a\n{call({'a': 1})}\n{call({})} b"
    pieces = [reader.push(letter) for letter in text]
    assert reader.complete
    assert reader.calls == 1
    assert not any(pieces[text.index("\n</tool_call>") :])
    assert read(HermesParser(NAMES, 1), [text]) == [("text", "a"), whole({"a": 1})]


def test_deep_and_long_arguments() -> None:
    deep = call({"a": json.loads("[" * 58 + "]" * 58)})
    assert read(parser(), [deep])[0][3] is True
    ((_, _, closed, sound), (_, rest)) = read(parser(), [call('{"a": ' + "[" * 5000)])
    assert (len(closed), sound) == (6 + 59 + 60, False)
    assert rest.startswith("[[")
    assert read(parser(), [call('{"a": ' + "1" * 5000 + "}")])[0][2:] == ("{}", False)
    text = "x" * 300_000
    assert read(parser(), [call({"a": text})]) == [whole({"a": text})]


def test_a_whole_answer() -> None:
    answer, reader = ToolAnswer(), parser()
    for letter in f"Now\n{call({'a': 1})}{call({}, 'g')}":
        answer.take(reader.push(letter))
    answer.take(reader.finish())
    assert answer.content == "Now"
    assert [one["function"] for one in answer.tool_calls] == [
        {"name": "f", "arguments": '{"a": 1}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert len({one["id"] for one in answer.tool_calls}) == 2


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(), values, max_size=4), st.booleans(), st.sampled_from([None, 2]), st.lists(st.integers(0))
)
def test_any_arguments_in_any_cut(
    arguments: dict[str, Any], plain: bool, indent: int | None, places: list[int]
) -> None:
    text = call(json.dumps(arguments, ensure_ascii=plain, indent=indent))
    ((kind, name, spelt, sound),) = read(parser(), cut(text, places))
    assert (kind, name, sound, json.loads(spelt)) == ("call", "f", True, arguments)


PIECES = [
    "<tool_call>",
    "</tool_call>",
    '{"name": "f", "arguments": ',
    '{"a": ',
    '"b"',
    "}",
    "{",
    "[",
    "]",
    ",",
    ":",
    "1",
    "\\",
    '"',
    "\n",
    " ",
    "tru",
    "e",
    '"name"',
    '"f"',
    '"arguments"',
    "x",
    "é",
    "\\ud800",
    "<",
]


@given(st.lists(st.sampled_from(PIECES), max_size=25), st.lists(st.integers(0), max_size=8))
def test_any_text_in_any_cut(pieces: list[str], places: list[int]) -> None:
    """Whatever comes, JSON is whole, and every letter of what is no call is still there."""
    text = "".join(pieces)
    seen = read(parser(), [text])
    assert read(parser(), cut(text, places)) == seen
    assert read(parser(), text) == seen
    if not any(one[0] == "call" for one in seen):
        assert "".join(one[1] for one in seen) == text
