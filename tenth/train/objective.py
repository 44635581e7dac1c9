"""What a model learns by: the loss of a micro-batch. T tokens, D model width."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from tenth.data.collate import TrainBatch
from tenth.model.batch import Want
from tenth.model.decoder import Decoder, RunLayer
from tenth.routing.record import RecordKind, Routing
from tenth.routing.rule import RoutingPolicy
from tenth.train.cross_entropy import cross_entropy_sum


class Objective(Protocol):
    """A loss over tokens, with what it wants to be logged."""

    def loss(
        self, decoder: Decoder, batch: TrainBatch, policy: RoutingPolicy | None, run: RunLayer | None
    ) -> tuple[Tensor, dict[str, float], Routing | None]:
        """The loss summed over the tokens that have a target; sums to log beside it; the full routing record.

        The trainer divides sums by the targets of the whole global batch. Dense models have no record.
        """


class LanguageModelling:
    """Cross-entropy of the next token."""

    def loss(
        self, decoder: Decoder, batch: TrainBatch, policy: RoutingPolicy | None, run: RunLayer | None
    ) -> tuple[Tensor, dict[str, float], Routing | None]:
        """Summed over targets, in float32 or wider; logits are never there all at once."""
        want = Want(logits="none", hidden=True, routing=record_kind(decoder))
        output = decoder(batch.batch, want=want, routing=policy, run=run)
        return cross_entropy_sum(output.hidden_TD, decoder.head.weight.dense(), batch.targets_T), {}, output.routing


def record_kind(decoder: Decoder) -> RecordKind:
    """The record that balance needs of this model."""
    return "full" if decoder.config.sparse_layers else "none"
