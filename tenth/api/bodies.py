"""Requests and answers in the form of the OpenAI API: what JSON says, for the engine, and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tenth.api.answer_text import AnswerText, thinking_of
from tenth.api.model import Model
from tenth.engine.grammar import Grammar
from tenth.engine.request import Request
from tenth.engine.sampler import Drawn, Sampling
from tenth.engine.stream import Answer, Stream
from tenth.engine.thinking import QWEN3_STOP
from tenth.errors import RequestError

Kind = Literal["chat.completion", "text_completion"]

_LABELS = {"model", "user", "metadata", "store"}  # told to whoever keeps the books
_SAMPLING = {name for name in Sampling.__slots__ if name != "seed"}
_SETTINGS = {*_SAMPLING, "seed", "stop", "tools"}
_ENGINE = {"n", "min_tokens", "logit_bias", "priority", "response_format", "structured_outputs"}
_NUMBERS = ("n", "min_tokens", "priority")
_FORMS: dict[str, Callable[[Any], Grammar]] = {
    "json": Grammar.json_schema,
    "regex": Grammar.regex,
    "choice": Grammar.choice,
    "grammar": Grammar.lark,
    "python": lambda _: Grammar.python(),
    "json_object": lambda _: Grammar.json(),
}
_LENGTHS = ("max_completion_tokens", "max_tokens")
_THINKING = {"enable_thinking", "thinking_token_budget", "chat_template_kwargs"}
_KNOWN = {
    "chat.completion": {"messages", "logprobs", "top_logprobs", *_THINKING, *_SETTINGS, *_ENGINE, *_LABELS, *_LENGTHS},
    "text_completion": {"prompt", "logprobs", "echo", *_SETTINGS, *_ENGINE, *_LABELS, *_LENGTHS} - {"tools"},
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of the API: for the engine, and how its answers become text."""

    kind: Kind
    request: Request
    stops: tuple[str, ...]
    label: str
    echo: str = ""
    texts: list[AnswerText] = field(default_factory=list)

    @classmethod
    def read(cls, model: Model, kind: Kind, body: Mapping[str, Any]) -> Asked:
        """Judge a body; RequestError for a field that does not exist, or a value that cannot be."""
        for name in body:
            if name not in _KNOWN[kind]:
                raise RequestError(f"no field of a {kind} is named {name!r:.40} (there are: {_names(kind)})")
        given = {name: value for name, value in body.items() if value is not None}
        options: dict[str, Any] = {name: given[name] for name in _SETTINGS & given.keys()}
        for name in _LENGTHS[::-1]:
            options |= {"max_tokens": given[name]} if name in given else {}
        arguments = _template_arguments(given)
        settings = model.defaults.updated({**options, "template_arguments": arguments})  # type: ignore[typeddict-item]
        prompt = _prompt(kind, given)
        ids = tuple(model.encode(prompt, settings))
        budget = _whole(given, "thinking_token_budget", None)
        thinking = thinking_of(model.tokenizer, ids, budget, None if budget is None else QWEN3_STOP)
        if budget is not None and thinking is None:
            raise RequestError("thinking_token_budget: the model's vocabulary has no <think> and </think>")
        engine: dict[str, Any] = {name: _whole(given, name, None) for name in _NUMBERS if name in given}
        engine |= {"thinking": thinking, "grammar": _grammar(given), "logprobs": _logprobs(kind, given)}
        request = model.request(ids, settings, **engine)
        request = _with_biases(request, given.get("logit_bias", {}))
        echo = prompt if kind == "text_completion" and _flag(given, "echo") and isinstance(prompt, str) else ""
        label = str(given.get("model", ""))
        texts = [AnswerText(model.tokenizer, settings.stop, thinking, request.end_ids) for _ in range(request.n)]
        return cls(kind, request, settings.stop, label, echo, texts)


def answer_body(
    model: Model, asked: Asked, stream: Stream, texts: Sequence[tuple[str, str]], name: str
) -> dict[str, Any]:
    """The finished answers as one JSON object; `texts` are the thinking and the text of each, `name` is its id."""
    choices = [
        _choice(model, asked, number, answer, *text)
        for number, (answer, text) in enumerate(zip(stream.answers, texts, strict=True))
    ]
    return {
        "id": name,
        "object": asked.kind,
        "created": int(time.time()),
        "model": asked.label,
        "choices": choices,
        "usage": usage_of(stream),
    }


def usage_of(stream: Stream) -> dict[str, Any]:
    """Tokens of the prompt and of all answers; those found in the cache and those thought are among them."""
    prompt, generated = len(stream.request.prompt), sum(len(answer.drawn) for answer in stream.answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": stream.found},
        "completion_tokens_details": {"reasoning_tokens": sum(answer.thought for answer in stream.answers)},
    }


def _choice(model: Model, asked: Asked, number: int, answer: Answer, reasoning: str, content: str) -> dict[str, Any]:
    reason = "stop" if asked.texts[number].stopped is not None else answer.finish_reason
    found: dict[str, Any] = {"index": number, "finish_reason": reason, "logprobs": None}
    if asked.kind == "text_completion":
        found["text"] = asked.echo + content
        if asked.request.logprobs is not None:
            found["logprobs"] = _completion_logprobs(model, answer.drawn)
        return found
    found["message"] = {"role": "assistant", "content": content}
    if reasoning:
        found["message"] |= {"reasoning_content": reasoning, "reasoning": reasoning}
    if asked.request.logprobs is not None:
        found["logprobs"] = {"content": [_chat_logprob(model, one) for one in answer.drawn]}
    return found


def _chat_logprob(model: Model, drawn: Drawn) -> dict[str, Any]:
    top = [_scored(model, token, logprob) for token, logprob in drawn.top]
    return {**_scored(model, drawn.token, drawn.logprob), "top_logprobs": top}


def _scored(model: Model, token: int, logprob: float | None) -> dict[str, Any]:
    spelt = model.tokenizer.token_bytes(token)
    return {"token": spelt.decode(errors="replace"), "logprob": logprob, "bytes": list(spelt)}


def _completion_logprobs(model: Model, drawn: Sequence[Drawn]) -> dict[str, Any]:
    def text(token: int) -> str:
        return model.tokenizer.token_bytes(token).decode(errors="replace")

    return {
        "tokens": [text(one.token) for one in drawn],
        "token_logprobs": [one.logprob for one in drawn],
        "top_logprobs": [{text(token): logprob for token, logprob in one.top} for one in drawn],
    }


def _names(kind: Kind) -> str:
    return ", ".join(sorted(_KNOWN[kind]))


def _prompt(kind: Kind, given: Mapping[str, Any]) -> Any:
    name = "messages" if kind == "chat.completion" else "prompt"
    if name not in given:
        raise RequestError(f"a {kind} needs {name}")
    return given[name]


def _template_arguments(given: Mapping[str, Any]) -> dict[str, object] | None:
    arguments = given.get("chat_template_kwargs", {})
    if not isinstance(arguments, Mapping):
        raise RequestError(f"chat_template_kwargs is {arguments!r:.40}, it must be an object")
    if "enable_thinking" in given:
        arguments = {**arguments, "enable_thinking": _flag(given, "enable_thinking")}
    return dict(arguments) or None


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if type(value) is not bool:
        raise RequestError(f"{name} is {value!r:.40}, it must be true or false")
    return value


def _whole(given: Mapping[str, Any], name: str, default: int | None) -> int | None:
    value = given.get(name, default)
    if value is not None and type(value) is not int:
        raise RequestError(f"{name} is {value!r:.40}, it must be a whole number")
    return value


def _logprobs(kind: Kind, given: Mapping[str, Any]) -> int | None:
    """How many likeliest tokens are wanted with each: a number in completions, a flag and a number in chats."""
    if kind == "text_completion":
        return _whole(given, "logprobs", None)
    top = _whole(given, "top_logprobs", None)
    if not _flag(given, "logprobs"):
        if top is not None:
            raise RequestError("top_logprobs goes with logprobs, which must be true")
        return None
    return top or 0


def _grammar(given: Mapping[str, Any]) -> Grammar | None:
    """What the answer must look like, as OpenAI's `response_format` or vLLM's `structured_outputs` say it."""
    form, outputs = given.get("response_format", {"type": "text"}), given.get("structured_outputs")
    kind = form.get("type") if isinstance(form, Mapping) else None
    if outputs is not None:
        if not isinstance(outputs, Mapping) or len(outputs) != 1 or not outputs.keys() <= _FORMS.keys():
            raise RequestError(f"structured_outputs must be an object with one of {', '.join(_FORMS)}")
        if kind != "text":
            raise RequestError("response_format and structured_outputs do not go together")
        ((name, value),) = outputs.items()
        return _FORMS[name](value)
    if kind == "json_schema":
        schema = form.get("json_schema")
        if not isinstance(schema, Mapping) or "schema" not in schema:
            raise RequestError('response_format json_schema needs {"json_schema": {"schema": ...}}')
        return Grammar.json_schema(schema["schema"])
    if kind not in ("text", "json_object"):
        raise RequestError(f"response_format is {form!r:.60}, its type must be text, json_object or json_schema")
    return Grammar.json() if kind == "json_object" else None


def _with_biases(request: Request, biases: object) -> Request:
    if not isinstance(biases, Mapping):
        raise RequestError(f"logit_bias is {biases!r:.40}, it must be an object of token ids and numbers")
    found: dict[int, float] = {}
    for token, bias in biases.items():
        if not str(token).isdecimal() or isinstance(bias, bool) or not isinstance(bias, int | float):
            raise RequestError(f"logit_bias has {token!r:.20}: {bias!r:.20}, it must be a token id with a number")
        found[int(token)] = float(bias)
    return replace(request, logit_bias=found) if found else request
