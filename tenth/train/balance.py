"""Even use of experts while a model learns: losses, biases, capacity, and the measures of a run's log.

All of it is per layer. Counts are of what routers chose for real tokens, before drops.

T tokens, E experts, D documents, L sparse layers, W global batches of the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tenth.errors import ConfigError, RequestError
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp
from tenth.routing.record import LayerRouting, Routing
from tenth.routing.rule import RoutingPolicy
from tenth.train.balance_batch import GlobalBatch, LayerSums
from tenth.train.balance_loss import (
    choice_counts,
    document_shares,
    log_scores,
    router_terms,
    shares,
    token_weights,
    z_loss,
)

BalanceKind = Literal["none", "micro", "document", "global"]
CountKind = Literal["buffered", "exact"]

_DECAY = 0.9  # of the moving average of loads, a global batch
_LEAST_CAPACITY, _MOST_CAPACITY = 1.0, 2.0  # of one that follows the load; it starts at the most


@dataclass(frozen=True, slots=True)
class BalanceOptions:
    """How experts are kept in balance; ConfigError for values that mean nothing.

    `kind` is where the shares f of the loss are counted: in each micro-batch, in each document (a mean over documents
    weighed by their tokens), in the global batch (arXiv 2501.11873); `none`: no loss. `weight` multiplies its sum over
    layers. Counts of a global batch come from its micro-steps so far (`buffered`), or from a counting pass before the
    gradient (`exact`). `z_weight` multiplies the z-loss of ST-MoE (1e-3 is usual). `bias_rate` is the step of loss-free
    biases (arXiv 2408.15664), once a global batch. `capacity` is a factor for all layers, or `load`: the moving average
    of the layer's largest load over its mean, kept within 1 and 2. `noise` is the deviation of normal noise on the
    logits of choices. `window` is how many global batches the global MaxVio looks back.
    """

    kind: BalanceKind = "global"
    weight: float = 1e-3
    z_weight: float = 0.0
    counts: CountKind = "buffered"
    bias_rate: float = 0.0
    capacity: float | Literal["load"] | None = None
    noise: float = 0.0
    window: int = 32

    def __post_init__(self) -> None:
        if self.kind not in get_args(BalanceKind):
            raise ConfigError(f"balance kind is {self.kind!r}, it must be one of {', '.join(get_args(BalanceKind))}")
        if self.counts not in get_args(CountKind):
            raise ConfigError(f"balance counts is {self.counts!r}, it must be {' or '.join(get_args(CountKind))}")
        for name in ("weight", "z_weight", "bias_rate", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"balance {name} is {getattr(self, name)}, it must be finite and not negative")
        if isinstance(self.capacity, str):
            if self.capacity != "load":
                raise ConfigError(f"balance capacity is {self.capacity!r}, it must be a factor or 'load'")
        elif self.capacity is not None and not 0 < self.capacity < math.inf:
            raise ConfigError(f"balance capacity is {self.capacity}, it must be positive and finite")
        if self.counts == "exact" and self.kind != "global":
            raise ConfigError(f"balance counts is 'exact', which is of kind 'global'; kind is {self.kind!r}")
        if not 1 <= self.window <= 10_000:
            raise ConfigError(f"balance window is {self.window}, it must lie between 1 and 10000 global batches")

    @property
    def learns(self) -> bool:
        """Whether there is a loss."""
        return bool(self.z_weight) or (self.kind != "none" and bool(self.weight))


class Balance:
    """Balance over one run: `begin` a global batch, `policy` and `loss` for each micro-step, `finish` it.

    It owns the counts of the global batch, the window of the last ones and the averages of loads. A model without
    sparse layers has nothing to balance: its loss is 0 and it has no measures.
    """

    def __init__(self, config: ModelConfig, options: BalanceOptions, seed: int = 0) -> None:
        """`seed` is the noise's. ConfigError where the model lacks what options are for: biases, or any router."""
        self.options, self._seed = options, seed
        self._indices = config.sparse_layers
        self._moe = config.moe if self._indices else None
        for name in ("capacity", "noise") if self._moe is None else ():
            if getattr(options, name):
                raise ConfigError(f"balance {name} is for routers, and this model is dense: leave it out")
        if options.bias_rate and not (self._moe and self._moe.expert_bias):
            raise ConfigError("balance bias_rate changes biases that this model's routers lack: set moe expert_bias")
        shape = (len(self._indices), self._moe.num_experts if self._moe else 1)
        self._window_WLE = torch.zeros(options.window, *shape, dtype=torch.int64)
        self._loads_L = torch.full(shape[:1], _MOST_CAPACITY, dtype=torch.float64)
        self._batches = torch.zeros((), dtype=torch.int64)  # finished so far
        self._batch = GlobalBatch(1, 0)
        self.layers: dict[int, dict[str, float]] = {}
        """The measures of the batch that was finished last, by layer."""

    @property
    def counting(self) -> bool:
        """Whether `count` is to see all micro-steps before the first `loss`."""
        return self._moe is not None and self.options.kind == "global" and self.options.counts == "exact"

    def begin(self, tokens: int, step: int) -> None:
        """Start a global batch of so many real tokens, all micro-steps together."""
        if tokens < 1:
            raise RequestError(f"a global batch has {tokens} tokens, it needs at least one")
        self._batch = GlobalBatch(tokens, step)

    def policy(self, micro: int, real_T: Tensor | None = None) -> RoutingPolicy | None:
        """How routers choose in a micro-step, in its counting pass too; None: by the model's rule alone."""
        options = self.options
        if self._moe is None or (options.capacity is None and not options.noise):
            return None
        capacity = dict(zip(self._indices, self._capacities(), strict=True)) if options.capacity is not None else {}
        seed = (self._seed << 64) + (self._batch.step << 24) + micro
        return RoutingPolicy(capacity, options.noise, seed, real_T)

    def _capacities(self) -> list[float]:
        if isinstance(self.options.capacity, int | float):
            return [float(self.options.capacity)] * len(self._indices)
        factors: list[float] = self._loads_L.clamp(_LEAST_CAPACITY, _MOST_CAPACITY).tolist()
        return factors

    def count(self, routing: Routing, real_T: Tensor | None = None) -> None:
        """Take the choices of a micro-step of the counting pass."""
        for index, layer in self._layers_of(routing):
            counts_E = choice_counts(layer.experts_TK, layer.num_experts, real_T)
            self._batch.at(index, layer).counted_E += counts_E

    def loss(self, routing: Routing, bounds: Sequence[int], real_T: Tensor | None = None) -> Tensor:
        """A micro-step's part of the global batch's loss, weights and all; its choices are counted.

        To be added to its part of the cross entropy (a sum over the global batch's number of tokens): the sum over
        micro-steps is the loss of the whole batch. `routing` is the full record.
        """
        parts = [
            self._layer_loss(self._batch.at(index, layer), layer, bounds, real_T)
            for index, layer in self._layers_of(routing)
        ]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    def finish(self, decoder: Decoder) -> dict[str, float]:
        """End the global batch, after the optimiser's step: biases and capacities move on.

        Returns the log's measures, means over layers (`self.layers` has them one by one): `max_vio` of the batch and
        `max_vio_global` of the window, `load_entropy`, `router_entropy`, `dead_experts`, `drops` (the share of choices
        not carried out), `balance_loss` and `z_loss` without their weights, and `capacity` where there is one.
        """
        batch, self._batch = self._batch, GlobalBatch(1, self._batch.step)
        if not batch.layers:
            return {}
        if self.options.bias_rate:
            _move_biases(decoder, batch, self.options.bias_rate)
        counts_LE = torch.stack([sums.counts_E.cpu() for sums in batch.layers.values()])
        self._window_WLE[int(self._batches) % len(self._window_WLE)] = counts_LE
        self._batches += 1
        windows_LE = self._window_WLE.sum(0)
        self.layers = {
            index: sums.measures(window_E)
            for (index, sums), window_E in zip(batch.layers.items(), windows_LE, strict=True)
        }
        if self.options.capacity is not None:
            for layer, capacity in zip(self.layers.values(), self._capacities(), strict=True):
                layer["capacity"] = capacity
        loads_L = torch.stack([sums.load.cpu().double() / max(sums.steps, 1) for sums in batch.layers.values()])
        self._loads_L.mul_(_DECAY).add_(loads_L, alpha=1 - _DECAY)
        names = next(iter(self.layers.values()))
        return {name: sum(layer[name] for layer in self.layers.values()) / len(self.layers) for name in names}

    def state_dict(self) -> dict[str, Tensor]:
        """What outlives a global batch, to be kept with the run: its own tensors, of fixed shapes, to be filled again.

        The step that `begin` is told and the biases, which are the model's parameters, are kept elsewhere.
        """
        return {"window_WLE": self._window_WLE, "loads_L": self._loads_L, "batches": self._batches}

    def _layers_of(self, routing: Routing) -> Iterable[tuple[int, LayerRouting]]:
        if tuple(routing.layers) != self._indices:
            raise RequestError(f"the routing has layers {list(routing.layers)}, the model {list(self._indices)}")
        return routing.layers.items()

    def _layer_loss(self, sums: LayerSums, layer: LayerRouting, bounds: Sequence[int], real_T: Tensor | None) -> Tensor:
        options, logits_TE = self.options, layer.logits_TE
        if logits_TE is None or self._moe is None:
            raise RequestError("balance needs the full record of routing: ask for Want(routing='full')")
        counts_E = sums.take(layer, real_T, limited=options.capacity is not None)
        scores_TE = log_scores(logits_TE if options.learns else logits_TE.detach(), self._moe.rule)
        if options.kind == "document":
            share = document_shares(scores_TE, layer.experts_TK, bounds, real_T)
        else:
            share = shares(self._of_loss(sums, counts_E))
        weight_T = token_weights(scores_TE, real_T, self._batch.tokens)
        loss, z, entropy = router_terms(scores_TE, weight_T, share)
        if self._moe.score == "sigmoid":  # scores are log sigmoids there
            z = z_loss(logits_TE if options.z_weight else logits_TE.detach(), real_T, self._batch.tokens)
        sums.note(loss.detach(), z.detach(), entropy)
        return (options.weight if options.kind != "none" else 0) * loss + options.z_weight * z

    def _of_loss(self, sums: LayerSums, counts_E: Tensor) -> Tensor:
        """The counts that shares are of; `counts_E` are the micro-step's."""
        if self.options.kind != "global":
            return counts_E
        return sums.counted_E if self.options.counts == "exact" else sums.counts_E


@torch.no_grad()
def _move_biases(decoder: Decoder, batch: GlobalBatch, rate: float) -> None:
    """Every bias a step up where its expert has less than the mean of the global batch, down where it has more."""
    blocks = decoder.blocks()
    for index, sums in batch.layers.items():
        mlp = blocks[index].mlp
        assert isinstance(mlp, SparseMlp), "a sparse layer"
        assert mlp.router.bias_E is not None, "checked when the run began"
        counts_E = sums.counts_E
        below_E = torch.sign(counts_E.sum() - counts_E * len(counts_E))  # whole numbers: no rounding decides
        mlp.router.bias_E += rate * below_E.to(mlp.router.bias_E)
