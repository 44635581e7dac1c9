"""An answer in the terminal: text as it comes, then speed and experts; or all of it as JSON."""

from __future__ import annotations

import json as json_module
import sys
from dataclasses import asdict

import typer
from rich.console import Console

from tenth.api import Generation, Model, Stream
from tenth.commands.interrupts import heard
from tenth.observe.expert_cache import describe_cache
from tenth.observe.experts import expert_table, summarise

# what a terminal would obey rather than show: a model's text must not move the cursor or set the title
_CONTROLS = {code: None for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


def print_stream(stream: Stream) -> Generation:
    """Write the text to standard output as it comes; Ctrl-C ends it early and keeps what there is."""
    tty = sys.stdout.isatty()
    try:
        for chunk in stream:
            sys.stdout.write(chunk.text.translate(_CONTROLS) if tty else chunk.text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        heard()
        sys.stdout.write(" [stopped]")
    sys.stdout.write("\n")
    return stream.result


def print_speed(result: Generation) -> None:
    """One line on standard error."""
    parts = [
        f"{len(result.tokens)} tokens",
        f"{result.tokens_per_second:.1f} tok/s",
        f"first after {result.prefill_seconds:.2f} s (prompt of {result.prompt_tokens})",
        {"length": "length limit reached"}.get(result.finish_reason, ""),
    ]
    if (drafts := result.drafts) is not None:
        parts.append(
            f"{drafts.accepted} of {drafts.drafted} drafted tokens stood, {drafts.tokens_per_step:.2f} tokens a step"
        )
    Console(stderr=True, highlight=False, soft_wrap=True).print(" · ".join(part for part in parts if part), style="dim")


def print_experts(result: Generation) -> None:
    """The expert table on standard output, or a line where no expert worked."""
    if result.routing is None or not result.routing.layers:
        print("no expert worked: the model is dense")
        return
    Console(highlight=False).print(expert_table(result.routing))


def print_cache(model: Model) -> None:
    """A line on standard error where experts are on disk: what their cache has done so far."""
    if model.expert_cache is not None:
        line = describe_cache(model.expert_cache, model.expert_cache.statistics)
        Console(stderr=True, highlight=False, soft_wrap=True).print(line, style="dim")


def answer_once(model: Model, stream: Stream, *, experts: bool, json: bool) -> None:
    """The whole of a command that gives one answer; one that Ctrl-C ended has the exit code shells expect of it."""
    if json:
        try:
            for _ in stream:
                pass
        except KeyboardInterrupt:  # what there is comes with finish_reason "interrupted"
            heard()
        result = stream.result
        print(as_json(model, result))
    else:
        result = print_stream(stream)
        if experts:
            print_experts(result)
        print_speed(result)
        print_cache(model)
    if result.finish_reason == "interrupted":
        raise typer.Exit(130)


def print_notes(model: Model) -> None:
    """What of the model's files was ignored or skipped, once, on standard error."""
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)


def as_json(model: Model, result: Generation) -> str:
    """The generation as one JSON object, in ASCII: it is the same in every locale."""
    cache = None if model.expert_cache is None else asdict(model.expert_cache.statistics)
    experts = [asdict(layer) for layer in summarise(result.routing)] if result.routing is not None else []
    return json_module.dumps(
        {
            "text": result.text,
            "prompt_tokens": result.prompt_tokens,
            "tokens": len(result.tokens),
            "finish_reason": result.finish_reason,
            "stopped_by": result.stopped_by,
            "seed": result.seed,
            "first_token_s": round(result.prefill_seconds, 4),
            "tok_s": round(result.tokens_per_second, 2),
            "drafts": None if result.drafts is None else asdict(result.drafts),
            "experts": experts,
            "expert_cache": cache,
        }
    )
