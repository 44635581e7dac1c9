"""`tenth cluster --replace`: another model in the place of the one that is served, if it is near enough to it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import typer

from tenth.errors import RequestError

_HEEDED = ("replace", "gate", "corpus", "port", "state", "model")


def replace_model(context: typer.Context, given: Mapping[str, Any]) -> None:
    """Hold the new model against the served one, and where it passes the gate have it take its place.

    Exit code 1: it has not passed, and the old one serves on; 2: an error.
    """
    from tenth.cluster.admin import admin_path, ask_cluster
    from tenth.serve.guards import state_home

    _check(context, given)
    path = admin_path(given["state"] or state_home(), given["port"])
    served = asyncio.run(ask_cluster(path, print, do="status"))
    if not _passes(served, given):
        print(f"{given['replace']} has not passed the gate: {served['model']} goes on serving", file=sys.stderr)
        raise typer.Exit(1)
    told = partial(print, file=sys.stderr)
    now = asyncio.run(ask_cluster(path, told, do="replace", model=_where(given["replace"])))
    print(f"{now['model']} serves, as {', '.join(now['names'])}; no request was dropped", file=sys.stderr)


def _check(context: typer.Context, given: Mapping[str, Any]) -> None:
    if given["gate"] is None or not given["corpus"]:
        raise RequestError("--replace needs --gate FILE and --corpus FILE: by these it is judged")
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name not in _HEEDED and source is not None and source.name == "COMMANDLINE":
            raise RequestError(f"{option.opts[0]} does nothing with --replace: the cluster's own options stay")
    if context.get_parameter_source("model").name == "COMMANDLINE":  # type: ignore[union-attr]
        raise RequestError("with --replace the new model stands behind it, and no other is named")


def _passes(served: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    from rich.console import Console

    from tenth.commands.progress import progress_bars
    from tenth.commands.verify_command import CONTEXT, TOKENS, measured
    from tenth.observe.parity import VerifyOptions, passed
    from tenth.observe.parity_gate import read_gate
    from tenth.observe.parity_report import render

    bars = read_gate(given["gate"])
    models = {name: served[name] for name in ("dtype", "backend", "threads")}
    with progress_bars() as report:
        found = measured(
            (served["model"], given["replace"]), given["corpus"], None, VerifyOptions(), report,
            tokens=TOKENS, context=CONTEXT, gate=bars, key=None, models=models,
        )  # fmt: skip
    Console(highlight=False).print(render(found))
    return passed(found)


def _where(name: str) -> str:
    """A path as other processes find it; names of hubs stay as they are."""
    return str(Path(name).absolute()) if Path(name).exists() else name
