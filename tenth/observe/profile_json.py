"""The numbers of a profile's page, rounded and packed: bytes in base64 where there are many.

L sparse layers, E experts, D domains.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from tenth.files import printable
from tenth.observe.profile_view import LIFT_OCTAVES, OCTAVES, ExpertMatrix, ProfileView, colour_range
from tenth.routing.counts import Floats

UNKNOWN = -128
"""What stands in a packed matrix for a number that is not known."""


def page_data(view: ProfileView) -> dict[str, Any]:
    """What the page's script draws, fit for JSON: no NaN in it."""
    model, counts = view.profile.model, view.profile.counts
    return {
        "experts": model.experts,
        "layers": list(model.layers),
        "octaves": OCTAVES,
        "liftOctaves": LIFT_OCTAVES,
        "counts": counts.counts_LE.tolist(),
        "byLayer": {
            "Router entropy": _rounded(counts.router_entropy_L),
            "Load entropy": _rounded(counts.load_entropy_L),
            "MaxVio": _rounded(counts.max_violation_L),
            **({"Broken tokens": counts.broken_L.tolist()} if counts.broken_L.any() else {}),
        },
        "domains": _domains(view),
        "pairs": _pairs(view),
        "matrices": [_matrix(matrix) for matrix in view.matrices],
        "outputs": _outputs(view),
    }


def _domains(view: ProfileView) -> dict[str, Any]:
    domains = view.domains
    if domains is None:
        return {"why": view.why_no_domains}
    strengths = [layer.strength for layer in domains.layers]
    tops = [
        [
            row,
            expert,
            domain,
            _rounded(domains.layers[row].low_ED[expert]),
            _rounded(domains.layers[row].high_ED[expert]),
        ]
        for row, expert, domain in view.tops()
    ]
    return {
        "names": [printable(name) for name in domains.names],
        "tokens": domains.tokens_D.tolist(),
        "strength": [_rounded(np.array([s.value, s.chance, s.high, s.p])) for s in strengths],
        "shares": _packed(np.round(domains.shares_LED * 65535).clip(0, 65535).astype("<u2")),
        "served": _packed(view.served_LE.clip(-1, 126).astype("i1")),
        "tops": tops,
    }


def _pairs(view: ProfileView) -> dict[str, Any]:
    if view.pairs is None:
        return {"why": view.why_no_pairs}
    edges = {
        row: [[i, j, float(f"{lift:.3g}"), tokens] for i, j, lift, tokens in found]
        for row, found in view.pairs.edges.items()
    }
    return {"row": view.pairs.row, "edges": edges}


def _matrix(matrix: ExpertMatrix) -> dict[str, Any]:
    rows = sorted(matrix.values_EE)
    return {
        "name": printable(matrix.name),
        "says": printable(matrix.says),
        "scale": matrix.scale,
        "rows": rows,
        "orders": [matrix.orders[row] for row in rows],
        "values": _packed(np.concatenate([_bytes(matrix.values_EE[row], matrix.scale) for row in rows])),
    }


def _bytes(values_EE: Floats, scale: str) -> npt.NDArray[np.int8]:
    """The triangle above the diagonal: 32 steps an octave from -4 to 4, or 127 from 0 to 1."""
    upper = values_EE[np.triu_indices(len(values_EE), 1)]
    with np.errstate(divide="ignore"):
        steps = np.log2(upper) * 32 if scale == "ratio" else upper * 127
    return np.where(np.isnan(steps), UNKNOWN, np.clip(np.round(np.nan_to_num(steps, neginf=-127)), -127, 127)).astype(
        "i1"
    )


def _outputs(view: ProfileView) -> dict[str, Any] | None:
    profile = view.profile
    if profile.outputs is None or profile.norms_LE is None or profile.saliency_LE is None:
        return None
    peaks_LE = np.where(profile.outputs.counts_LE > 0, profile.outputs.peaks_LE, np.nan)
    parts = {"norms": profile.norms_LE, "saliency": profile.saliency_LE, "peaks": peaks_LE}
    return {
        "supers": view.supers,
        **{
            name: {"range": colour_range(part), "values": [_rounded(part_E, 3) for part_E in part]}
            for name, part in parts.items()
        },
    }


def _rounded(values: npt.NDArray[np.floating], digits: int = 4) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]


def _packed(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()
