"""Whether experts serve domains of text: N_iD / N_D, held against chance and against what token identity explains.

Documents, not tokens, are exchanged by chance: tokens of one document go to alike experts whatever its domain is. And
code has other tokens than prose, so that a router which looked at nothing but the token's identity would seem
specialised too: the choices it would make are predicted, and what they leave over is measured by itself.

T tokens, K active experts, E experts, D domains, S documents, V token ids, P permutations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tenth.errors import RequestError
from tenth.routing.exchange import Exchanges, Strength
from tenth.routing.record import LayerRouting, Routing

_FOLDS = 5
_FEWEST = 8  # times a token must be seen elsewhere before its routing is predicted


@dataclass(frozen=True, slots=True)
class LayerSpecialisation:
    """Domain specialisation of one layer's experts.

    `shares_ED` is N_iD / N_D, the share of a domain's tokens that chose expert i (OLMoE, arXiv 2409.02060, eq. 7; K / E
    where all are alike); chance alone keeps each within `low_ED` and `high_ED` (2.5 and 97.5 %). `expected_ED` is the
    same as predicted from token ids. `observed` and `expected` are the strengths of both, `residual` is that of the
    observed minus the predicted choices: these three, and `expected_ED`, are over tokens whose routing can be
    predicted, the share `coverage` of all.
    """

    shares_ED: Tensor
    low_ED: Tensor
    high_ED: Tensor
    expected_ED: Tensor
    observed: Strength
    expected: Strength
    residual: Strength
    coverage: float


def specialisation(
    record: Routing,
    domains_T: Tensor,
    tokens_T: Tensor,
    documents_T: Tensor,
    permutations: int = 1000,
    seed: int = 0,
) -> dict[int, LayerSpecialisation]:
    """Measure every layer of a record of text with known domains (ids from 0; below 0: left out, as padding).

    The routing of a token id is predicted from its other occurrences, in documents of other folds than the one that is
    predicted: pooled over domains, so that what an id that only one domain has does there counts as explained.
    RequestError where the parts do not fit, a document has two domains, or a domain has no document.
    """
    _check(record, domains_T, tokens_T, documents_T, permutations)
    keep_T = domains_T.cpu() >= 0
    domains_T, tokens_T, documents_T = (part.cpu()[keep_T] for part in (domains_T, tokens_T, documents_T))
    text = _Text.of(domains_T, tokens_T, documents_T, permutations, seed)
    return {index: _measured(layer.detach().select(keep_T), text) for index, layer in record.layers.items()}


@dataclass(frozen=True, slots=True)
class _Text:
    """What all layers share: dense ids of tokens and documents, folds, and the domains of documents, permuted."""

    tokens_T: Tensor
    documents_T: Tensor
    folds_S: Tensor
    sizes_S: Tensor  # tokens, float64
    exchanges: Exchanges

    @classmethod
    def of(cls, domains_T: Tensor, tokens_T: Tensor, documents_T: Tensor, permutations: int, seed: int) -> _Text:
        generator = torch.Generator().manual_seed(seed)
        _, ids_T = torch.unique(tokens_T, return_inverse=True)
        _, numbers_T = torch.unique(documents_T, return_inverse=True)
        documents, domains = int(numbers_T.max()) + 1, int(domains_T.max()) + 1
        domains_S = torch.zeros(documents, dtype=torch.int64).scatter_(0, numbers_T, domains_T)
        if not bool((domains_S[numbers_T] == domains_T).all()):
            raise RequestError("a document has tokens of two domains, it must have one")
        missing = set(range(domains)) - set(domains_S.tolist())
        if missing or domains < 2:
            raise RequestError(f"specialisation needs two domains or more, each with a document; {domains} are named, "
                               f"{len(missing)} of them without any")  # fmt: skip
        exchanges = Exchanges.drawn(domains_S, domains, permutations, generator)
        folds_S = torch.randperm(documents, generator=generator) % _FOLDS
        sizes_S = torch.bincount(numbers_T).double()
        return cls(ids_T, numbers_T, folds_S, sizes_S, exchanges)

    def by_document(self, values_TE: Tensor) -> Tensor:
        """Sums over each document's tokens, float64 (S, E)."""
        sums_SE = torch.zeros(len(self.folds_S), values_TE.shape[1], dtype=torch.float64)
        return sums_SE.index_add_(0, self.documents_T, values_TE.double())


def _check(record: Routing, domains_T: Tensor, tokens_T: Tensor, documents_T: Tensor, permutations: int) -> None:
    if not record.layers:
        raise RequestError("the record has no sparse layer")
    for name, part in (("domains", domains_T), ("tokens", tokens_T), ("documents", documents_T)):
        if part.dim() != 1 or len(part) != record.num_tokens or part.dtype != torch.int64:
            raise RequestError(f"{name} must be one int64 id for each of the record's {record.num_tokens} tokens")
    if permutations < 1:
        raise RequestError(f"permutations is {permutations}, it must be at least 1")
    if not bool((domains_T >= 0).any()):
        raise RequestError("no token has a domain")


def _measured(layer: LayerRouting, text: _Text) -> LayerSpecialisation:
    top_k = layer.experts_TK.shape[1]
    chose_TE = torch.zeros(len(layer.experts_TK), layer.num_experts).scatter_(1, layer.experts_TK, 1.0)
    expected_TE, known_T = _predicted(chose_TE, text)
    shares_PDE = torch.cat([s for s, _ in text.exchanges.shares(text.by_document(chose_TE), text.sizes_S)])
    low_DE, high_DE = text.exchanges.bounds(shares_PDE)
    chose_SE, expected_SE = text.by_document(chose_TE * known_T[:, None]), text.by_document(expected_TE)
    known_S = text.by_document(known_T[:, None])[:, 0]
    base_E = chose_SE.sum(0) / (top_k * known_S.sum()).clamp(min=1)

    def strength(values_SE: Tensor) -> Strength:
        return text.exchanges.strength(values_SE / top_k, known_S, base_E)

    return LayerSpecialisation(
        shares_ED=shares_PDE[0].T,
        low_ED=low_DE.T,
        high_ED=high_DE.T,
        expected_ED=next(text.exchanges.shares(expected_SE, known_S))[0][0].T,
        observed=strength(chose_SE),
        expected=strength(expected_SE),
        residual=strength(chose_SE - expected_SE),
        coverage=float(known_T.double().mean()),
    )


def _predicted(chose_TE: Tensor, text: _Text) -> tuple[Tensor, Tensor]:
    """P(expert | token id) for each token from documents of other folds (T, E), and whether there were enough (T).

    Rows without enough are 0.
    """
    ids, folds_T = int(text.tokens_T.max()) + 1, text.folds_S[text.documents_T]
    places_T = folds_T * ids + text.tokens_T
    counts_FVE = torch.zeros(_FOLDS * ids, chose_TE.shape[1]).index_add_(0, places_T, chose_TE).view(_FOLDS, ids, -1)
    times_FV = torch.bincount(places_T, minlength=_FOLDS * ids).view(_FOLDS, ids)
    elsewhere_FVE, elsewhere_FV = counts_FVE.sum(0) - counts_FVE, times_FV.sum(0) - times_FV
    times_T = elsewhere_FV[folds_T, text.tokens_T]
    predicted_TE = elsewhere_FVE[folds_T, text.tokens_T] / times_T.clamp(min=1)[:, None]
    return predicted_TE * (times_T >= _FEWEST)[:, None], times_T >= _FEWEST
