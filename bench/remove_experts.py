"""Experts taken away at run time, by saliency, by frequency and at random: what the rest makes of held-out text.

A routing profile of one text says in which order experts of every layer go: those of the lowest saliency (mean of gate
times norm of the output, REAP), those that were chosen least, or any (several seeds). The others' gates are made anew.

usage: python bench/remove_experts.py MODEL --profile P --text a.jsonl ... [--tokens 8000] [--shares 0.1 0.2 ...]
       [--seeds 3] [--out curves.png]

P by `tenth profile MODEL ... -o P`; the text should be other text. E experts, T tokens, L sparse layers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tenth.api import load
from tenth.model.batch import Batch, Want
from tenth.model.decoder import Decoder
from tenth.observe.corpora import TextIds, WatchedText
from tenth.routing.profile import RoutingProfile
from tenth.routing.profile_file import read_profile
from tenth.routing.rule import RoutingPolicy
from tenth.train.cross_entropy import token_losses
from tenth.train.evaluate import mean_loss

Orders = NDArray[np.int64]  # L, E: the first to go first


def orders(profile: RoutingProfile, seeds: int) -> Iterator[tuple[str, Orders]]:
    """Each way to choose what goes, layer by layer."""
    saliency_LE = profile.saliency_LE
    if saliency_LE is not None:
        yield "saliency", np.nan_to_num(saliency_LE, nan=-1.0).argsort(1, kind="stable")
    yield "frequency", profile.counts.counts_LE.argsort(1, kind="stable")
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        every_LE = np.tile(np.arange(profile.model.experts), (len(profile.model.layers), 1))
        yield f"random {seed}", random.permuted(every_LE, axis=1)


def policy_of(profile: RoutingProfile, order_LE: Orders, count: int) -> RoutingPolicy:
    """Without the first `count` experts of each layer's order."""
    removed = {}
    for at, layer in enumerate(profile.model.layers):
        gone_E = torch.zeros(profile.model.experts, dtype=torch.bool)
        gone_E[torch.from_numpy(order_LE[at, :count].copy())] = True
        removed[layer] = gone_E
    return RoutingPolicy(removed=removed)


@torch.inference_mode()
def losses(
    decoder: Decoder, documents: Sequence[list[int]], policy: RoutingPolicy | None
) -> tuple[list[float], list[int]]:
    """Sums of the next tokens' losses in nats, and how many there are, by document."""
    head = decoder.head.weight.dense()
    sums, counts = list[float](), list[int]()
    for ids in documents:
        batch = Batch.of([ids])
        hidden_TD = decoder(batch, want=Want(logits="none", hidden=True), routing=policy).hidden_TD
        assert hidden_TD is not None
        found_T = token_losses(hidden_TD[:-1].float(), head, torch.tensor(ids[1:]))
        sums.append(float(found_T.double().sum()))
        counts.append(len(ids) - 1)
    return sums, counts


def held_out(paths: Sequence[str], ids_of: TextIds, vocabulary: int, tokens: int) -> list[list[int]]:
    """Documents of up to 512 tokens, as many as have so many tokens."""
    found, left = list[list[int]](), tokens
    for document in WatchedText(paths).documents(ids_of, vocabulary):
        ids = document.ids()[: min(512, left)]
        if len(ids) > 16:
            found.append(ids)
            left -= len(ids)
        if left < 17:
            break
    return found


def measure(model: str, profile: RoutingProfile, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each way and share: loss with its interval, and the difference to the whole model's with its own."""
    loaded = load(model, to_run=True)
    documents = held_out(arguments.text, TextIds(loaded.tokenizer, model), loaded.config.vocab_size, arguments.tokens)
    whole, counts = losses(loaded.decoder, documents, None)
    lines = [{"way": "whole", "share": 0.0} | _figures(whole, whole, counts)]
    print(json.dumps(lines[0]), flush=True)
    spare = profile.model.experts - profile.model.top_k
    for share in arguments.shares:
        count = min(round(share * profile.model.experts), spare)
        for way, order_LE in orders(profile, arguments.seeds):
            found, _ = losses(loaded.decoder, documents, policy_of(profile, order_LE, count))
            lines.append({"way": way, "share": count / profile.model.experts} | _figures(found, whole, counts))
            print(json.dumps(lines[-1]), flush=True)
    return lines


def _figures(found: Sequence[float], whole: Sequence[float], counts: Sequence[int]) -> dict[str, float]:
    """95 % intervals with documents as clusters; of the difference document by document."""
    loss = mean_loss(list(found), list(counts))
    more = mean_loss([a - b for a, b in zip(found, whole, strict=True)], list(counts))
    figures = {"loss": loss.loss, "low": loss.low, "high": loss.high, "perplexity": loss.perplexity}
    figures |= {"more": more.loss, "more_low": more.low, "more_high": more.high}
    return {name: round(value, 5) for name, value in figures.items()} | {"documents": loss.documents}


def draw(lines: Sequence[dict[str, Any]], out: Path) -> None:
    """Perplexity over the share of experts that are gone; random seeds in one colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    colours = {"saliency": "#0072B2", "frequency": "#D55E00", "random": "#999999"}
    for way in dict.fromkeys(line["way"] for line in lines[1:]):
        points = [lines[0], *(line for line in lines[1:] if line["way"] == way)]
        kind = way.split()[0]
        shares = [100 * line["share"] for line in points]
        axes.plot(shares, [line["loss"] for line in points], "o-", color=colours[kind], markersize=3, label=kind)
        low, high = ([line["loss"] - line["more"] + line[f"more_{end}"] for line in points] for end in ("low", "high"))
        axes.fill_between(shares, low, high, color=colours[kind], alpha=0.15, linewidth=0)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(list(once.values()), list(once), frameon=False)
    axes.set_xlabel("experts of every layer that are gone, %")
    axes.set_ylabel("nats a token, 95 % of the difference to all experts")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


def main() -> None:
    """Read the command line, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.04, 0.08, 0.17, 0.25, 0.33])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = measure(arguments.model, read_profile(arguments.profile), arguments)
    if arguments.out is not None:
        draw(lines, arguments.out)


if __name__ == "__main__":
    main()
