"""How alike the experts of a layer are: in what they answer to the same inputs, and in their weights.

N shared tokens, D model width, F hidden units of an expert, E experts, S sampled units, R directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from tenth.kernels.weight import ExpertTable

_UNITS = 32  # of an expert that are looked for in each other one
_DIRECTIONS = 128  # that wider units are projected to: cosines then err by 1 / sqrt(128) = 0.09


def centred_gram(y_ND: Tensor) -> Tensor:
    """Inner products of centred outputs (N, N), float64: what linear CKA is made of (arXiv 1905.00414, eq. 3)."""
    centred_ND = y_ND.double() - y_ND.double().mean(0)
    return centred_ND @ centred_ND.T


def without_bias(k_NN: Tensor) -> Tensor:
    """The same U-centred: without the diagonal, which makes plain CKA of few tokens and many channels near 1 for all.

    Szekely and Rizzo 2014; Nguyen, Raghu, Kornblith, arXiv 2010.15327, eq. 3. N is at least 4.
    """
    count = len(k_NN)
    assert count > 3, "fewer have no U-centred products"
    k_NN = k_NN.clone().fill_diagonal_(0)
    rows_N = k_NN.sum(1) / (count - 2)
    total = k_NN.sum() / ((count - 1) * (count - 2))
    return (k_NN - rows_N[:, None] - rows_N[None, :] + total).fill_diagonal_(0)


def linear_cka(grams: Iterable[Tensor]) -> Tensor:
    """Linear CKA of all pairs of experts (E, E) by their centred products: 1 is the same up to rotation and scale.

    It does not see the order of hidden units. NaN for an expert whose outputs are constant or no numbers.
    """
    flat_EX = torch.stack([k_NN.flatten() for k_NN in grams])
    inner_EE = flat_EX @ flat_EX.T
    norm_E = inner_EE.diagonal().sqrt()
    return inner_EE / (norm_E[:, None] * norm_E[None, :])


def unit_vectors(table: ExpertTable, index: int, signs_X: Tensor | None) -> Tensor:
    """The hidden units of an expert (F, R): gate row, up row and down column, each of length 1, together of length 1.

    The three parts have equal weight, so that a factor moved from one to another changes nothing. With `signs_X`, of
    chance, every R-th number is summed up with these signs (a count sketch), which keeps inner products on average.
    """
    w13_2FD, w2_DF = table.expert(index)
    gate_FD, up_FD = w13_2FD.float().cpu().chunk(2)
    parts_F3D = torch.stack((gate_FD, up_FD, w2_DF.float().cpu().T), 1)
    whole_FX = F.normalize(parts_F3D, dim=-1).flatten(1)
    if signs_X is not None:
        padded_FX = F.pad(whole_FX, (0, -whole_FX.shape[1] % _DIRECTIONS)) * signs_X
        whole_FX = padded_FX.view(len(whole_FX), -1, _DIRECTIONS).sum(1)
    return F.normalize(whole_FX, dim=-1)


def unit_similarity(table: ExpertTable) -> Tensor:
    """How many hidden units experts share (E, E): mean over units of the best cosine among the other expert's units.

    1 are copies, in whatever order their units are; rows of unrelated experts lie at the largest cosine that chance
    gives. Of wide experts a sample of units is looked for, and cosines are of projections. Symmetrised by the larger
    of both directions. NaN where weights are no numbers.
    """
    count, width, units = table.num_experts, 3 * table.hidden_size, table.intermediate_size
    signs_X = None
    if width > _directions(table):
        padded = width + -width % _DIRECTIONS
        signs_X = torch.randint(0, 2, (padded,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    units_EFR = torch.stack([unit_vectors(table, expert, signs_X) for expert in range(count)])
    sample_ESR = units_EFR[:, :: -(-units // _UNITS)]
    flat_XR = units_EFR.flatten(0, 1)
    best_EE = torch.stack([_best(sample_SR, flat_XR, count) for sample_SR in sample_ESR])
    return torch.maximum(best_EE, best_EE.T)


def chance_similarity(table: ExpertTable) -> float:
    """About what `unit_similarity` is for unrelated experts: the largest of F normal cosines."""
    return min(math.sqrt(2 * math.log(max(table.intermediate_size, 2)) / _directions(table)), 0.9)


def _directions(table: ExpertTable) -> int:
    width = 3 * table.hidden_size
    return width if width <= 2 * _DIRECTIONS else _DIRECTIONS


def _best(sample_SR: Tensor, flat_XR: Tensor, experts: int) -> Tensor:
    """Mean over sampled units of the best match in each expert (E); X are all units of all experts."""
    cosines_SX = sample_SR @ flat_XR.T
    return cosines_SX.view(len(sample_SR), experts, -1).amax(-1).mean(0)


def nearest(similar_EE: Tensor) -> tuple[Tensor, Tensor]:
    """Each expert's largest similarity to another one (E), and which one that is; NaNs count as none."""
    others_EE = similar_EE.nan_to_num(-1.0).clone().fill_diagonal_(-1.0)
    found = others_EE.max(1)
    return found.values, found.indices
