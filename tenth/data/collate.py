"""Packed rows laid end to end as one batch of the network. T tokens of all rows together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tenth.data.packing import IGNORE, Sample
from tenth.errors import RequestError
from tenth.model.batch import Batch


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What one micro-step learns from. Padding is documents of its own, `real_T` False, without targets."""

    batch: Batch
    targets_T: Tensor  # int64 ids, IGNORE where a token has no target
    domains_T: Tensor  # int64, into the names of the loader (or of the file); NO_DOMAIN on padding
    real_T: Tensor  # bool
    samples: tuple[int, ...]  # indices of the rows
    loss_tokens: int  # targets that are not IGNORE


def collate(samples: Sequence[Sample]) -> TrainBatch:
    """Lay rows, of any lengths, end to end; no document joins another. RequestError where there are none."""
    if not samples:
        raise RequestError("a batch needs at least one row")
    bounds, domains = [0], list[int]()
    for sample in samples:
        start = bounds[-1]
        bounds += [start + bound for bound in sample.bounds[1:]]
        domains += sample.domains
    sizes = [end - start for start, end in pairwise(bounds)]
    tokens_T = torch.cat([sample.tokens_T for sample in samples])
    targets_T = torch.cat([sample.targets_T for sample in samples])
    positions_T = torch.cat([sample.positions_T for sample in samples])
    return TrainBatch(
        batch=Batch(bounds=tuple(bounds), positions_T=positions_T, tokens_T=tokens_T),
        targets_T=targets_T,
        domains_T=torch.from_numpy(np.repeat(np.array(domains, np.int64), sizes)),  # torch's wakes threads for this
        real_T=torch.cat([torch.arange(len(sample.tokens_T)) < sample.real for sample in samples]),
        samples=tuple(sample.index for sample in samples),
        loss_tokens=int((targets_T != IGNORE).sum()),
    )
