"""A report on parity as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

Report = Mapping[str, Any]


def render(report: Report) -> Group:
    """Two models, figures, layers that stand out, notes, the gate, and the verdict at the end."""
    parts: list[Any] = [Text(line) for line in heading(report)]
    rows = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in figures(report):
        rows.add_row(name, value)
    parts += [rows, *(Text(f"note: {note}", style="dim") for note in report["notes"])]
    if report["gate"] is not None:
        parts.append(_gate(report["gate"]))
        parts.append(Text("gate: passed" if report["gate"]["passed"] else "gate: not passed", style="bold"))
    parts.append(Text(f"verdict: {report['verdict']['text']}", style="bold"))
    return Group(*parts)


def heading(report: Report) -> Iterator[str]:
    """The two models and the corpus."""
    for side in ("a", "b"):
        facts = report[side]
        bits = f", {facts['bits_per_weight']:.2f} bits a weight" if facts.get("bits_per_weight") else ""
        yield f"{side.upper()}: {facts['name']} ({facts['format']}{bits}, {facts['backend']})"
    corpus = report["corpus"]
    documents = f"{corpus['documents']:,} document{'s' if corpus['documents'] != 1 else ''}"
    windows = f"{corpus['windows']:,} window{'s' if corpus['windows'] != 1 else ''}"
    yield f"{corpus['tokens']:,} tokens of {documents}, in {windows} of up to {corpus['context']:,}"


def figures(report: Report) -> Iterator[tuple[str, str]]:
    """Names and values, of what was measured."""
    loss, kl = report["perplexity"], report["kl"]
    if loss["a"] is not None:
        yield "perplexity", f"A {loss['a']:.5g}, B {loss['b']:.5g}, ratio {loss['ratio']:.5f}"
    if kl["mean"] is not None:
        between = "" if kl["low"] is None else f" (95 %: {kl['low']:.3g} to {kl['high']:.3g})"
        most = "" if report["server"] is None else ", at least: of the tokens that the server names"
        yield "KL(A||B), nats", f"mean {kl['mean']:.4g}{between}, p50 {kl['p50']:.3g}, p99 {kl['p99']:.3g}{most}"
    if report["top1"] is not None:
        positions = report["positions"] if report["server"] is None else report["server"]["top1_positions"]
        yield "same likeliest token", f"{report['top1']:.2%} of {positions:,} positions"
    yield from _routing(report)
    if report["layers"]:
        worst = max(report["layers"], key=lambda layer: layer["error"])
        median = sorted(layer["error"] for layer in report["layers"])[len(report["layers"]) // 2]
        yield "layers on A's input", f"median error {median:.3g}, most {worst['error']:.3g} in layer {worst['layer']}"
    yield from _answers(report)
    if report["seconds"]:
        yield "seconds", ", ".join(f"{name} {seconds:.1f}" for name, seconds in report["seconds"].items())


def _routing(report: Report) -> Iterator[tuple[str, str]]:
    routing, replayed = report["routing"], report["replayed"]
    if routing is not None:
        yield "same experts", f"{routing['mean']:.2%}, least {routing['min']:.2%} in layer {routing['min_layer']}"
    if replayed is not None:
        yield (
            "with A's routing",
            f"KL {replayed['kl_mean']:.4g} instead of {replayed['plain_kl_mean']:.4g}, same token "
            f"{replayed['top1']:.2%} instead of {replayed['plain_top1']:.2%}, on {replayed['positions']:,} positions",
        )


def _answers(report: Report) -> Iterator[tuple[str, str]]:
    greedy, questions = report["greedy"], report["questions"]
    if greedy is not None:
        yield (
            "greedy answers",
            f"agree for {greedy['mean']:.1f} of {greedy['tokens']} tokens, at least {greedy['min']}; "
            f"{greedy['whole_share']:.0%} of {greedy['prompts']} wholly",
        )
    if questions is not None:
        yield "questions", f"A passes {questions['a']:.1%}, B {questions['b']:.1%} of {questions['count']}"


def _gate(gate: Report) -> Table:
    table = Table("bar", "", "value", "", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for one in gate["bars"]:
        sign = "<=" if one["name"].startswith("max_") else ">="
        value = "not measured" if one["value"] is None else f"{one['value']:.5g}"
        table.add_row(one["name"], f"{sign} {one['bar']:g}", value, "passed" if one["passed"] else "NOT PASSED")
    return table
