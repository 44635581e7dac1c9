"""Whether experts serve domains, from a profile: N_iD / N_D held against what exchanging its blocks by chance gives.

A block is some documents of a domain: `RoutingProfile.blocks`. What token identity explains needs a record
(`specialisation.py`). L sparse layers, E experts, D domains, S blocks, P permutations.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from tenth.errors import RequestError
from tenth.routing.counts import Floats, Ints
from tenth.routing.exchange import Exchanges, Strength, strength_of
from tenth.routing.profile import RoutingProfile

_FEWEST = 100  # ways to exchange the blocks: fewer leave little between 1 % and nothing


@dataclass(frozen=True, slots=True, eq=False)
class LayerDomains:
    """One layer: `shares_ED` is N_iD / N_D (OLMoE, arXiv 2409.02060, eq. 7; K / E where all are alike).

    Chance alone keeps each within `low_ED` and `high_ED` (2.5 and 97.5 %); `strength` is that of the whole layer.
    """

    shares_ED: Floats
    low_ED: Floats
    high_ED: Floats
    strength: Strength


@dataclass(frozen=True, slots=True, eq=False)
class ProfileDomains:
    """The domains of a profile, their tokens, and what each layer's experts do for them."""

    names: tuple[str, ...]
    tokens_D: Ints
    layers: tuple[LayerDomains, ...]

    @property
    def shares_LED(self) -> Floats:
        """N_iD / N_D of all layers."""
        return np.stack([layer.shares_ED for layer in self.layers])

    @property
    def parts_LED(self) -> Floats:
        """Of an expert's work the part for each domain, were there equally many tokens of all; NaN where it has none.

        1 / D is no preference, 1 an expert of one domain alone.
        """
        shares_LED = self.shares_LED
        with np.errstate(invalid="ignore"):
            parts_LED: Floats = shares_LED / shares_LED.sum(2, keepdims=True)
        return parts_LED

    @property
    def beyond_LED(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Where a domain uses an expert more than chance would."""
        return np.stack([layer.shares_ED > layer.high_ED for layer in self.layers])


def profile_domains(profile: RoutingProfile, permutations: int = 1000, seed: int = 0) -> ProfileDomains:
    """Measure every layer. RequestError where there is one domain, or too few blocks to tell chance from anything."""
    keys = sorted(key for key, block in profile.blocks.items() if block.tokens)
    names = tuple(sorted({domain for domain, _ in keys}))
    _check(names, Counter(domain for domain, _ in keys))
    domains_S = torch.tensor([names.index(domain) for domain, _ in keys])
    tokens_S = torch.tensor([profile.blocks[key].tokens for key in keys], dtype=torch.float64)
    counts_SLE = np.stack([profile.blocks[key].counts_LE for key in keys]).astype(np.float64)
    exchanges = Exchanges.drawn(domains_S, len(names), permutations, torch.Generator().manual_seed(seed))
    layers = [
        _layer(torch.from_numpy(counts_SLE[:, layer]), tokens_S, profile.model.top_k, exchanges)
        for layer in range(counts_SLE.shape[1])
    ]
    tokens_D = np.bincount(domains_S.numpy(), tokens_S.numpy(), len(names)).astype(np.int64)
    return ProfileDomains(names, tokens_D, tuple(layers))


def _check(names: tuple[str, ...], blocks: Counter[str]) -> None:
    if len(names) < 2:
        raise RequestError(f"specialisation needs two domains or more, the profile has {len(names)}")
    if (ways := _ways(blocks)) < _FEWEST:
        raise RequestError(f"specialisation needs more blocks of documents: {blocks.total()} in {len(names)} domains "
                           f"can be exchanged in {ways} ways, {_FEWEST} are needed")  # fmt: skip


def _ways(blocks: Counter[str]) -> int:
    """How many exchanges can be told apart: names of domains with as many blocks each may be exchanged for nothing."""
    ways, left = 1, blocks.total()
    for count in blocks.values():
        ways, left = ways * math.comb(left, count), left - count
    return ways // math.prod(math.factorial(alike) for alike in Counter(blocks.values()).values())


def _layer(counts_SE: torch.Tensor, tokens_S: torch.Tensor, top_k: int, exchanges: Exchanges) -> LayerDomains:
    parts = list(exchanges.shares(counts_SE / top_k, tokens_S))
    shares_PDE = torch.cat([shares for shares, _ in parts])
    low_DE, high_DE = exchanges.bounds(shares_PDE)
    mean_E = counts_SE.sum(0) / (top_k * tokens_S.sum())
    shares_ED, low_ED, high_ED = (top_k * part_DE.T.numpy() for part_DE in (shares_PDE[0], low_DE, high_DE))
    return LayerDomains(shares_ED, low_ED, high_ED, strength_of(parts, mean_E, mean_E))
