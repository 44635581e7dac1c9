"""What is asked of the engine: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import get_args

from tenth.engine.bounds import within
from tenth.engine.grammar import Grammar
from tenth.engine.sampler import Sampling
from tenth.engine.thinking import Thinking
from tenth.errors import RequestError
from tenth.routing.limit import ExpertLimit
from tenth.routing.record import RecordKind

MOST_LOGPROBS = 64
MOST_ANSWERS = 128

_WHOLE = dict.fromkeys(("max_tokens", "min_tokens", "n", "priority"), False)
_WHOLE |= dict.fromkeys(("beams", "logprobs", "prompt_logprobs", "rolling"), True)
"""Fields that are whole numbers, and whether they may be None."""

_KINDS: dict[str, tuple[type, ...]] = {
    "prompt": (tuple,),
    "sampling": (Sampling,),
    "end_ids": (frozenset,),
    "logit_bias": (Mapping,),
    "forbidden": (frozenset,),
    "thinking": (Thinking, NoneType),
    "grammar": (Grammar, NoneType),
    "limit": (ExpertLimit, NoneType),
}


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to go on from it; RequestError for what makes no sense.

    Ends behind a token of `end_ids`, or after `max_tokens`; end tokens are not drawn before `min_tokens` were.
    `n` answers share the prompt; answer i draws with `sampling.seed` + i. With `beams` the `n` best of so many
    sequences are searched for, by their log-probability over length ** `length_penalty`.
    `logit_bias` is added to logits, `forbidden` are never drawn. With `logprobs` each token comes with its own
    log-probability and those of so many likeliest ones, with `prompt_logprobs` each token of the prompt. Of those that
    wait the lowest `priority` goes first, of equal ones the earliest. Prompts of one `tenant` find each other's pages.
    The answer, thinking apart, is a text of `grammar`. `limit` has fewer experts work on each token, of the prompt too;
    None leaves it to the engine.
    With `rolling` a sequence has no end: it attends to its first page and to the last ones of so many tokens, of which
    it forgets a quarter at a time. `record`: the routing that is wanted.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    end_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    n: int = 1
    beams: int | None = None
    length_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    forbidden: frozenset[int] = frozenset()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    thinking: Thinking | None = None
    grammar: Grammar | None = None
    rolling: int | None = None
    priority: int = 0
    tenant: Hashable = None
    limit: ExpertLimit | None = None
    record: RecordKind = "none"

    def __post_init__(self) -> None:
        self._check_types()
        try:
            hash(self.tenant)
        except TypeError:
            raise RequestError(f"tenant is {self.tenant!r:.40}, it must be hashable: pages are found by it") from None
        if not self.prompt:
            raise RequestError("the prompt is empty; it must hold at least one token")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}, it must be at least 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise RequestError(f"min_tokens is {self.min_tokens}, it must lie between 0 and {self.max_tokens}")
        if not 1 <= self.n <= MOST_ANSWERS:
            raise RequestError(f"n is {self.n}, it must lie between 1 and {MOST_ANSWERS}")
        kinds = set(map(type, self.logit_bias.values())) - {int, float}
        # NaN is not within anything
        if kinds or not all(-100 <= bias <= 100 for bias in self.logit_bias.values()):
            raise RequestError("logit_bias must lie between -100 and 100")
        for name in ("logprobs", "prompt_logprobs"):
            number = getattr(self, name)
            if number is not None and not 0 <= number <= MOST_LOGPROBS:
                raise RequestError(f"{name} is {number}, it must lie between 0 and {MOST_LOGPROBS}")
        if self.grammar is not None and self.min_tokens:
            raise RequestError("a grammar says where the answer ends: it goes without min_tokens")
        if self.grammar is not None and self.beams is not None and not self.end_ids:
            raise RequestError("beam search with a grammar needs end_ids: they tell what is whole from what is not")
        if self.rolling is not None and self.rolling < 1:
            raise RequestError(f"rolling is {self.rolling}, it must be at least 1 token")
        if self.beams is not None:
            self._check_beams(self.beams)

    def _check_types(self) -> None:
        """Those of JSON are judged where it is read; here Python's, whatever an annotation says."""
        for name, none in _WHOLE.items():
            value = getattr(self, name)
            if type(value) is not int and not (none and value is None):  # not isinstance: True is none
                raise RequestError(f"{name} is {value!r:.40}, it must be a whole number{' or None' if none else ''}")
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds):
                right = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
                raise RequestError(f"{name} is {value!r:.40}, it must be of type {right}")
        for name in ("prompt", "end_ids", "forbidden", "logit_bias"):
            _check_ids(name, getattr(self, name))
        if self.record not in get_args(RecordKind):
            raise RequestError(f"record is {self.record!r:.40}, it must be one of {', '.join(get_args(RecordKind))}")
        within("length_penalty", self.length_penalty, -10, 10)

    def _check_beams(self, beams: int) -> None:
        if not self.n <= beams <= MOST_ANSWERS:
            raise RequestError(f"beams is {beams}, it must lie between n, which is {self.n}, and {MOST_ANSWERS}")
        alone = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
        alone |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
        unfit = [name for name, value in alone.items() if getattr(self.sampling, name) != value]
        unfit += [name for name in ("logprobs", "thinking", "rolling") if getattr(self, name) is not None]
        unfit += [] if self.record == "none" else ["record"]
        if unfit:
            raise RequestError(f"beam search draws nothing and shows whole answers: it goes without {', '.join(unfit)}")

    @property
    def prefix_key(self) -> Hashable:
        """What its keys and values depend on beside tokens, model and adapter, and who may find them."""
        return self.tenant, self.limit

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All ids that it names beside the prompt's; they must be of the vocabulary."""
        thinking = self.thinking
        tags = () if thinking is None else (thinking.open_id, thinking.close_id, *thinking.stop_ids)
        return (*self.logit_bias, *self.end_ids, *self.forbidden, *tags)


def _check_ids(name: str, ids: Collection[int]) -> None:
    """RequestError unless they are whole numbers that a vocabulary could have."""
    if set(map(type, ids)) - {int}:
        bad = next(token for token in ids if type(token) is not int)
        raise RequestError(f"{name} holds {bad!r:.40}, token ids are whole numbers")
    if min(ids, default=0) < 0:
        raise RequestError(f"token id {min(ids)} in {name} is outside the vocabulary: ids are 0 and above")
