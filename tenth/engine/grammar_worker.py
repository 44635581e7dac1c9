"""The program of a grammar's trial, and the compilation itself, which the engine does in the same way.

`grammar_trial.py` starts it as `python -I grammar_worker.py`: one request of JSON on stdin, one answer on stdout. Only
the standard library and llguidance are imported here.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import llguidance

Language = Literal["json_schema", "regex", "lark"]

# One space, or a new line and its indent: with any white space, a model that has lost its way writes nothing else.
_JSON = {"whitespace_pattern": r" |\n[ \t]{0,60}", "lenient": False, "coerce_one_of": False}


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """What a grammar may take: `seconds` and `memory` (bytes of address space) of its trial, and llguidance's counts.

    `items` and `fuel` bound the work of one mask (about 20 and 15 of them a microsecond), `states` what a sequence
    remembers (1 to 2 KB each), `initial_fuel` and `size` the work and the size of a compilation.
    """

    seconds: float = 3.0
    memory: int = 1 << 30
    items: int = 200_000
    fuel: int = 200_000
    states: int = 50_000
    initial_fuel: int = 1_000_000
    size: int = 200_000


def compile_grammar(
    tokenizer: llguidance.LLTokenizer, language: Language, text: str, limits: GrammarLimits
) -> tuple[llguidance.LLMatcher, str]:
    """A matcher at its beginning, with its first mask computed, and what is wrong with the grammar."""
    counts = llguidance.LLParserLimits(
        step_max_items=limits.items,
        step_lexer_fuel=limits.fuel,
        max_lexer_states=limits.states,
        initial_lexer_fuel=limits.initial_fuel,
        max_grammar_size=limits.size,
        verbose_errors=False,
    )
    matcher = llguidance.LLMatcher(tokenizer, _grammar(language, text), log_level=0, limits=counts)
    if not matcher.is_error():
        matcher.compute_bitmask()
    error = matcher.get_error()
    if error.startswith("NoExtension") or (not error and matcher.is_stopped() and not matcher.is_accepting()):
        return matcher, "no text fits it"
    warnings = [] if error else matcher.get_grammar_warnings()
    return matcher, f"not everything in it is enforced: {warnings[0]}" if warnings else error


def _grammar(language: Language, text: str) -> str:
    if language == "json_schema":
        return llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_JSON)  # type: ignore[arg-type]
    make = {"regex": llguidance.LLMatcher.grammar_from_regex, "lark": llguidance.LLMatcher.grammar_from_lark}
    return make[language](text)


class _Bytes:
    """A vocabulary of single bytes and special tokens."""

    is_tokenizer_wrapper = True
    eos_token_id = None
    bos_token_id = None

    def __init__(self, specials: Sequence[str]) -> None:
        self.tokens = [bytes([n]) for n in range(256)] + [name.encode() for name in specials]
        self.special_token_ids = list(range(256, len(self.tokens)))

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def main() -> None:
    """Answer one request."""
    request: dict[str, Any] = json.load(sys.stdin)
    limits = GrammarLimits(**request["limits"])
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tokenizer = llguidance.LLTokenizer(_Bytes(request["specials"]))  # type: ignore[arg-type]
    try:
        _, error = compile_grammar(tokenizer, request["language"], request["text"], limits)
    except ValueError as wrong:
        error = str(wrong)
    json.dump({"error": error}, sys.stdout)


if __name__ == "__main__":
    main()
