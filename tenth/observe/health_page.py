"""The pictures of a model that was examined: those of its profile, and how alike its experts are. E experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from tenth.observe.health import Examined
from tenth.observe.health_experts import LayerExperts
from tenth.observe.profile_html import profile_page
from tenth.observe.profile_plot import write_page
from tenth.observe.profile_view import ExpertMatrix, ProfileView
from tenth.routing.counts import Floats

_MATRICES: tuple[tuple[str, str, Callable[[LayerExperts], Tensor | None]], ...] = (
    ("CKA of outputs", "how alike two experts answer the same tokens (linear CKA, U-centred)", lambda e: e.unbiased_EE),
    ("Units in common", "share of hidden units that two experts have in common, beyond chance", lambda e: e.shared_EE),
)


def write_health_page(examined: Examined, out: Path) -> None:
    """Write `out`, a page of HTML, which is replaced; MachineError where the disk refuses."""
    write_page(profile_page(ProfileView.of(examined.profile, likenesses(examined), examined.massive)), out)


def likenesses(examined: Examined) -> list[ExpertMatrix]:
    """Similarities of the experts of each layer where they were compared, from 0 (also for those below) to 1."""
    found = []
    for name, says, similar in _MATRICES:
        values_EE = dict[int, Floats]()
        for row, layer in enumerate(examined.profile.model.layers):
            experts = examined.experts[layer]
            similar_EE = None if experts is None else similar(experts)
            if similar_EE is not None:
                values_EE[row] = np.clip(similar_EE.double().numpy(), 0.0, 1.0)
        if values_EE:
            found.append(ExpertMatrix.of(name, says, "share", values_EE))
    return found
