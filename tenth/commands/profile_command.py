"""`tenth profile`: what the experts of a model do on some text, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenth.commands import options as o
from tenth.errors import RequestError
from tenth.files import check_new_file

if TYPE_CHECKING:
    from tenth.routing.profile import RoutingProfile


def command(
    model: Annotated[str, typer.Argument(help="A model, or the address of a running `tenth serve` (http://...).")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="P", help="The file to write; must not exist.")],
    corpus: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CORPUS", help="Files, folders, patterns; 'code=src/**/*.py' names a domain.", show_default=False
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="So many tokens of each domain at most.", show_default="all")
    ] = None,
    window: Annotated[int, typer.Option("--context", min=1, help="Tokens of a window; longer texts are cut.")] = 2048,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Tokens that go through the model at once.")] = 2048,
    no_outputs: Annotated[
        bool, typer.Option("--no-outputs", help="Do not measure experts' outputs: counts, gates and entropies only.")
    ] = False,
    api_key: Annotated[
        str | None, typer.Option("--api-key", help="For a server that asks for one.", envvar="TENTH_API_KEY")
    ] = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    backend: o.Backend = "auto",
    threads: o.Threads = None,
    memory: o.Memory = None,
) -> None:
    """Write a routing profile: by layer and expert counts, gates, outputs, pairs and domains, entropies of routers.

    What is done is kept every minute beside P (P.partial); the same command goes on with it. Of a running server the
    profile is of all that it computed since it was ready.
    """
    from tenth.observe.http_client import is_address
    from tenth.observe.profile_text import summary

    check_new_file(out)
    if is_address(model):
        if corpus:
            raise RequestError(f"{model}: a server's profile is of what it has computed; a corpus needs a model")
        profile = _of_server(model, out, api_key)
    elif not corpus:
        raise RequestError("a profile of a model needs text: files, folders or patterns (CORPUS)")
    else:
        profile = _of_text(model, corpus, out, locals())
    print(f"{out}: {summary(profile)}")


def _of_text(model: str, corpus: list[str], out: Path, options: dict[str, object]) -> RoutingProfile:
    from tenth.api import load
    from tenth.commands.answer import print_notes
    from tenth.commands.progress import progress_bars
    from tenth.observe.corpora import TextIds, WatchedText
    from tenth.observe.profiling import ProfileOptions, Profiler, profile_text

    limits = {"context": options["window"], "tokens": options["tokens"], "batch": options["batch"]}
    settings = ProfileOptions(**limits, outputs=not options["no_outputs"])  # type: ignore[arg-type]
    text = WatchedText(corpus)
    with progress_bars() as report:
        how = {name: options[name] for name in ("dtype", "device", "backend", "threads", "memory")}
        loaded = load(model, **how, report=report, to_run=True)  # type: ignore[arg-type]
        print_notes(loaded)
        profiler = Profiler(loaded.decoder, model, outputs=settings.outputs)
        ids_of = TextIds(loaded.tokenizer, model)
        return profile_text(profiler, text, ids_of, out, settings, report("profiling"))


def _of_server(address: str, out: Path, key: str | None) -> RoutingProfile:
    from tenth.observe.http_client import Client
    from tenth.routing.profile_file import from_bytes, write_profile

    client, path = Client(address, key, seconds=60), "/v1/routing/profile"
    profile, _ = from_bytes(client.ask(path), client.address + path)
    write_profile(profile, out)
    return profile
