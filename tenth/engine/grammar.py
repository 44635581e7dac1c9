"""What a generated text must look like, as a request states it; `GrammarCompiler` makes it work on tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tenth.engine.grammar_python import python_grammar
from tenth.engine.grammar_schema import checked_schema
from tenth.errors import RequestError

GrammarKind = Literal["json", "json_schema", "regex", "lark", "choice", "python", "calls"]

LONGEST = 256 << 10
"""Characters of a grammar's text."""

_SCHEMAS = {"object": '{"type": "object"}', "value": "{}"}


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar; RequestError where it is malformed, or asks for what would not be enforced.

    Equal grammars are compiled once. Best made by the functions below. `text` is, by kind: `object` or `value`; a JSON
    schema; a regular expression that the whole answer matches; a grammar in llguidance's Lark dialect; a JSON list of
    strings, one of which the answer is; nothing (`grammar_python.py` says what of Python); calls of tools as Lark.
    """

    kind: GrammarKind
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            raise RequestError(f"grammar kind {self.kind!r:.40} must be one of {', '.join(get_args(GrammarKind))}")
        if not isinstance(self.text, str) or len(self.text) > LONGEST:
            size = f"{len(self.text)} characters" if isinstance(self.text, str) else type(self.text).__name__
            raise RequestError(f"a {self.kind} grammar must be text of at most {LONGEST} characters, not {size}")
        if self.kind == "json" and self.text not in _SCHEMAS:
            raise RequestError(f"a json grammar is object or value, not {self.text!r:.40}")
        if self.kind == "json_schema":
            checked_schema(self.text)
        if self.kind == "choice":
            _choices(self.text)
        if self.kind == "lark" and "x-guidance" in self.text:
            raise RequestError("a lark grammar may not hold x-guidance: it would switch checks off")

    @classmethod
    def json(cls, *, objects_only: bool = True) -> Grammar:
        """Any JSON object, or any JSON value."""
        return cls("json", "object" if objects_only else "value")

    @classmethod
    def json_schema(cls, schema: str | bool | Mapping[str, Any]) -> Grammar:
        """JSON that a schema accepts, its properties in the schema's order; `grammar_schema.py` says what of it."""
        if isinstance(schema, str):
            return cls("json_schema", schema)
        try:
            return cls("json_schema", json.dumps(schema, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the schema is no JSON: {error}") from None

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that a regular expression matches as a whole: Rust's syntax, no look-around, no back-references."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Text of a context-free grammar; `<name>` in it stands for a special token."""
        return cls("lark", text)

    @classmethod
    def calls(cls, text: str) -> Grammar:
        """Calls of tools: a Lark grammar that was made here, around schemas that `checked_schema` has passed."""
        return cls("calls", text)

    @classmethod
    def choice(cls, options: Sequence[str]) -> Grammar:
        """One of these texts."""
        try:
            return cls("choice", json.dumps(options, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError):
            raise RequestError("the options of a choice must be a list of texts") from None

    @classmethod
    def python(cls) -> Grammar:
        """A program in a subset of Python."""
        return cls("python")

    @property
    def ours(self) -> bool:
        """Whether the grammar itself comes from here, and is not somebody's to make trouble with."""
        return self.kind in ("json", "python")

    def source(self) -> tuple[Literal["json_schema", "regex", "lark"], str]:
        """The grammar as llguidance takes it: which of its languages, and the text."""
        if self.kind == "python":
            return "lark", python_grammar()
        if self.kind == "choice":
            return "regex", "|".join(map(_literal, _choices(self.text)))
        if self.kind == "json":
            return "json_schema", _SCHEMAS[self.text]
        if self.kind == "json_schema":
            return "json_schema", json.dumps(checked_schema(self.text), ensure_ascii=False)
        return ("lark" if self.kind == "calls" else self.kind), self.text


def _choices(text: str) -> list[str]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
        raise RequestError("the options of a choice must be a list of one text at least")
    if not all(options):
        raise RequestError("an option of a choice is empty; each must hold a character")
    return options


def _literal(text: str) -> str:
    """A regular expression for exactly this text."""
    return "".join(c if c.isalnum() and c.isascii() else f"\\x{{{ord(c):x}}}" for c in text)
