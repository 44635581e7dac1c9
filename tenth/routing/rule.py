"""How a router chooses: the rule that a model's config fixes, and the policy on top of it while a model learns.

T tokens, K active experts, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, get_args

import torch
from torch import Tensor

Score = Literal["softmax", "sigmoid"]
SCORES: tuple[Score, ...] = get_args(Score)
"""What makes scores of logits: a softmax over all experts (arXiv 2101.03961), or a sigmoid each (arXiv 2412.19437)."""


@dataclass(frozen=True, slots=True)
class RouteRule:
    """From logits to experts and gates; a config checks that the numbers fit together.

    An expert's score is its sigmoid, or its logit where scores are a softmax. A router's bias is added to the score for
    the choice only: gates never see it. (A bias b on logits multiplies probabilities by e^b before the choice: the same
    rate of change then means the same at any number of experts.)

    Experts lie in `groups` equal groups, in order of their ids. Only those of the `top_groups` best may be chosen, a
    group being as good as the sum of its two best biased scores (DeepSeek-V3). Gates are the scores of the chosen
    experts: probabilities of the softmax, or sigmoids; they sum to one where `renormalise` is set, and are multiplied
    by `scale`.
    """

    top_k: int
    renormalise: bool = True
    score: Score = "softmax"
    groups: int = 1
    top_groups: int = 1
    scale: float = 1.0

    @property
    def rescales(self) -> bool:
        """Whether gates of fewer experts (`tenth.routing.limit`) are made to sum to what all do: no where these do not.

        Nor where `scale` is `top_k`, as carving sets it: a gate is then about 1, for its expert is an addend of one
        dense layer. One addend less makes no other one larger.
        """
        return self.renormalise and self.scale != self.top_k


@dataclass(frozen=True, slots=True, eq=False)
class LayerPolicy:
    """A `RoutingPolicy` as one layer sees it: the layer's `capacity`, and `removed_E`, its experts that are gone."""

    capacity: float | None = None
    noise: float = 0.0
    seed: int = 0
    real_T: Tensor | None = None
    removed_E: Tensor | None = None

    def left(self, scores: Tensor) -> Tensor:
        """Logits or biases (..., E) by which no removed expert is chosen, nor has a share in the gates of others."""
        return scores if self.removed_E is None else scores.masked_fill(self.removed_E.to(scores.device), -torch.inf)

    def noisy(self, logits_TE: Tensor) -> Tensor:
        """The logits that the choice is made of: the same seed, shape and device, the same noise."""
        if not self.noise:
            return logits_TE
        generator = torch.Generator(logits_TE.device).manual_seed(self.seed)
        drawn_TE = torch.empty_like(logits_TE, requires_grad=False).normal_(0, self.noise, generator=generator)
        return logits_TE.detach() + drawn_TE


@dataclass(frozen=True, slots=True, eq=False)
class RoutingPolicy:
    """How routers choose while a model learns or is tried; given to `Decoder.forward` as its routing.

    `capacity` is the factor CF of each sparse layer that has a limit: an expert then takes at most
    ceil(CF * K * real tokens / E) assignments, those of the largest gates; the others are dropped. `noise` is the
    deviation of normal noise on the logits of the choice (not of the gates), `seed` where it comes from. `real_T` is
    False for padding, which takes no capacity. `removed` marks experts of sparse layers (bool, E) that are as if
    they were not there.
    """

    capacity: Mapping[int, float] = field(default_factory=dict)
    noise: float = 0.0
    seed: int = 0
    real_T: Tensor | None = None
    removed: Mapping[int, Tensor] = field(default_factory=dict)

    def at(self, layer: int) -> LayerPolicy:
        """The policy of one layer; each has noise of its own."""
        digest = blake2b(f"{self.seed} {layer}".encode(), digest_size=7).digest()
        seed = int.from_bytes(digest)
        return LayerPolicy(self.capacity.get(layer), self.noise, seed, self.real_T, self.removed.get(layer))
