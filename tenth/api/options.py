"""What a generation can be told, and the defaults of what is not said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, get_args

from tenth.engine.sampler import Sampling
from tenth.errors import RequestError
from tenth.routing.limit import ExpertLimit
from tenth.routing.record import RecordKind


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
    expert_mass: float | None
    max_experts: int | None
    routing: RecordKind
    cache: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """All options of one generation, with their defaults; see `tenth.engine.sampler.Sampling` for the first."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    template_arguments: Mapping[str, object] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    expert_mass: float | None = None
    max_experts: int | None = None
    routing: RecordKind = "choice"
    cache: bool = True

    def __post_init__(self) -> None:
        if type(self.max_tokens) is not int or self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens!r:.40}, it must be a whole number of at least 1")
        if self.routing not in get_args(RecordKind):
            raise RequestError(f"routing is {self.routing!r:.40}, it must be one of {', '.join(get_args(RecordKind))}")
        if self.template_arguments is not None and not isinstance(self.template_arguments, Mapping):
            raise RequestError(f"template_arguments is {self.template_arguments!r:.40}, it must be a mapping")
        if type(self.cache) is not bool:
            raise RequestError(f"cache is {self.cache!r:.40}, it must be True or False")
        ExpertLimit(self.expert_mass, self.max_experts)  # it refuses what cannot be

    @property
    def limit(self) -> ExpertLimit | None:
        """`expert_mass` and `max_experts` as one; None where neither was said."""
        return None if self.expert_mass is self.max_experts is None else ExpertLimit(self.expert_mass, self.max_experts)

    def updated(self, options: Options) -> Settings:
        """These settings with some replaced; RequestError for an option that does not exist."""
        given: dict[str, Any] = dict(options)
        sampling = {name: given.pop(name) for name in Sampling.__slots__ if name in given}
        if "stop" in given:
            stop = given["stop"]
            if not isinstance(stop, str | list | tuple):
                raise RequestError(f"stop is {stop!r:.40}, it must be a text or a list of texts")
            given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
        for name in given:
            if name not in Settings.__slots__ or name == "sampling":
                known = ", ".join(sorted({*Sampling.__slots__, *Settings.__slots__} - {"sampling"}))
                raise RequestError(f"no option is named {name!r} (there are: {known})")
        return replace(self, sampling=replace(self.sampling, **sampling), **given)
