"""`tenth batch`: answer a file of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenth.commands import options as o
from tenth.commands.drafting import Draft, drafter

_CONTEXT = 2048


def command(
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, a line each.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Answers; what it holds is not done again.")],
    model: Annotated[str, typer.Option("--model", "-m", help="As MODEL of `tenth run`.")] = "default",
    at_once: Annotated[int, typer.Option("--at-once", help="Requests in the engine at a time.", min=1)] = 32,
    context_length: Annotated[
        int | None,
        typer.Option(
            "--context",
            help="Tokens, prompt and answer, that there is room for in each.",
            min=1,
            show_default=f"{_CONTEXT}, or the model's context where that is shorter",
        ),
    ] = None,
    draft: Draft = "off",
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    backend: o.Backend = "auto",
    threads: o.Threads = None,
    kv: o.KV = "bf16",
    memory: o.Memory = None,
    expert_mass: o.ExpertMass = None,
    max_experts: o.MaxExperts = None,
) -> None:
    """Answer a file of requests in the form of OpenAI's batches; interrupted, the same command goes on."""
    import time

    from tenth.api import load
    from tenth.api.batch_file import check_out, read_lines, run_batch, settings_digest
    from tenth.commands.answer import print_cache, print_notes
    from tenth.commands.progress import progress_bars
    from tenth.engine.engine import EngineOptions
    from tenth.engine.scheduler import SchedulerOptions
    from tenth.errors import RequestError
    from tenth.model.cache import checked_kv

    pages_of, limit = checked_kv(kv), o.limit_of(expert_mass, max_experts)
    lines = read_lines(source)
    settings = settings_digest(model, dtype=dtype, backend=backend, kv=kv, limit=limit)
    check_out(source, out, lines, settings)
    with progress_bars() as report:
        loaded = load(
            model,
            dtype=dtype,
            device=device,
            backend=backend,
            threads=threads,
            memory=memory,
            report=report,
            to_run=True,
        )
        print_notes(loaded)
        most = loaded.config.context_length
        if context_length is not None and context_length > most:
            raise RequestError(f"--context is {context_length:,}, the model's is {most:,}")
        room = EngineOptions().page_size
        scheduler = SchedulerOptions(sequences=at_once, wait=0.0)  # nobody waits for the first token
        pages = at_once * -(-(context_length or min(_CONTEXT, most)) // room)
        guessing = drafter(draft, backend=backend, threads=threads, report=report)
        engine = loaded.engine(EngineOptions(pages, room, scheduler, pages_of, limit), draft=guessing)
        start = time.monotonic()
        totals = run_batch(
            loaded, engine, lines, out, at_once=2 * at_once, settings=settings, progress=report("answering")
        )
    seconds = max(time.monotonic() - start, 1e-9)
    kept = f", {totals.skipped} were there" if totals.skipped else ""
    failed = f", {totals.failed} failed" if totals.failed else ""
    speed = f"{totals.generated_tokens:,} tokens generated, {totals.generated_tokens / seconds:,.1f} a second"
    print(f"{out}: {totals.done} answered{failed}{kept}; {speed}")
    print_cache(loaded)
