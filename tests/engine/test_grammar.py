"""Structured output: `jsonschema`, `ast` and `re` are the judges of what random logits write under the masks."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import pytest

from tenth.engine.grammar import Grammar
from tenth.engine.grammar_compiler import GrammarCompiler
from tenth.engine.grammar_matcher import MaskWorker, Matcher
from tenth.engine.grammar_vocabulary import Vocabulary
from tenth.errors import RequestError
from tests.engine.grammar_judge import check_document
from tests.engine.grammar_schemas import SCHEMAS
from tests.engine.grammar_text import END, QWEN, allowed, qwen_compiler, qwen_vocabulary, smollm2_compiler, write
from tests.weights.vocabularies import qwen, smollm2


def finished(grammar: Grammar, number: int, first: int = 0) -> list[str]:
    """So many texts that came to their end; at least a third must."""
    found: list[str] = []
    for seed in count(first):
        assert seed < first + 3 * number + 10, f"{len(found)} of {seed - first} texts came to an end"
        text = write(grammar, seed)
        if text is not None:
            found.append(text)
        if len(found) == number:
            return found
    raise AssertionError


def judged(name: str, number: int) -> None:
    schema = SCHEMAS[name]
    for text in finished(Grammar.json_schema(schema), number):
        check_document(schema, text)


@pytest.mark.parametrize("name", SCHEMAS)
def test_documents_are_valid(name: str) -> None:
    judged(name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_thousand_documents_are_valid(name: str) -> None:
    judged(name, 50)


def test_json() -> None:
    for text in finished(Grammar.json(), 5):
        assert isinstance(json.loads(text), dict)
    for text in ("[1, 2.5]", "null", '"a"', '{"a": {"b": []}}', "-1e9", "true", "1,", "{a: 1}", "nul", "[1"):
        try:
            json.loads(text)
            whole = True
        except ValueError:
            whole = False
        assert takes_whole(qwen_compiler().start(Grammar.json(objects_only=False)), qwen().encode(text)) == whole


def test_fifty_programs_are_python() -> None:
    for text in finished(Grammar.python(), 50):
        ast.parse(text)


@pytest.mark.slow
def test_a_thousand_programs_are_python() -> None:
    for text in finished(Grammar.python(), 1000, first=1000):
        ast.parse(text)


PROGRAM = '''# A program with much of the subset in it.
import os
from a.b import (c, d as e)


@foo(1)
class A(B, metaclass=C):
    """Doc."""

    x: int = 3

    async def f(self, a, *, b=2, **kw) -> int:  # note
        # inner
        if a == b and not_found is not None:
            return [i for i in range(10) if i % 2]
        elif (n := f(a)):
            pass
        else:
            raise ValueError(f"bad {a.b[0]!r:>10} {{x}}") from None

        try:
            with open(a, "w") as fh, b:
                fh.write(x[1:, ::2] + "\\n")
        except (A, B) as e: pass
        finally:
            x, *y = a, b

        return {
            "a": 1,
            **b,
        }


def fib(n: int) -> int:
    return n if n < 2 else fib(n-1) + fib(n - 2)
z = lambda x, y=2: x**-y
print("x", r"\\d+", b"ab", end="")
'''


def test_a_program_as_people_write_it_is_taken() -> None:
    ast.parse(PROGRAM)
    matcher = qwen_compiler().start(Grammar.python(), {END})
    for token in qwen().encode(PROGRAM):
        matcher.mask_W()
        matcher.take(token)
    assert matcher.accepting


@pytest.mark.parametrize(
    "text",
    ["if x:\ny", "def f(a=1, b): pass", "f(a=1, 2)", "None = 1", "x = 012", "a b", "  x", "return return", '"a\nb"',
     "else: x", "f() = 1", "x +", "try: x", "not = 3", "a.if", "if x:\ny\n"],
)  # fmt: skip
def test_what_is_not_python_is_not_taken(text: str) -> None:
    with pytest.raises(SyntaxError):
        ast.parse(text)
    matcher = smollm2_compiler().start(Grammar.python())
    assert not takes_whole(matcher, smollm2().encode(text))


def takes_whole(matcher: Matcher, tokens: list[int]) -> bool:
    for token in tokens:
        if token not in allowed(matcher):
            return False
        matcher.take(token)
    return matcher.accepting


@pytest.mark.parametrize(
    "pattern",
    [r"[a-f0-9]{8}", r"(\+[0-9]{1,3} )?[0-9]{3}-[0-9]{4}", r"[A-ZÄÖÜ][a-zäöüß]{2,9}",
     r"(yes|no|maybe)( [a-z]{1,5}){0,3}", r"[a-z]{1,5}@[a-z]{1,5}\.(com|org)", r"a*b?", r"[^\n]{3,6}\n"],
)  # fmt: skip
def test_texts_match_the_whole_expression(pattern: str) -> None:
    for text in finished(Grammar.regex(pattern), 6):
        assert re.fullmatch(pattern, text)


def test_choices() -> None:
    options = ["yes", "yes, but", 'no "quotes" [or] \\b', "näh 🎉"]
    assert set(finished(Grammar.choice(options), 40)) == set(options)


def test_lark_with_special_tokens() -> None:
    """A grammar names a special token; spelled as text it is not that token."""
    think, close = (qwen().token_id(text) for text in ("<think>", "</think>"))
    matcher = qwen_compiler().start(Grammar.lark('start: <think> /[a-z ]+/ </think> "ok"'), {END})
    assert allowed(matcher).tolist() == [think]
    matcher.take(think)
    for token in qwen().encode("hm hm"):
        matcher.take(token)
    ids = allowed(matcher)
    assert close in ids
    assert think not in ids
    matcher.take(close)
    assert matcher.forced() == qwen().encode("ok")
    matcher.take(qwen().encode("ok")[0])
    assert allowed(matcher).tolist() == [END]
    added = set(qwen().added_ids)
    assert not added & set(allowed(qwen_compiler().start(Grammar.regex("(.|\n)+"))).tolist())


def test_masks_are_exact() -> None:
    """Every token of a vocabulary, one by one, against the expression itself."""
    matcher = smollm2_compiler().start(Grammar.regex("[a-c]{2,4}"), {0})
    table = smollm2().bytes_by_id
    for text, rest in (("", "[a-c]{1,4}"), ("a", "[a-c]{1,3}"), ("abc", "[a-c]")):
        state = matcher.fork()
        for token in smollm2().encode(text):
            state.take(token)
        fitting = {token for token, spelled in enumerate(table) if re.fullmatch(rest.encode(), spelled or b"")}
        assert set(allowed(state).tolist()) - {0} == fitting - set(smollm2().added_ids)
        assert (0 in allowed(state)) == (len(text) >= 2) == state.accepting


def test_ids_beyond_the_tokenizer_are_never_allowed() -> None:
    matcher = qwen_compiler().start(Grammar.regex("(.|\n)*"), {END})
    ids = allowed(matcher)
    assert len(matcher.mask_W()) == -(-QWEN // 32)
    assert ids.max() < qwen().vocabulary <= QWEN - 100
    loose = qwen_compiler().start(Grammar.lark("start: <[*]>"), {END})
    assert set(allowed(loose)) <= set(range(qwen().vocabulary))


def _letters(text: str) -> list[int]:
    return [ord(letter) - 97 for letter in text]


@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 65])
def test_vocabularies_of_any_size(size: int) -> None:
    vocabulary = Vocabulary([bytes([97 + n % 3]) if n < size - 1 else None for n in range(size)], (), size, _letters)
    if size == 1:
        with pytest.raises(RequestError, match="allows no token of this vocabulary"):
            GrammarCompiler(vocabulary).start(Grammar.regex("a+"), {0}).mask_W()
        return
    matcher = GrammarCompiler(vocabulary).start(Grammar.regex("[ab]+"), {size - 1})
    assert allowed(matcher).tolist() == [n for n in range(size - 1) if n % 3 < 2]
    matcher.take(0)
    assert allowed(matcher).tolist() == [*(n for n in range(size - 1) if n % 3 < 2), size - 1]


def test_ends() -> None:
    matcher = qwen_compiler().start(Grammar.regex("ab?"), {END, 7})
    assert not matcher.accepting
    for token in (END, 7, qwen().encode("x")[0], QWEN + 5):
        with pytest.raises(RequestError, match=f"token {token} is not what the grammar allows"):
            matcher.take(token)
    a, b = qwen().encode("a")[0], qwen().encode("b")[0]
    matcher.take(a)
    assert (matcher.accepting, matcher.stopped) == (True, False)
    assert set(allowed(matcher)) == {b, END, 7}
    matcher.take(b)
    assert (matcher.accepting, matcher.stopped) == (True, True)
    assert set(allowed(matcher)) == {END, 7}
    matcher.take(END)
    with pytest.raises(RequestError, match="nothing follows an end token"):
        matcher.mask_W()
    endless = qwen_compiler().start(Grammar.choice(["a"]))
    endless.take(a)
    assert endless.stopped
    with pytest.raises(RequestError, match="complete and there is no end token"):
        endless.mask_W()
    with pytest.raises(RequestError, match="token id 151936 is outside"):
        qwen_compiler().start(Grammar.json(), {QWEN})


def test_forks_are_independent() -> None:
    grammar = Grammar.json_schema(SCHEMAS["order"])  # type: ignore[arg-type]
    random = np.random.default_rng(3)
    matcher, taken = qwen_compiler().start(grammar, {END}), list[int]()
    for _ in range(60):
        twin, before = matcher.fork(), matcher.mask_W()
        for _ in range(int(random.integers(1, 4))):  # a beam that goes another way
            twin.take(int(random.choice(allowed(twin))))
            if twin.stopped:
                break
        assert before.equal(matcher.mask_W())
        taken.append(int(random.choice(allowed(matcher))))
        matcher.take(taken[-1])
        if matcher.stopped:
            break
    again = qwen_compiler().start(grammar, {END})
    for token in taken:
        again.take(token)
    assert again.mask_W().equal(matcher.mask_W())


def test_forced_tokens_are_the_only_way() -> None:
    schema = {
        "type": "object",
        "properties": {"name_of_the_person": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name_of_the_person", "age"],
        "additionalProperties": False,
    }
    matcher = qwen_compiler().start(Grammar.json_schema(schema), {END})
    for token in qwen().encode('{"name'):
        matcher.take(token)
    forced = matcher.forced()
    assert qwen().decode(forced).startswith("_of_the")
    whole = qwen().encode('{"name_of_the_person": "A", "age": 1}')
    assert whole[: 2 + len(forced)] == [*qwen().encode('{"name'), *forced]
    for token in forced:
        matcher.take(token)


def test_masks_are_made_beside_other_work_and_errors_stay_alone() -> None:
    compiler, worker = qwen_compiler(), MaskWorker()
    good = compiler.start(Grammar.json(), {END})
    hopeless = compiler.start(
        Grammar.lark("start: a0\n" + "\n".join(f"a{n}: a{n + 1} a{n + 1}" for n in range(60)) + '\na60: "x"')
    )
    done = compiler.start(Grammar.choice(["a"]))
    done.take(qwen().encode("a")[0])
    with contextlib.suppress(RequestError):
        hopeless.take(qwen().encode("x")[0])
    for _ in range(3):
        worker.prepare([good, hopeless, done])
        first, second, third = worker.masks()
        assert not isinstance(first, RequestError)
        assert first.equal(good.fork().mask_W())
        assert isinstance(second, RequestError)
        assert "the grammar cannot go on: " in str(second)
        assert isinstance(third, RequestError)
        good.take(int(allowed(good)[0]))
    worker.close()


def test_a_grammar_is_compiled_once() -> None:
    made = []

    class Counting(GrammarCompiler):
        def _make(self, grammar: Grammar):  # type: ignore[no-untyped-def]
            made.append(grammar)
            return super()._make(grammar)

    compiler = Counting(qwen_vocabulary(), kept=2)
    for text in ("a", "a", "b", "a", "c", "a", "b"):
        compiler.start(Grammar.regex(text))
    assert [grammar.text for grammar in made] == ["a", "b", "c", "b"]


def test_those_who_ask_at_once_share_a_compilation() -> None:
    made = []

    class Slow(GrammarCompiler):
        def _make(self, grammar: Grammar):  # type: ignore[no-untyped-def]
            made.append(grammar)
            time.sleep(0.05)
            return super()._make(grammar)

    compiler = Slow(qwen_vocabulary())
    with ThreadPoolExecutor(4) as pool:
        matchers = list(pool.map(lambda _: compiler.start(Grammar.regex("[ab]c")), range(4)))
    assert len(made) == 1
    assert len({tuple(allowed(matcher)) for matcher in matchers}) == 1
    with ThreadPoolExecutor(4) as pool:
        bad = [pool.submit(compiler.compile, Grammar.regex("(")) for _ in range(4)]
    assert all(isinstance(one.exception(), RequestError) for one in bad)
    with pytest.raises(RequestError, match="regex grammar"):  # what failed is not kept
        compiler.compile(Grammar.regex("("))
