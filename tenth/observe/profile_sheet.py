"""Places on a tall figure, in inches from its lower left corner, and what all of its pictures share."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from tenth.observe.profile_colours import DIVERGING_LIGHT, UNKNOWN_COLOUR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

WIDTH, MARGIN = 13.0, 0.4
INK, SOFT, LINE, ACCENT, BAND = "#1a1d21", "#5b636d", "#d9dde2", "#0072B2", "#b9bec6"
_LEFT, _BELOW = 0.55, 0.5  # room for numbers beside and below a picture


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a picture: its upper left corner and its size."""

    figure: Figure
    left: float
    top: float
    width: float
    height: float

    def axes(self, left: float = _LEFT, right: float = 0.1, above: float = 0.0, below: float = _BELOW) -> Axes:
        """Axes in this place, less the room at its edges."""
        wide, tall = self.figure.get_size_inches()
        lower = self.top - self.height + below
        size = (self.width - left - right) / wide, (self.height - above - below) / tall
        axes: Axes = self.figure.add_axes(((self.left + left) / wide, lower / tall, *size))
        axes.tick_params(labelsize=8, color=LINE, labelcolor=SOFT, length=2)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def caption(self, title: str, says: str) -> None:
        """A title and a sentence at the top."""
        self._text(title, 0.16, fontsize=12, fontweight="bold", color=INK)
        self.say(says, 0.34)

    def say(self, text: str, below: float) -> None:
        """A sentence, in as many lines as it needs."""
        lines = textwrap.wrap(text, int(self.width * 16.5))
        self._text(plain("\n".join(lines)), below - 0.12, fontsize=8.5, color=SOFT, verticalalignment="top")

    def _text(self, text: str, below: float, **style: Any) -> None:
        wide, tall = self.figure.get_size_inches()
        self.figure.text(self.left / wide, (self.top - below) / tall, text, **style)


def plain(text: str) -> str:
    """Text that is not read as mathematics."""
    return text.replace("$", r"\$")


def diverging() -> Colormap:
    """Blue to orange, pale in the middle."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("balance", list(DIVERGING_LIGHT)).with_extremes(bad=UNKNOWN_COLOUR)


def sequential() -> Colormap:
    """Viridis."""
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(bad=UNKNOWN_COLOUR)


def heat_map(axes: Axes, colours: npt.NDArray[Any], layers: Sequence[int]) -> None:
    """Cells (rows, experts) or (rows, experts, 4), with layers' names at the left."""
    from matplotlib.ticker import MaxNLocator

    axes.imshow(colours, aspect="auto", interpolation="nearest")
    step = max(1, -(-len(layers) // 24))
    axes.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    label(axes, "expert", "layer")


def label(axes: Axes, across: str, up: str = "") -> None:
    """What the axes mean."""
    axes.set_xlabel(across, fontsize=8, color=SOFT, labelpad=2)
    axes.set_ylabel(up, fontsize=8, color=SOFT, labelpad=2)


def colour_bar(slot: Slot, colours: Colormap, norm: Normalize, ticks: dict[float, str]) -> None:
    """A thin bar at the right of a slot, as high as its picture."""
    from matplotlib.cm import ScalarMappable

    height = min(slot.height - _BELOW, 2.6)
    place = Slot(slot.figure, slot.left + slot.width - 0.62, slot.top, 0.62, height)
    axes = place.axes(left=0.0, right=0.5, below=0.0)
    bar = slot.figure.colorbar(ScalarMappable(norm, colours), cax=axes)
    bar.outline.set_visible(False)
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8, labelcolor=SOFT, length=2, color=LINE)


def legend(axes: Axes, keys: Sequence[Any], place: Any, **style: Any) -> None:
    """The keys of a picture, without a frame around them."""
    found = axes.legend(handles=list(keys), loc=place, fontsize=8, frameon=False, labelcolor=SOFT, **style)
    found.set_zorder(9)


def legend_above(axes: Axes, keys: Sequence[Any]) -> None:
    """The keys of a picture in a line above its right corner, where no line of it can run."""
    legend(axes, keys, "lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(keys), borderpad=0.2)


def square_key(colour: Any, text: str) -> Any:
    """A key with a square of colour."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, label=plain(text))


def line_key(colour: str, width: float, text: str, style: Literal["-", "--"] = "-") -> Any:
    """A key with a piece of a line."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linewidth=width, linestyle=style, label=plain(text))


def lattice(axes: Axes) -> None:
    """Pale lines across, and the values from 0 up."""
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_ylim(bottom=0)


def rounded_row(values: npt.NDArray[np.floating]) -> list[str]:
    """Percent without decimals."""
    return [f"{100 * value:.0f}" if np.isfinite(value) else "" for value in values]
