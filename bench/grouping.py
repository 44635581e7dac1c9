"""Whether requests that share prefixes, or are routed alike, should run together: recorded routing, replayed.

`record` lets a model answer a mixed load, chat, code and prose, half of it behind one of four system prompts, and keeps
every token with the experts it went to. `replay` drives the engine's own scheduler and prefix cache with that, many
times in orders and at times drawn anew, without a network: what a step would read is counted exactly. Its clock is
what a step costs: the bytes it reads, an expert's once, and for each token as many as `--token` says, since products
take time too. Requests arrive as fast as first come serves them.

first     by arrival
prefix    those of whose prompt most is in the cache; `patience` steps later, by arrival again
domain    those of the domains at work, with the same patience
begins    those whose prompt's first 64 tokens were routed like what is at work
oracle    those whose answers will be routed like the answers at work will be: it knows what nobody can

usage: python bench/grouping.py record MODEL TRACE.npz --text chat.jsonl code.jsonl prose.jsonl [--requests 60]
       python bench/grouping.py replay TRACE.npz ... [--seeds 20] [--width 4 8 16] [--pages 64 512]

T tokens, L layers, K active, E experts.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tenth.engine.pages import PagePool
from tenth.engine.part import Part
from tenth.engine.progress import Progress
from tenth.engine.request import Request
from tenth.engine.sampler import Drawn, Sampler, Sampling
from tenth.engine.scheduler import Scheduler, SchedulerOptions
from tenth.engine.stream import Answer, Stream

PROMPT, SYSTEM, GENERATED, PAGE, BEGINNING = 160, 280, 48, 32, 64  # tokens

Ids = NDArray[np.int16]
Use = NDArray[np.float64]


# ---- the load


def record(options: argparse.Namespace) -> None:
    """Let a model answer everything once, each request apart from the others' pages."""
    import tenth
    from tenth.engine.engine import EngineOptions
    from tenth.routing.record import Routing

    model = tenth.load(options.model, threads=options.threads)
    engine = model.engine(EngineOptions(pages=1024))
    loads = list(_load(model.encode, options.text, options.requests))
    streams = []
    for number, (_, _, prompt) in enumerate(loads):
        sampling = Sampling(temperature=0.8, top_p=0.95, seed=number)
        streams.append(engine.submit(Request(prompt, GENERATED, sampling, tenant=number, record="choice")))
    while engine.busy:
        engine.step()
    rows, lengths, tokens = [], [], []
    for (domain, system, prompt), stream in zip(loads, streams, strict=True):
        layers = list(Routing.join(stream.answers[0].routing).layers.values())
        rows.append(np.stack([layer.experts_TK.numpy() for layer in layers], 1).astype(np.int16))
        tokens += [*prompt, *stream.tokens]
        lengths.append([domain, system, len(prompt), len(prompt) + len(stream.tokens)])
        assert len(rows[-1]) == lengths[-1][3] - 1, "the last token is drawn alone"
    expert = model.config.moe
    assert expert is not None, "a sparse model"
    np.savez_compressed(
        options.trace, ids_TLK=np.concatenate(rows), tokens=tokens, lengths=lengths, experts=expert.num_experts
    )


def _load(
    encode: Callable[[str], list[int]], files: Sequence[Path], count: int
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Domain, system prompt (-1: none) and prompt of each request, the files in turn."""
    texts = [[json.loads(line)["text"] for line in file.read_text().splitlines()] for file in files]
    systems = [encode(texts[n % len(texts)][-1 - n] * 4)[:SYSTEM] for n in range(4)]
    for number in range(count):
        own = texts[number % len(texts)]
        text = own[number // len(texts) * (len(own) - 4) * len(texts) // count]
        prompt, system = encode(text)[:PROMPT], number // len(texts) % 8
        shared = systems[system] if system < len(systems) else []
        yield number % len(texts), system if shared else -1, (*shared, *prompt)


@dataclass(frozen=True, eq=False)
class Recorded:
    """One request of the load: its tokens, and the experts that each but the last went to."""

    domain: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    ids_TLK: Ids
    begins_LE: Use  # how often each expert is used, by the prompt's first tokens
    answers_LE: Use  # and by the answer's


def read(path: Path) -> tuple[list[Recorded], int]:
    """All requests of a trace, and the experts of a layer."""
    file, at, row = np.load(path), 0, 0
    tokens, ids_TLK, experts = file["tokens"].tolist(), file["ids_TLK"], int(file["experts"])
    found = []
    for domain, _, prompt, total in file["lengths"].tolist():
        own = ids_TLK[row : row + total - 1]
        uses = [_use(part, experts) for part in (own[:BEGINNING], own[prompt - 1 :])]
        texts = tuple(tokens[at : at + prompt]), tuple(tokens[at + prompt : at + total])
        found.append(Recorded(domain, *texts, own, *uses))
        at, row = at + total, row + total - 1
    return found, experts


def _use(ids_TLK: Ids, experts: int) -> Use:
    return np.stack(
        [np.bincount(ids_TLK[:, layer].ravel(), minlength=experts) / len(ids_TLK) for layer in range(ids_TLK.shape[1])]
    )


# ---- who goes first


@dataclass
class Queue:
    """What a policy may look at."""

    scheduler: Scheduler
    recorded: dict[Progress, Recorded]
    since: dict[Progress, int]  # the step in which each began to wait


Worth = Callable[[Queue, Progress], float]


def _known(queue: Queue, progress: Progress) -> float:
    return queue.scheduler.prefix.known(progress.request.prefix_key, progress.tokens[:-1])


def _same_domain(queue: Queue, progress: Progress) -> float:
    return sum(queue.recorded[p].domain == queue.recorded[progress].domain for p in queue.scheduler.running)


def _alike(name: str) -> Worth:
    """How few experts it adds, by how often each is used: fewer is worth more."""

    def worth(queue: Queue, progress: Progress) -> float:
        running = [getattr(queue.recorded[p], name) for p in queue.scheduler.running]
        if not running:
            return 0.0
        unused_LE = np.prod([1 - np.minimum(use_LE, 1) for use_LE in running], 0)
        return -float((unused_LE * getattr(queue.recorded[progress], name)).sum())

    return worth


POLICIES: dict[str, Worth | None] = {
    "first": None,
    "prefix": _known,
    "domain": _same_domain,
    "begins": _alike("begins_LE"),
    "oracle": _alike("answers_LE"),
}


def arrange(queue: Queue, worth: Worth | None, step: int, patience: int) -> None:
    """Put those first that are worth most; who waits for longer than patience goes before them."""
    if worth is not None and len(queue.scheduler.waiting) > 1:
        late = {p: step - queue.since[p] >= patience for p in queue.scheduler.waiting}
        value = {p: 0.0 if late[p] else worth(queue, p) for p in queue.scheduler.waiting}
        queue.scheduler.waiting.sort(key=lambda p: (not late[p], -value[p], p.order))


# ---- the replay


@dataclass
class Figures:
    """Sums over one replay; times are in bytes, as the clock is."""

    tokens: int = 0
    computed: int = 0
    steps: int = 0
    experts: float = 0.0  # distinct ones a layer, over steps
    decoding: float = 0.0  # the same, of steps without prompts
    decoding_steps: int = 0
    read: float = 0.0
    clock: float = 0.0
    first: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Costs:
    """Bytes of an expert, of all else that a step reads, and what a token costs beside, in bytes."""

    expert: float = 1.0
    other: float = 0.0
    token: float = 0.0


def replay(
    load: Sequence[Recorded],
    worth: Worth | None,
    *,
    width: int,
    pages: int,
    patience: int,
    costs: Costs,
    gaps: Sequence[float],
) -> Figures:
    """All of a load in this order, each so much clock behind the one before."""
    options = SchedulerOptions(tokens=512, sequences=width, wait=0)
    scheduler = Scheduler(PagePool(pages), PAGE, options, lambda source, target: None)
    queue, figures, at, due = Queue(scheduler, {}, {}), Figures(), 0, 0.0
    while at < len(load) or scheduler.sequences:
        if not scheduler.sequences:
            figures.clock = max(figures.clock, due + gaps[at])
        while at < len(load) and due + gaps[at] <= figures.clock:
            due += gaps[at]
            progress = _progress(load[at], at, due)
            queue.recorded[progress], queue.since[progress] = load[at], figures.steps
            scheduler.submit(progress)
            at += 1
        arrange(queue, worth, figures.steps, patience)
        _step(queue, scheduler.schedule(figures.clock), figures, costs)
    figures.computed = scheduler.counts.computed
    return figures


def _progress(recorded: Recorded, number: int, now: float) -> Progress:
    request = Request(recorded.prompt, len(recorded.answer), Sampling(temperature=0))
    answer = Answer(None)
    sampler = Sampler(request.sampling, request.prompt, 1 << 20)
    return Progress(Stream(request, [answer]), answer, sampler, number, now, request.max_tokens, list(request.prompt))


def _step(queue: Queue, parts: Sequence[Part], figures: Figures, costs: Costs) -> None:
    rows = [queue.recorded[p.progress].ids_TLK[p.progress.computed : p.progress.computed + p.count] for p in parts]
    ids_TLK = np.concatenate(rows)
    layers = ids_TLK.shape[1]
    distinct = sum(len(np.unique(ids_TLK[:, layer])) for layer in range(layers))
    read = costs.other + costs.expert * distinct
    figures.steps, figures.read = figures.steps + 1, figures.read + read
    figures.clock += read + costs.token * len(ids_TLK)
    figures.experts += distinct / layers
    if all(part.count == 1 for part in parts):
        figures.decoding, figures.decoding_steps = figures.decoding + distinct / layers, figures.decoding_steps + 1
    for part in parts:
        progress, draws = part.progress, part.draws
        queue.scheduler.computed(part)
        if draws:
            _draw(queue, progress, figures)


def _draw(queue: Queue, progress: Progress, figures: Figures) -> None:
    answer = queue.recorded[progress].answer
    if not progress.generated:
        figures.first.append(figures.clock - progress.arrived)
    progress.answer.drawn.append(Drawn(answer[progress.generated]))
    progress.tokens.append(answer[progress.generated])
    figures.tokens += 1
    if progress.generated == len(answer):
        queue.scheduler.finish(progress)


# ---- the table


def table(options: argparse.Namespace) -> None:
    """All policies over the same orders and arrivals: means, and over first come the mean of pairs with its range."""
    for path in options.traces:
        load, experts = read(path)
        layers = load[0].ids_TLK.shape[1]
        costs = Costs(1.0, options.other * layers * experts, options.token * layers * experts)
        for width in options.width:
            for pages in options.pages:
                _print(path.stem, _compare(load, width, pages, costs, options), width, pages, experts)


def _compare(
    load: Sequence[Recorded], width: int, pages: int, costs: Costs, options: argparse.Namespace
) -> dict[str, list[Figures]]:
    found: dict[str, list[Figures]] = {name: [] for name in POLICIES}
    for seed in range(options.seeds):
        chance = random.Random(seed)
        order = chance.sample(list(load), len(load))
        limits = {"width": width, "pages": pages, "patience": options.patience, "costs": costs}
        flood = replay(order, None, **limits, gaps=[0.0] * len(load))  # type: ignore[arg-type]
        gaps = [chance.expovariate(options.rate * len(load) / flood.clock) for _ in load]
        for name, worth in POLICIES.items():
            found[name].append(replay(order, worth, **limits, gaps=gaps))  # type: ignore[arg-type]
    return found


def _print(name: str, found: dict[str, list[Figures]], width: int, pages: int, experts: int) -> None:
    shown = Table(title=f"{name}: {experts} experts, {width} sequences, {pages} pages, {len(found['first'])} orders")
    for column in ("policy", "speed over first", "range", "experts, decoding", "all steps", "read/token", "computed"):
        shown.add_column(column)
    shown.add_column("first token p50, p99 over first's")
    reference = found["first"]
    late = [np.percentile([t for f in reference for t in f.first], q) for q in (50, 99)]
    unit = mean(f.read / f.tokens for f in reference)
    for policy, all_of in found.items():
        gains = [r.clock / f.clock - 1 for f, r in zip(all_of, reference, strict=True)]
        own = [np.percentile([t for f in all_of for t in f.first], q) / r for q, r in zip((50, 99), late, strict=True)]
        shown.add_row(
            policy,
            f"{mean(gains):+.2%}",
            f"{min(gains):+.1%} to {max(gains):+.1%}",
            f"{sum(f.decoding for f in all_of) / max(sum(f.decoding_steps for f in all_of), 1):.2f}",
            f"{sum(f.experts for f in all_of) / sum(f.steps for f in all_of):.2f}",
            f"{mean(f.read / f.tokens for f in all_of) / unit:.3f}",
            f"{mean(f.computed for f in all_of):.0f}",
            f"{own[0]:.2f}, {own[1]:.2f}",
        )
    Console(width=150).print(shown)


def main() -> None:
    """Record or replay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("record")
    one.add_argument("model")
    one.add_argument("trace", type=Path)
    one.add_argument("--text", type=Path, nargs="+", required=True)
    one.add_argument("--requests", type=int, default=60)
    one.add_argument("--threads", type=int)
    one.set_defaults(run=record)
    other = commands.add_parser("replay")
    other.add_argument("traces", type=Path, nargs="+")
    other.add_argument("--seeds", type=int, default=20)
    other.add_argument("--width", type=int, nargs="+", default=[4, 8])
    other.add_argument("--pages", type=int, nargs="+", default=[128, 1024])
    other.add_argument("--patience", type=int, default=200)
    other.add_argument("--rate", type=float, default=1.2, help="arrivals over what first come serves from a full queue")
    other.add_argument("--other", type=float, default=0.3, help="bytes beside experts, over those of all experts")
    other.add_argument("--token", type=float, default=0.002, help="what a token costs beside, over all experts' bytes")
    other.set_defaults(run=table)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
