"""What is refused, by name and in time: malformed grammars, schemas that would not be enforced, hostile ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenth.engine.grammar import Grammar
from tenth.engine.grammar_compiler import GrammarCompiler
from tenth.engine.grammar_vocabulary import Vocabulary
from tenth.engine.grammar_worker import GrammarLimits
from tenth.errors import RequestError
from tests.engine.grammar_text import END, allowed, qwen_compiler


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "uniqueItems": True}, "'uniqueItems' of schema # is not enforced"),
        ({"properties": {"a": {"not": {"type": "string"}}}}, "'not' of schema #/properties/a is not enforced"),
        ({"if": {}, "then": {}}, "'if' of schema # is not enforced here, so it is refused: say anyOf"),
        ({"contains": {}}, "'contains'"),
        ({"propertyNames": {"pattern": "a"}}, "'propertyNames'"),
        ({"dependentRequired": {"a": ["b"]}}, "'dependentRequired'"),
        ({"unevaluatedProperties": False}, "'unevaluatedProperties'"),
        ({"$dynamicRef": "#a"}, "'\\$dynamicRef'"),
        ({"type": "string", "minLenght": 3}, "'minLenght'"),
        ({"type": "string", "nullable": True}, "'nullable' .* say \"type\""),
        ({"x-guidance": {"lenient": True}}, "'x-guidance' .* switch checks off"),
        ({"$defs": {"a": {"allOf": [{"format": "regex"}]}}}, "format 'regex' of schema #/\\$defs/a/allOf/0"),
        ({"format": "unknown"}, "format 'unknown'"),
        ({"$ref": "https://example.com/a.json"}, "must stay in the schema"),
        ({"type": "object", "minProperties": 2}, "minProperties 2 of schema #"),
        ({"const": 2**53 + 1}, "const of schema # has a number beyond 2\\^53"),
        ({"enum": [{"a": [2**60]}]}, "enum of schema # has a number beyond"),
        ({"properties": []}, "properties of schema # must be an object of schemas, not a list"),
        ({"properties": dict.fromkeys(map(str, range(1001)), True)}, "schema # has 1001 properties, it may have 1000"),
        ({"items": 3}, "schema #/items must be an object or a boolean, not a number"),
        ({"$ref": "#/$defs/none"}, "json_schema grammar: "),
        ({"type": "strin"}, "json_schema grammar: Invalid type: strin"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "json_schema grammar: .*oneOf"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "json_schema grammar: "),
        (False, "no text fits it"),
        ({"$ref": "#"}, "no text fits it"),
        ("{", "the schema is no JSON"),
        ('{"a": ' * 100_000, "must be text of at most|nested"),
        ('{"items":' * 100 + "{}" + "}" * 100, "nested more than 64 deep"),
        ("[" * 50_000, "nested more than 64 deep"),
        ({"items": {1, 2}}, "the schema is no JSON"),
    ],
)
def test_schemas(schema: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        qwen_compiler().compile(Grammar.json_schema(schema))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("regex", "(a", "regex grammar: .*unclosed group"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", "(" * 1000 + "a" + ")" * 1000, "regex grammar: .*nest"),
        ("lark", "", "lark grammar: "),
        ("lark", "start: start", "no text fits it"),
        ("lark", "start: nothing", "lark grammar: .*nothing"),
        ("lark", "start: <no_such_token>", "lark grammar: .*no_such_token"),
        ("lark", 'start: %json {"x-guidance": {"lenient": true}}', "switch checks off"),
        ("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "nested"),
        ("choice", "[]", "a list of one text at least"),
        ("choice", '["a", ""]', "empty"),
        ("choice", '["a", 3]', "a list of one text at least"),
        ("choice", "x", "a list of one text at least"),
        ("json", "array", "object or value"),
        ("xml", "", "must be one of json, json_schema"),
        ("regex", "a" * (300 << 10), "at most 262144 characters"),
        ("regex", 3, "not int"),
    ],
)
def test_grammars(kind: str, text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        qwen_compiler().compile(Grammar(kind, text))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def chain(name: str, links: int, twice: str = "") -> str:
    rules = [f"{name}{n}: {name}{n + 1}{twice and f' {name}{n + 1}'}" for n in range(links)]
    return "\n".join([f"start: {name}0", *rules, f'{name}{links}: "x"'])


HOSTILE: dict[str, tuple[str, str]] = {
    "repeats in repeats": ("regex", "((a{1,1000}){1,1000}){1,1000}"),
    "a huge count": ("regex", "a{1,1000000000}"),
    "exponential for backtrackers": ("regex", "(a|a)*" * 200 + "b"),
    "the classic one": ("regex", "(a+)+b"),
    "exponential for automata": ("regex", "[ab]*a[ab]{300}"),
    "many wide classes": ("regex", r"\w{0,1000}" * 50),
    "many words": ("regex", "|".join(f"w{n:07d}" for n in range(25_000))),
    "an intersection": ("lark", "start: A\nA: " + " & ".join(f"/(?s:.*){chr(97 + n)}(?s:.*)/" for n in range(24))),
    "complements": ("lark", "start: A\nA: " + " & ".join(f"~/(?s:.*){chr(97 + n)}{{3}}(?s:.*)/" for n in range(24))),
    "repeats of rules": ("lark", 'start: (("a"{1,100000}){1,100000}){1,100000}'),
    "doubling rules": ("lark", chain("a", 60, "twice")),
    "doubling terminals": ("lark", chain("A", 60, "twice")),
    "a long chain of rules": ("lark", chain("a", 15_000)),
    "a long chain of terminals": ("lark", chain("A", 15_000)),
    "ambiguity": ("lark", 'start: s\ns: s s | "a" | '),
    "a huge array": ("json_schema", '{"type": "array", "minItems": 1000000000, "maxItems": 2000000000}'),
    "a huge string": ("json_schema", '{"type": "string", "minLength": 1000000000}'),
    "unions of unions": (
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [{"required": [f"p{i}_{j}"]} for i in range(4)]} for j in range(12)]}),
    ),
    "doubling references": (
        "json_schema",
        json.dumps(
            {
                "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {}},
                "$ref": "#/$defs/d0",
            }
        ),
    ),
    "a chain of references": (
        "json_schema",
        json.dumps(
            {
                "$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(5000)} | {"d5000": {}},
                "$ref": "#/$defs/d0",
            }
        ),
    ),
    "a long enum": ("json_schema", json.dumps({"enum": [f"value {n * 7919}" for n in range(9000)]})),
    "the classic one in a schema": ("json_schema", json.dumps({"type": "string", "pattern": "^(a+)+b$"})),
    "a huge count in a schema": ("json_schema", json.dumps({"type": "string", "pattern": "^(a{1,99999}){1,99999}$"})),
    "deep values": ("json_schema", json.dumps({"const": json.loads("[" * 60 + "]" * 60)})),
    "deep schemas": ("json_schema", '{"items":' * 63 + "{}" + "}" * 63),
    "references in a circle": (
        "json_schema",
        json.dumps(
            {
                "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}},
                "$ref": "#/$defs/a",
            }
        ),
    ),
    "references that grow": (
        "json_schema",
        json.dumps(
            {
                "$defs": {"a": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/a"}] * 30}}},
                "$ref": "#/$defs/a",
            }
        ),
    ),
    "many properties": ("json_schema", json.dumps({"properties": {f"p{n}": {"type": "string"} for n in range(1000)}})),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end_in_time(name: str) -> None:
    """Refused or compiled in bounded time and memory; then each mask too, or an error of this sequence alone."""
    compiler = qwen_compiler()
    compiler.start(Grammar.json())  # the vocabulary is ready
    kind, text = HOSTILE[name]
    errors: list[str] = []
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    held = memory("VmRSS")
    started = time.process_time()
    matcher = attempt(errors, lambda: compiler.start(Grammar(kind, text), {END}))  # type: ignore[arg-type]
    assert time.process_time() - started < 8
    random = np.random.default_rng(0)
    for _ in range(20):
        started = time.process_time()
        ids = attempt(errors, lambda: allowed(matcher)) if matcher else None
        assert time.process_time() - started < 2
        if errors or not (ids != END).any():
            break
        token = int(random.choice(ids[ids != END]))
        attempt(errors, lambda token=token: matcher.take(token))
    assert memory("VmHWM") - held < 500_000
    assert not any("\n" in error for error in errors)
    assert len(allowed(compiler.start(Grammar.choice(["a neighbour"]), {END})))


def memory(name: str) -> int:
    """Of this process, in kB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0])


def attempt(errors: list[str], act: Callable[[], Any]) -> Any:
    """What comes of it, or None and the error kept."""
    try:
        return act()
    except RequestError as error:
        errors.append(str(error))
        return None


def test_time_and_memory_of_a_trial_are_limited() -> None:
    vocabulary = Vocabulary([bytes([n]) for n in range(256)], (), 256, lambda text: list(text.encode()))
    slow = GrammarCompiler(vocabulary, GrammarLimits(seconds=0.001))
    with pytest.raises(RequestError, match=r"regex grammar: it is not compiled within 0.001 seconds"):
        slow.compile(Grammar.regex("a"))
    small = GrammarCompiler(vocabulary, GrammarLimits(memory=64 << 20))
    with pytest.raises(RequestError, match="needs too much memory or too deep a stack"):
        small.compile(Grammar.lark(chain("A", 30, "twice")))
