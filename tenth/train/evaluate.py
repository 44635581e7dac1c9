"""Held-out loss by domain, with what its figures can be trusted for. T tokens of a batch, S documents of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tenth.data.collate import TrainBatch, collate
from tenth.data.packing import IGNORE, NO_DOMAIN, Sample
from tenth.errors import RequestError
from tenth.model.batch import Want
from tenth.model.decoder import Decoder
from tenth.routing.record import Routing
from tenth.train.cross_entropy import token_losses
from tenth.train.device import moved

Watch = Callable[[Routing, Tensor], None]
"""Told the routing of a batch and which of its tokens are no padding."""

_NORMAL = 1.959964  # 97.5 % of a normal distribution
# and of Student's t with 1, 2, ... degrees of freedom
_STUDENT = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157)


@dataclass(frozen=True, slots=True)
class DomainLoss:
    """The mean loss of a domain's tokens in nats, and its 95 % interval."""

    loss: float
    low: float
    high: float
    tokens: int
    documents: int

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(min(self.loss, 700.0))


@torch.no_grad()
def evaluate(
    decoder: Decoder, samples: Sequence[Sample], domains: Sequence[str], *, rows: int = 4, watch: Watch | None = None
) -> tuple[DomainLoss, dict[str, DomainLoss]]:
    """The loss of all `samples` together, `rows` of them at a time, and of each domain that they have documents of.

    The decoder may be any, on any kernels; the target of a token is the next one of its document. `watch` gets the
    full routing of each batch. RequestError where no token has a target.
    """
    sums = _Sums()
    want = Want(logits="none", hidden=True, routing="full" if watch is not None else "none")
    for start in range(0, len(samples), rows):
        batch = moved(collate(samples[start : start + rows]), decoder.device)
        output = decoder(batch.batch, want=want)
        if watch is not None and output.routing is not None:
            watch(output.routing, batch.real_T)
        sums.add(batch, _losses(decoder, output.hidden_TD, batch.targets_T))
    if not sums.losses:
        raise RequestError("there is nothing to evaluate: no token has a next one in its document")
    return mean_loss(sums.losses, sums.tokens), sums.by_domain(domains)


def _losses(decoder: Decoder, hidden_TD: Tensor | None, targets_T: Tensor) -> Tensor:
    assert hidden_TD is not None, "asked for"
    return token_losses(hidden_TD, decoder.head.weight.dense(), targets_T)


class _Sums:
    """Loss and tokens of every document; one that rows cut is joined again where the rows follow each other."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.tokens: list[int] = []
        self.domains: list[int] = []
        self._cut = False

    def add(self, batch: TrainBatch, losses_T: Tensor) -> None:
        sizes = [end - start for start, end in pairwise(batch.batch.bounds)]
        counted_T = (batch.targets_T != IGNORE).cpu()
        parts = (torch.split(x, sizes) for x in (losses_T.double().cpu(), counted_T, batch.domains_T.cpu()))
        for losses_N, counted_N, domains_N in zip(*parts, strict=True):
            goes_on, self._cut = self._cut, bool(counted_N[-1])  # the last token of a whole document has no next one
            if goes_on and int(domains_N[0]) == self.domains[-1]:
                self.losses[-1] += float(losses_N.sum())
                self.tokens[-1] += int(counted_N.sum())
            elif int(domains_N[0]) != NO_DOMAIN and bool(counted_N.any()):
                self.losses.append(float(losses_N.sum()))
                self.tokens.append(int(counted_N.sum()))
                self.domains.append(int(domains_N[0]))

    def by_domain(self, names: Sequence[str]) -> dict[str, DomainLoss]:
        found = {}
        for domain in sorted(set(self.domains)):
            at = [n for n, other in enumerate(self.domains) if other == domain]
            found[names[domain]] = mean_loss([self.losses[n] for n in at], [self.tokens[n] for n in at])
        return found


def mean_loss(losses: Sequence[float], tokens: Sequence[int]) -> DomainLoss:
    """The mean over tokens from sums over documents, and its 95 % interval with documents as clusters.

    Tokens of one document err together, so the standard error is the clustered one of a ratio: with loss L_d, tokens
    n_d, r = sum L / sum n and m documents, se = sqrt(m / (m - 1) * sum (L_d - r n_d)^2) / sum n (Cochran 1977, 2.12),
    times Student's t with m - 1 degrees of freedom. A single document has no interval: it is infinite.
    """
    count, total = len(losses), sum(tokens)
    mean = math.fsum(losses) / total
    if count < 2:
        return DomainLoss(mean, -math.inf, math.inf, total, count)
    squares = math.fsum((loss - mean * size) ** 2 for loss, size in zip(losses, tokens, strict=True))
    half = student(count - 1) * math.sqrt(count / (count - 1) * squares) / total
    return DomainLoss(mean, mean - half, mean + half, total, count)


def student(freedom: int) -> float:
    """97.5 % of Student's t: by a table, then as Cornish and Fisher expand it, to five digits behind the point."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z, n = _NORMAL, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / n**power for power, term in enumerate(terms, 1))
