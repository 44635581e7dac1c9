"""`tenth plot`: pictures of training runs, or of a routing profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    what: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|PROFILE", help="Folders of runs, which share one picture; or a profile."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A .png, .svg or .pdf, for a profile also .html; replaced.",
            show_default="RUN/plot.png of the first; the profile's name with .html",
        ),
    ] = None,
) -> None:
    """Draw loss, speed and balance of training runs; or load, domains, pairs and outputs of a profile's experts."""
    from tenth.errors import RequestError
    from tenth.observe.profile_plot import plot_profile
    from tenth.observe.run_plot import plot_runs

    if all(path.is_dir() for path in what):
        place = out or what[0] / "plot.png"
        plot_runs(what, place)
    elif len(what) == 1:
        place = out or what[0].with_suffix(".html")
        plot_profile(what[0], place)
    else:
        file = next(path for path in what if not path.is_dir())
        raise RequestError(f"{file}: is no run; a profile is drawn by itself, runs are folders")
    print(place)
