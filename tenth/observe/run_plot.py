"""A picture of training runs: loss, speed and balance over the tokens learned from, several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenth.errors import RequestError
from tenth.observe.figure_file import check_format, new_figure, save_figure
from tenth.train.run_log import LOG_NAME, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# told apart by people who see colours otherwise too (Okabe and Ito, 2008)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_WINDOW = 40  # parts of a run that noisy values are averaged over
_COLUMNS = 3
_MOST_RUNS = len(COLOURS)


@dataclass(frozen=True, slots=True)
class RunRecords:
    """A run's log by kind."""

    name: str
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    skips: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> RunRecords:
        """The log in a run's folder; RequestError where there is none, or no step in it yet."""
        path = folder / LOG_NAME
        if not path.is_file():
            raise RequestError(f"{folder}: is no run: it has no {LOG_NAME}")
        kinds: dict[str, list[dict[str, Any]]] = {"step": [], "evaluation": [], "skip": []}
        for record in read_log(path):
            kinds.get(record.get("kind", ""), []).append(record)
        if not kinds["step"]:
            raise RequestError(f"{path}: has no step yet, there is nothing to draw")
        return cls(folder.resolve().name, kinds["step"], kinds["evaluation"], kinds["skip"])


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of the figure; `shown` says whether a run has anything for it."""

    title: str
    draw: Callable[[Axes, Sequence[RunRecords]], None]
    shown: Callable[[RunRecords], bool]


def plot_runs(folders: Sequence[Path], out: Path) -> None:
    """Draw the runs of these folders and write `out` (.png, .svg or .pdf), which is replaced.

    RequestError for a folder that is no run or another ending, MachineError where matplotlib is missing or the disk
    refuses.
    """
    check_format(out)
    if not 1 <= len(folders) <= _MOST_RUNS:
        raise RequestError(f"{len(folders)} runs are named; one picture holds 1 to {_MOST_RUNS}")
    save_figure(draw_runs([RunRecords.read(folder) for folder in folders]), out)


def draw_runs(runs: Sequence[RunRecords]) -> Figure:
    """A figure with a panel for everything that one of the runs has logged."""
    panels = [panel for panel in PANELS if any(panel.shown(run) for run in runs)]
    rows = math.ceil(len(panels) / _COLUMNS)
    figure = new_figure(figsize=(4.6 * _COLUMNS, 3.3 * rows + 0.5), dpi=110, layout="constrained")
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, _COLUMNS, number)
        panel.draw(axes, runs)
        axes.set_title(panel.title, fontsize=10, loc="left", fontweight="bold")
        axes.set_xlabel("tokens", fontsize=9)
        axes.xaxis.set_major_formatter(lambda tokens, _: _short(tokens))
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7.5, frameon=False)
    if len(runs) > 1:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=c, linewidth=2, label=run.name) for run, c in zip(runs, COLOURS, strict=False)]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(runs), fontsize=9, frameon=False)
    return figure


def _short(tokens: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(tokens) >= size:
            return f"{tokens / size:g}{letter}"
    return f"{tokens:g}"


def _points(records: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Tokens and values of the records that have the key."""
    known = [record for record in records if record.get(key) is not None]
    return [record["tokens"] for record in known], [record[key] for record in known]


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbours on both sides, a fortieth of all together."""
    reach = len(values) // (2 * _WINDOW)
    windows = (values[max(at - reach, 0) : at + reach + 1] for at in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _noisy(key: str, unit: str) -> Callable[[Axes, Sequence[RunRecords]], None]:
    """Draws the values of steps in pale, and their moving mean."""

    def draw(axes: Axes, runs: Sequence[RunRecords]) -> None:
        for run, colour in zip(runs, COLOURS, strict=False):
            tokens, values = _points(run.steps, key)
            axes.plot(tokens, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(tokens, smoothed(values), color=colour, linewidth=1.5)
        axes.set_ylabel(unit, fontsize=9)

    return draw


def _training_loss(axes: Axes, runs: Sequence[RunRecords]) -> None:
    _noisy("loss", "nats a token")(axes, runs)
    for run, colour in zip(runs, COLOURS, strict=False):
        if run.skips:
            lowest = min(_points(run.steps, "loss")[1])
            at = [record["tokens"] for record in run.skips]
            axes.plot(at, [lowest] * len(at), "x", color=colour, label="batch left out")


def _held_out_loss(axes: Axes, runs: Sequence[RunRecords]) -> None:
    """Every domain of a single run; of several runs all domains together."""
    if len(runs) == 1:
        names = list(dict.fromkeys(name for record in runs[0].evaluations for name in record.get("domains", {})))
        for name, colour in zip(names, cycle(COLOURS), strict=False):
            found = [(r["tokens"], r["domains"][name]) for r in runs[0].evaluations if name in r.get("domains", {})]
            _interval(axes, [(tokens, domain) for tokens, domain in found], colour, name)
    else:
        for run, colour in zip(runs, COLOURS, strict=False):
            _interval(axes, [(r["tokens"], r) for r in run.evaluations if "loss" in r], colour, None)
    axes.set_ylabel("nats a token, 95 % interval", fontsize=9)


def _interval(axes: Axes, found: list[tuple[float, dict[str, Any]]], colour: str, label: str | None) -> None:
    tokens = [at for at, _ in found]
    axes.plot(tokens, [loss["loss"] for _, loss in found], "o-", color=colour, markersize=3, linewidth=1.5, label=label)
    known = [(at, loss) for at, loss in found if loss.get("low") is not None]
    low, high = [loss["low"] for _, loss in known], [loss["high"] for _, loss in known]
    axes.fill_between([at for at, _ in known], low, high, color=colour, alpha=0.15, linewidth=0)


def _several(records: str, unit: str, **keys: str) -> Callable[[Axes, Sequence[RunRecords]], None]:
    """Draws the named keys, each with a kind of line of its own."""

    def draw(axes: Axes, runs: Sequence[RunRecords]) -> None:
        marker = "o" if records == "evaluations" else None
        for (key, label), style in zip(keys.items(), ("-", "--", ":"), strict=False):
            for run, colour in zip(runs, COLOURS, strict=False):
                tokens, values = _points(getattr(run, records), key)
                axes.plot(tokens, values, style, color=colour, linewidth=1.2, marker=marker, markersize=3)
            if label:
                axes.plot([], [], style, color="0.3" if len(runs) > 1 else COLOURS[0], linewidth=1.2, label=label)
        axes.set_ylabel(unit, fontsize=9)

    return draw


def _violation(axes: Axes, runs: Sequence[RunRecords]) -> None:
    """Means over layers; of a single run also from the best to the worst layer."""
    _several("steps", "(max - mean) / mean", max_vio="batch", max_vio_global="window")(axes, runs)
    if len(runs) == 1:
        found = [
            (record["tokens"], [layer["max_vio_global"] for layer in record["layers"].values()])
            for record in runs[0].steps
            if "layers" in record
        ]
        edges = [min(layers) for _, layers in found], [max(layers) for _, layers in found]
        label = "window, layers"
        axes.fill_between([at for at, _ in found], *edges, color=COLOURS[0], alpha=0.15, linewidth=0, label=label)
    axes.set_ylim(bottom=0)


def _logged(key: str, records: str = "steps") -> Callable[[RunRecords], bool]:
    return lambda run: any(record.get(key) is not None for record in getattr(run, records))


PANELS = (
    Panel("Training loss", _training_loss, _logged("loss")),
    Panel("Held-out loss", _held_out_loss, _logged("loss", "evaluations")),
    Panel("Learning rate", _several("steps", "", lr=""), _logged("lr")),
    Panel("Speed", _noisy("tok_s", "tokens a second"), _logged("tok_s")),
    Panel("Norm of the gradient", _noisy("grad_norm", "before clipping"), _logged("grad_norm")),
    Panel("MaxVio", _violation, _logged("max_vio")),
    Panel(
        "Entropy",
        _several("steps", "over log E", load_entropy="of loads", router_entropy="of the router"),
        _logged("load_entropy"),
    ),
    Panel("Dead experts", _several("steps", "a layer, of a batch", dead_experts=""), _logged("dead_experts")),
    Panel(
        "Routing as at the start",
        _several("evaluations", "share of choices", saturation=""),
        _logged("saturation", "evaluations"),
    ),
    Panel("Drift from the profile", _several("evaluations", "bits", drift=""), _logged("drift", "evaluations")),
)
