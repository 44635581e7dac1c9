"""What stands between the server and those who use it, each part off unless it was asked for (`docs/guards.md`)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from tenth.errors import RequestError
from tenth.serve.keys import Keys
from tenth.serve.limits import Limiter
from tenth.serve.privacy import Mode, Privacy
from tenth.serve.response_cache import ResponseCache


@dataclass(frozen=True, slots=True)
class Guards:
    """Without `keys` everybody may ask; keys need a `limiter`, which keeps their books."""

    keys: Keys | None = None
    limiter: Limiter | None = None
    privacy: Privacy = field(default_factory=Privacy)
    cache: ResponseCache | None = None


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """What was asked for. `keys` is a file, `api_key` one key; `state` the folder for what outlives the server.

    `cache` is `off`, `on` for a file in that folder, a file, or an address of Redis.
    """

    keys: Path | None = None
    api_key: str | None = None
    state: Path | None = None
    privacy: str = "off"
    privacy_names: bool = False
    cache: str = "off"
    cache_bytes: int = 1 << 30
    cache_seconds: float = 7 * 24 * 3600.0
    cache_shared: bool = False


@contextmanager
def open_guards(options: GuardOptions) -> Iterator[Guards]:
    """The guards, closed behind it; RequestError, ConfigError, MachineError where they cannot be had."""
    if options.keys is not None and options.api_key is not None:
        raise RequestError("--keys and --api-key (or TENTH_API_KEY) are two sorts of keys; give one of them")
    if options.api_key == "":
        raise RequestError("the API key is empty (--api-key, or TENTH_API_KEY): give one, or unset the variable")
    if not 0 < options.cache_seconds < math.inf:
        raise RequestError(f"--response-cache-hours is {options.cache_seconds / 3600:g}, it must be more than 0")
    if options.privacy_names and options.privacy == "off":
        raise RequestError("--privacy-names looks for names, and --privacy is off: say mask or refuse")
    privacy = Privacy(cast(Mode, options.privacy), names=options.privacy_names)
    keys = Keys.from_file(options.keys) if options.keys is not None else None
    keys = Keys.of_secret(options.api_key) if options.api_key is not None else keys
    state = options.state or state_home()
    limiter = cache = None
    try:
        limiter = Limiter(_made(state) / "limits.db") if keys is not None else None
        cache = _cache(options, state)
        yield Guards(keys, limiter, privacy, cache)
    finally:
        for one in (limiter, cache):
            if one is not None:
                one.close()


def _cache(options: GuardOptions, state: Path) -> ResponseCache | None:
    if options.cache == "off":
        return None
    if options.cache != "on" and "/" not in options.cache:
        raise RequestError(
            f"--response-cache is {options.cache!r:.80}, it must be off, on, a file with its folder, or redis://HOST"
        )
    where = str(_made(state) / "answers.db") if options.cache == "on" else options.cache
    return ResponseCache.open(
        where, max_bytes=options.cache_bytes, max_age_s=options.cache_seconds, share=options.cache_shared
    )


def state_home() -> Path:
    """The folder for what outlives a server, where none is named: `$XDG_STATE_HOME/tenth`."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "tenth"


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
