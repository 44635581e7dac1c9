"""`tenth serve`: the HTTP API."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tenth.commands import options as o
from tenth.commands.config_file import judged, read_config
from tenth.errors import RequestError

_SERVER = "Server"
_LIMITS = "Limits"
_GUARDS = "Guards"
_REVIEWS = "Reviews"


def _one_of(option: str, *names: str) -> Callable[[str], None]:
    def check(name: str) -> None:
        if name not in names:
            raise RequestError(f"{option} is {name!r:.40}, it must be one of {', '.join(names)}")

    return check


def _tool_form(name: str) -> None:
    from tenth.api.tool_plan import FORMS

    _one_of("--tool-call-parser", "auto", *FORMS)(name)


def _kv(name: str) -> None:
    from tenth.model.cache import checked_kv

    checked_kv("bf16" if name == "auto" else name)


def _host_names(names: list[str]) -> None:
    with suppress(ImportError):  # the command says which package is missing
        from tenth.serve.hosts import checked_hosts

        checked_hosts("", names)


def _origins(origins: list[str]) -> None:
    with suppress(ImportError):
        from tenth.serve.hosts import check_origins

        check_origins(origins)


def _reviews(url: str) -> None:
    with suppress(ImportError):
        from tenth.serve.review_database import check_address

        check_address(url)


def command(
    model: o.ModelName = "default",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Options in a TOML file, by these names: port = 8000.",
            callback=read_config,
            is_eager=True,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Where to listen.", rich_help_panel=_SERVER)] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.", rich_help_panel=_SERVER)
    ] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            "--served-model-name",
            help="What the model is called in requests (may be given several times).",
            show_default="MODEL",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            help="Let pages of this origin call the server (may be given several times; * is any).",
            callback=judged(_origins),
            show_default="none",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="A name that requests may be sent to (may be given several times), beside this machine's own.",
            callback=judged(_host_names),
            show_default="any name, but at a loopback address none",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    log: Annotated[
        str,
        typer.Option(
            "--log",
            help="human, or json.",
            callback=judged(_one_of("--log", "human", "json")),
            rich_help_panel=_SERVER,
        ),
    ] = "human",
    no_metrics: Annotated[
        bool, typer.Option("--no-metrics", help="Count nothing: there is no /metrics.", rich_help_panel=_SERVER)
    ] = False,
    no_console: Annotated[
        bool, typer.Option("--no-console", help="No page for browsers at /.", rich_help_panel=_SERVER)
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            metavar="FILE",
            help="A routing profile (tenth profile) to hold live routing against.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    drift_alarm: Annotated[
        float,
        typer.Option(
            "--drift-alarm",
            min=0,
            max=1,
            help="With --profile: bits beyond chance that the experts' work may be from it.",
            rich_help_panel=_SERVER,
        ),
    ] = 0.1,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts into the log.", rich_help_panel=_SERVER)
    ] = False,
    drain: Annotated[
        float,
        typer.Option("--drain", min=0, help="Seconds for running requests when told to stop.", rich_help_panel=_SERVER),
    ] = 30.0,
    tool_call_parser: Annotated[
        str,
        typer.Option(
            "--tool-call-parser",
            help="How the model writes calls of tools: hermes, qwen3_coder, or auto, as its template says.",
            callback=judged(_tool_form),
            rich_help_panel=_SERVER,
        ),
    ] = "auto",
    max_model_len: Annotated[
        int | None,
        typer.Option(
            "--max-model-len",
            min=2,
            help="Tokens that prompt and answer may have together.",
            show_default="the model's context, as far as the cache goes",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    kv_memory: Annotated[
        str | None,
        typer.Option(
            "--kv-memory",
            metavar="SIZE",
            help="What keys and values may take, such as 2GB.",
            callback=judged(partial(o.size, "--kv-memory")),
            show_default="16,384 tokens a sequence, at most a quarter of the free memory",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", min=1, help="Answers at work at once.", rich_help_panel=_LIMITS)
    ] = 32,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=1, help="Answers at work and waiting.", rich_help_panel=_LIMITS)
    ] = 256,
    max_body: Annotated[
        str,
        typer.Option(
            "--max-body",
            metavar="SIZE",
            help="Of a request's body.",
            callback=judged(partial(o.size, "--max-body")),
            rich_help_panel=_LIMITS,
        ),
    ] = "16MB",
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds that a request may take.", rich_help_panel=_LIMITS)
    ] = 3600.0,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="A file of API keys, made by `tenth key`.", rich_help_panel=_GUARDS),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="TENTH_API_KEY",
            help="One key instead; others on this machine can see it here, but not in the environment.",
            show_default=False,
            rich_help_panel=_GUARDS,
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            help="The folder for what outlives the server: books of limits, kept answers.",
            show_default="~/.local/state/tenth",
            rich_help_panel=_GUARDS,
        ),
    ] = None,
    privacy: Annotated[
        str,
        typer.Option(
            "--privacy",
            help="off, or mask or refuse addresses, numbers and keys, in what comes in and goes out.",
            callback=judged(_one_of("--privacy", "off", "mask", "refuse")),
            rich_help_panel=_GUARDS,
        ),
    ] = "off",
    privacy_names: Annotated[
        bool,
        typer.Option("--privacy-names", help="Names of people and places too, in English.", rich_help_panel=_GUARDS),
    ] = False,
    response_cache: Annotated[
        str,
        typer.Option(
            "--response-cache",
            metavar="off|on|FILE|URL",
            help="Keep answers that would come out alike: in the state folder, a file, or redis://HOST.",
            rich_help_panel=_GUARDS,
        ),
    ] = "off",
    response_cache_size: Annotated[
        str,
        typer.Option(
            "--response-cache-size",
            metavar="SIZE",
            help="Of the file.",
            callback=judged(partial(o.size, "--response-cache-size")),
            rich_help_panel=_GUARDS,
        ),
    ] = "1GB",
    response_cache_hours: Annotated[
        float,
        typer.Option("--response-cache-hours", min=0, help="How old they may be.", rich_help_panel=_GUARDS),
    ] = 168.0,
    response_cache_shared: Annotated[
        bool,
        typer.Option("--response-cache-shared", help="Between keys, too.", rich_help_panel=_GUARDS),
    ] = False,
    reviews: Annotated[
        str | None,
        typer.Option(
            "--reviews",
            metavar="FILE|URL",
            help="Keep answers that people flag, for others to decide: a file, sqlite:///FILE, or postgresql://...",
            callback=judged(_reviews),
            show_default="nowhere",
            rich_help_panel=_REVIEWS,
        ),
    ] = None,
    review_rules: Annotated[
        Path | None,
        typer.Option(
            "--review-rules",
            metavar="FILE",
            help="Flag answers by the rules of a TOML file, too (docs/reviews.md).",
            rich_help_panel=_REVIEWS,
        ),
    ] = None,
    review_keep: Annotated[
        int,
        typer.Option(
            "--review-keep", min=1, help="At most so many; those decided longest ago go.", rich_help_panel=_REVIEWS
        ),
    ] = 10_000,
    draft: Annotated[
        str,
        typer.Option("--draft", help="Guess tokens ahead: off, lookup, suffix, or the name of a small model."),
    ] = "off",
    chat_template: o.Template = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    backend: o.Backend = "auto",
    threads: o.Threads = None,
    kv: Annotated[
        str,
        typer.Option(
            "--kv",
            "--kv-cache-dtype",
            help="Keys and values in the cache: bf16 (also `auto`), or int8 in half the memory.",
            callback=judged(_kv),
            rich_help_panel="Model",
        ),
    ] = "bf16",
    memory: o.Memory = None,
    expert_mass: o.ExpertMass = None,
    max_experts: o.MaxExperts = None,
) -> None:
    """Serve a model over HTTP: the APIs of OpenAI and Anthropic, on one engine."""
    given = dict(locals())
    from dataclasses import replace

    from tenth.errors import MachineError
    from tenth.routing.profile_file import read_profile

    try:
        from tenth.commands.serving import guard_options, load_options, review_options, say_where, serve_options
        from tenth.serve.guards import open_guards
        from tenth.serve.hosts import checked_hosts
        from tenth.serve.logs import log_to_stderr
        from tenth.serve.review_queue import open_reviews
        from tenth.serve.runner import listening_socket, run
        from tenth.serve.service import Service
    except ImportError as error:
        raise MachineError(f"tenth serve needs {error.name}: pip install 'tenth[serve]'") from None

    from tenth.commands.answer import print_notes
    from tenth.serve.loading import load_engine

    loaded, options = load_options(given), serve_options(given)
    stored = None if profile is None else read_profile(profile)
    with open_guards(guard_options(given)) as guards, open_reviews(review_options(given)) as queue:
        log_to_stderr(log, masked=guards.privacy.on)  # type: ignore[arg-type]
        bound = listening_socket(host, port)
        options = replace(options, hosts=checked_hosts(bound.getsockname()[0], allow_host or ()))
        say_where(bound, options, open_to_all=guards.keys is None)
        if queue is not None:
            typer.echo(f"reviews are kept in {queue.store.name}", err=True)
        service = Service(options, guards, profile=stored, reviews=queue)
        if not run(service, partial(load_engine, loaded, print_notes), bound):
            raise typer.Exit(1)
