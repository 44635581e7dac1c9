"""The dashboard for Grafana: what it asks Prometheus for is what a server with all its parts shows."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest

import tenth
from tenth.api import Model
from tenth.kernels.choice import choose_kernels
from tenth.kernels.packed import PackedFormat
from tenth.model.preset import preset
from tenth.observe.profiling import Part, Profiler
from tenth.serve.guards import GuardOptions, open_guards
from tenth.serve.review_queue import ReviewOptions, open_reviews
from tenth.weights.budget import Budget, budget_decoder
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.synthetic import write_synthetic
from tests.api.tiny import tiny_tokenizer
from tests.serve.scraped import Scrape
from tests.serve.served import serving, within

ROOT = Path(tenth.__file__).parent.parent
TARGET = {"instance", "job"}  # labels that Prometheus itself adds
SPANS = {"$__rate_interval": "5m", "$__interval": "1m"}


def board() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "deploy/grafana/tenth.json").read_text())
    return content


def asked() -> list[tuple[str, str, str]]:
    """Title, expression and legend of all that the panels ask for."""
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in board()["panels"]
        for target in panel.get("targets", [])
    ]


def parsed(expression: str) -> promql.Expr:
    for name, span in SPANS.items():
        expression = expression.replace(name, span)
    return promql.parse(expression)


def selectors(node: Any) -> Iterator[Any]:
    """All vector selectors below a node."""
    if isinstance(node, promql.VectorSelector):
        yield node
    elif isinstance(node, promql.MatrixSelector):
        yield node.vector_selector
    elif isinstance(node, promql.Call):
        for each in node.args:
            yield from selectors(each)
    elif isinstance(node, promql.BinaryExpr):
        yield from (*selectors(node.lhs), *selectors(node.rhs))
    elif isinstance(node, promql.AggregateExpr | promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr):
        yield from selectors(node.expr)


def groupings(node: Any) -> Iterator[tuple[Any, set[str]]]:
    """Aggregations by labels, each with these."""
    if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
        yield node, set(node.modifier.labels)
    for name in ("expr", "lhs", "rhs"):
        if hasattr(node, name):
            yield from groupings(getattr(node, name))
    for each in node.args if isinstance(node, promql.Call) else ():
        yield from groupings(each)


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    """Of a server of experts on disk that guesses ahead, with a profile, a privacy filter, kept answers and reviews."""
    folder = tmp_path_factory.mktemp("all")
    config = replace(preset("tiny-moe"), head_dim=32)
    write_synthetic(folder / "model", config, PackedFormat.parse("int4-g32"), seed=1)
    with open_checkpoint(folder / "model") as checkpoint:
        assert checkpoint.packed is not None
        kernels = choose_kernels("cpu", packed=True, head_dim=32, threads=1)
        decoder = budget_decoder(checkpoint.packed, config, kernels, Budget(0, 6, 8192))
    model = Model(decoder, tiny_tokenizer(folder), identity="tiny")
    profiler = Profiler(decoder, "tiny", outputs=False)
    profiler.show([Part([1, 2, 3], "text")])

    async def run() -> Scrape:
        options = GuardOptions(state=folder, cache="on", privacy="mask")
        with open_guards(options) as guards, open_reviews(ReviewOptions(f"{folder}/q.db")) as reviews:
            watched = {"profile": profiler.profile, "reviews": reviews}
            async with serving(model, guards=guards, draft="lookup", **watched) as (_, client):
                body = {"prompt": "write to a.b@example.org", "max_tokens": 30, "temperature": 0, "ignore_eos": True}
                for _ in range(2):
                    assert (await client.post("/v1/completions", json=body)).status_code == 200
                await asyncio.gather(*(client.get("/nothing") for _ in range(2)))
                return await Scrape.of(client)

    found: Scrape = within(60, run())
    return found


@pytest.mark.parametrize(("title", "expression", "legend"), asked())
def test_all_that_is_asked_for_is_there(scrape: Scrape, title: str, expression: str, legend: str) -> None:
    node = parsed(expression)
    found = list(selectors(node))
    assert found
    names = {sample for sample, _ in scrape.samples}
    for selector in found:
        assert selector.name in names, f"{selector.name} is not shown by the server"
        for matcher in selector.matchers.matchers:
            assert matcher.name in scrape.labels(selector.name) | TARGET, f"{selector.name} has no {matcher.name}"
    for inner, labels in groupings(node):
        for selector in selectors(inner):
            assert labels <= scrape.labels(selector.name) | TARGET, f"{selector.name} has not all of {labels}"
    shown = set(re.findall(r"{{(\w+)}}", legend))
    grouped = set().union(*(labels for _, labels in groupings(node)))
    own = set().union(*(scrape.labels(selector.name) for selector in found))
    assert shown <= (grouped if grouped else own | TARGET), f"the legend of {title!r} names other labels"


def test_rates_are_of_what_grows(scrape: Scrape) -> None:
    growing = {name for (name, _), _ in scrape.growing()}
    for _, expression, _ in asked():
        for name in re.findall(r"(?:rate|increase)\((\w+)", expression):
            assert name in growing, f"{name} is no counter"
        for name in re.findall(r"\b(tenth_\w+_total|tenth_\w+_bucket)", expression):
            assert re.search(rf"(?:rate|increase)\({name}\b", expression), f"{name} alone says little"


def test_it_can_be_imported() -> None:
    content = board()
    assert content["__inputs"] == [{**content["__inputs"][0], "name": "DS_PROMETHEUS", "pluginId": "prometheus"}]
    assert content["id"] is None
    assert 36 <= content["schemaVersion"] <= 39, "what Grafana 10 reads without a change"
    numbers = [panel["id"] for panel in content["panels"]]
    assert len(set(numbers)) == len(numbers)
    cells = set[tuple[int, int]]()
    for panel in content["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not own & cells, f"{panel['title']} lies over another"
        cells |= own
        for part in (panel, *panel.get("targets", [])) if panel["type"] != "row" else ():
            assert part["datasource"] == {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    assert {one["id"] for one in content["__requires"] if one["type"] == "panel"} | {"row"} == {
        panel["type"] for panel in content["panels"]
    }
    rows = [panel["title"] for panel in content["panels"] if panel["type"] == "row"]
    assert rows == ["Traffic", "Latency", "Engine and caches", "Experts", "Guards"]


def test_its_variables_ask_for_labels_that_are_there(scrape: Scrape) -> None:
    for variable in board()["templating"]["list"]:
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
        assert match is not None
        assert match[2] in scrape.labels(match[1]) | TARGET
        assert scrape.values(match[1])
    used = {name for _, expression, _ in asked() for name in re.findall(r"\$(?!__)(\w+)", expression)}
    assert used == {variable["name"] for variable in board()["templating"]["list"]}


def test_every_metric_is_in_the_documentation(scrape: Scrape) -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    for name, family in scrape.families.items():
        if name.startswith("tenth_"):
            shown = f"{name}_total" if family.type == "counter" else name
            assert f"`{shown}`" in text, f"docs/metrics.md does not tell of {shown}"
    told = set(re.findall(r"`(tenth_\w+)`", text))
    there = {f"{name}_total" if family.type == "counter" else name for name, family in scrape.families.items()}
    assert told <= there, "it tells of metrics that are not there"
