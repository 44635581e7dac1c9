"""What a generation can be told, and the defaults of what is not said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from tenth.engine.generate import Record
from tenth.engine.sampler import Sampling
from tenth.errors import RequestError


class Options(TypedDict, total=False):
    """What a generation can be told; what is not said comes from the model's own defaults (`Model.defaults`)."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    max_tokens: int
    stop: Sequence[str]
    template_arguments: Mapping[str, object]
    tools: Sequence[Mapping[str, Any]] | None
    routing: Record
    cache: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """All options of one generation, with their defaults; see `tenth.engine.sampler.Sampling` for the first."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    template_arguments: Mapping[str, object] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    routing: Record = "choice"
    cache: bool = True

    def updated(self, options: Options) -> Settings:
        """These settings with some replaced; RequestError for an option that does not exist."""
        given: dict[str, Any] = dict(options)
        sampling = {name: given.pop(name) for name in Sampling.__slots__ if name in given}
        if isinstance(given.get("stop"), str):
            given["stop"] = (given["stop"],)
        if "stop" in given:
            given["stop"] = tuple(given["stop"])
        for name in given:
            if name not in Settings.__slots__ or name == "sampling":
                known = ", ".join(sorted({*Sampling.__slots__, *Settings.__slots__} - {"sampling"}))
                raise RequestError(f"no option is named {name!r} (there are: {known})")
        return replace(self, sampling=replace(self.sampling, **sampling), **given)
