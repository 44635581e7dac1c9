"""What the options of `tenth serve` say, for the commands that serve: `given` are their values by their names."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from tenth.commands import options as o
from tenth.commands.files import read_text
from tenth.serve.guards import GuardOptions
from tenth.serve.hosts import is_loopback
from tenth.serve.review_queue import ReviewOptions
from tenth.serve.service import ServeOptions

if TYPE_CHECKING:
    from tenth.serve.loading import LoadOptions


def serve_options(given: Mapping[str, Any]) -> ServeOptions:
    """How requests are served; the hosts are known when the socket is."""
    return ServeOptions(
        names=tuple(given["served_model_name"] or [given["model"]]),
        tool_form=given["tool_call_parser"],
        context=given["max_model_len"],
        queue=given["max_queue"],
        body_bytes=o.size("--max-body", given["max_body"]),
        request_seconds=given["timeout"],
        drain_seconds=given["drain"],
        origins=tuple(given["allow_origin"] or ()),
        log_prompts=given["log_prompts"],
        metrics=not given["no_metrics"],
        console=not given["no_console"],
        drift_alarm=given["drift_alarm"],
    )


def load_options(given: Mapping[str, Any]) -> LoadOptions:
    """What is loaded, and how it computes."""
    from tenth.model.cache import checked_kv
    from tenth.serve.loading import LoadOptions

    same = {name: given[name] for name in ("model", "dtype", "device", "backend", "threads", "memory", "draft")}
    return LoadOptions(
        **same,
        kv=checked_kv("bf16" if given["kv"] == "auto" else given["kv"]),
        template=None if given["chat_template"] is None else read_text(given["chat_template"]),
        limit=o.limit_of(given["expert_mass"], given["max_experts"]),
        room=None if given["kv_memory"] is None else o.size("--kv-memory", given["kv_memory"]),
        sequences=given["max_num_seqs"],
        context=given["max_model_len"],
    )


def review_options(given: Mapping[str, Any]) -> ReviewOptions:
    """Where reviews are kept, and what is one."""
    return ReviewOptions(given["reviews"], given["review_rules"], given["review_keep"])


def guard_options(given: Mapping[str, Any]) -> GuardOptions:
    """What stands between the server and those who use it."""
    key = given["api_key"]
    return GuardOptions(
        keys=given["keys"],
        api_key=os.environ.get("TENTH_API_KEY") if key is None else key,  # an empty one is a mistake
        state=given["state"],
        privacy=given["privacy"],
        privacy_names=given["privacy_names"],
        cache=given["response_cache"],
        cache_bytes=o.size("--response-cache-size", given["response_cache_size"]),
        cache_seconds=3600 * given["response_cache_hours"],
        cache_shared=given["response_cache_shared"],
    )


def say_where(bound: socket.socket, options: ServeOptions, *, open_to_all: bool) -> str:
    """Tell where the server listens, and whether that is wise; the address without a path."""
    address, port = bound.getsockname()[:2]
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
    page = f"; console at {url}/" if options.console else ""
    typer.echo(f"{url}/v1 serves {options.names[0]} (loading){page}", err=True)
    if open_to_all and not is_loopback(address):
        typer.echo("note: whoever can reach this address may ask; --keys or TENTH_API_KEY asks for a key", err=True)
    return url
