"""Calls that must come: random logits under the grammar, judged by the parser and `jsonschema`."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tenth.api.tool_plan import ToolPlan
from tenth.errors import RequestError
from tests.api.tool_texts import read
from tests.engine.grammar_text import END, qwen_compiler, qwen_vocabulary, write
from tests.weights.vocabularies import qwen, smollm2

SCHEMAS: dict[str, dict[str, Any]] = {
    "plan": {
        "type": "object",
        "properties": {
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "city": {"enum": ["Oslo", "Lima", "São Paulo"]},
            "note": {"anyOf": [{"type": "string", "maxLength": 8}, {"type": "null"}]},
            "where": {"$ref": "#/$defs/point"},
            "tags": {"type": "array", "items": {"enum": ["a", "</parameter>"]}, "maxItems": 3},
        },
        "required": ["days", "city", "where"],
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "number", "minimum": 0, "maximum": 1}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]


def plan(form: str, choice: Any = "required", parallel: bool = False, specials: bool = True) -> ToolPlan:
    names = qwen_vocabulary().special_names if specials else []
    return ToolPlan.read(TOOLS, choice, parallel, template="tools", form=form, specials=names)


def judged(form: str, number: int, choice: Any = "required", **options: Any) -> list[str]:
    """So many texts that came to their end; the names that were called."""
    made = plan(form, choice, **options)
    assert made.grammar is not None
    names: list[str] = []
    for seed in range(6 * number):
        text = write(made.grammar, seed, 250)
        if text is None:
            continue
        parser = made.parser()
        assert parser is not None
        calls = read(parser, [text])
        assert calls
        for kind, name, arguments, whole in calls:
            assert (kind, whole) == ("call", True), text
            jsonschema.Draft202012Validator({**SCHEMAS[name], "additionalProperties": False}).validate(
                json.loads(arguments)
            )
        names += [call[1] for call in calls]
        if len(names) >= number:
            return names
    raise AssertionError(names)


@pytest.mark.parametrize("form", ["hermes", "qwen3_coder"])
def test_required_and_named(form: str) -> None:
    judged(form, 6)
    named = {"type": "function", "function": {"name": "plan"}}
    assert set(judged(form, 3, named)) == {"plan"}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["hermes", "qwen3_coder"])
@pytest.mark.parametrize("parallel", [False, True])
def test_hundreds(form: str, parallel: bool) -> None:
    assert set(judged(form, 150, parallel=parallel)) == {"plan", "now"}


def takes(form: str, text: str, parallel: bool = False, specials: bool = True) -> bool:
    grammar = plan(form, parallel=parallel, specials=specials).grammar
    assert grammar is not None
    matcher = qwen_compiler().start(grammar, {END})
    try:
        for token in qwen().encode(text, specials=specials):
            matcher.take(token)
    except RequestError:
        return False
    return matcher.accepting


HERMES = (
    '<tool_call>\n{"name": "plan", "arguments": {"days": 3, "city": "São Paulo", "where": {"x": 0.5}}}\n</tool_call>'
)
CODER = (
    "<tool_call>\n<function=plan>\n<parameter=days>\n3\n</parameter>\n<parameter=city>\nSão Paulo\n</parameter>\n"
    '<parameter=note>\nwarm\n</parameter>\n<parameter=where>\n{"x": 0.5}\n</parameter>\n</function>\n</tool_call>'
)


@pytest.mark.parametrize(("form", "text"), [("hermes", HERMES), ("qwen3_coder", CODER)])
def test_what_models_write_is_allowed(form: str, text: str) -> None:
    assert takes(form, text)
    assert takes(form, f"\n\n{text}")
    assert takes(form, f"{text}\n{text}", parallel=True)
    assert not takes(form, f"{text}\n{text}")
    assert not takes(form, text.replace("3", "10"))
    assert not takes(form, text.replace("São Paulo", "Paris"))
    assert not takes(form, "Let me see. " + text)
    assert not takes(form, text[: text.rindex("\n")])


def test_tags_that_are_no_tokens_are_text() -> None:
    """Where the vocabulary has no such tokens, the tags are spelt."""
    assert "<tool_call>" not in smollm2().bytes_by_id
    grammar = plan("hermes", specials=False).grammar
    assert grammar is not None
    assert '"<tool_call>"' in grammar.text
    assert takes("hermes", HERMES, specials=False)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"s": {"type": "string", "pattern": "^a"}}, "pattern of the text 's' is not enforced in this form"),
        ({"a<b": {"type": "string"}}, "a parameter cannot be named 'a<b'"),
        ({"a": {"type": "array", "items": {"$ref": "#/properties/b"}}, "b": {}}, "it must lead to"),
        ({"a": {"anyOf": [{"type": "string"}], "minLength": 3}}, "'minLength' beside anyOf of 'a'"),
        ({"a": {"enum": 5}}, "enum of 'a' must be a list of one value at least"),
        ({"a": {"type": 5}}, "type of 'a' must be a list of names, not 5"),
        ({"a": {"enum": ["</parameter>"]}}, "a value that holds </parameter> cannot be written"),
        ({"a": {"allOf": [{"type": "string"}, {}]}}, "'allOf' of 'a' is not enforced in this form"),
    ],
)
def test_what_bare_text_cannot_be_held_to_is_refused(schema: dict[str, Any], says: str) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": schema}}}]
    with pytest.raises(RequestError, match=says):
        ToolPlan.read(tools, "required", template="tools", form="qwen3_coder")
