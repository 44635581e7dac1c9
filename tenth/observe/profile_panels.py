"""Each picture of a routing profile, drawn by matplotlib. L sparse layers, E experts, D domains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tenth.files import printable
from tenth.observe.profile_colours import DOMAIN_COLOURS, EVEN
from tenth.observe.profile_panels_experts import graph, matrix, outputs
from tenth.observe.profile_sheet import (
    ACCENT,
    BAND,
    INK,
    SOFT,
    Slot,
    colour_bar,
    diverging,
    heat_map,
    label,
    lattice,
    legend,
    legend_above,
    line_key,
    plain,
    rounded_row,
    sequential,
    square_key,
)
from tenth.observe.profile_view import OCTAVES, ProfileView, octaves

OTHER = "#999999"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: its height in inches, how it is drawn, whether it is there, and why it cannot be drawn if so."""

    name: str
    height: Callable[[ProfileView], float]
    draw: Callable[[Slot, ProfileView], None]
    why: Callable[[ProfileView], str] = lambda view: ""
    shown: Callable[[ProfileView], bool] = lambda view: True


def _rows_height(view: ProfileView) -> float:
    layers = len(view.profile.model.layers)
    return min(max(min(0.3 * layers, 3.0), 0.095 * layers), 12.0) + 0.5


def _map_slot(slot: Slot, view: ProfileView) -> Slot:
    """As wide as the experts need."""
    return Slot(slot.figure, slot.left, slot.top, min(slot.width, 2.0 + 0.6 * view.profile.model.experts), slot.height)


def _loads(slot: Slot, view: ProfileView) -> None:
    from matplotlib.colors import Normalize

    slot = _map_slot(slot, view)
    axes, norm = slot.axes(right=1.5), Normalize(-OCTAVES, OCTAVES)
    cells_LEC = diverging()(norm(np.ma.masked_invalid(octaves(view.loads_LE))))
    dead_LE = view.profile.counts.counts_LE == 0
    cells_LEC[dead_LE] = (0.1, 0.11, 0.13, 1.0)
    heat_map(axes, cells_LEC, view.profile.model.layers)
    rows, experts = dead_LE.nonzero()
    axes.plot(experts, rows, "x", color="white", markersize=3, markeredgewidth=0.8)
    names = {-3.0: "⅛ ×", -2.0: "¼", -1.0: "½", 0.0: "mean", 1.0: "2", 2.0: "4", 3.0: "8 ×"}
    colour_bar(Slot(slot.figure, slot.left, slot.top, slot.width - 0.7, slot.height), diverging(), norm, names)
    legend(axes, [square_key(INK, "dead")], "upper right", bbox_to_anchor=(1.0, -0.22 / (slot.height - 0.5)))


def _curves(slot: Slot, view: ProfileView) -> None:
    axes = slot.axes()
    curves_LE, experts = 100 * view.curves_LE, view.profile.model.experts
    ranks = np.arange(1, experts + 1)
    axes.plot(ranks, curves_LE.T, color=SOFT, linewidth=0.7, alpha=0.3 if len(curves_LE) > 12 else 0.6)
    axes.axhline(100 / experts, color=INK, linewidth=1.2, linestyle="--")
    known_LE = curves_LE[np.isfinite(curves_LE).all(1)]
    axes.plot(ranks, known_LE.mean(0), color=ACCENT, linewidth=2.5)
    axes.set_xlim(1, max(experts, 2))
    lattice(axes)
    label(axes, "rank of expert, busiest first", "% of the layer's work")
    legend_above(axes, [line_key(SOFT, 0.7, "one layer"), line_key(ACCENT, 2.5, "mean of layers"),
                        line_key(INK, 1.2, f"ideal, 1 / {experts}", "--")])  # fmt: skip


def _layers(slot: Slot, view: ProfileView) -> None:
    counts = view.profile.counts
    parts = {
        "Router entropy": counts.router_entropy_L,
        "Load entropy": counts.load_entropy_L,
        "MaxVio": counts.max_violation_L,
    }
    if counts.broken_L.any():
        parts["Broken tokens"] = counts.broken_L.astype(np.float64)
    wide = slot.width / len(parts)
    for number, (name, values_L) in enumerate(parts.items()):
        axes = Slot(slot.figure, slot.left + number * wide, slot.top, wide, slot.height).axes(above=0.25, right=0.2)
        _by_layer(axes, view)
        axes.plot(values_L, "o-", color=ACCENT, markersize=2.5, linewidth=1.5)
        axes.set_title(name, fontsize=9, loc="left", fontweight="bold", color=INK)
        lattice(axes)
        if name.endswith("entropy"):
            axes.set_ylim(0, 1.03)
        if not np.isfinite(values_L).any():
            axes.text(0.5, 0.5, "unknown", transform=axes.transAxes, ha="center", color=SOFT, fontsize=9)


def _by_layer(axes: object, view: ProfileView) -> None:
    layers = view.profile.model.layers
    step = max(1, -(-len(layers) // 8))
    axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])  # type: ignore[attr-defined]
    axes.set_xlim(-0.3, len(layers) - 0.7)  # type: ignore[attr-defined]
    label(axes, "layer")  # type: ignore[arg-type]


def _strength(slot: Slot, view: ProfileView) -> None:
    assert view.domains is not None
    axes = slot.axes()
    found = [layer.strength for layer in view.domains.layers]
    _by_layer(axes, view)
    axes.fill_between(range(len(found)), 0, [s.high for s in found], color=BAND, alpha=0.6, linewidth=0)
    axes.plot([s.chance for s in found], "--", color=SOFT, linewidth=1.2)
    axes.plot([s.value for s in found], "o-", color=ACCENT, markersize=3, linewidth=1.8)
    lattice(axes)
    label(axes, "layer", "phi²")
    legend_above(axes, [line_key(ACCENT, 1.8, "phi² of the layer"), line_key(SOFT, 1.2, "mean of chance", "--"),
                        square_key(BAND, "95 % of chance")])  # fmt: skip


def _served(slot: Slot, view: ProfileView) -> None:
    from matplotlib.colors import to_rgb

    assert view.domains is not None
    slot = _map_slot(slot, view)
    axes = slot.axes(right=1.5)
    served_LE, parts_LED, names = view.served_LE, view.domains.parts_LED, view.domains.names
    palette = np.array([to_rgb(colour) for colour in (*DOMAIN_COLOURS, OTHER)])
    part_LE = np.take_along_axis(parts_LED, served_LE.clip(0)[:, :, None], 2)
    depth_LE = 0.25 + 0.75 * (np.nan_to_num(part_LE) - 1 / len(names)).clip(0) / (1 - 1 / len(names))
    even = np.array(to_rgb(EVEN))
    colours_LEC = even + (palette[served_LE.clip(0, len(DOMAIN_COLOURS))] - even) * depth_LE
    colours_LEC[served_LE < 0] = even
    colours_LEC[view.profile.counts.counts_LE == 0] = to_rgb(INK)
    heat_map(axes, colours_LEC, view.profile.model.layers)
    keys = [square_key(colour, printable(name, 14)) for colour, name in zip(DOMAIN_COLOURS, names, strict=False)]
    keys += [square_key(OTHER, "another domain")] if len(names) > len(DOMAIN_COLOURS) else []
    legend(
        axes,
        [*keys, square_key(EVEN, "no preference"), square_key(INK, "dead")],
        "upper left",
        bbox_to_anchor=(1.0, 1.0),
    )


def _tops(slot: Slot, view: ProfileView) -> None:
    assert view.domains is not None
    tops, names, layers = view.tops(), view.domains.names, view.profile.model.layers
    wide = min(slot.width, 2.6 + 0.34 * len(tops))
    axes = Slot(slot.figure, slot.left, slot.top, wide, slot.height).axes(left=1.15, right=0.9, above=0.65, below=0.05)
    parts_DN = np.stack([view.domains.parts_LED[row, expert] for row, expert, _ in tops], axis=1)
    axes.imshow(parts_DN, aspect="auto", vmin=0, vmax=1, cmap=sequential(), interpolation="nearest")
    for row, parts_N in enumerate(parts_DN):
        for column, text in enumerate(rounded_row(parts_N)):
            colour = INK if parts_N[column] > 0.6 else "white"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_yticks(range(len(names)), [plain(printable(name, 14)) for name in names])
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(tops)), [f"L{layers[row]} E{expert}" for row, expert, _ in tops], rotation=90)
    for tick, (_, _, domain) in zip(axes.get_xticklabels(), tops, strict=True):
        tick.set_color(INK)
        at = tick.get_position()[0]
        colour = DOMAIN_COLOURS[domain] if domain < len(DOMAIN_COLOURS) else OTHER
        axes.plot([at - 0.45, at + 0.45], [-0.58, -0.58], color=colour, linewidth=3, clip_on=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-0.5, len(tops) - 0.5)
    keys = [square_key(sequential()(part), f"{100 * part:.0f} %") for part in (1.0, 0.5, 0.0)]
    legend(axes, keys, "upper left", bbox_to_anchor=(1.0, 1.05))


def _why_domains(view: ProfileView) -> str:
    return view.why_no_domains


def _why_tops(view: ProfileView) -> str:
    return view.why_no_domains or ("" if view.tops() else "No expert prefers a domain clearly and beyond chance.")


def _why_curves(view: ProfileView) -> str:
    return "" if view.profile.counts.counts_LE.any() else "Not drawn: no expert had anything to do."


def _drawn(why: Callable[[ProfileView], str], height: Callable[[ProfileView], float]) -> Callable[[ProfileView], float]:
    """No more than a sentence's height where nothing is drawn."""
    return lambda view: 0.35 if why(view) else height(view)


def _why_pairs(view: ProfileView) -> str:
    return view.why_no_pairs


def _measured(view: ProfileView) -> bool:
    return view.profile.outputs is not None


def _tops_height(view: ProfileView) -> float:
    return 0.7 + 0.28 * len(view.domains.names if view.domains else ())


PANELS: tuple[tuple[Panel, ...], ...] = (
    (Panel("loads", _rows_height, _loads),),
    (Panel("curves", _drawn(_why_curves, lambda view: 3.2), _curves, _why_curves),),
    (Panel("layers", lambda view: 2.4, _layers),),
    (Panel("strength", _drawn(_why_domains, lambda view: 2.6), _strength, _why_domains),),
    (Panel("served", _drawn(_why_domains, _rows_height), _served, _why_domains),),
    (Panel("tops", _drawn(_why_tops, _tops_height), _tops, _why_tops),),
    (
        Panel("graph", _drawn(_why_pairs, lambda view: 6.2), graph, _why_pairs),
        Panel("matrix", _drawn(_why_pairs, lambda view: 6.2), matrix, _why_pairs),
    ),
    (
        Panel("norms", _rows_height, outputs("norms"), shown=_measured),
        Panel("saliency", _rows_height, outputs("saliency"), shown=_measured),
    ),
    (Panel("peaks", lambda view: _rows_height(view) + 0.3, outputs("peaks"), shown=_measured),),
)
