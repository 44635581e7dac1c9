"""What a server loads: a model and its engine, as the options of the command line say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tenth.api import load
from tenth.api.drafts import DRAFT_KINDS
from tenth.api.model import Model
from tenth.engine.engine import Engine
from tenth.routing.limit import ExpertLimit
from tenth.serve.cache_size import cache_options


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """A model's name and how it computes, as `tenth.load` takes it, with room for `sequences` answers at once.

    `room` is what keys and values may take, in bytes, `context` bounds the tokens of prompt and answer together,
    `template` is the source of another chat template, `draft` who guesses tokens.
    """

    model: str
    dtype: str = "auto"
    device: str = "cpu"
    backend: str = "auto"
    threads: int | None = None
    kv: str = "bf16"
    memory: str | None = None
    template: str | None = None
    draft: str = "off"
    limit: ExpertLimit | None = None
    room: int | None = None
    sequences: int = 32
    context: int | None = None


def load_engine(options: LoadOptions, told: Callable[[Model], object] | None = None) -> tuple[Model, Engine]:
    """The model and an engine for it; `told` hears of the model first. Raises what `tenth.load` raises."""
    shared: dict[str, Any] = {name: getattr(options, name) for name in ("dtype", "device", "backend", "threads")}
    kept: dict[str, Any] = {"kv": options.kv, "memory": options.memory, "chat_template": options.template}
    model = load(options.model, **shared, **kept, to_run=True)
    if told is not None:
        told(model)
    guesses: Any = options.draft if options.draft in DRAFT_KINDS else load(options.draft, **shared, to_run=True)
    sized = cache_options(model, options.room, options.sequences, options.context)
    return model, model.engine(replace(sized, limit=options.limit), draft=guesses)
