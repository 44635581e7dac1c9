"""A routing profile: what every expert of a model had to do over some text, in sums that can be added and taken apart.

L sparse layers, E experts, K active experts, T tokens, D domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from tenth.errors import RequestError
from tenth.routing.counts import Assignments, Floats, Ints, RoutingCounts
from tenth.routing.record import Routing
from tenth.routing.rule import Score
from tenth.routing.stacked import StackedLayers, stacked

BLOCKS = 64
"""Parts that a domain's documents are counted in: how much these differ tells what chance is."""
SERVED = "served"
"""The domain of what a server computed."""


@dataclass(frozen=True, slots=True)
class ProfiledModel:
    """Whose routers they are. `version` tells the weights of one model from another's (`tenth.model.version`)."""

    name: str
    version: str
    layers: tuple[int, ...]
    experts: int
    top_k: int
    score: Score = "softmax"


@dataclass(slots=True, eq=False)
class OutputSums:
    """Of assignments whose outputs were measured: how many, and sums of ||f(x)|| and of gate * ||f(x)||.

    `saliency_LE / counts_LE` is what REAP prunes by (arXiv 2510.13999, eq. 9). `peaks_LE` is the largest component of
    any output, by which super experts are found (arXiv 2507.23279).
    """

    counts_LE: Ints
    norms_LE: Floats
    saliency_LE: Floats
    peaks_LE: npt.NDArray[np.float32]

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> Self:
        """Of nothing."""
        return cls(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape), np.zeros(shape, np.float32))

    def add(self, other: OutputSums, times: int = 1) -> None:
        """Add what was measured elsewhere, or take it away with -1: the largest components stay as they are."""
        self.counts_LE += times * other.counts_LE
        self.norms_LE += times * other.norms_LE
        self.saliency_LE += times * other.saliency_LE
        if times > 0:
            np.maximum(self.peaks_LE, other.peaks_LE, out=self.peaks_LE)


@dataclass(slots=True, eq=False)
class Block:
    """Some documents of a domain: their tokens, and each expert's assignments."""

    tokens: int
    counts_LE: Ints


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `begin` to `end` of a record: of which domain, and which block of its documents."""

    begin: int
    end: int
    domain: str
    block: int = 0


@dataclass(slots=True, eq=False)
class RoutingProfile:
    """Sums over the tokens of some text: counts, gates and entropy of routers; by domain; by pairs of experts.

    `pairs_LEE` are tokens that chose both, the diagonal those that chose one. `blocks` has the counts of each domain's
    documents in up to `BLOCKS` parts. `outputs` is None where no outputs were measured. `extremes_L` is the largest
    magnitude in the stream behind each sparse layer, 0 where it was not looked at.
    """

    model: ProfiledModel
    counts: RoutingCounts
    pairs_LEE: Ints
    blocks: dict[tuple[str, int], Block] = field(default_factory=dict)
    outputs: OutputSums | None = None
    extremes_L: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    @classmethod
    def empty(cls, model: ProfiledModel) -> Self:
        """Of no text."""
        counts = RoutingCounts.empty(model.layers, model.experts)
        pairs_LEE = np.zeros((len(model.layers), model.experts, model.experts), np.int64)
        return cls(model, counts, pairs_LEE, extremes_L=np.zeros(len(model.layers), np.float32))

    def take(self, routing: Routing, spans: Sequence[Span]) -> None:
        """Add a record whose tokens are all in one of the spans."""
        step = stacked(routing)
        if step is not None:
            self.take_steps([step], spans)

    def take_steps(
        self, steps: Sequence[StackedLayers], spans: Sequence[Span], work: Assignments | None = None
    ) -> None:
        """Add the records of some steps, whose tokens are numbered through; `work` as of `RoutingCounts.take`."""
        if not steps:
            return
        work = work or Assignments.of(steps)
        self.counts.take(steps, work)
        self.pairs_LEE += work.pairs()
        for span in spans:
            self._block(span.domain, span.block).tokens += span.end - span.begin
            self._block(span.domain, span.block).counts_LE += work.part(span.begin, span.end).sums()
        if all(step.norms_LTK is not None for step in steps):
            self._measure(steps, work)

    def _block(self, domain: str, number: int) -> Block:
        key = (domain, number)
        if key not in self.blocks:
            self.blocks[key] = Block(0, np.zeros_like(self.counts.counts_LE))
        return self.blocks[key]

    def _measure(self, steps: Sequence[StackedLayers], work: Assignments) -> None:
        norms_LTK = np.concatenate([_numpy(step.norms_LTK) for step in steps], axis=1)
        peaks_LTK = np.concatenate([_numpy(step.peaks_LTK) for step in steps], axis=1)
        sums = self.outputs = self.outputs or OutputSums.empty(self.counts.counts_LE.shape)
        finite_LTK = np.isfinite(norms_LTK)
        if finite_LTK.all():
            sums.counts_LE += work.sums()
        else:  # what is no number is in no sum: its expert's peak tells of it
            sums.counts_LE += work.sums(finite_LTK.astype(np.float64)).astype(np.int64)
            norms_LTK = np.where(finite_LTK, norms_LTK, 0)
        sums.norms_LE += work.sums(norms_LTK)
        sums.saliency_LE += work.sums(norms_LTK.astype(np.float64) * work.gates_LTK)
        np.maximum(sums.peaks_LE, work.peaks(peaks_LTK), out=sums.peaks_LE)

    def add(self, other: RoutingProfile, times: int = 1) -> Self:
        """Add a profile of the same model, or take away with -1 what is part of this one; returns itself.

        The largest components and magnitudes cannot be taken away. RequestError for another model's, and where more
        would be taken away than there is: this profile is then as it was.
        """
        self._check(other, times)
        self.counts.add(other.counts, times)
        self.pairs_LEE += times * other.pairs_LEE
        for (domain, number), block in other.blocks.items():
            own = self._block(domain, number)
            own.tokens += times * block.tokens
            own.counts_LE += times * block.counts_LE
        self.blocks = {key: block for key, block in self.blocks.items() if block.tokens}
        if other.outputs is not None:
            self.outputs = self.outputs or OutputSums.empty(self.counts.counts_LE.shape)
            self.outputs.add(other.outputs, times)
        if times > 0:
            self.extremes_L = np.maximum(self.extremes_L, other.extremes_L)
        return self

    def _check(self, other: RoutingProfile, times: int) -> None:
        check_same_model(self.model, other.model)
        if times > 0:
            return
        none = Block(0, np.zeros_like(self.counts.counts_LE))
        for key, block in other.blocks.items():
            own = self.blocks.get(key, none)
            if own.tokens < block.tokens or (own.counts_LE < block.counts_LE).any():
                raise RequestError(f"the profile to take away is no part of this one: it has more of domain {key[0]!r}")
        if self._lacks(other):
            raise RequestError("the profile to take away is no part of this one: it was made with more measures")

    def _lacks(self, other: RoutingProfile) -> bool:
        """Whether another one has counts, beside those of blocks, which this one has not."""
        one, two = self.counts, other.counts
        sums = [(self.pairs_LEE, other.pairs_LEE), (one.broken_L, two.broken_L), (one.judged_L, two.judged_L)]
        if other.outputs is not None:
            own = self.outputs or OutputSums.empty(one.counts_LE.shape)
            sums.append((own.counts_LE, other.outputs.counts_LE))
        return any(bool((mine < theirs).any()) for mine, theirs in sums)

    def copy(self) -> Self:
        """The same in memory of its own."""
        return type(self).empty(self.model).add(self)

    def __add__(self, other: RoutingProfile) -> RoutingProfile:
        return self.copy().add(other)

    def __sub__(self, other: RoutingProfile) -> RoutingProfile:
        return self.copy().add(other, -1)

    @property
    def domains(self) -> tuple[str, ...]:
        """Their names, sorted."""
        return tuple(sorted({domain for domain, _ in self.blocks}))

    def by_domain(self) -> Mapping[str, Block]:
        """Each domain's tokens and counts."""
        found: dict[str, Block] = {}
        for (domain, _), block in sorted(self.blocks.items()):
            own = found.setdefault(domain, Block(0, np.zeros_like(block.counts_LE)))
            own.tokens += block.tokens
            own.counts_LE += block.counts_LE
        return found

    @property
    def co_activation_LEE(self) -> Floats:
        """N_ij / N_i: of the tokens that chose expert i, the share that chose j too (OLMoE, arXiv 2409.02060, eq. 6).

        Rows of experts that nobody chose are 0.
        """
        chose_LE = np.maximum(self.counts.counts_LE, 1)
        return self.pairs_LEE / chose_LE[:, :, None]

    @property
    def norms_LE(self) -> Floats | None:
        """Mean norm of each expert's outputs; NaN where it had no work, None where none was measured."""
        return None if self.outputs is None else _mean(self.outputs.norms_LE, self.outputs.counts_LE)

    @property
    def saliency_LE(self) -> Floats | None:
        """Mean of gate * norm of outputs over the tokens that chose the expert (REAP, arXiv 2510.13999, eq. 9)."""
        return None if self.outputs is None else _mean(self.outputs.saliency_LE, self.outputs.counts_LE)


def check_same_model(one: ProfiledModel, other: ProfiledModel) -> None:
    """RequestError unless two profiles are of one model's weights; its name may differ."""
    check_same_shape(one, other)
    if one.version != other.version:
        raise RequestError(f"profiles of two models: {one.name} {one.version[:12]} and {other.name} "
                           f"{other.version[:12]}; their sums cannot be added, only compared")  # fmt: skip


def check_same_shape(one: ProfiledModel, other: ProfiledModel) -> None:
    """RequestError unless two models have the same sparse layers, experts and experts at work."""
    for part, words in (("layers", "sparse layers"), ("experts", "experts"), ("top_k", "experts at work")):
        if getattr(one, part) != getattr(other, part):
            first, second = (getattr(model, part) for model in (one, other))
            if part == "layers":
                first, second = len(first), len(second)
            raise RequestError(f"{one.name} has {first} {words}, {other.name} {second}: their profiles do not compare")


def _mean(sums: Floats, counts: Ints) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.divide(sums, counts, dtype=np.float64)


def _numpy(values: object) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = values.cpu().numpy()  # type: ignore[attr-defined]
    return array
