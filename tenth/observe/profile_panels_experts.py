"""Pictures of pairs of experts and of their outputs, drawn by matplotlib. L sparse layers, E experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tenth.observe.profile_colours import DOMAIN_COLOURS, UNKNOWN_COLOUR
from tenth.observe.profile_sheet import (
    INK,
    SOFT,
    Slot,
    colour_bar,
    diverging,
    heat_map,
    label,
    legend,
    line_key,
    sequential,
    square_key,
)
from tenth.observe.profile_view import LIFT_OCTAVES, ProfileView, colour_range, octaves
from tenth.observe.profile_words import short, supers_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_EDGE = "#c25700"
_FEW = 24  # experts whose names stand upright around the circle


def graph(slot: Slot, view: ProfileView) -> None:
    """Experts of the layer with most structure on a circle, and lines between those that work together."""
    assert view.pairs is not None
    row, experts = view.pairs.row, view.profile.model.experts
    axes = slot.axes(left=0.0, right=0.1, above=0.25, below=0.35)
    axes.set(aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), xticks=[], yticks=[], anchor="N")
    angles = {
        expert: np.pi / 2 - 2 * np.pi * (rank + 0.5) / experts
        for rank, expert in enumerate(view.pairs.lift.orders[row])
    }
    edges = view.pairs.edges[row]
    most = np.log(edges[0][2]) if edges else 1.0
    for i, j, lift, _ in reversed(edges):
        _edge(axes, angles[i], angles[j], float(np.log(lift) / most))
    _discs(axes, view, angles)
    axes.set_title(f"layer {view.profile.model.layers[row]}", fontsize=9, loc="left", fontweight="bold", color=INK)
    if edges:
        words = f"{edges[-1][2]:.2f} ×", f"{edges[0][2]:.2f} × as often as loads explain"
        keys = [line_key(_EDGE, 0.8, words[0]), line_key(_EDGE, 3.2, words[1])]
        legend(axes, keys, "upper center", bbox_to_anchor=(0.5, 0.02), ncols=2)
    else:
        axes.text(0, 0, "no pair is clearly above what loads explain", ha="center", fontsize=9, color=SOFT)


def _edge(axes: Axes, one: float, other: float, strong: float) -> None:
    """A curve that bends to the middle, the more the farther apart its ends are."""
    a, b = (np.array([np.cos(angle), np.sin(angle)]) for angle in (one, other))
    bend = (a + b) / 2 * (0.65 - 0.45 * abs(np.sin((one - other) / 2)))
    t = np.linspace(0, 1, 30)[:, None]
    curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * bend + t**2 * b
    axes.plot(*curve.T, color=_EDGE, linewidth=0.6 + 2.6 * strong, alpha=0.25 + 0.6 * strong)


def _discs(axes: Axes, view: ProfileView, angles: dict[int, float]) -> None:
    assert view.pairs is not None
    row, experts = view.pairs.row, len(angles)
    step = max(1, experts // 64)
    for rank, (expert, angle) in enumerate(angles.items()):
        load, served = view.loads_LE[row, expert], view.served_LE[row, expert]
        colour = SOFT if served < 0 else DOMAIN_COLOURS[served] if served < len(DOMAIN_COLOURS) else "#999999"
        size = min(14.0, 640.0 / experts)
        size = min(size, max(3.0, 0.6 * size * np.sqrt(np.nan_to_num(load))))
        at = np.cos(angle), np.sin(angle)
        axes.plot(*at, "o", color=colour, markersize=size, markeredgecolor="white", markeredgewidth=0.5)
        if rank % step == 0:
            flip = at[0] < 0
            turn = 0.0 if experts <= _FEW else np.degrees(angle) + (180 if flip else 0)
            axes.text(1.07 * at[0], 1.07 * at[1], str(expert), rotation=turn, rotation_mode="anchor", fontsize=7,
                      ha="right" if flip else "left", va="center", color=SOFT)  # fmt: skip


def matrix(slot: Slot, view: ProfileView) -> None:
    """Lifts of the same layer's pairs, in the same order."""
    from matplotlib.colors import Normalize

    assert view.pairs is not None
    row = view.pairs.row
    order = view.pairs.lift.orders[row]
    axes, norm = slot.axes(right=0.75, above=0.25), Normalize(-LIFT_OCTAVES, LIFT_OCTAVES)
    cells_EE = octaves(view.pairs.lift.values_EE[row][np.ix_(order, order)])
    np.fill_diagonal(cells_EE, np.nan)
    axes.imshow(cells_EE, cmap=diverging(), norm=norm, interpolation="nearest")
    axes.set_anchor("NW")
    step = max(1, -(-len(order) // 20))
    names = [str(expert) for expert in order[::step]]
    axes.set_xticks(range(0, len(order), step), names, rotation=90 if len(order) > _FEW else 0)
    axes.set_yticks(range(0, len(order), step), names)
    label(axes, "experts, alike side by side")
    axes.set_title(f"layer {view.profile.model.layers[row]}", fontsize=9, loc="left", fontweight="bold", color=INK)
    ticks = {-2.0: "¼ ×", -1.0: "½", 0.0: "1", 1.0: "2", 2.0: "4 ×"}
    place = Slot(slot.figure, slot.left, slot.top - 0.25, slot.width, slot.height - 0.25)
    colour_bar(place, diverging(), norm, ticks)


def outputs(part: str) -> Callable[[Slot, ProfileView], None]:
    """A heat map of norms, saliency or peaks, on a logarithmic scale."""

    def draw(slot: Slot, view: ProfileView) -> None:
        from matplotlib.colors import LogNorm

        sums = view.profile.outputs
        assert sums is not None
        values_LE = {"norms": view.profile.norms_LE, "saliency": view.profile.saliency_LE, "peaks": sums.peaks_LE}[part]
        assert values_LE is not None
        low, high = colour_range(values_LE)
        width = min(slot.width, 2.0 + 0.6 * view.profile.model.experts)
        slot = Slot(slot.figure, slot.left, slot.top, width, slot.height)
        below = 0.8 if part == "peaks" else 0.5
        axes, norm = slot.axes(right=0.75, below=below), LogNorm(low, high, clip=True)
        cells_LE = np.ma.masked_array(np.maximum(values_LE, low), (sums.counts_LE == 0) | ~np.isfinite(values_LE))
        heat_map(axes, sequential()(norm(cells_LE)), view.profile.model.layers)
        colour_bar(slot, sequential(), norm, {at: short(at) for at in (low, (low * high) ** 0.5, high)})
        keys = [square_key(UNKNOWN_COLOUR, "no work measured")]
        if part == "peaks":
            for row, expert in view.supers:
                axes.plot(expert, row, "o", markersize=9, fillstyle="none", color="white", markeredgewidth=3.5)
                axes.plot(expert, row, "o", markersize=9, fillstyle="none", color=INK, markeredgewidth=1.5)
            slot.say(supers_line(view), slot.height - 0.1)
        legend(axes, keys, "upper right", bbox_to_anchor=(1.0, -0.22 / max(slot.height - below, 0.3)))

    return draw
