"""Which tokens of a step belong to which document, and where its pages are: tables that native attention reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Documents:
    """`bounds` (S + 1) of each document's queries, `lengths` (S) of all its tokens, `pages` (S, most pages); int64."""

    bounds: Tensor
    lengths: Tensor
    pages: Tensor

    @property
    def count(self) -> int:
        """Documents."""
        return len(self.lengths)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three tables."""
        return self.bounds, self.lengths, self.pages

    @classmethod
    def of(cls, pages: Sequence[Tensor], lengths: Sequence[int], bounds: Sequence[int]) -> Documents:
        """The tables of one call."""
        table = torch.nn.utils.rnn.pad_sequence([*pages], batch_first=True)
        return cls(torch.tensor(bounds), torch.tensor(lengths), table)


def slots_of(bounds: Sequence[int], page_size: int) -> Tensor:
    """Where each token goes if document s has page s (T)."""
    return torch.cat([s * page_size + torch.arange(end - start) for s, (start, end) in enumerate(pairwise(bounds))])
