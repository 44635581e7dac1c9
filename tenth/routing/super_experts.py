"""Super experts: those few whose outputs go far beyond all others' (arXiv 2507.23279). L layers, E experts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def super_experts(peaks_LE: npt.NDArray[np.float32]) -> list[tuple[int, int]]:
    """Places (row, expert) whose largest component is above 99.5 % of all, and above a tenth of the largest of all.

    Of fewer than 200 experts the largest always passes: it says something for models of many experts only. Highest
    first; none where no output was measured.
    """
    if not peaks_LE.any():
        return []
    found = np.argwhere((peaks_LE > np.quantile(peaks_LE, 0.995)) & (peaks_LE > peaks_LE.max() / 10))
    return sorted(((int(row), int(expert)) for row, expert in found), key=lambda at: -float(peaks_LE[at]))
