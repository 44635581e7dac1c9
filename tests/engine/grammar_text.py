"""Text by random logits under a grammar's masks."""

from __future__ import annotations

from functools import cache

import numpy as np

from tenth.engine.grammar import Grammar
from tenth.engine.grammar_compiler import GrammarCompiler
from tenth.engine.grammar_matcher import Matcher
from tenth.engine.grammar_vocabulary import Vocabulary
from tests.weights.vocabularies import qwen, smollm2

QWEN = 151_936
END = 151_645
CLOSERS = ['"', "}", "]", ")", "'", ":", "\n", '"}', '"]', "()", "\n   ", "\n       "]


@cache
def qwen_vocabulary() -> Vocabulary:
    tokenizer = qwen()
    return Vocabulary(tokenizer.bytes_by_id, tokenizer.added_ids, QWEN, tokenizer.encode)


@cache
def qwen_compiler() -> GrammarCompiler:
    return GrammarCompiler(qwen_vocabulary())


@cache
def smollm2_compiler() -> GrammarCompiler:
    tokenizer = smollm2()
    return GrammarCompiler(
        Vocabulary(tokenizer.bytes_by_id, tokenizer.added_ids, tokenizer.vocabulary, tokenizer.encode)
    )


@cache
def _lean() -> np.ndarray:
    """Tokens that end something are likelier: otherwise strings of 150,000 tokens hardly end."""
    table = qwen().bytes_by_id
    lean_V = np.zeros(QWEN, dtype=np.float32)
    closers = {text.encode() for text in CLOSERS}
    for token, spelled in enumerate(table):
        if spelled in closers:
            lean_V[token] = 9.0
        elif spelled is not None and not spelled.isascii():
            lean_V[token] = -3.0
    lean_V[END] = 11.0
    return lean_V


@cache
def _noise() -> np.ndarray:
    return np.random.default_rng(0).gumbel(size=4 * QWEN).astype(np.float32)


def allowed(matcher: Matcher) -> np.ndarray:
    """The ids in a matcher's mask."""
    return np.flatnonzero(np.unpackbits(matcher.mask_W().numpy().view(np.uint8), bitorder="little"))


def write(grammar: Grammar, seed: int, most: int = 400, compiler: GrammarCompiler | None = None) -> str | None:
    """A random text of the Qwen vocabulary, None where it did not end in time."""
    random = np.random.default_rng(seed)
    matcher = (compiler or qwen_compiler()).start(grammar, {END})
    tokens: list[int] = []
    strength = random.choice([0.0, 0.7, 1.0])  # of the lean
    for step in range(most):
        ids = allowed(matcher)
        logits = _noise()[random.integers(3 * QWEN) :][ids] + (strength + step / 100) * _lean()[ids]
        token = int(ids[logits.argmax()])
        matcher.take(token)
        if token == END:
            return b"".join(qwen().bytes_by_id[one] or b"" for one in tokens).decode()
        tokens.append(token)
    return None
