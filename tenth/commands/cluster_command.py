"""`tenth cluster`: many replicas of the HTTP API behind one address."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from tenth.commands import serve_command
from tenth.commands.config_file import judged

if TYPE_CHECKING:
    from tenth.cluster.on_ray import Scale
    from tenth.cluster.supervisor import Supervisor
    from tenth.serve.review_queue import ReviewOptions

_CLUSTER, _CHANGE = "Cluster", "Another model"


def _route(name: str) -> None:
    from tenth.errors import RequestError

    if name not in ("prefix", "load", "random"):
        raise RequestError(f"--route is {name!r:.40}, it must be one of prefix, load, random")


def _own(
    replicas: Annotated[
        str,
        typer.Option(
            "--replicas",
            metavar="N|LOW:HIGH",
            help="So many; or between two bounds, by their load.",
            rich_help_panel=_CLUSTER,
        ),
    ] = "2",
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="Threads that compute, of each replica.", rich_help_panel="Model")
    ] = 1,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="A Ray cluster: auto, HOST:PORT or ray://HOST:PORT.",
            show_default="Ray is started on this machine",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    route: Annotated[
        str,
        typer.Option(
            "--route",
            help="Who gets a request: prefix (who has its beginning in the cache), load, random.",
            callback=judged(_route),
            rich_help_panel=_CLUSTER,
        ),
    ] = "prefix",
    cpus_per_replica: Annotated[
        float | None,
        typer.Option(
            "--cpus-per-replica", min=0, help="Of Ray's.", show_default="its threads", rich_help_panel=_CLUSTER
        ),
    ] = None,
    gpus_per_replica: Annotated[
        float, typer.Option("--gpus-per-replica", min=0, help="Of Ray's; see --device.", rich_help_panel=_CLUSTER)
    ] = 0.0,
    replace: Annotated[
        str | None,
        typer.Option(
            "--replace",
            metavar="MODEL",
            help="Put this model in the place of the one that the cluster at --port serves, if it passes --gate.",
            show_default=False,
            rich_help_panel=_CHANGE,
        ),
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option("--gate", metavar="FILE", help="Bars in a TOML file (tenth verify).", rich_help_panel=_CHANGE),
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            "--corpus",
            metavar="FILE",
            help="What both models are shown (may be given several times).",
            rich_help_panel=_CHANGE,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Options of the command's own, before those of `tenth serve`."""


def _options() -> dict[str, Parameter]:
    """The command's own options, and those of `tenth serve`, whose names and meanings are the same."""
    found = dict[str, Parameter]()
    for function in (_own, serve_command.command):
        hints = get_type_hints(function, include_extras=True)
        for name, parameter in signature(function).parameters.items():
            found.setdefault(name, parameter.replace(annotation=hints[name]))
    first = {name: found.pop(name) for name in ("model", "config")}
    return first | found


def command(context: typer.Context, **given: Any) -> None:
    """Serve a model over HTTP with many replicas, on Ray Serve: one address, one set of keys, one /metrics."""
    from tenth.errors import MachineError

    if missing := [name for name in ("ray", "aiohttp", "fastapi", "uvloop") if find_spec(name) is None]:
        raise MachineError(f"tenth cluster needs {', '.join(missing)}: pip install 'tenth[serve,cluster]'")
    if given["replace"] is not None:
        from tenth.commands.cluster_replace import replace_model

        replace_model(context, given)
    elif given["gate"] is not None or given["corpus"]:
        from tenth.errors import RequestError

        raise RequestError("--gate and --corpus go with --replace MODEL")
    else:
        _serve(given)


command.__signature__ = signature(command).replace(  # type: ignore[attr-defined]
    parameters=[Parameter("context", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context), *_options().values()]
)
command.__annotations__ = {"context": typer.Context, "return": None} | {
    name: parameter.annotation for name, parameter in _options().items()
}


def _serve(given: Mapping[str, Any]) -> None:
    import asyncio

    from tenth.api import resolve
    from tenth.cluster.on_ray import Scale
    from tenth.commands.progress import progress_bars
    from tenth.commands.serving import guard_options, say_where, serve_options
    from tenth.routing.profile_file import read_profile
    from tenth.serve.guards import open_guards
    from tenth.serve.logs import log_to_stderr
    from tenth.serve.review_queue import open_reviews
    from tenth.serve.runner import listening_socket

    cpus = given["threads"] if given["cpus_per_replica"] is None else given["cpus_per_replica"]
    scale = Scale.parse(given["replicas"], cpus, given["gpus_per_replica"])
    guards = guard_options(given)
    with open_guards(guards) as opened, open_reviews(_reviews(given)) as queue:  # what cannot be had is said at once
        log_to_stderr(given["log"], masked=opened.privacy.on)
        kept = None if queue is None else queue.store.name
    if given["profile"] is not None and given["address"] is None:
        read_profile(given["profile"])
    with progress_bars() as report:
        packed = given["dtype"] == "auto" and given["backend"] != "reference"
        model = str(resolve(given["model"], report, packed=packed)) if given["address"] is None else given["model"]
    bound = listening_socket(given["host"], given["port"])
    say_where(bound, serve_options(given), open_to_all=opened.keys is None)
    if kept is not None:
        typer.echo(f"reviews are kept in {kept}", err=True)
    if not asyncio.run(_supervisor(given, scale, bound, model).live()):
        raise typer.Exit(1)


def _reviews(given: Mapping[str, Any]) -> ReviewOptions:
    """For replicas, whose working folder is another; RequestError for a file where they are on several machines."""
    from dataclasses import replace

    from tenth.commands.serving import review_options
    from tenth.errors import RequestError

    found = review_options(given)
    rules = None if found.rules is None else found.rules.resolve()
    if found.url is None or found.url.startswith(("postgresql://", "postgres://")):
        return replace(found, rules=rules)
    if given["address"] is not None:
        raise RequestError("--reviews is a file, which replicas on several machines do not share: say postgresql://...")
    url = found.url if "://" in found.url or not found.url.strip() else str(Path(found.url).resolve())
    return replace(found, url=url, rules=rules)


def _supervisor(given: Mapping[str, Any], scale: Scale, bound: Any, model: str) -> Supervisor:
    import secrets
    from dataclasses import replace

    from tenth.cluster.admin import admin_path
    from tenth.cluster.front_process import FrontOptions
    from tenth.cluster.hosted import ReplicaOptions
    from tenth.cluster.on_ray import OnRay
    from tenth.cluster.supervisor import Supervisor
    from tenth.commands.serving import guard_options, load_options, serve_options
    from tenth.serve.guards import state_home
    from tenth.serve.hosts import checked_hosts
    from tenth.serve.runner import listening_socket

    address, port = bound.getsockname()[:2]
    serve = replace(serve_options(given), hosts=checked_hosts(address, given["allow_host"] or ()))
    guards, secret = guard_options(given), secrets.token_hex(32)
    keyed = guards.keys is not None or guards.api_key is not None
    ray = OnRay(given["address"], f"tenth-{port}", scale, serve.drain_seconds)
    front = FrontOptions(serve, guards, given["route"], secret, given["log"])
    inner = listening_socket(ray.own_host(), 0)
    host, number = inner.getsockname()[:2]
    where = f"http://{f'[{host}]' if ':' in host else host}:{number}"
    load = replace(load_options(given), model=model)
    profile = None if given["profile"] is None else given["profile"].resolve()  # replicas work in another folder
    replicas = ReplicaOptions(load, serve, guards, where, secret, keyed=keyed, profile=profile, reviews=_reviews(given))
    return Supervisor(front, replicas, ray, bound, inner, admin_path(given["state"] or state_home(), port))
