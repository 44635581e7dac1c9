"""What guessing ahead gains, and what it costs where it gains nothing: loads answered without drafts and with them.

Loads: `chat` continues real chats at temperature 0, `hot` the same at temperature 1, `edit` asks for a file of Python's
standard library with one name changed, `random` continues random tokens at temperature 1. Each round asks something
new, of all kinds the same; their order turns with each round. Each load and kind has an engine of its own that lives
through all rounds, as in a service. A ratio is that of the seconds of a round without drafts to those with them,
prompts included; shown are medians over the rounds.

A model without a tokenizer (`tenth synth`) answers `random` only.

usage: python bench/speculation_speed.py MODEL [--chats FILE.tokens] [--loads chat,hot,edit,random]
       [--kinds lookup,suffix] [--draft MODEL] [--rounds 5] [--count 4] [--generate 128] [--prompt 700]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from draft_acceptance import code_edits
from rich.console import Console
from rich.table import Table

import tenth
from tenth.data.token_file import TokenFile
from tenth.engine.draft import PromptLookup
from tenth.engine.draft_suffix import AnswerStore, SuffixMatch
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.speculation import MakeProposer
from tenth.errors import TokenizerError
from tenth.kernels.choice import choose_kernels
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder

CHAT_PROMPT = 96  # tokens of a chat that are given


@dataclass(frozen=True, slots=True)
class Round:
    """One load answered once. `drafted` and `accepted` are of this round."""

    tokens: int
    seconds: float
    drafted: int
    accepted: int
    steps: int


@dataclass(frozen=True, slots=True)
class Row:
    """A load by one kind of drafts. `ratios` are seconds without drafts over seconds with them, a round each."""

    load: str
    kind: str
    tok_s: float
    ratio: float
    ratios: list[float]
    total_ratio: float
    drafted: int
    accepted: int
    tokens_per_step: float


def engines_of(options: argparse.Namespace) -> tuple[int, dict[str, Callable[[], Engine]]]:
    """The size of the vocabulary, and who makes an engine for each kind."""
    pages = EngineOptions(pages=-(-(options.prompt + options.generate + CHAT_PROMPT) // 32) + 2)
    kinds = ["off", *options.kinds.split(",")]
    try:
        model = tenth.load(options.model)
    except TokenizerError:
        with open_checkpoint(Path(options.model)) as checkpoint:
            kernels = choose_kernels("auto", packed=True, head_dim=checkpoint.config.head_dim, threads=None)
            decoder = load_decoder(checkpoint, kernels=kernels)
        size = decoder.config.vocab_size
        reading: dict[str, MakeProposer | None] = {"off": None, "lookup": lambda _: PromptLookup()}
        store = AnswerStore()
        reading["suffix"] = lambda request: SuffixMatch(store, request.tenant)
        return size, {kind: lambda kind=kind: Engine(decoder, pages, proposer=reading[kind]) for kind in kinds}
    drafts: dict[str, object] = {kind: kind for kind in kinds}
    if options.draft:
        drafts["model"] = tenth.load(options.draft)
    makers = {name: lambda kind=kind: model.engine(pages, draft=kind) for name, kind in drafts.items()}
    return model.config.vocab_size, makers


def requests_of(load: str, options: argparse.Namespace, vocab_size: int, number: int) -> list[Request]:
    """What is asked in a round: no request comes twice, or earlier answers would hold the next ones."""
    rng = random.Random(options.seed * 1000 + number)
    heat = 1.0 if load in ("hot", "random") else 0.0
    if load == "random":
        prompts = [[rng.randrange(vocab_size) for _ in range(CHAT_PROMPT)] for _ in range(options.count)]
    elif load == "edit":
        prompts = [prompt for prompt, _ in code_edits(60, rng) if len(prompt) < options.prompt][: options.count]
    else:
        file = TokenFile(options.chats)
        prompts = [file.document(n)[:CHAT_PROMPT].tolist() for n in rng.sample(range(file.documents), options.count)]
    return [Request(tuple(prompt), options.generate, Sampling(temperature=heat, seed=number)) for prompt in prompts]


def answer(engine: Engine, requests: list[Request]) -> Round:
    """All requests, one after the other; prompts are computed anew."""
    engine.scheduler.prefix.clear()
    counts = engine.draft_counts
    before = (0, 0, 0) if counts is None else (counts.drafted, counts.accepted, counts.steps)
    start, tokens = time.perf_counter(), 0
    for request in requests:
        stream = engine.submit(request)
        while engine.busy:
            engine.step()
        tokens += len(stream.tokens)
    seconds = time.perf_counter() - start
    after = (0, 0, 0) if counts is None else (counts.drafted, counts.accepted, counts.steps)
    drafted, accepted, steps = (now - then for now, then in zip(after, before, strict=True))
    return Round(tokens, seconds, drafted, accepted, steps)


def measure(asked: list[list[Request]], makers: dict[str, Callable[[], Engine]]) -> dict[str, list[Round]]:
    """Rounds of each kind, in turning order; a round of each before them is not counted, and by engines of its own."""
    for make in makers.values():
        answer(make(), asked[0][:1])
    engines = {kind: make() for kind, make in makers.items()}
    found: dict[str, list[Round]] = {kind: [] for kind in makers}
    order = list(makers)
    for requests in asked:
        for kind in order:
            found[kind].append(answer(engines[kind], requests))
        order = [*order[1:], order[0]]
    return found


def rows_of(load: str, found: dict[str, list[Round]]) -> list[Row]:
    """Each kind beside `off`, round by round."""
    off = [one.seconds for one in found["off"]]
    rows = []
    for kind, rounds in found.items():
        ratios = [plain / one.seconds for plain, one in zip(off, rounds, strict=True)]
        steps, accepted = sum(one.steps for one in rounds), sum(one.accepted for one in rounds)
        rows.append(
            Row(
                load,
                kind,
                statistics.median(one.tokens / one.seconds for one in rounds),
                statistics.median(ratios),
                [round(ratio, 4) for ratio in ratios],
                sum(off) / sum(one.seconds for one in rounds),
                sum(one.drafted for one in rounds),
                accepted,
                (steps + accepted) / steps if steps else 1.0,
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--chats", type=Path)
    parser.add_argument("--loads", default="chat,hot,edit,random")
    parser.add_argument("--kinds", default="lookup,suffix")
    parser.add_argument("--draft", help="a small model that drafts as well")
    for name, value in {"rounds": 5, "count": 4, "generate": 128, "prompt": 700, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    vocab_size, makers = engines_of(options)
    rows: list[Row] = []
    for load in options.loads.split(","):
        asked = [requests_of(load, options, vocab_size, number) for number in range(options.rounds)]
        rows += rows_of(load, measure(asked, makers))
    table = Table("load", "drafts", "tok/s", "ratio", "in all", "accepted", "of", "tokens a step", "rounds")
    for row in rows:
        figures = (
            f"{row.tok_s:.1f}",
            f"{row.ratio:.3f}",
            f"{row.total_ratio:.3f}",
            f"{row.accepted}",
            f"{row.drafted}",
        )
        table.add_row(row.load, row.kind, *figures, f"{row.tokens_per_step:.2f}", " ".join(map(str, row.ratios)))
    Console(width=150).print(table)
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
