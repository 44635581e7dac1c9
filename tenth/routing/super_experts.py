"""Super experts: those few whose outputs go far beyond all others' (arXiv 2507.23279). L layers, E experts."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

_QUANTILE, _PART = 0.995, 0.1


def super_experts(peaks_LE: npt.NDArray[np.floating], massive: Collection[int] | None = None) -> list[tuple[int, int]]:
    """Places (row, expert) whose largest output is above 99.5 % of all and above a tenth of the largest, highest first.

    They lie in rows behind which the stream has massive activations, which `massive` names; where nobody looked (None)
    these are the experts that may be super ones. Peaks that are no finite numbers count for nothing. Of fewer than 200
    experts the largest always is above the others: it says something for models of many experts only.
    """
    known_X = peaks_LE[np.isfinite(peaks_LE)]
    if not known_X.size:
        return []
    least = max(float(np.quantile(known_X, _QUANTILE)), _PART * float(known_X.max()))
    found = np.argwhere((peaks_LE > least) & np.isfinite(peaks_LE)).tolist()
    places = [(row, expert) for row, expert in found if massive is None or row in massive]
    return sorted(places, key=lambda at: -float(peaks_LE[at]))
