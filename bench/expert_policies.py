"""Which experts a cache should keep: policies simulated on recorded routing.

A trace is what a model's routers chose while it answered prompts one after the other: each prompt at once, then token
by token. A policy is judged by its reads: experts that a step asked for and that were not there. Numbers of a policy
are chosen on one set of traces and judged on another.

usage: python bench/expert_policies.py record MODEL TRACE.npz --text a.jsonl b.jsonl [--prompts 12] [--generate 160]
       python bench/expert_policies.py table --tune A.npz ... --judge B.npz ... [--slots 0.25 0.5 0.75]

E experts of all layers, T tokens, K active, S steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Scores = NDArray[np.float64]

HALF_LIVES = (4, 8, 16, 32, 64, 256)
"""In a layer's steps: what a policy that counts uses is tried with."""


# ---- traces


def record(options: argparse.Namespace) -> None:
    """Let a model continue the beginnings of texts, and keep its routing."""
    import tenth

    model = tenth.load(options.model, threads=options.threads)
    rows, lengths = [], []
    for number, text in enumerate(_texts(options.text, options.prompts)):
        prompt = model.encode(text)[: options.length]
        result = model.generate(prompt, max_tokens=options.generate, temperature=0.8, top_p=0.95, seed=number)
        assert result.routing is not None
        layers = list(result.routing.layers.values())
        ids_TLK = np.stack([layer.experts_TK.numpy() for layer in layers], 1)
        rows.append(ids_TLK.astype(np.int16))
        prompt_rows = len(ids_TLK) - (len(result.tokens) - 1)  # the rest was there from the prompt before
        lengths.append([prompt_rows, len(ids_TLK)])
        print(f"{number}: {prompt_rows} + {len(result.tokens)} tokens", flush=True)
    np.savez_compressed(options.trace, ids_TLK=np.concatenate(rows), lengths=lengths, experts=layers[0].num_experts)


def _texts(files: Sequence[Path], count: int) -> Iterator[str]:
    """So many texts, the files in turn, from all over each."""
    lists = [[json.loads(line)["text"] for line in file.read_text().splitlines()] for file in files]
    for number in range(count):
        texts, at = lists[number % len(lists)], number // len(lists)
        yield texts[at * len(texts) * len(lists) // count]


@dataclass(frozen=True)
class Trace:
    """The distinct experts of each layer's step, in order; expert e of layer l is l times a layer's experts, plus e."""

    name: str
    layers: int
    experts: int  # of one layer
    steps: list[tuple[int, Ids]]

    @classmethod
    def read(cls, path: Path) -> Trace:
        """A trace as `record` wrote it."""
        file = np.load(path)
        ids_TLK, experts, at = file["ids_TLK"].astype(np.int64), int(file["experts"]), 0
        layers, steps = ids_TLK.shape[1], []
        for prompt, total in file["lengths"].tolist():
            parts = [ids_TLK[at : at + prompt], *(ids_TLK[at + i : at + i + 1] for i in range(prompt, total))]
            steps += [(layer, layer * experts + np.unique(part[:, layer])) for part in parts for layer in range(layers)]
            at += total
        return cls(path.stem, layers, experts, steps)


# ---- policies


class Policy:
    """Which of the experts that are there goes next: the one of the lowest score. This one: least recently used."""

    one_by_one = False
    """Whether an expert that goes changes the scores of the others."""

    def __init__(self, trace: Trace, slots: int) -> None:
        self.trace, self.slots, self.clock = trace, slots, 0
        self.used = np.full(trace.layers * trace.experts, -1.0)

    def step(self, layer: int, ids: Ids, there: NDArray[np.bool_]) -> None:
        """A layer asks for experts; `there` says of each expert whether it is in the cache, before any is read."""
        self.clock += 1
        # of one step: those that were there are used first
        for part in (ids[there[ids]], ids[~there[ids]]):
            self.used[part] = self.clock + np.arange(len(part)) * 1e-6
            self.clock += 1

    def scores(self, candidates: Ids) -> Scores:
        """Lower ones go first; the clock breaks ties."""
        return self.used[candidates]


class Frequency(Policy):
    """Least frequently used, by counts that halve in `half_life` of a layer's steps.

    Instead of halving old uses, new ones weigh more: all counts are kept as the logarithm of such a sum.
    """

    def __init__(self, trace: Trace, slots: int, half_life: float) -> None:
        super().__init__(trace, slots)
        self.half_life, self.steps = half_life, np.zeros(trace.layers)
        self.counts = np.full(trace.layers * trace.experts, -np.inf)

    def step(self, layer: int, ids: Ids, there: NDArray[np.bool_]) -> None:
        super().step(layer, ids, there)
        self.steps[layer] += 1
        self.counts[ids] = np.logaddexp2(self.counts[ids], self.steps[layer] / self.half_life)

    def scores(self, candidates: Ids) -> Scores:
        return self.counts[candidates] + self.used[candidates] * 1e-12


class FrequencyRecency(Frequency):
    """The count times how recently: divided by the layer's steps since the last use."""

    def scores(self, candidates: Ids) -> Scores:
        since = 1 + (self.clock - self.used[candidates]) / (2 * self.trace.layers)
        return self.counts[candidates] - np.log2(since)


class LastButOne(Policy):
    """LRU-2: by the use before the last one; experts that were used once go first."""

    def __init__(self, trace: Trace, slots: int) -> None:
        super().__init__(trace, slots)
        self.before = np.full_like(self.used, -1e9)

    def step(self, layer: int, ids: Ids, there: NDArray[np.bool_]) -> None:
        self.before[ids] = np.where(self.used[ids] >= 0, self.used[ids], -1e9)
        super().step(layer, ids, there)

    def scores(self, candidates: Ids) -> Scores:
        return self.before[candidates] + self.used[candidates] * 1e-9


class Segmented(Policy):
    """Segmented LRU: an expert that is asked for again while it is there moves to a protected share of the slots."""

    def __init__(self, trace: Trace, slots: int, share: float) -> None:
        super().__init__(trace, slots)
        self.protected = np.zeros(len(self.used), np.bool_)
        self.most = int(slots * share)

    def step(self, layer: int, ids: Ids, there: NDArray[np.bool_]) -> None:
        self.protected &= there
        self.protected[ids[there[ids]]] = True
        super().step(layer, ids, there)
        kept = self.protected.nonzero()[0]
        if len(kept) > self.most:  # the oldest go back, as if just used
            back = kept[np.argsort(self.used[kept])[: len(kept) - self.most]]
            self.protected[back] = False
            self.used[back] = self.clock
            self.clock += 1

    def scores(self, candidates: Ids) -> Scores:
        return self.used[candidates] + 1e12 * self.protected[candidates]


class TwoQueues(Policy):
    """2Q: newcomers wait in a first-in-first-out share; those that are asked for again soon after they left stay."""

    one_by_one = True

    def __init__(self, trace: Trace, slots: int, share: float) -> None:
        super().__init__(trace, slots)
        size = len(self.used)
        self.main, self.entered = np.zeros(size, np.bool_), np.full(size, -1.0)
        self.left = np.full(size, -1e18)
        self.was = np.zeros(size, np.bool_)
        self.most, self.ghosts = max(int(slots * share), 1), slots // 2

    def step(self, layer: int, ids: Ids, there: NDArray[np.bool_]) -> None:
        gone = self.was & ~there
        self.left[gone & ~self.main] = self.clock
        self.main &= there
        new = ids[~there[ids]]
        recent = np.sort(self.left)[-self.ghosts]
        self.main[new] = self.left[new] >= max(recent, 0)
        self.left[new] = -1e18
        super().step(layer, ids, there)
        self.entered[new] = self.used[new]
        self.was = there.copy()
        self.was[ids] = True

    def scores(self, candidates: Ids) -> Scores:
        main = self.main[candidates]
        queue_first = np.count_nonzero(~main) > self.most
        order = np.where(main, self.used[candidates], self.entered[candidates])
        return order + 1e12 * (main if queue_first else ~main)


class Quotas(Policy):
    """Least recently used, each layer with an equal share of the slots."""

    one_by_one = True

    def scores(self, candidates: Ids) -> Scores:
        layers = candidates // self.trace.experts
        over = np.bincount(layers, minlength=self.trace.layers) > self.slots // self.trace.layers
        return self.used[candidates] - 1e12 * over[layers]


class Oracle(Policy):
    """Belady's: the one that is asked for last goes. No policy reads less."""

    def __init__(self, trace: Trace, slots: int) -> None:
        super().__init__(trace, slots)
        size, end = len(self.used), float(len(trace.steps) + 1)
        following = np.full(size, end)
        self.following: list[Scores] = []
        for at in range(len(trace.steps) - 1, -1, -1):
            ids = trace.steps[at][1]
            self.following.append(following[ids].copy())
            following[ids] = at
        self.following.reverse()
        self.next, self.at = following, 0

    def step(self, layer: int, ids: Ids, there: NDArray[np.bool_]) -> None:
        self.next[ids] = self.following[self.at]
        self.at += 1

    def scores(self, candidates: Ids) -> Scores:
        return -self.next[candidates]


Make = Callable[[Trace, int], Policy]

FAMILIES: dict[str, dict[str, Make]] = {
    "LRU": {"": Policy},
    "frequency, decaying": {f"half-life {h}": (lambda t, s, h=h: Frequency(t, s, h)) for h in HALF_LIVES},  # type: ignore[misc]
    "frequency x recency": {f"half-life {h}": (lambda t, s, h=h: FrequencyRecency(t, s, h)) for h in HALF_LIVES},  # type: ignore[misc]
    "LRU-2": {"": LastButOne},
    "segmented LRU": {f"{p:.0%} protected": (lambda t, s, p=p: Segmented(t, s, p)) for p in (0.3, 0.5, 0.7, 0.9)},  # type: ignore[misc]
    "2Q": {f"{p:.0%} of newcomers": (lambda t, s, p=p: TwoQueues(t, s, p)) for p in (0.1, 0.25, 0.5)},  # type: ignore[misc]
    "LRU, equal shares of layers": {"": Quotas},
    "oracle": {"": Oracle},
}


def reads(trace: Trace, slots: int, make: Make) -> int:
    """How many experts a cache of so many slots reads; what a step asks for does not go while others could."""
    policy = make(trace, slots)
    there = np.zeros(trace.layers * trace.experts, np.bool_)
    total = 0
    for layer, ids in trace.steps:
        missing = ids[~there[ids]]
        total += len(missing)
        policy.step(layer, ids, there)
        if not len(missing):
            continue
        there[missing] = True
        over = np.count_nonzero(there) - slots
        if over <= 0:
            continue
        asked = np.zeros_like(there)
        asked[ids] = True
        others = (there & ~asked).nonzero()[0]
        while over > 0 and len(others):
            count = 1 if policy.one_by_one else min(over, len(others))
            gone = np.argpartition(policy.scores(others), count - 1)[:count]
            there[others[gone]] = False
            others = np.delete(others, gone)
            over -= count
        if over > 0:  # a step larger than the cache: its last experts stay
            there[np.concatenate([np.setdiff1d(ids, missing), missing])[:over]] = False
    return total


# ---- the table


def table(options: argparse.Namespace) -> None:
    """Reads of each policy as a share of LRU's, its number chosen on the traces to tune on."""
    tune, judge = ([Trace.read(path) for path in paths] for paths in (options.tune, options.judge))
    rows: list[dict[str, Any]] = []
    for share in options.slots:
        base = [[reads(trace, _slots(trace, share), Policy) for trace in traces] for traces in (tune, judge)]
        for family, makes in FAMILIES.items():
            tuned = {
                name: _mean([reads(t, _slots(t, share), make) / b for t, b in zip(tune, base[0], strict=True)])
                for name, make in makes.items()
            }
            best = min(tuned, key=lambda name: tuned[name])
            judged = [reads(t, _slots(t, share), makes[best]) / b for t, b in zip(judge, base[1], strict=True)]
            rows.append({"slots": share, "policy": family, "number": best, "tuned": tuned[best], "judged": judged})
            print(json.dumps(rows[-1]), flush=True)
    print(f"\n| slots | policy | on traces to tune on | {' | '.join(trace.name for trace in judge)} | mean |")
    print("|---|---|---|" + "---|" * (len(judge) + 1))
    for row in rows:
        name = f"{row['policy']}{', ' * bool(row['number'])}{row['number']}"
        cells = " | ".join(f"{value:.3f}" for value in (row["tuned"], *row["judged"], _mean(row["judged"])))
        print(f"| {row['slots']:.0%} | {name} | {cells} |")


def _slots(trace: Trace, share: float) -> int:
    return int(trace.layers * trace.experts * share)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Record a trace, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("record")
    one.add_argument("model")
    one.add_argument("trace", type=Path)
    one.add_argument("--text", type=Path, nargs="+", required=True, help="JSON lines with a key `text`")
    one.add_argument("--prompts", type=int, default=12)
    one.add_argument("--length", type=int, default=160, help="tokens of a prompt at most")
    one.add_argument("--generate", type=int, default=160)
    one.add_argument("--threads", type=int)
    one.set_defaults(run=record)
    two = commands.add_parser("table")
    two.add_argument("--tune", type=Path, nargs="+", required=True)
    two.add_argument("--judge", type=Path, nargs="+", required=True)
    two.add_argument("--slots", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="shares of all experts")
    two.set_defaults(run=table)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
