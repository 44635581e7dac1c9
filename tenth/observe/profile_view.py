"""What the pictures of a routing profile show, in numbers: the page and the figure draw the same ones.

L sparse layers, E experts, D domains. A row is the place of a layer among the sparse ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from tenth.errors import RequestError
from tenth.routing.counts import Floats, Ints
from tenth.routing.profile import RoutingProfile
from tenth.routing.profile_domains import ProfileDomains, profile_domains
from tenth.routing.profile_pairs import expected_pairs, lifts, seriation, strongest, structure
from tenth.routing.super_experts import super_experts

OCTAVES = 3.0
"""Where the colours of loads end: eight times the mean, and an eighth."""
LIFT_OCTAVES = 2.0
"""Where those of lifts end."""
TOPS = 12
"""Specialised experts that are shown of each domain, were there three; more domains share the same room."""
_FEWEST_TOPS = 3
_PERMUTATIONS = 400
_CLEAR = 2.0  # times the mean of the other domains, from which a domain is said to have an expert
_WORKS = 0.25  # of the mean load: what does less is not listed as specialised
_MOST_CELLS = 1_000_000  # of each kind of matrix in a page; more layers than fit are left out


@dataclass(frozen=True, slots=True, eq=False)
class ExpertMatrix:
    """A number for each pair of a layer's experts, symmetric, NaN where nothing is known: by row, with an order.

    A `ratio` is drawn by its logarithm on both sides of 1, a `share` from 0 to 1.
    """

    name: str
    says: str
    scale: Literal["ratio", "share"]
    values_EE: dict[int, Floats]
    orders: dict[int, list[int]]

    @classmethod
    def of(cls, name: str, says: str, scale: Literal["ratio", "share"], values_EE: dict[int, Floats]) -> Self:
        """With experts that are alike side by side."""
        orders = {row: seriation(octaves(values) if scale == "ratio" else values) for row, values in values_EE.items()}
        return cls(name, says, scale, values_EE, orders)

    def only(self, rows: Collection[int]) -> Self:
        """Of some rows."""
        return replace(self, values_EE={row: values for row, values in self.values_EE.items() if row in rows})


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Experts that are chosen together: row to the strongest pairs (i, j, lift, tokens); `row` has most structure."""

    row: int
    edges: dict[int, list[tuple[int, int, float, int]]]
    lift: ExpertMatrix


@dataclass(frozen=True, slots=True, eq=False)
class ProfileView:
    """A profile and what is drawn of it. Where a part is None, the `why` beside it says why."""

    profile: RoutingProfile
    domains: ProfileDomains | None
    why_no_domains: str
    pairs: Pairs | None
    why_no_pairs: str
    matrices: tuple[ExpertMatrix, ...]
    supers: list[tuple[int, int]]
    massive: tuple[int, ...] | None

    @classmethod
    def of(
        cls, profile: RoutingProfile, matrices: Sequence[ExpertMatrix] = (), massive: Sequence[int] | None = None
    ) -> Self:
        """Measure what is drawn; further matrices are shown beside the one of the pairs.

        `massive` are layers with massive activations, without which super experts cannot be told from others that are
        as loud (None: nobody looked).
        """
        domains, why_no_domains = None, ""
        try:
            domains = profile_domains(profile, _PERMUTATIONS)
        except RequestError as error:
            why_no_domains = f"Not drawn: {error}."
        pairs, why_no_pairs = _pairs(profile)
        rows = range(_fitting(profile)) if pairs is None else pairs.edges.keys()
        own = () if pairs is None else (pairs.lift,)
        others = tuple(fewer for matrix in matrices if (fewer := matrix.only(rows)).values_EE)
        there = None if massive is None else [profile.model.layers.index(layer) for layer in massive]
        supers = [] if profile.outputs is None else super_experts(profile.outputs.peaks_LE, there)
        seen = None if massive is None else tuple(massive)
        return cls(profile, domains, why_no_domains, pairs, why_no_pairs, (*own, *others), supers, seen)

    @property
    def loads_LE(self) -> Floats:
        """Assignments over their mean in the layer; NaN where the layer had no work."""
        counts_LE = self.profile.counts.counts_LE
        with np.errstate(invalid="ignore"):
            loads_LE: Floats = counts_LE / counts_LE.mean(1, keepdims=True)
        return loads_LE

    @property
    def curves_LE(self) -> Floats:
        """Shares of each layer's work, the busiest expert first; NaN where it had none."""
        return -np.sort(-self.loads_LE, axis=1) / self.profile.model.experts

    @property
    def served_LE(self) -> Ints:
        """The domain that uses an expert twice as much as others do, and more than chance gives; -1 where none does."""
        if self.domains is None:
            return np.full(self.profile.counts.counts_LE.shape, -1)
        parts_LED = np.nan_to_num(self.domains.parts_LED)
        served_LE = parts_LED.argmax(2)
        least = _CLEAR / (_CLEAR + len(self.domains.names) - 1)
        clear_LED = self.domains.beyond_LED & (parts_LED >= least)
        clear_LE = np.take_along_axis(clear_LED, served_LE[:, :, None], 2)[:, :, 0]
        return np.where(clear_LE, served_LE, -1)

    def tops(self) -> list[tuple[int, int, int]]:
        """The most specialised experts (row, expert, domain), by domain and then by part.

        Taken by N_iD / N_D * log of it over the mean of all domains, so that neither rare nor even ones come first.
        """
        if self.domains is None:
            return []
        shares_LED, parts_LED = self.domains.shares_LED, np.nan_to_num(self.domains.parts_LED)
        names, served_LE = self.domains.names, self.served_LE
        most = max(_FEWEST_TOPS, 3 * TOPS // len(names))
        works_LE = self.loads_LE >= _WORKS
        weight_LED = shares_LED * np.log(np.maximum(parts_LED * len(names), 1.0))
        found = []
        for domain in range(len(names)):
            at = np.argwhere((served_LE == domain) & works_LE)
            best = sorted(at.tolist(), key=lambda place, d=domain: -weight_LED[place[0], place[1], d])[:most]  # type: ignore[misc]
            best.sort(key=lambda place, d=domain: -parts_LED[place[0], place[1], d])  # type: ignore[misc]
            found += [(row, expert, domain) for row, expert in best]
        return found


def octaves(ratio: Floats) -> Floats:
    """log2 of ratios, from -OCTAVES to OCTAVES; 0 is at the end, NaN stays."""
    with np.errstate(divide="ignore"):
        found: Floats = np.clip(np.log2(ratio), -OCTAVES, OCTAVES)
    return found


def colour_range(values: npt.NDArray[np.floating]) -> tuple[float, float]:
    """From where to where logarithmic colours go: the lowest hundredth and the highest of what is above 0."""
    known = values[np.isfinite(values) & (values > 0)]
    if not known.size:
        return 1.0, 2.0
    low, high = float(np.quantile(known, 0.01)), float(known.max())
    return (low, high) if high > low else (low / 2, high * 2)


def _fitting(profile: RoutingProfile) -> int:
    """Layers whose pairs of experts have room in a page."""
    experts = profile.model.experts
    return max(1, _MOST_CELLS // max(experts * (experts - 1) // 2, 1))


def _pairs(profile: RoutingProfile) -> tuple[Pairs | None, str]:
    if profile.model.top_k < 2:
        return None, "Not drawn: each token goes to one expert, there are no pairs."
    pairs_LEE = profile.pairs_LEE
    expected_LEE = expected_pairs(pairs_LEE)
    lift_LEE = lifts(pairs_LEE, expected_LEE)
    known_L = np.isfinite(lift_LEE).any((1, 2))
    if not known_L.any():
        return None, "Not drawn: too few pairs of experts were counted."
    structure_L = np.where(known_L, structure(pairs_LEE, expected_LEE), -np.inf)
    experts = profile.model.experts
    rows = sorted((-structure_L).argsort(kind="stable")[: _fitting(profile)].tolist())
    edges = {
        row: [
            (i, j, lift, int(pairs_LEE[row, i, j]))
            for i, j, lift in strongest(pairs_LEE[row], expected_LEE[row], experts)
        ]
        for row in rows
    }
    says = "pairs of experts chosen together, over what their loads explain"
    lift = ExpertMatrix.of("Co-activation lift", says, "ratio", {row: lift_LEE[row] for row in rows})
    return Pairs(int(structure_L.argmax()), edges, lift), ""
