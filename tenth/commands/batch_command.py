"""`tenth batch`: answer a file of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenth.commands import options as o


def command(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, a line each.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Answers; what it holds is not done again.")],
    model: Annotated[str, typer.Option("--model", "-m", help="As MODEL of `tenth run`.")] = "default",
    at_once: Annotated[int, typer.Option("--at-once", help="Requests in the engine at a time.", min=1)] = 32,
    context_length: Annotated[
        int, typer.Option("--context", help="Tokens, prompt and answer, that there is room for in each.", min=1)
    ] = 2048,
    draft: Annotated[
        str,
        typer.Option("--draft", help="Guess tokens ahead: off, lookup, suffix, or the name of a small model."),
    ] = "off",
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    backend: o.Backend = "auto",
    threads: o.Threads = None,
    kv: o.KV = "bf16",
) -> None:
    """Answer a file of requests in the form of OpenAI's batches; interrupted, the same command goes on."""
    import time

    import rich

    from tenth.api import load
    from tenth.api.batch_file import check_apart, read_lines, run_batch
    from tenth.api.drafts import DRAFT_KINDS
    from tenth.commands.answer import print_notes
    from tenth.commands.progress import progress_bars
    from tenth.engine.engine import EngineOptions
    from tenth.engine.scheduler import SchedulerOptions
    from tenth.model.cache import checked_kv

    check_apart(source, out)
    lines = read_lines(source)
    with progress_bars() as report:
        loaded = load(model, dtype=dtype, device=device, backend=backend, threads=threads, report=report)
        print_notes(loaded)
        room = EngineOptions().page_size
        scheduler = SchedulerOptions(sequences=at_once, wait=0.0)  # nobody waits for the first token
        drafter = draft if draft in DRAFT_KINDS else load(draft, backend=backend, threads=threads, report=report)
        pages = at_once * -(-context_length // room)
        engine = loaded.engine(EngineOptions(pages, room, scheduler, checked_kv(kv)), draft=drafter)
        start = time.monotonic()
        totals = run_batch(loaded, engine, lines, out, at_once=2 * at_once, progress=report("answering"))
    seconds = max(time.monotonic() - start, 1e-9)
    kept = f", {totals.skipped} were there" if totals.skipped else ""
    failed = f", {totals.failed} failed" if totals.failed else ""
    speed = f"{totals.generated_tokens:,} tokens generated, {totals.generated_tokens / seconds:,.1f} a second"
    rich.print(f"{out}: {totals.done} answered{failed}{kept}; {speed}")
