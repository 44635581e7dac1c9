"""Fewer experts a token where the router is sure: how much of its scores must be heard, and how many experts at most.

T tokens, S documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tenth.errors import RequestError

NO_CAP = 1 << 30
"""The cap of a token that has none: more than any router chooses."""


@dataclass(frozen=True, slots=True)
class ExpertLimit:
    """Of the `top_k` experts that the rule has chosen for a token, these work; the others are dropped.

    In order of the choice the fewest whose scores make up `mass` of the scores of all `top_k`, and never more than
    `cap`; one always stays. A score is what the rule makes gates of: the exponential of a logit, or its sigmoid; a
    router's bias counts for the order alone. `mass` 1 and a `cap` of `top_k` drop nothing, as None does.

    The gates left sum to what all did where the rule rescales (`RouteRule.rescales`): a cap then gives what a model
    with that `top_k` does. Where it does not they stay as they were, and the output loses what the others would have
    added. RequestError for what cannot be.
    """

    mass: float | None = None
    cap: int | None = None

    def __post_init__(self) -> None:
        mass, cap = self.mass, self.cap
        if mass is not None and (type(mass) not in (int, float) or not 0 < mass <= 1):
            raise RequestError(f"expert_mass is {mass!r:.40}, it must be above 0 and at most 1")
        if cap is not None and (type(cap) is not int or cap < 1):
            raise RequestError(f"max_experts is {cap!r:.40}, it must be a whole number of at least 1")

    def fitted(self, top_k: int | None) -> Self | None:
        """The limit for a model whose routers choose `top_k` experts (None: it is dense); None where it drops nothing.

        RequestError where the model is dense, or a cap is above what it chooses.
        """
        if top_k is None:
            raise RequestError("expert_mass and max_experts need a mixture of experts, this model is dense")
        if self.cap is not None and self.cap > top_k:
            raise RequestError(f"max_experts is {self.cap}, this model has {top_k} experts at work on a token")
        return None if self.mass in (None, 1) and self.cap in (None, top_k) else self


@dataclass(frozen=True, slots=True, eq=False)
class TokenLimits:
    """The limits of a batch's tokens: `mass_T` float32 (1: all), `cap_T` int64."""

    mass_T: Tensor
    cap_T: Tensor

    @classmethod
    def of(
        cls, limits: Sequence[ExpertLimit | None], counts: Sequence[int], device: torch.device | str = "cpu"
    ) -> TokenLimits | None:
        """One limit for each document of so many tokens; None where none has any."""
        if not any(limits):
            return None
        repeats_S = torch.tensor(counts)
        mass_S = torch.tensor([1.0 if one is None or one.mass is None else one.mass for one in limits])
        cap_S = torch.tensor([NO_CAP if one is None or one.cap is None else one.cap for one in limits])
        return cls(mass_S.repeat_interleave(repeats_S).to(device), cap_S.repeat_interleave(repeats_S).to(device))

    def check(self, tokens: int) -> None:
        """RequestError unless there is a mass and a cap for each of so many tokens."""
        if self.mass_T.shape != (tokens,) or self.cap_T.shape != (tokens,):
            raise RequestError(f"limits of experts need a mass and a cap for each of the batch's {tokens} tokens")
        if self.mass_T.dtype != torch.float32 or self.cap_T.dtype != torch.int64:
            raise RequestError("limits of experts are float32 (mass) and int64 (cap)")
