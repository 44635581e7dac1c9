"""The pictures of a routing profile as a file: a page of HTML, or one tall figure."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tenth.errors import MachineError, RequestError
from tenth.files import printable
from tenth.observe.figure_file import FORMATS, check_format, new_figure, save_figure
from tenth.observe.profile_html import profile_page
from tenth.observe.profile_panels import PANELS, Panel
from tenth.observe.profile_sheet import INK, MARGIN, SOFT, WIDTH, Slot, plain
from tenth.observe.profile_view import ProfileView
from tenth.observe.profile_words import CAPTIONS, NO_OUTPUTS, summary
from tenth.routing.profile_file import read_profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEAD, _GAP, _CAPTION = 1.75, 0.45, 0.62  # inches


def plot_profile(path: Path, out: Path) -> None:
    """Draw a profile's file and write `out` (.html, .png, .svg or .pdf), which is replaced.

    RequestError for another ending or a file that cannot be read, FileFormatError for no profile or a broken one,
    MachineError where matplotlib is missing or the disk refuses.
    """
    check_format(out, (".html", *FORMATS))
    if out.resolve() == path.resolve():
        raise RequestError(f"{out}: is the profile itself, its picture needs another place")
    view = ProfileView.of(read_profile(path))
    if out.suffix.lower() == ".html":
        write_page(profile_page(view), out)
    else:
        save_figure(draw_profile(view), out)


def draw_profile(view: ProfileView) -> Figure:
    """One tall figure with the pictures below each other."""
    rows = [row for row in PANELS if any(panel.shown(view) for panel in row)]
    heights = [max(panel.height(view) for panel in row) + _CAPTION + _GAP for row in rows]
    measured = view.profile.outputs is not None
    tall = _HEAD + sum(heights) + MARGIN + (0 if measured else 0.6)
    figure = new_figure(figsize=(WIDTH, tall), dpi=100 if tall < 60 else 60)
    _head(figure, view, tall)
    top = tall - _HEAD
    for row, height in zip(rows, heights, strict=True):
        wide = (WIDTH - 2 * MARGIN - _GAP * (len(row) - 1)) / len(row)
        for number, panel in enumerate(row):
            slot = Slot(figure, MARGIN + number * (wide + _GAP), top, wide, height - _GAP)
            _panel(slot, panel, view)
        top -= height
    if not measured:
        Slot(figure, MARGIN, top, WIDTH - 2 * MARGIN, 0.5).caption("Outputs of experts", NO_OUTPUTS)
    return figure


def _panel(slot: Slot, panel: Panel, view: ProfileView) -> None:
    caption = CAPTIONS[panel.name]
    slot.caption(caption.title, caption.says)
    why = panel.why(view)
    if why:
        slot.say(why, _CAPTION + 0.12)
    else:
        panel.draw(Slot(slot.figure, slot.left, slot.top - _CAPTION, slot.width, slot.height - _CAPTION), view)


def _head(figure: Figure, view: ProfileView, tall: float) -> None:
    title = plain(f"Routing profile of {printable(view.profile.model.name, 70)}")
    figure.text(MARGIN / WIDTH, 1 - 0.55 / tall, title, fontsize=18, fontweight="bold", color=INK)
    facts = [fact for fact in summary(view) if fact[0] != "model"]
    domains = next(value for name, value in facts if name == "domains")
    facts = [fact for fact in facts if fact[0] != "domains"]
    step = (WIDTH - 2 * MARGIN) / len(facts)
    for number, (name, value) in enumerate(facts):
        at = (MARGIN + number * step) / WIDTH
        figure.text(at, 1 - 0.85 / tall, name, fontsize=8, color=SOFT)
        figure.text(at, 1 - 1.05 / tall, plain(value), fontsize=10, fontweight="bold", color=INK)
    figure.text(MARGIN / WIDTH, 1 - 1.32 / tall, plain(f"domains: {printable(domains, 150)}"), fontsize=9, color=SOFT)


def write_page(page: str, out: Path) -> None:
    """Write `out`, all or nothing: one that is there is replaced. MachineError where the disk refuses."""
    place = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(page, "utf-8")
        place.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            place.unlink()
        raise MachineError(f"{out}: cannot be written: {error.strerror}") from None
