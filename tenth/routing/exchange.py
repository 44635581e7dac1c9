"""How unevenly domains use experts, held against the same with the domains of documents exchanged by chance.

E experts, D domains, S documents (or blocks of some), P permutations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_AT_ONCE = 1 << 22  # numbers: documents by domains by permutations
_EQUAL = 1 - 1e-9  # the same exchange with its domains renamed has the same strength, but for the order of sums


@dataclass(frozen=True, slots=True)
class Strength:
    """How far domains are from using experts alike, beside the same with documents' domains exchanged by chance.

    `value` is the mean square contingency phi^2 = sum_D w_D sum_i (q_iD - q_i)^2 / q_i, with q_iD the share of expert i
    in the choices of domain D and w_D the domain's share of tokens: 0 is alike, and for small values it is twice the
    mutual information of expert and domain in nats. `chance` is its mean over permutations and `high` their 95 %
    quantile; `p` is the share of permutations that reach it, itself counted among them.
    """

    value: float
    chance: float
    high: float
    p: float

    @property
    def excess(self) -> float:
        """What is beyond chance: an estimate of phi^2 that finite text does not push up."""
        return self.value - self.chance


@dataclass(frozen=True, slots=True)
class Exchanges:
    """The domains of documents, first the true ones, then exchanged by chance."""

    domains_PS: Tensor
    domains: int

    @classmethod
    def drawn(cls, domains_S: Tensor, domains: int, permutations: int, generator: torch.Generator) -> Self:
        """So many permutations of the documents' domains (int64 from 0)."""
        drawn = [domains_S[torch.randperm(len(domains_S), generator=generator)] for _ in range(permutations)]
        return cls(torch.stack([domains_S, *drawn]), domains)

    def shares(self, values_SE: Tensor, tokens_S: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Means of documents' sums over the tokens of each domain (P, D, E), and the domains' shares of tokens (P, D).

        All float64, some permutations at a time.
        """
        at_once = max(1, _AT_ONCE // max(1, self.domains_PS.shape[1] * self.domains))
        for domains_PS in torch.split(self.domains_PS, at_once):
            belongs_PDS = torch.nn.functional.one_hot(domains_PS, self.domains).transpose(1, 2).double()
            tokens_PD = belongs_PDS @ tokens_S
            yield belongs_PDS @ values_SE / tokens_PD.clamp(min=1)[:, :, None], tokens_PD / tokens_S.sum().clamp(min=1)

    def bounds(self, shares_PDE: Tensor) -> tuple[Tensor, Tensor]:
        """What chance keeps shares within, 2.5 and 97.5 % (each D, E)."""
        low_DE, high_DE = shares_PDE[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
        return low_DE, high_DE

    def strength(self, values_SE: Tensor, tokens_S: Tensor, base_E: Tensor) -> Strength:
        """phi^2 of shares that belong to documents; `base_E` are the experts' shares overall."""
        mean_E = values_SE.sum(0) / tokens_S.sum().clamp(min=1)
        return strength_of(self.shares(values_SE, tokens_S), mean_E, base_E)


def strength_of(parts: Iterable[tuple[Tensor, Tensor]], mean_E: Tensor, base_E: Tensor) -> Strength:
    """phi^2 of what `Exchanges.shares` gave; `mean_E` is the mean over all tokens."""
    scale_E = torch.where(base_E > 0, 1 / base_E, 0.0)
    strengths_P = torch.cat(
        [(weights_PD * ((shares_PDE - mean_E).square() @ scale_E)).sum(1) for shares_PDE, weights_PD in parts]
    )
    value, chance_P = float(strengths_P[0]), strengths_P[1:]
    reached = int((chance_P >= _EQUAL * value).sum())
    return Strength(value, float(chance_P.mean()), float(chance_P.quantile(0.95)), (1 + reached) / (1 + len(chance_P)))
