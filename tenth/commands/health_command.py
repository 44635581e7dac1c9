"""`tenth health`: is a mixture of experts healthy?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenth.commands import options as o

if TYPE_CHECKING:
    from tenth.commands.progress import Report
    from tenth.observe.health import Examined
    from tenth.observe.profiling import Part
    from tenth.routing.profile import RoutingProfile
    from tenth.routing.record import Routing


def command(
    model: o.ModelName,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", metavar="P", help="Judge loads by this profile of the model (`tenth profile`)."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="P0|MODEL0",
            help="What changed since: a profile of another state of the model, or that model itself.",
        ),
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus",
            metavar="FILE",
            help="Text to judge by instead of Python's library: files, folders, patterns, 'code=src/**/*.py'.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="So many tokens of it.")] = 8192,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="PAGE", help="Draw loads, pairs and similarity of experts: an .html, replaced."
        ),
    ] = None,
    json: o.Json = False,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    backend: o.Backend = "auto",
    threads: o.Threads = None,
    memory: o.Memory = None,
) -> None:
    """Judge loads, routers and experts of every layer; exit code 0 healthy, 1 not, 2 where it cannot be said.

    All experts of a layer are run on the same tokens and compared: in their outputs, and in their weights whatever the
    order of their hidden units is. docs/health.md describes the measures and where alarms begin.
    """
    import json as json_module

    from tenth.commands.progress import progress_bars
    from tenth.files import check_page
    from tenth.observe.figure_file import check_format
    from tenth.observe.health_page import write_health_page
    from tenth.observe.health_report import layer_lines, record_of, told
    from tenth.observe.health_verdict import judge

    if out is not None:
        check_format(out, (".html",))
        check_page(out)
    asked = Asked(corpus or [], tokens, {"dtype": dtype, "device": device, "backend": backend, "threads": threads})
    with progress_bars(quiet=json) as report:
        examined = _examined(model, profile, against, asked, memory, report)
        health = judge(examined)
    if out is not None:
        write_health_page(examined, out)
    if json:
        print(json_module.dumps(record_of(examined, health)))
    else:
        print("\n".join([*layer_lines(examined, health), "", *told(examined, health)]))
    if not health.healthy:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Asked:
    """The text to judge by, and how models are loaded."""

    corpus: list[str]
    tokens: int
    how: dict[str, Any]


def _examined(
    name: str, path: Path | None, against: str | None, asked: Asked, memory: str | None, report: Report
) -> Examined:
    """Measure the model, then what it is held against; only one of both is in memory at a time."""
    from tenth.observe.health import choices, examine, with_reference
    from tenth.routing.profile_file import is_profile, read_profile

    profile = None if path is None else read_profile(path)
    reference = read_profile(Path(against)) if against is not None and is_profile(Path(against)) else None
    decoder, parts = _opened(name, asked, report, memory=memory)
    examined = examine(decoder, name, parts, profile=profile, progress=report("judging"))
    if against is None:
        return examined
    if reference is not None:
        return with_reference(examined, reference)
    own = choices(decoder, parts)
    del decoder
    before, other = _reference(against, examined, asked, parts, report, memory)
    return with_reference(examined, before, own, other)


def _opened(name: str, asked: Asked, report: Report, memory: str | None = None) -> tuple[Any, list[Part]]:
    """A model's decoder, and the text in its tokens."""
    from tenth.api import load
    from tenth.commands.answer import print_notes
    from tenth.observe.corpora import TextIds
    from tenth.observe.health_text import corpus_parts, library_parts
    from tenth.observe.profiling import profiled_shape

    loaded = load(name, **asked.how, memory=memory, report=report, to_run=True)
    profiled_shape(loaded.config, name, "")  # refuses a dense model before any text is read
    print_notes(loaded)
    ids_of = TextIds(loaded.tokenizer, name)
    if asked.corpus:
        return loaded.decoder, corpus_parts(asked.corpus, ids_of, loaded.config.vocab_size, asked.tokens)
    return loaded.decoder, library_parts(ids_of, asked.tokens)


def _reference(
    name: str, examined: Examined, asked: Asked, parts: list[Part], report: Report, memory: str | None
) -> tuple[RoutingProfile, Routing]:
    """What another model does with the same tokens. RequestError where its tokens or experts are others."""
    from tenth.errors import RequestError
    from tenth.observe.health import AT_ONCE, choices
    from tenth.observe.profiling import Profiler, batches
    from tenth.routing.profile import check_same_shape

    decoder, theirs = _opened(name, asked, report, memory=memory)
    profiler = Profiler(decoder, name)
    check_same_shape(examined.profile.model, profiler.profile.model)
    if [part.ids for part in theirs] != [part.ids for part in parts]:
        raise RequestError(f"{name}: its tokenizer makes other tokens of the text: routers cannot be compared")
    for batch in batches(parts, AT_ONCE):
        profiler.show(batch)
    return profiler.profile, choices(decoder, parts)
