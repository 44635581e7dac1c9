"""Answers as JSON of the OpenAI API: choices, log-probabilities, usage; whole or in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenth.api.answer_events import Event, Finish, Logprobs, ReasoningText, Said, Whole
from tenth.api.bodies import Asked, Kind
from tenth.api.legacy_logprobs import LegacyLogprobs
from tenth.api.tool_events import ArgumentsText, CallBegin, CallEnd, ContentText
from tenth.engine.sampler import Drawn
from tenth.engine.stream import Stream
from tenth.weights.tokenizer import Tokenizer

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the prompt and of all answers; those found in the cache and those thought are among them.

    `kept`: the answers were not computed, but found whole.
    """

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0
    kept: bool = False

    @classmethod
    def of(cls, streams: Iterable[Stream]) -> Usage:
        """Of what came so far."""
        streams = list(streams)
        answers = [answer for stream in streams for answer in stream.answers]
        return cls(
            prompt=sum(len(stream.request.prompt) for stream in streams),
            completion=sum(len(answer.drawn) for answer in answers),
            cached=sum(stream.found for stream in streams),
            reasoning=sum(answer.thought for answer in answers),
        )

    def body(self) -> Json:
        """As chats and completions have it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
            **({"tenth_cached": True} if self.kept else {}),
        }


@dataclass(frozen=True, slots=True)
class Form:
    """What all parts of one answer's JSON share; `created` is in seconds since 1970."""

    kind: Kind
    id: str
    created: int
    model: str
    tokenizer: Tokenizer
    _scored_so_far: dict[int, LegacyLogprobs] = field(default_factory=dict)  # of a stream's choices

    def body(self, asked: Sequence[Asked], wholes: Sequence[Whole], usage: Usage) -> Json:
        """The finished answers, those to the first prompt first."""
        askers = [one for one in asked for _ in range(one.request.n)]
        choices = [self._choice(*each) for each in zip(range(len(wholes)), askers, wholes, strict=True)]
        return {**self._head(self.kind), "choices": choices, "usage": usage.body()}

    def opening(self, choice: int, asked: Asked) -> list[Json]:
        """What a choice's stream begins with."""
        if self.kind == "chat.completion":
            return [self._chunk(choice, {"delta": {"role": "assistant", "content": ""}, "logprobs": None})]
        self._scored_so_far[choice] = self._legacy(asked)
        if not asked.echo:
            return []
        return [self._chunk(choice, {"text": asked.echo, "logprobs": None})]

    def chunk(self, said: Said) -> Json | None:
        """The chunk of one event; None where it has none. Log-probabilities go with a chunk of their own."""
        part = self._completion_part(said) if self.kind == "text_completion" else self._chat_part(said.event)
        return None if part is None else self._chunk(said.choice, part)

    def last(self, usage: Usage) -> Json:
        """The chunk behind all others that has the usage, with no choices."""
        return {**self._head(self._chunk_kind), "choices": [], "usage": usage.body()}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat.completion" else "text_completion"

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choice: int, part: Json) -> Json:
        return {**self._head(self._chunk_kind), "choices": [{"index": choice, "finish_reason": None, **part}]}

    def _chat_part(self, event: Event) -> Json | None:
        match event:
            case Logprobs(drawn):
                return {"delta": {}, "logprobs": {"content": [self.logprob(one) for one in drawn]}}
            case Finish(reason):
                return {"delta": {}, "logprobs": None, "finish_reason": reason}
            case CallEnd():
                return None
        return {"delta": _delta(event), "logprobs": None}

    def _completion_part(self, said: Said) -> Json | None:
        match said.event:
            case ContentText(text):
                return {"text": text, "logprobs": None}
            case ReasoningText(text):
                return {"text": "", "reasoning_content": text, "reasoning": text, "logprobs": None}
            case Logprobs(drawn):
                return {"text": "", "logprobs": self._scored_so_far[said.choice].take(drawn)}
            case Finish(reason):
                return {"text": "", "logprobs": None, "finish_reason": reason}
        return None

    def _choice(self, number: int, asked: Asked, whole: Whole) -> Json:
        assert whole.finish is not None
        found: Json = {"index": number, "finish_reason": whole.finish.reason, "logprobs": None}
        thought = {"reasoning_content": whole.reasoning, "reasoning": whole.reasoning} if whole.reasoning else {}
        if self.kind == "text_completion":
            if asked.request.logprobs is not None:
                found["logprobs"] = self._legacy(asked).take(whole.drawn)
            return {**found, "text": asked.echo + (whole.content or ""), **thought}
        calls = {"tool_calls": whole.tool_calls} if whole.tool_calls else {}
        if asked.request.logprobs is not None:
            found["logprobs"] = {"content": [self.logprob(one) for one in whole.drawn]}
        return {**found, "message": {"role": "assistant", "content": whole.content, **thought, **calls}}

    def logprob(self, drawn: Drawn) -> Json:
        """A token with its log-probability, as chats have it."""
        top = [self._scored(token, logprob) for token, logprob in drawn.top]
        return {**self._scored(drawn.token, drawn.logprob), "top_logprobs": top}

    def _scored(self, token: int, logprob: float | None) -> Json:
        spelt = self.tokenizer.token_bytes(token)
        return {"token": spelt.decode(errors="replace"), "logprob": logprob, "bytes": list(spelt)}

    def _legacy(self, asked: Asked) -> LegacyLogprobs:
        return LegacyLogprobs(self.tokenizer, asked.echo_ahead)


def _delta(event: Event) -> Json:
    match event:
        case ReasoningText(text):
            return {"reasoning_content": text, "reasoning": text}
        case ContentText(text):
            return {"content": text}
        case CallBegin(index, id_of_call, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": id_of_call, "type": "function", "function": function}]}
        case ArgumentsText(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
    raise AssertionError(f"no delta for {event}")
