"""Greedy drafts against drafts drawn with the random numbers that the target's sampler will use.

Two models read the same chats. At each position one token is drafted: the draft model's likeliest, or what it draws
with the same uniform number that the target then draws with, along each model's own order of likelihood. Counted is how
often the target's draw is that token, over many numbers. Both ways the target's tokens are its own.

usage: python bench/draft_coupling.py CHATS.tokens [--target default-dense] [--draft default] [--count 6] [--length 300]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor

import tenth
from tenth.data.token_file import TokenFile
from tenth.engine.sampler import Sampling, kept

NUMBERS = 32  # of each position
SETTINGS = [(0.3, 1.0), (0.7, 0.95), (1.0, 1.0), (1.3, 1.0)]  # temperature and top-p


def draws(logits_V: Tensor, options: Sampling, u_U: Tensor) -> Tensor:
    """The tokens that a sampler draws with these numbers (U)."""
    p, ids = kept(logits_V / options.temperature, options)
    places_U = torch.searchsorted(p.cumsum(0), u_U * p.sum(), right=True)
    return ids[places_U.clamp(max=len(ids) - 1)]


def agreement(target_V: Tensor, draft_V: Tensor, options: Sampling, u_U: Tensor) -> tuple[float, float]:
    """Shares of the numbers with which a greedy and a coupled draft stand."""
    own_U = draws(target_V, options, u_U)
    greedy, coupled = own_U == draft_V.argmax(), own_U == draws(draft_V, options, u_U)
    return float(greedy.float().mean()), float(coupled.float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chats", type=Path)
    parser.add_argument("--target", default="default-dense")
    parser.add_argument("--draft", default="default")
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--length", type=int, default=300)
    options = parser.parse_args()
    file = TokenFile(options.chats)
    rows = [file.document(index)[: options.length].tolist() for index in range(options.count)]
    logits = {}
    for name in (options.target, options.draft):
        model = tenth.load(name)
        with torch.inference_mode():
            logits[name] = torch.cat([model([row], routing="none").logits_BTV[0, 64:].float() for row in rows])
    generator = torch.Generator().manual_seed(0)
    for temperature, top_p in SETTINGS:
        sampling = Sampling(temperature=temperature, top_p=top_p)
        pairs = zip(logits[options.target], logits[options.draft], strict=True)
        found = [
            agreement(own, other, sampling, torch.rand(NUMBERS, generator=generator, dtype=torch.float64))
            for own, other in pairs
        ]
        greedy, coupled = (statistics.fmean(one) for one in zip(*found, strict=True))
        error = statistics.stdev(other - one for one, other in found) / len(found) ** 0.5
        print(
            f"temperature {temperature}, top-p {top_p}: greedy {greedy:.1%}, coupled {coupled:.1%}, "
            f"difference {coupled - greedy:+.1%} with a standard error of {error:.1%} ({len(found)} positions)"
        )


if __name__ == "__main__":
    main()
