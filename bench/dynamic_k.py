"""Fewer experts a token: perplexity against measured decode speed, for some shares of the router's scores and caps.

Perplexity is of token files, in windows of whole prompts; beside it the loss that a limit adds to the same tokens, with
the 95 % interval of the mean difference (documents are the clusters). Speed is that of one sequence, decoded token by
token as `tenth run` does: limits take turns, and the speed-up is the median of the ratios within a round. `experts` is
how many work on a token, over all layers.

With --rules the definition is held against others at the same tokens, quality only: gates rescaled to their old sum or
left as they are, experts dropped in order of the choice or of their gates, shares of the chosen or of all experts.

usage: python bench/dynamic_k.py MODEL [FILE.tokens...] [--limits 0.95 0.9 k16 0.9/k16] [--tokens 20000] [--rules]
       [--steps 48] [--rounds 7] [--depth 128] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tenth.api import resolve
from tenth.data.token_file import TokenFile
from tenth.kernels.choice import choose_kernels, describe
from tenth.kernels.contract import Kernels
from tenth.kernels.cpu.operations import CpuKernels
from tenth.model.batch import Batch, Want
from tenth.model.config import fitted_limit
from tenth.model.decoder import Decoder
from tenth.observe.sequences import Sequences
from tenth.routing.limit import ExpertLimit, TokenLimits
from tenth.routing.record import Routing
from tenth.routing.rule import RouteRule
from tenth.weights.checkpoint import Checkpoint, open_checkpoint
from tenth.weights.load import load_decoder

WINDOW = 1024

Drops = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits (T, E), experts and their gates (T, K): which are dropped (T, K)."""


def limit_of(text: str) -> ExpertLimit:
    """`0.9` is a share, `k6` a cap, `0.9/k6` both."""
    parts = text.split("/")
    masses, caps = [float(p) for p in parts if p[0] != "k"], [int(p[1:]) for p in parts if p[0] == "k"]
    return ExpertLimit(masses[0] if masses else None, caps[0] if caps else None)


# ---- quality


@dataclass(frozen=True, slots=True)
class Losses:
    """Of every token, with the number of its document; and the mean number of experts at work on one."""

    losses_N: Tensor
    documents_N: Tensor
    experts: float


def windows(files: Sequence[TokenFile], tokens: int) -> Iterator[tuple[int, Tensor]]:
    """A document's number and WINDOW + 1 of its tokens, until each file gave its part of `tokens` predicted ones."""
    number = 0
    for file in files:
        left = -(-tokens // len(files))
        for index in range(file.documents):
            ids_T = torch.from_numpy(file.document(index).astype(np.int64))
            for start in range(0, len(ids_T) - 1, WINDOW):
                piece_T = ids_T[start : start + min(WINDOW, left) + 1]
                left -= len(piece_T) - 1
                if len(piece_T) > 1:
                    yield number, piece_T
            number += 1
            if not left:
                break


@torch.inference_mode()
def losses_of(decoder: Decoder, pieces: Sequence[tuple[int, Tensor]], limit: ExpertLimit | None) -> Losses:
    """Show every piece from its beginning."""
    losses, documents, experts = [], [], []
    for number, ids_T in pieces:
        out = decoder(Batch.of([ids_T[:-1]], limit=limit), want=Want(routing="choice"))
        assert out.logits_NV is not None
        assert out.routing is not None
        log_TV = torch.log_softmax(out.logits_NV.float(), -1)
        losses.append(-log_TV.gather(1, ids_T[1:, None])[:, 0].double())
        documents.append(torch.full((len(ids_T) - 1,), number))
        experts.append(at_work(out.routing) * (len(ids_T) - 1))
    losses_N = torch.cat(losses)
    return Losses(losses_N, torch.cat(documents), sum(experts) / len(losses_N))


def at_work(routing: Routing) -> float:
    """Experts with a gate, a token and layer."""
    return statistics.mean(float((layer.gates_TK != 0).sum(-1).double().mean()) for layer in routing.layers.values())


def added(own: Losses, base: Losses) -> tuple[float, float]:
    """Mean loss beyond that of the model without a limit, and half of its 95 % interval by documents."""
    added_N = own.losses_N - base.losses_N
    mean = float(added_N.mean())
    documents = int(base.documents_N.max()) + 1
    off_S = torch.zeros(documents, dtype=torch.float64).index_add(0, base.documents_N, added_N - mean)
    return mean, 1.96 * float(off_S.square().sum().sqrt()) / len(added_N) * math.sqrt(documents / max(documents - 1, 1))


# ---- other rules, for comparison


class OtherRule(CpuKernels):
    """The native kernels with another rule of dropping: gates of 0 are all that experts look at."""

    drops: Drops | None = None
    rescale = False

    def route(
        self, logits_TE: Tensor, rule: RouteRule, bias_E: Tensor | None = None, limits: TokenLimits | None = None
    ) -> tuple[Tensor, Tensor]:
        """The rule's experts, those that `drops` names without a gate."""
        experts_TK, gates_TK = super().route(logits_TE, rule, bias_E)
        if self.drops is None:
            return experts_TK, gates_TK
        left_TK = gates_TK.masked_fill(self.drops(logits_TE, experts_TK, gates_TK), 0.0)
        whole_T1 = gates_TK.sum(-1, keepdim=True) / left_TK.sum(-1, keepdim=True)
        return experts_TK, left_TK * whole_T1 if self.rescale else left_TK


def by_choice(limit: ExpertLimit) -> Drops:
    """Our own: in order of the choice, shares of the chosen."""

    def drops(_: Tensor, __: Tensor, gates_TK: Tensor) -> Tensor:
        return _beyond(gates_TK / gates_TK.sum(-1, keepdim=True), limit)

    return drops


def by_gate(limit: ExpertLimit) -> Drops:
    """In order of the gates: what a router's bias brought forward is dropped first."""

    def drops(_: Tensor, __: Tensor, gates_TK: Tensor) -> Tensor:
        ranked = torch.sort(gates_TK, dim=-1, descending=True, stable=True)
        beyond_TK = _beyond(ranked.values / gates_TK.sum(-1, keepdim=True), limit)
        return torch.zeros_like(beyond_TK).scatter(-1, ranked.indices, beyond_TK)

    return drops


def of_all(limit: ExpertLimit) -> Drops:
    """In order of the choice, shares of all experts' probabilities (of a softmax router)."""

    def drops(logits_TE: Tensor, experts_TK: Tensor, _: Tensor) -> Tensor:
        return _beyond(torch.softmax(logits_TE, -1).gather(-1, experts_TK), limit)

    return drops


def _beyond(shares_TK: Tensor, limit: ExpertLimit) -> Tensor:
    place_K = torch.arange(shares_TK.shape[1])
    enough_TK = shares_TK.cumsum(-1) - shares_TK >= (math.inf if limit.mass is None else limit.mass)
    return (enough_TK & (place_K > 0)) | (place_K >= (limit.cap or len(place_K)))


RULES: dict[str, tuple[Callable[[ExpertLimit], Drops], bool]] = {
    "by choice, rescaled": (by_choice, True),
    "by choice, as they are": (by_choice, False),
    "by gate, rescaled": (by_gate, True),
    "by gate, as they are": (by_gate, False),
    "of all, rescaled": (of_all, True),
    "of all, as they are": (of_all, False),
}


def compare_rules(
    decoder: Decoder, pieces: Sequence[tuple[int, Tensor]], base: Losses, limits: dict[str, ExpertLimit]
) -> list[dict[str, object]]:
    """The loss that each limit adds under each rule; shares of all experts where there is a share."""
    kernels = decoder.kernels
    assert isinstance(kernels, OtherRule)
    rows: list[dict[str, object]] = []
    for name, limit in limits.items():
        for rule, (make, rescale) in RULES.items():
            if make is of_all and limit.mass is None:
                continue
            kernels.drops, kernels.rescale = make(limit), rescale
            found = losses_of(decoder, pieces, None)
            mean, half = added(found, base)
            rows.append({"limit": name, "rule": rule, "experts": found.experts, "added": mean, "interval": half})
    kernels.drops = None
    return rows


# ---- speed


@torch.inference_mode()
def speeds(
    decoder: Decoder, limits: Sequence[ExpertLimit | None], ids_T: Tensor, *, depth: int, steps: int, rounds: int
) -> list[list[float]]:
    """Tokens a second of each limit in each round, of one sequence behind `depth` tokens; a first round warms up."""
    found: list[list[float]] = [[] for _ in limits]
    all_1T = ids_T[None, : depth + steps]
    sequences = [Sequences(decoder, 1, depth + steps, limit=limit) for limit in limits]
    for one in sequences:
        one.fill(all_1T[:, :depth], 0, depth)
    for turn in range(rounds + 1):
        for index, one in enumerate(sequences):
            start = time.perf_counter()
            for step in range(steps):
                one.show(all_1T[:, depth + step : depth + step + 1], depth + step)
            if turn:
                found[index].append(steps / (time.perf_counter() - start))
    return found


def load(checkpoint: Checkpoint, threads: int | None, *, other: bool) -> Decoder:
    """The packed model, on kernels that may have another rule."""
    config = checkpoint.config
    kernels: Kernels = choose_kernels(
        "cpu", packed=checkpoint.packed is not None, head_dim=config.head_dim, threads=threads
    )
    if other:
        assert isinstance(kernels, CpuKernels)
        kernels = OtherRule(kernels.machine)
    return load_decoder(checkpoint, kernels=kernels)


def show(title: str, rows: Sequence[dict[str, object]]) -> None:
    """A table."""
    if not rows:
        return
    table = Table(*map(str, rows[0]), title=title)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=130).print(table)


def main() -> None:
    """Load, measure quality and speed, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("files", type=Path, nargs="*", help="token files; none: speed alone")
    parser.add_argument("--limits", nargs="+", default=["0.95", "0.9", "0.8", "k16", "k12", "k8"])
    parser.add_argument("--tokens", type=int, default=20_000, help="of all files together")
    parser.add_argument("--rules", action="store_true", help="compare with other rules instead")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7, help="of speed; 0: quality alone")
    parser.add_argument("--depth", type=int, default=128)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    files = [TokenFile(path) for path in options.files]
    limits = {name: limit_of(name) for name in options.limits}
    with open_checkpoint(resolve(options.model)) as checkpoint:
        for file in files:
            file.check_made_for(checkpoint.config.vocab_size, checkpoint.tokenizer().fingerprint)
        for limit in limits.values():
            fitted_limit(limit, checkpoint.config)
        decoder = load(checkpoint, options.threads, other=options.rules)
    pieces = list(windows(files, options.tokens)) if files else []
    title = f"{options.model} on {describe(decoder.kernels)}, {sum(len(ids_T) - 1 for _, ids_T in pieces):,} tokens"
    if options.rules:
        rows = compare_rules(decoder, pieces, losses_of(decoder, pieces, None), limits)
    else:
        rows = measure(decoder, pieces, limits, options.depth, options.steps, options.rounds)
    show(title, rows)
    print(json.dumps({"model": options.model, "title": title, "rows": rows}))


def measure(
    decoder: Decoder,
    pieces: Sequence[tuple[int, Tensor]],
    limits: dict[str, ExpertLimit],
    depth: int,
    steps: int,
    rounds: int,
) -> list[dict[str, object]]:
    """A row for the model as it is, and one for each limit."""
    named: list[tuple[str, ExpertLimit | None]] = [("none", None), *limits.items()]
    quality = [losses_of(decoder, pieces, limit) for _, limit in named] if pieces else []
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.randint(decoder.config.vocab_size, (depth + steps,), generator=generator)
    if pieces:
        ids_T = torch.cat([piece_T for _, piece_T in pieces])[: depth + steps]
    speed = (
        speeds(decoder, [limit for _, limit in named], ids_T, depth=depth, steps=steps, rounds=rounds) if rounds else []
    )
    rows = []
    for index, (name, _) in enumerate(named):
        row: dict[str, object] = {"limit": name}
        if quality:
            mean, half = added(quality[index], quality[0])
            row |= {"experts": quality[index].experts, "perplexity": math.exp(float(quality[index].losses_N.mean()))}
            row |= {"added": mean, "interval": half}
        if speed:
            ratios = [own / base for own, base in zip(speed[index], speed[0], strict=True)]
            row |= {"tok_s": statistics.median(speed[index]), "speed-up": statistics.median(ratios)}
            row |= {"from": min(ratios), "to": max(ratios)}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
