"""`tenth bench`: how fast a model runs here, beside what this machine could do at most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tenth.commands import options as o

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenth.observe.load import LoadReport, LoadSettings
    from tenth.observe.speed_report import BenchReport, Run


def command(
    context: typer.Context,
    model: o.ModelName,
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens of a prompt.")] = 512,
    generate: Annotated[int, typer.Option("--generate", help="Tokens to decode, of each sequence.")] = 64,
    depth: Annotated[
        str, typer.Option("--depth", metavar="N,N,...", help="Tokens before the prompt, or before the first decoded.")
    ] = "0,1024,4096",
    batch: Annotated[
        str,
        typer.Option(
            "--batch",
            metavar="N,N,...",
            help="Sequences decoded together. The smallest is measured at all depths, the others at the smallest one.",
        ),
    ] = "1,4,8,16",
    repeat: Annotated[int, typer.Option("--repeat", help="Measure so many times: median and range.")] = 5,
    chunk: Annotated[
        int | None,
        typer.Option("--chunk", help="Tokens of a prompt that go through at once.", show_default="as tenth run"),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            "--concurrency",
            metavar="N,N,...",
            help="Serve whole requests instead, so many at all times.",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option("--rate", metavar="R,R,...", help="Or so many a second, as chance has it.", show_default=False),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option("--requests", help="Whole requests to serve.", show_default="4 for each at a time, or 32"),
    ] = None,
    backend: o.Backend = "auto",
    threads: o.Threads = None,
    kv: o.KV = "bf16",
    memory: o.Memory = None,
    expert_mass: o.ExpertMass = None,
    max_experts: o.MaxExperts = None,
    json: o.Json = False,
) -> None:
    """Measure prefill and decode on random tokens, and the limits of the machine beside them."""
    import json as json_module
    from dataclasses import asdict

    from tenth.api import resolve
    from tenth.commands.progress import progress_bars
    from tenth.engine.sequence import PROMPT_CHUNK
    from tenth.model.cache import checked_kv
    from tenth.observe.load import measure_loads
    from tenth.observe.speed import measure
    from tenth.observe.speed_report import BenchSettings
    from tenth.weights.budget import memory_bytes

    loads = _loads(context, prompt, generate, concurrency, rate, requests)
    limit = o.limit_of(expert_mass, max_experts)
    budget, pages = None if memory is None else memory_bytes(memory), checked_kv(kv)
    if loads:
        with progress_bars(quiet=json) as report:
            served = measure_loads(
                resolve(model, report, packed=backend != "reference"),
                loads,
                backend=backend,
                threads=threads,
                kv=pages,
                memory=budget,
                limit=limit,
                progress=report("serving"),
            )
        if json:
            print(json_module.dumps(_rounded([asdict(one) for one in served])))
        else:
            _print_loads(served)
        return
    settings = BenchSettings(
        prompt=prompt,
        generate=generate,
        depths=_numbers("depth", depth),
        batches=_numbers("batch", batch),
        repeat=repeat,
        chunk=PROMPT_CHUNK if chunk is None else chunk,
        kv=pages,
        limit=limit,
    )
    with progress_bars(quiet=json) as report:
        path = resolve(model, report, packed=backend != "reference")
        measured = measure(
            path,
            settings,
            backend=backend,
            threads=threads,
            memory=budget,
            progress=report("measuring"),
        )
    if json:
        print(json_module.dumps(_rounded(asdict(measured))))
    else:
        _print(measured)


def _loads(
    context: typer.Context, prompt: int, generate: int, concurrency: str | None, rate: str | None, requests: int | None
) -> list[LoadSettings]:
    """The loads that were asked for; RequestError for options that do not go with them."""
    from tenth.observe.load import LoadSettings

    if concurrency is None and rate is None:
        o.refuse(context, {"requests"}, "runs of single steps")
        return []
    o.refuse(context, {"depth", "batch", "repeat", "chunk"}, "--concurrency or --rate")
    numbers = _numbers("concurrency", concurrency) if concurrency is not None else ()
    rates = _rates(rate) if rate is not None else ()
    return [
        *(
            LoadSettings(prompt, generate, 4 * number if requests is None else requests, concurrency=number)
            for number in numbers
        ),
        *(LoadSettings(prompt, generate, 32 if requests is None else requests, rate=one) for one in rates),
    ]


def _numbers(name: str, text: str) -> tuple[int, ...]:
    from tenth.errors import RequestError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"{name} is {text!r:.40}, it must be numbers with commas between, such as 0,1024") from None


def _rates(text: str) -> tuple[float, ...]:
    from tenth.errors import RequestError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"rate is {text!r:.40}, it must be numbers with commas between, such as 0.5,2") from None


def _rounded(value: object) -> object:
    """Figures to five digits: more would be noise."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _print(report: BenchReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(report.model)}[/bold]  {report.backend}, {report.kv} cache")
    console.print(f"  weights  {report.weights_gb:.2f} GB, {report.bits_per_weight:.2f} bits a weight")
    resident = "" if report.rss_gb is None else f", {report.rss_gb:.2f} GB resident at most"
    console.print(f"  load     {report.load_s:.2f} s, first token after {report.first_token_s:.2f} s{resident}")
    limits = (
        ("reads {:.1f} GB/s", report.read_gb_s),
        ("disk {:.2f} GB/s", report.disk_gb_s),
        ("int8 {:,.0f} GOP/s", report.int8_gops),
        ("floats {:,.0f} GOP/s", report.float_gops),
    )
    known = ", ".join(text.format(value) for text, value in limits if value is not None)
    console.print(f"  limits   {known or 'not measured: the native kernels have them'}")
    columns = ("", "tokens", "depth", "batch", "tok/s", "range", "MB a token", "of the limit")
    table = Table(*columns, box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in table.columns[1:-1]:
        column.justify = "right"
    for run in report.runs:
        table.add_row(*_cells(run))
    console.print(table)
    if report.expert_cache is not None:
        console.print(f"  experts  {report.expert_cache.text}")


def _print_loads(reports: Sequence[LoadReport]) -> None:
    from rich.console import Console
    from rich.table import Table

    times = ("first token, ms", "between two, ms", "whole, s")
    columns = ("load", "requests", "in", "out", "tok/s", *times)
    table = Table(*columns, box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for report in reports:
        s = report.settings
        load = f"{s.concurrency} at a time" if s.rate is None else f"{s.rate:g} a second"
        spreads = ((report.first_token, 1e3), (report.between_tokens, 1e3), (report.whole, 1))
        cells = [f"{x.p50 * unit:,.3g} / {x.p90 * unit:,.3g} / {x.p99 * unit:,.3g}" for x, unit in spreads]
        table.add_row(load, str(s.requests), str(s.prompt), str(s.generate), _speed(report.tok_s), *cells)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print("times: half, 90 and 99 in a hundred are no longer", style="dim")


def _cells(run: Run) -> tuple[str, ...]:
    counts = (str(run.tokens), str(run.depth), str(run.batch))
    speeds = (_speed(run.tok_s), f"{_speed(run.tok_s_min)}-{_speed(run.tok_s_max)}")
    moved = "" if run.bytes_per_token is None else f"{run.bytes_per_token / 1e6:,.1f}"
    return (run.kind, *counts, *speeds, moved, _limit(run))


def _limit(run: Run) -> str:
    """What of the nearest limit was reached; where experts are on disk, what they are read at."""
    disk, others = run.disk, max(run.bandwidth_fraction or 0, run.peak_fraction or 0)
    if disk is not None and disk.fraction >= others:
        return f"{disk.fraction:.0%} of the disk's {disk.gb_s:.2f} GB/s"
    if run.bandwidth_fraction is not None:
        return f"{run.bandwidth_fraction:.0%} of {run.read_gb_s:.1f} GB/s"
    return "" if run.peak_fraction is None else f"{run.peak_fraction:.0%} of the peaks"


def _speed(tok_s: float) -> str:
    return f"{tok_s:,.1f}" if tok_s < 100 else f"{tok_s:,.0f}"
