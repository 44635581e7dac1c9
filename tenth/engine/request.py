"""What is asked of the engine: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from tenth.engine.sampler import Sampling
from tenth.errors import RequestError
from tenth.routing.record import RecordKind

MOST_LOGPROBS = 64


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to go on from it; RequestError for what makes no sense.

    Ends behind a token of `end_ids`, or after `max_tokens`; end tokens are not drawn before `min_tokens` were.
    `logit_bias` is added to logits, `forbidden` are never drawn. With `logprobs` each token comes with its own
    log-probability and those of so many likeliest ones. Of those that wait the lowest `priority` goes first, of equal
    ones the earliest. Prompts of one `tenant` find each other's pages. `record`: the routing that is wanted.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    end_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    forbidden: frozenset[int] = frozenset()
    logprobs: int | None = None
    priority: int = 0
    tenant: Hashable = None
    record: RecordKind = "none"

    def __post_init__(self) -> None:
        if not self.prompt:
            raise RequestError("the prompt is empty; it must hold at least one token")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}, it must be at least 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise RequestError(f"min_tokens is {self.min_tokens}, it must lie between 0 and {self.max_tokens}")
        if not all(-100 <= bias <= 100 for bias in self.logit_bias.values()):  # NaN is not within anything
            raise RequestError("logit_bias must lie between -100 and 100")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise RequestError(f"logprobs is {self.logprobs}, it must lie between 0 and {MOST_LOGPROBS}")
