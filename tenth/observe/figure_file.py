"""Figures as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenth.errors import MachineError, RequestError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")


def check_format(out: Path, formats: tuple[str, ...] = FORMATS) -> None:
    """RequestError for an ending that pictures are not written with."""
    if out.suffix.lower() not in formats:
        raise RequestError(f"{out}: pictures are written as {', '.join(formats)}")


def new_figure(**options: Any) -> Figure:
    """An empty figure; MachineError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MachineError("pictures need matplotlib: `pip install 'tenth[train]'`") from None
    return Figure(**options)


def save_figure(figure: Figure, out: Path) -> None:
    """Write `out`, all or nothing: one that is there is replaced. MachineError where the disk refuses."""
    place = out.with_name(f".{out.name}.partial{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(place)
        place.replace(out)
    except OSError as error:
        raise MachineError(f"{out}: cannot be written: {error.strerror}") from None
