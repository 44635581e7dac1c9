"""Router rows for a model that has none: directions that split its hidden states into equal shares.

N tokens, D model width, R groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 15


def group_rows(states_ND: Tensor, groups: int, chosen: int, generator: torch.Generator) -> Tensor:
    """Rows (R, D), float32, one for each group; a token's groups are the `chosen` largest of `rows @ state`.

    Centred spherical k-means with equal shares. The mean state, and its direction, are taken out: they would favour
    one group for all tokens. Each row's logits get a standard deviation of one. What imbalance of the top choices is
    left is evened out along the mean direction, where a row's coefficient acts as its bias.
    """
    states_ND = states_ND.float()
    mean_D = states_ND.mean(0)
    along_D = mean_D / mean_D.norm().clamp_min(1e-12)
    centred_ND = states_ND - mean_D
    centred_ND = centred_ND - (centred_ND @ along_D)[:, None] * along_D
    rows_RD = _spherical_means(torch.nn.functional.normalize(centred_ND, dim=1), groups, generator)
    rows_RD = rows_RD / (states_ND @ rows_RD.T).std(0, correction=0).clamp_min(1e-6)[:, None]
    biases_R = _biases(states_ND, rows_RD, along_D, chosen)
    balanced_RD: Tensor = rows_RD + biases_R[:, None] * along_D
    return balanced_RD


def _spherical_means(unit_ND: Tensor, groups: int, generator: torch.Generator) -> Tensor:
    centres_RD = unit_ND[torch.randperm(len(unit_ND), generator=generator)[:groups]]
    if len(centres_RD) < groups:  # fewer tokens than groups: directions at random
        centres_RD = torch.randn(groups, unit_ND.shape[1], generator=generator)
    offsets_R = torch.zeros(groups)
    for _ in range(_ROUNDS):
        near_NR = unit_ND @ centres_RD.T
        offsets_R = _even(near_NR, 1, offsets_R, steps=5)
        owner_N = (near_NR + offsets_R).argmax(1)
        sums_RD = torch.zeros_like(centres_RD).index_add_(0, owner_N, unit_ND)
        alive = sums_RD.norm(dim=1, keepdim=True) > 1e-6
        centres_RD = torch.where(alive, torch.nn.functional.normalize(sums_RD, dim=1), centres_RD)
    return torch.nn.functional.normalize(centres_RD - centres_RD.mean(0), dim=1) if groups > 1 else centres_RD


def _biases(states_ND: Tensor, rows_RD: Tensor, along_D: Tensor, chosen: int) -> Tensor:
    """Coefficients along the mean direction under which every group is chosen about equally often."""
    if chosen >= len(rows_RD):
        return torch.zeros(len(rows_RD))
    return _even(states_ND @ rows_RD.T, chosen, torch.zeros(len(rows_RD)), steps=60, lift_N=states_ND @ along_D)


def _even(scores_NR: Tensor, chosen: int, offsets_R: Tensor, *, steps: int, lift_N: Tensor | None = None) -> Tensor:
    """Move offsets (R) in falling steps against the load, to even out how often each column is among the `chosen`.

    A column's offset counts times the token's `lift` (1 where not given).
    """
    lift_N1 = torch.ones(1, 1) if lift_N is None else lift_N[:, None]
    unit = float(scores_NR.std()) / max(float(lift_N1.abs().mean()), 1e-6)
    for step in range(steps):
        top = (scores_NR + offsets_R * lift_N1).topk(chosen, dim=1).indices
        share_R = torch.bincount(top.flatten(), minlength=len(offsets_R)) / top.numel() * len(offsets_R)
        offsets_R = offsets_R - unit / (4 + step) * (share_R - 1)
    return offsets_R
