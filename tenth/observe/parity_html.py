"""A report on parity as one HTML page that needs nothing else: figures as text, pictures as SVG, no script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from tenth.files import write_whole
from tenth.observe.parity_parts import PART_NAMES
from tenth.observe.parity_report import figures, heading
from tenth.observe.parity_svg import BLUE, GREEN, ORANGE, PURPLE, VERMILION, Axis, Series, bars, marks

Report = Mapping[str, Any]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 0 0 .3rem; }
.verdict { border-left: 6px solid #0072B2; background: #f3f6f9; padding: .6rem 1rem; font-weight: 600; }
.failed { border-color: #D55E00; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { text-align: left; padding: .2rem 1.2rem .2rem 0;
  vertical-align: top; } tr + tr td { border-top: 1px solid #ddd; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1.6rem; }
figure { margin: 0; } figcaption { color: #444; font-size: .85rem; } svg { max-width: 100%; }
svg text { font: 11px system-ui, sans-serif; fill: #333; } .grid { stroke: #e2e2e2; } .floor { stroke: #777; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; }
.legend svg { vertical-align: -2px; } .note { color: #444; }
"""

_COLOURS = dict(zip((*PART_NAMES, "mlp"), (ORANGE, BLUE, "#56B4E9", PURPLE, VERMILION, GREEN), strict=True))


def write_page(report: Report, path: Path) -> None:
    """Write the page, whole or not at all; MachineError where the disk refuses."""
    write_whole(path, page(report))


def page(report: Report) -> str:
    """The page's text."""
    gate = report["gate"]
    good = report["verdict"]["kind"] not in ("damaged", "not_finite") and (gate is None or gate["passed"])
    head = f'<meta charset="utf-8"><title>Parity of two models</title><style>{_STYLE}</style>'
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in figures(report))
    pictures = "".join(
        f"<figure><h2>{escape(title)}</h2>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        for title, svg, caption in _pictures(report)
    )
    parts = [
        "<h1>Parity of two models</h1>",
        *(f"<div>{escape(line)}</div>" for line in heading(report)),
        f'<p class="verdict{"" if good else " failed"}">Verdict: {escape(report["verdict"]["text"])}</p>',
        _gate(gate) if gate is not None else "",
        f"<table>{rows}</table>",
        *(f'<p class="note">Note: {escape(note)}.</p>' for note in report["notes"]),
        f'<div class="pictures">{pictures}</div>',
    ]
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _gate(gate: Report) -> str:
    def row(one: Report) -> str:
        sign = "≤" if one["name"].startswith("max_") else "≥"
        value = "not measured" if one["value"] is None else f"{one['value']:.5g}"
        said = "passed" if one["passed"] else "<strong>not passed</strong>"
        return f"<tr><td>{one['name']}</td><td>{sign} {one['bar']:g}</td><td>{value}</td><td>{said}</td></tr>"

    head = "<tr><th>bar</th><th></th><th>value</th><th></th></tr>"
    said = "passed" if gate["passed"] else "not passed"
    return f"<h2>Gate: {said}</h2><table>{head}{''.join(row(one) for one in gate['bars'])}</table>"


def _pictures(report: Report) -> Iterator[tuple[str, str, str]]:
    """Title, picture and explanation of what was measured."""
    if report["kl_histogram"] is not None:
        yield (
            "Divergence of positions",
            _histogram(report["kl_histogram"]),
            "KL(A||B) in nats; bars are equal factors wide, the first has all that is below.",
        )
    if report["kl_by_place"]:
        yield (
            "Divergence along a window",
            _by_place(report["kl_by_place"]),
            "Mean KL(A||B) by the tokens that came before; the area is its 95 % interval over windows.",
        )
    if report["routing"] is not None:
        yield (
            "Same experts by layer",
            _routing(report["routing"]["layers"]),
            "Share of a token's experts that both models choose, each on its own stream.",
        )
    if report["layers"]:
        yield (
            "Error of layers on A's input",
            _layers(report["layers"]),
            "Difference of what each part of B makes of A's input over what A's makes, A's experts replayed. A part "
            "that stands out against other layers is damaged.",
        )
    if report["greedy"] is not None:
        yield (
            "Greedy answers",
            _greedy(report["greedy"]),
            "Tokens that both answers to a prompt begin with.",
        )


def _histogram(histogram: Report) -> str:
    edges, counts = histogram["edges"], histogram["counts"]
    spans = [f"{low:.2g} to {high:.2g} nats" for low, high in pairwise(edges)]
    spans[0] = f"up to {edges[1]:.2g} nats"
    titles = [f"{span}: {count:,} positions" for span, count in zip(spans, counts, strict=True)]
    axis = Axis.of(counts, "positions")
    return bars(Series("", BLUE, counts, titles), [f"{edge:.0e}" for edge in edges[:-1]], axis, "KL, nats")


def _by_place(stretches: list[Report]) -> str:
    values, lows, highs = ([one[name] for one in stretches] for name in ("mean", "low", "high"))
    titles = [f"tokens {one['from']} to {one['to']}: {one['mean']:.3g} nats" for one in stretches]
    axis = Axis.of([value for value in (*values, *highs) if value is not None], "nats")
    series = Series("mean", BLUE, values, titles, lows, highs)
    return marks([series], [str(one["from"]) for one in stretches], axis, "tokens before")


def _routing(layers: list[Report]) -> str:
    values = [one["agreement"] for one in layers]
    titles = [f"layer {one['layer']}: {one['agreement']:.2%}" for one in layers]
    names = [str(one["layer"]) for one in layers]
    return bars(Series("", GREEN, values, titles), names, Axis(0.0, 1.0, "share of experts"), "layer")


def _layers(layers: list[Report]) -> str:
    names = [part for part in _COLOURS if any(part in one["parts"] for one in layers)]
    several = [
        Series(
            part.replace("_", " "),
            _COLOURS[part],
            [one["parts"].get(part) for one in layers],
            [f"layer {one['layer']}, {part}: {one['parts'].get(part, 0.0):.3g}" for one in layers],
        )
        for part in names
    ]
    axis = Axis.of([value for one in layers for value in one["parts"].values()], "relative error", log=True)
    return marks(several, [str(one["layer"]) for one in layers], axis, "layer")


def _greedy(greedy: Report) -> str:
    lengths = greedy["lengths"]
    titles = [f"prompt {n}: {length} tokens alike" for n, length in enumerate(lengths, 1)]
    axis = Axis.of([], "tokens", most=float(greedy["tokens"]))
    return bars(Series("", BLUE, lengths, titles), [str(n) for n in range(1, len(lengths) + 1)], axis, "prompt")
