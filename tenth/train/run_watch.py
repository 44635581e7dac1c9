"""What a run is watched by: held-out loss, the drift of its routing, its speed. T tokens, K active experts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenth.data.collate import TrainBatch
from tenth.data.packing import NO_DOMAIN, Sample
from tenth.errors import RequestError
from tenth.model.batch import Batch, Output, Want
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.routing.counts import RoutingCounts
from tenth.routing.drift import Drift, drift_from
from tenth.routing.measures import max_violation, saturation
from tenth.routing.profile import RoutingProfile
from tenth.routing.profile_file import read_profile
from tenth.routing.record import Routing
from tenth.train.balance_loss import choice_counts
from tenth.train.corpus import Corpus
from tenth.train.evaluate import evaluate
from tenth.train.peak import product_peak
from tenth.train.recipe import Recipe

_PROBE_ROWS = 2  # as many tokens as so many rows of the first stage have


class Probe:
    """Documents whose routing at the start is kept: `saturation` is how much of it still holds (OLMoE, eq. 5).

    They are kept with it in a run's checkpoint, so that the recipe may name other held-out text when the run goes on.
    """

    def __init__(self, decoder: Decoder, tokens: int) -> None:
        """`tokens` is the most that the documents may have."""
        self._decoder = decoder
        moe = decoder.config.moe
        shape = (tokens, moe.top_k if moe is not None else 0)
        self._tokens_T = torch.zeros(tokens, dtype=torch.int64)
        self._bounds = torch.zeros(tokens + 1, dtype=torch.int64)  # of the documents; the last one again and again
        self._ids = {index: torch.zeros(shape, dtype=torch.int64) for index in decoder.config.sparse_layers}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, of shapes that are always the same."""
        ids = {str(index): ids_TK for index, ids_TK in self._ids.items()}
        return {"tokens": self._tokens_T, "bounds": self._bounds, **ids}

    def begin(self, rows: Sequence[Sample]) -> None:
        """Keep the documents of these rows, without their padding, and the routing as it is now."""
        documents = [
            row.tokens_T[start:end]
            for row in rows
            for (start, end), domain in zip(pairwise(row.bounds), row.domains, strict=True)
            if domain != NO_DOMAIN
        ]
        bounds = list(accumulate(map(len, documents), initial=0))
        self._tokens_T[: bounds[-1]] = torch.cat(documents)
        self._bounds.fill_(bounds[-1])[: len(bounds)] = torch.tensor(bounds)
        for index, layer in self._routing().layers.items():
            self._ids[index][: bounds[-1]] = layer.experts_TK

    def saturation(self) -> dict[int, float]:
        """The mean share of the experts chosen at the start that are chosen now, by layer; k/E is chance."""
        now = self._routing()
        then = {i: replace(layer, experts_TK=self._ids[i][: now.num_tokens]) for i, layer in now.layers.items()}
        return saturation(Routing(then), now)

    @torch.no_grad()
    def _routing(self) -> Routing:
        bounds = sorted(set(self._bounds.tolist()))
        documents = [self._tokens_T[start:end] for start, end in pairwise(bounds)]
        batch = Batch.of(documents, device=self._decoder.device)
        output: Output = self._decoder(batch, want=Want(logits="none", routing="choice"))
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

    def drift(self, profile: RoutingProfile) -> Drift:
        """How far the choices are from a profile's; RequestError where it is of other layers or experts."""
        top_k = profile.model.top_k
        seen = RoutingCounts.empty(tuple(self.layers), len(next(iter(self.layers.values()))))
        seen.counts_LE += torch.stack(list(self.layers.values())).numpy()
        seen.tokens = int(seen.counts_LE[0].sum()) // top_k
        return drift_from(profile, seen)


class RunWatch:
    """Evaluations of a run."""

    def __init__(self, recipe: Recipe, decoder: Decoder, corpus: Corpus) -> None:
        self._recipe, self._decoder, self._corpus = recipe, decoder, corpus
        self._length = recipe.stage[0].length
        self.probe = Probe(decoder, _PROBE_ROWS * self._length) if decoder.config.sparse_layers else None
        self._profile = _profile_for(recipe.evaluation.profile, decoder.config)

    def begin(self) -> None:
        """Before the first step: what later states are held against."""
        if self.probe is not None:
            self.probe.begin(self._corpus.probe(_PROBE_ROWS * self._length, self._length))

    def evaluation(self, stage: int) -> dict[str, Any]:
        """Held-out loss by domain, and what routing has become, as a record of the log."""
        started = time.perf_counter()
        record: dict[str, Any] = {"kind": "evaluation"}
        options = self._recipe.stage[stage]
        if self._recipe.evaluation.source:
            rows, names = self._corpus.held_out(self._recipe.evaluation.length or options.length)
            counts = Counts()
            total, domains = evaluate(self._decoder, rows, names, rows=options.rows, watch=counts.take)
            record |= {name: getattr(total, name) for name in ("loss", "low", "high", "perplexity")}
            record["domains"] = {name: asdict(loss) | {"perplexity": loss.perplexity} for name, loss in domains.items()}
            record["max_vio"] = counts.max_violation()
            if self._profile is not None:
                record["drift"] = counts.drift(self._profile).excess
        if self.probe is not None:
            layers = self.probe.saturation()
            record["saturation"] = sum(layers.values()) / len(layers)
            record["layers"] = {index: {"saturation": value} for index, value in layers.items()}
        return record | {"seconds": time.perf_counter() - started}


def _profile_for(path: str, config: ModelConfig) -> RoutingProfile | None:
    if not path:
        return None
    profile, moe = read_profile(Path(path)), config.moe
    shape = (profile.model.layers, profile.model.experts, profile.model.top_k)
    if moe is None or shape != (config.sparse_layers, moe.num_experts, moe.top_k):
        raise RequestError(f"{path}: is a profile of {profile.model.name}: its layers or experts are not this model's")
    return profile


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed of steps beside `peak`, the operations a second that products of matrices reach here.

    `frozen` are the forward operations of a token in matrices that have no gradient.
    """

    peak: float
    frozen: int

    @classmethod
    def measured(cls, decoder: Decoder) -> Speed:
        """Measure the peak of the type that the decoder computes in."""
        return cls(product_peak(decoder.dtype, decoder.device), frozen_flops(decoder))

    def of(self, config: ModelConfig, batches: Sequence[TrainBatch], seconds: float) -> dict[str, float]:
        """Tokens a second, and MFU: operations of forward and backward over the peak's.

        These are three times those of forward, and twice for a frozen matrix, of which there is no gradient.
        """
        tokens = sum(len(batch.batch) for batch in batches)
        flops = 3 * sum(forward_flops(config, batch.batch.bounds) for batch in batches) - self.frozen * tokens
        return {"tok_s": tokens / seconds, "mfu": flops / seconds / self.peak, "seconds": seconds}


def forward_flops(config: ModelConfig, bounds: Sequence[int]) -> int:
    """Operations of a forward pass over documents: a token attends to those before it in its document, and itself."""
    base, each = config.flops_per_token(0), config.flops_per_token(1) - config.flops_per_token(0)
    seen = sum((end - start) * (end - start + 1) // 2 for start, end in pairwise(bounds))
    return base * bounds[-1] + each * seen


def frozen_flops(decoder: Decoder) -> int:
    """Forward operations of a token in matrices that no gradient is computed of; under a low-rank delta one is."""
    moe, tied, active = decoder.config.moe, decoder.config.tie_word_embeddings, 0
    for name, parameter in decoder.named_parameters():
        looked_up = name.startswith("embedding.") and not tied
        if parameter.dim() < 2 or parameter.requires_grad or ".base." in name or looked_up:
            continue
        used, there = (moe.top_k, moe.num_experts) if moe is not None and parameter.dim() == 3 else (1, 1)
        active += parameter.numel() * used // there
    return 2 * active
