"""`tenth plot`: a picture of training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs; several share one picture.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .png, .svg or .pdf; replaced.", show_default="RUN/plot.png of the first"),
    ] = None,
) -> None:
    """Draw loss, speed and balance of training runs over the tokens they learned from."""
    from tenth.observe.run_plot import plot_runs

    place = out or runs[0] / "plot.png"
    plot_runs(runs, place)
    print(place)
