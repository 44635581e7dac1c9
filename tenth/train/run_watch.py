"""What a run is watched by: held-out loss, the drift of its routing, its speed. T tokens, K active experts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tenth.data.collate import TrainBatch, collate
from tenth.model.batch import Output, Want
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.routing.measures import max_violation, saturation
from tenth.routing.record import Routing
from tenth.train.balance_loss import choice_counts
from tenth.train.corpus import Corpus
from tenth.train.device import moved
from tenth.train.evaluate import evaluate
from tenth.train.peak import product_peak
from tenth.train.recipe import Recipe

_PROBE_ROWS = 2


class Probe:
    """A few rows whose routing at the start is kept: `saturation` is how much of it still holds (OLMoE, eq. 5)."""

    def __init__(self, decoder: Decoder, batch: TrainBatch) -> None:
        self._decoder, self._batch = decoder, batch
        moe = decoder.config.moe
        shape = (len(batch.batch), moe.top_k if moe is not None else 0)
        self.ids = {index: torch.zeros(shape, dtype=torch.int64) for index in decoder.config.sparse_layers}
        """Expert ids (T, K) of each sparse layer at the start; part of a run's checkpoint."""

    def begin(self) -> None:
        """Keep the routing as it is now."""
        for index, layer in self._routing().layers.items():
            self.ids[index].copy_(layer.experts_TK)

    def saturation(self) -> dict[int, float]:
        """The mean share of the experts chosen at the start that are chosen now, by layer; k/E is chance."""
        now = self._routing()
        then = {i: replace(layer, experts_TK=self.ids[i]) for i, layer in now.layers.items()}
        return saturation(Routing(then), now)

    @torch.no_grad()
    def _routing(self) -> Routing:
        output: Output = self._decoder(self._batch.batch, want=Want(logits="none", routing="choice"))
        assert output.routing is not None, "asked for"
        return output.routing.detach()


class Counts:
    """Choices of experts over an evaluation, by layer."""

    def __init__(self) -> None:
        self.layers: dict[int, Tensor] = {}

    def take(self, routing: Routing, real_T: Tensor) -> None:
        """Add a batch's."""
        for index, layer in routing.layers.items():
            counts_E = choice_counts(layer.experts_TK, layer.num_experts, real_T).cpu()
            self.layers[index] = self.layers.get(index, 0) + counts_E

    def max_violation(self) -> float | None:
        """MaxVio, mean over layers; None of a dense model."""
        if not self.layers:
            return None
        return sum(max_violation(counts_E) for counts_E in self.layers.values()) / len(self.layers)


class RunWatch:
    """Evaluations of a run."""

    def __init__(self, recipe: Recipe, decoder: Decoder, corpus: Corpus) -> None:
        self._recipe, self._decoder, self._corpus = recipe, decoder, corpus
        length = recipe.stage[0].length
        rows = self._corpus.held_out(length)[0][:_PROBE_ROWS] if recipe.evaluation.source else []
        if not rows:
            loader = corpus.loader(0)
            rows = [loader.next() for _ in range(_PROBE_ROWS)]
        self.probe = Probe(decoder, moved(collate(rows), decoder.device)) if decoder.config.sparse_layers else None

    def evaluation(self, stage: int) -> dict[str, Any]:
        """Held-out loss by domain, and what routing has become, as a record of the log."""
        started = time.perf_counter()
        record: dict[str, Any] = {"kind": "evaluation"}
        options = self._recipe.stage[stage]
        if self._recipe.evaluation.source:
            rows, names = self._corpus.held_out(self._recipe.evaluation.length or options.length)
            counts = Counts()
            losses = evaluate(self._decoder, rows, names, rows=options.rows, watch=counts.take)
            record |= {name: getattr(losses["all"], name) for name in ("loss", "low", "high", "perplexity")}
            record["domains"] = {
                name: asdict(loss) | {"perplexity": loss.perplexity} for name, loss in losses.items() if name != "all"
            }
            record["max_vio"] = counts.max_violation()
        if self.probe is not None:
            layers = self.probe.saturation()
            record["saturation"] = sum(layers.values()) / len(layers)
            record["layers"] = {index: {"saturation": value} for index, value in layers.items()}
        return record | {"seconds": time.perf_counter() - started}


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of steps beside `peak`, the operations a second that products of matrices reach here."""

    peak: float

    @classmethod
    def measured(cls, decoder: Decoder) -> Speed:
        """Measure the peak of the type that the decoder computes in."""
        return cls(product_peak(decoder.dtype, decoder.device))

    def of(self, config: ModelConfig, batches: Sequence[TrainBatch], seconds: float) -> dict[str, float]:
        """Tokens a second, and MFU: operations of forward and backward (three times forward) over the peak's."""
        tokens = sum(len(batch.batch) for batch in batches)
        flops = 3 * sum(forward_flops(config, batch.batch.bounds) for batch in batches)
        return {"tok_s": tokens / seconds, "mfu": flops / seconds / self.peak, "seconds": seconds}


def forward_flops(config: ModelConfig, bounds: Sequence[int]) -> int:
    """Operations of a forward pass over documents: a token attends to those before it in its document, and itself."""
    base, each = config.flops_per_token(0), config.flops_per_token(1) - config.flops_per_token(0)
    seen = sum((end - start) * (end - start + 1) // 2 for start, end in pairwise(bounds))
    return base * bounds[-1] + each * seen
