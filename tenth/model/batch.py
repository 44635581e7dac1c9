"""What goes into a forward pass and what comes out: Batch, Placement, Want, Output.

T tokens of the step, D model width, N positions with logits, V vocabulary, S documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from tenth.errors import RequestError
from tenth.routing.limit import ExpertLimit, TokenLimits
from tenth.routing.record import RecordKind, Routing

_FEW = 64  # ids that Python looks at faster than torch


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the tokens of a batch live in a paged cache.

    `slots_T` (page * page size + offset) is where each token's key and value are written; document s then has
    `lengths[s]` tokens in the pages `pages[s]`, in order, its new ones last.
    """

    slots_T: Tensor
    pages: tuple[Tensor, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens of one or more documents, laid end to end: document s is `bounds[s]:bounds[s + 1]`.

    Either `tokens_T` (int64 ids) or `embeddings_TD`. `positions_T` are int64, apart from where the tokens are cached.
    `limits` say how many of its chosen experts work on each token (None: all).
    """

    bounds: tuple[int, ...]
    positions_T: Tensor
    tokens_T: Tensor | None = None
    embeddings_TD: Tensor | None = None
    placement: Placement | None = None
    limits: TokenLimits | None = None

    def __post_init__(self) -> None:
        if len(self.bounds) < 2 or self.bounds[0] != 0 or any(end <= start for start, end in pairwise(self.bounds)):
            raise RequestError(f"batch bounds {self.bounds} must rise from 0, with a token in every document")
        if (self.tokens_T is None) == (self.embeddings_TD is None):
            raise RequestError("a batch carries either tokens or embeddings")
        for name in ("positions_T", "tokens_T", "embeddings_TD"):
            part = getattr(self, name)
            if part is not None and len(part) != self.bounds[-1]:
                raise RequestError(f"batch {name} has {len(part)} rows, its bounds say {self.bounds[-1]}")
        for name in ("positions_T", "tokens_T"):
            _check_ids(name, getattr(self, name))
        if self.limits is not None:
            self.limits.check(self.bounds[-1])
        place = self.placement
        documents = len(self.bounds) - 1
        if place is not None and not (
            len(place.slots_T) == self.bounds[-1] and len(place.pages) == len(place.lengths) == documents
        ):
            raise RequestError(
                f"a placement needs a slot a token, and pages and a length for each of {documents} documents"
            )
        if place is not None:
            _check_ids("slots_T", place.slots_T)
            for table in place.pages:
                _check_ids("pages", table)

    @classmethod
    def of(
        cls,
        documents: Sequence[Sequence[int] | Tensor],
        *,
        device: torch.device | str = "cpu",
        limit: ExpertLimit | None = None,
    ) -> Batch:
        """Whole documents of token ids, each from position 0, all of one limit."""
        lengths = [len(document) for document in documents]
        if not lengths or 0 in lengths:  # before a tensor is made of nothing
            raise RequestError("a batch needs at least one document, and each at least one token")
        flat = list(chain.from_iterable(d.tolist() if isinstance(d, Tensor) else d for d in documents))
        return cls(
            bounds=tuple(accumulate(lengths, initial=0)),
            positions_T=torch.cat([torch.arange(n, device=device) for n in lengths]),
            tokens_T=torch.tensor(flat, dtype=torch.int64, device=device),
            limits=TokenLimits.of([limit], [len(flat)], device),
        )

    def __len__(self) -> int:
        return self.bounds[-1]

    @property
    def last_T(self) -> Tensor:
        """The index of each document's last token (S)."""
        return torch.tensor(self.bounds[1:], device=self.positions_T.device) - 1


def edges(ids: Tensor) -> tuple[int, int]:
    """The least and the largest of them."""
    if ids.numel() <= _FEW:
        values = ids.flatten().tolist()
        return min(values), max(values)
    low, high = ids.aminmax()
    return int(low), int(high)


def _check_ids(name: str, ids: Tensor | None) -> None:
    """Kernels read them as they lie in memory."""
    if ids is not None and ids.dtype != torch.int64:
        raise RequestError(f"{name} is {str(ids.dtype).removeprefix('torch.')}, it must be int64")


@dataclass(frozen=True, slots=True)
class Want:
    """What a forward pass should return.

    `logits`: of `all` positions, of each document's `last`, of `none`, or of the given indices into T. `hidden`: the
    states after the final norm. `routing`: nothing, the `choice` (expert ids and gates), or the `full` record with
    router logits and drops.
    """

    logits: Literal["all", "last", "none"] | Tensor = "all"
    hidden: bool = False
    routing: RecordKind = "none"

    def __post_init__(self) -> None:
        if not isinstance(self.logits, Tensor) and self.logits not in ("all", "last", "none"):
            raise RequestError(f"logits is {self.logits!r:.40}, it must be all, last, none or indices")
        if isinstance(self.logits, Tensor):
            _check_ids("logits", self.logits)
        if self.routing not in get_args(RecordKind):
            raise RequestError(f"routing is {self.routing!r:.40}, it must be one of {', '.join(get_args(RecordKind))}")


@dataclass(frozen=True, slots=True)
class Output:
    """The result of a forward pass: what `Want` asked for, else None."""

    logits_NV: Tensor | None
    hidden_TD: Tensor | None
    routing: Routing | None
