"""The page of a routing profile: one file of HTML that loads nothing. What a profile says is escaped."""

from __future__ import annotations

import html
import json
from importlib import resources
from string import Template

from tenth.files import printable
from tenth.observe.profile_colours import DIVERGING_DARK, DIVERGING_LIGHT, DOMAIN_COLOURS
from tenth.observe.profile_json import UNKNOWN, page_data
from tenth.observe.profile_view import ProfileView
from tenth.observe.profile_words import CAPTIONS, NO_OUTPUTS, summary, supers_line

_SCRIPTS = ("draw.js", "pictures.js", "experts.js")
_BESIDE = (("graph", "matrix"), ("norms", "saliency"))


def profile_page(view: ProfileView) -> str:
    """The whole page."""
    return Template(_part("page.html")).substitute(
        title=html.escape(f"Routing profile of {printable(view.profile.model.name)}"),
        style=_part("page.css"),
        summary="".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in summary(view)
        ),
        sections=_sections(view),
        data=_json(page_data(view)),
        script=Template("\n".join(_part(name) for name in _SCRIPTS)).substitute(
            diverging_light=_json(DIVERGING_LIGHT),
            diverging_dark=_json(DIVERGING_DARK),
            domains=_json(DOMAIN_COLOURS),
            unknown=_json(UNKNOWN),
        ),
    )


def _part(name: str) -> str:
    return (resources.files("tenth.observe") / "profile_page" / name).read_text("utf-8")


def _json(value: object) -> str:
    """JSON that a script element cannot end in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sections(view: ProfileView) -> str:
    measured = view.profile.outputs is not None
    found = []
    for name in CAPTIONS:
        if name in ("norms", "saliency", "peaks") and not measured:
            continue
        section = _section(name, supers_line(view) if name == "peaks" else "")
        first = next((pair for pair in _BESIDE if name == pair[0]), None)
        last = next((pair for pair in _BESIDE if name == pair[1]), None)
        found.append(('<div class="side">' if first else "") + section + ("</div>" if last else ""))
    if not measured:
        found.append(
            f'<section id="outputs"><h2>Outputs of experts</h2><p class="why">{html.escape(NO_OUTPUTS)}</p></section>'
        )
    return "\n".join(found)


def _section(name: str, note: str) -> str:
    caption = CAPTIONS[name]
    return (
        f'<section id="{name}"><h2>{html.escape(caption.title)}</h2><p class="says">{html.escape(caption.says)}</p>'
        '<div class="controls"></div><div class="picture"></div><div class="legend"></div>'
        + (f'<p class="note">{html.escape(note)}</p>' if note else "")
        + "</section>"
    )
