"""Requests in the form of the OpenAI API: what JSON says, for the engine and for how answers become text.

Answers as JSON are in `answer_body.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tenth.api import body_fields as f
from tenth.api.answer_events import AnswerEvents
from tenth.api.answer_text import AnswerText, thinking_of
from tenth.api.fill_in import Gap, gap_prompt
from tenth.api.legacy_logprobs import characters
from tenth.api.message_fields import check_messages
from tenth.api.model import Model
from tenth.api.options import Settings
from tenth.api.tool_messages import tool_messages
from tenth.api.tool_plan import ToolPlan
from tenth.engine.request import MOST_ANSWERS, Request
from tenth.engine.sampler import Sampling
from tenth.engine.thinking import QWEN3_STOP, Thinking
from tenth.errors import RequestError

Kind = Literal["chat.completion", "text_completion"]

HINTS = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention prediction verbosity "
    "request_id".split()
)
"""Fields that are known and change nothing here: labels for whoever keeps the books, and wishes of speed and tone."""

_SAMPLING = {name for name in Sampling.__slots__ if name != "seed"}
_SETTINGS = {*_SAMPLING, "seed", "stop", "expert_mass", "max_experts"}
_NUMBERS = ("n", "min_tokens", "priority")
_LENGTHS = ("max_completion_tokens", "max_tokens")
_SHARED = {
    *_SETTINGS,
    *_NUMBERS,
    *_LENGTHS,
    *HINTS,
    *f.GUIDED,
    *"model logit_bias response_format structured_outputs logprobs stream stream_options".split(),
    *"stop_token_ids ignore_eos reasoning_effort thinking_token_budget include_reasoning cache".split(),
}
_CHAT = {
    *"messages top_logprobs enable_thinking chat_template_kwargs modalities".split(),
    *"tools tool_choice parallel_tool_calls".split(),
}
KNOWN = {"chat.completion": _SHARED | _CHAT, "text_completion": {*_SHARED, "prompt", "suffix", "echo"}}
"""The fields of each kind of body."""


class PromptTooLong(RequestError):
    """The prompt leaves no room for an answer in the context that requests may use."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a service allows: tokens of prompt and answer together (None: the model's context), answers to a prompt.

    With `fill` an answer whose length is not said may be as long as there is room, else as the model's defaults say.
    `tool_form` is how the model writes calls of tools (`tool_plan.py`).
    """

    context: int | None = None
    answers: int = MOST_ANSWERS
    fill: bool = False
    tool_form: str = "auto"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of the API: for the engine, and how its answers become text.

    `keep`: its answers may be kept and given again, since they would come out alike, or because the body says so.
    `bounded`: the body says how long they may be. `echo` is the prompt to be shown, whose tokens spell `echo_ahead`
    characters more. Not `shown` are answers of no tokens: one is computed.
    """

    kind: Kind
    request: Request
    stops: tuple[str, ...]
    label: str
    model: Model = field(repr=False)
    tools: ToolPlan = field(default_factory=ToolPlan)
    echo: str = ""
    echo_ahead: int = 0
    shown: bool = True
    stream: bool = False
    include_usage: bool = False
    reasoning: bool = True
    keep: bool = False
    bounded: bool = True

    @classmethod
    def read(
        cls, model: Model, kind: Kind, body: Mapping[str, Any], rules: Rules | None = None, gap: Gap | None = None
    ) -> Asked:
        """Judge a body with one prompt; RequestError for a field that does not exist, or a value that cannot be.

        A `gap` that is given is the prompt of a completion.
        """
        rules = rules or Rules()
        _check_names(kind, body)
        given = {name: value for name, value in body.items() if value is not None}
        tools, shown = _tools(model, given, rules), not _prompt_alone(kind, given)
        settings = _settings(model, given if shown else {**given, **dict.fromkeys(_LENGTHS, 1)}, tools)
        gap = gap or _gap(model, given)
        prompt = "" if gap is not None else _prompt(model, kind, given)
        ids = gap.ids if gap is not None else tuple(model.encode(prompt, settings))
        settings = replace(settings, max_tokens=_room(model, kind, given, rules, len(ids), settings))
        thinking = None if gap is not None else _thinking(model, ids, given)
        request = model.request(ids, settings, **_engine_fields(kind, given, rules), thinking=thinking)
        request = _with_calls(request, tools)
        request = replace(request, end_ids=_ends(request, given, gap))
        echo, ahead = _echo(model, prompt, ids) if _echoes(kind, given) else ("", 0)
        return cls(
            kind,
            request,
            settings.stop,
            f.text(given, "model"),
            model,
            tools,
            echo,
            ahead,
            shown,
            stream=f.flag(given, "stream"),
            include_usage=_include_usage(given),
            reasoning=f.flag(given, "include_reasoning", True),
            keep=f.flag(given, "cache", settings.sampling.temperature == 0 or "seed" in given),
            bounded=kind == "text_completion" or _bounded(given),
        )

    @classmethod
    def read_all(cls, model: Model, kind: Kind, body: Mapping[str, Any], rules: Rules | None = None) -> list[Asked]:
        """Judge a body; a completion may have many prompts, each with its own answers."""
        if kind == "chat.completion":
            return [cls.read(model, kind, body, rules)]
        prompts = f.several(body.get("prompt"))
        most = (rules or Rules()).answers
        if len(prompts) > most:
            raise RequestError(f"prompt holds {len(prompts)} prompts, there may be {most}")
        return [cls.read(model, kind, {**body, "prompt": prompt}, rules) for prompt in prompts]

    def events(self) -> list[AnswerEvents]:
        """What turns the tokens of each of its answers into events, fresh."""
        return [self._events() for _ in range(self.request.n)]

    def _events(self) -> AnswerEvents:
        request = self.request
        text = AnswerText(self.model.tokenizer, self.stops, request.thinking, request.end_ids)
        return AnswerEvents(
            text,
            self.tools.parser(),
            logprobs=request.logprobs is not None,
            reasoning=self.reasoning,
            first=None if request.prompt_logprobs is None else request.prompt[0],
            shown=self.shown,
        )


def _check_names(kind: Kind, body: Mapping[str, Any]) -> None:
    for name in body:
        if name not in KNOWN[kind]:
            raise RequestError(
                f"no field of a {kind} is named {name!r:.40} (there are: {', '.join(sorted(KNOWN[kind]))})"
            )
    if body.get("modalities") not in (None, ["text"]):
        raise RequestError(f'modalities is {body["modalities"]!r:.40}, it must be ["text"]')


def _tools(model: Model, given: Mapping[str, Any], rules: Rules) -> ToolPlan:
    template = None if model.template is None else model.template.source
    spelled = (model.tokenizer.token_bytes(token) for token in sorted(model.tokenizer.added_ids))
    fields = (given.get(name) for name in ("tools", "tool_choice", "parallel_tool_calls"))
    specials = [text.decode(errors="replace") for text in spelled]
    return ToolPlan.read(*fields, template=template, form=rules.tool_form, specials=specials)


def _with_calls(request: Request, tools: ToolPlan) -> Request:
    """With the grammar of the calls that must come."""
    if tools.grammar is None:
        return request
    if request.grammar is not None:
        raise RequestError("tool_choice asks for a call, response_format for an answer of another form: leave one out")
    return replace(request, grammar=tools.grammar)


def _settings(model: Model, given: Mapping[str, Any], tools: ToolPlan) -> Settings:
    options: dict[str, Any] = {name: given[name] for name in _SETTINGS & given.keys()}
    options["tools"] = tools.tools
    for name in _LENGTHS[::-1]:
        options |= {"max_tokens": given[name]} if name in given else {}
    arguments = f.template_arguments(given)
    return model.defaults.updated({**options, "template_arguments": arguments})  # type: ignore[typeddict-item]


def _room(model: Model, kind: Kind, given: Mapping[str, Any], rules: Rules, prompt: int, settings: Settings) -> int:
    """How many tokens may follow a prompt of so many."""
    context = min(model.config.context_length, rules.context or model.config.context_length)
    if rules.fill and prompt >= context:
        raise PromptTooLong(f"{_source(kind)} has {prompt} tokens, the context is {context}, answer included")
    if not rules.fill:
        return settings.max_tokens
    most = (
        settings.max_tokens if _bounded(given) else context if kind == "chat.completion" else 16
    )  # OpenAI's own default
    return min(most, context - prompt)


def _bounded(given: Mapping[str, Any]) -> bool:
    return any(name in given for name in _LENGTHS)


def _source(kind: Kind) -> str:
    return "messages" if kind == "chat.completion" else "prompt"


def _prompt(model: Model, kind: Kind, given: Mapping[str, Any]) -> Any:
    name = _source(kind)
    if name not in given:
        raise RequestError(f"{name} is missing: a {kind} needs it")
    value = given[name]
    if kind == "chat.completion" and not isinstance(value, Sequence | str):
        raise RequestError(f"messages is {value!r:.40}, it must be a list of messages")
    if kind == "chat.completion" and not value:
        raise RequestError("messages is empty, it must hold at least one message")
    if kind == "chat.completion" and not all(isinstance(message, Mapping) for message in value):
        raise RequestError('messages must be a list of objects {"role": ..., "content": ...}')
    if kind == "chat.completion":
        check_messages(value, None if model.template is None else model.template.source)
        return tool_messages(value)
    chat = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
    if kind == "text_completion" and (chat or not isinstance(value, str | list)):
        raise RequestError(f"prompt is {value!r:.40}, it must be a text or a list of token ids")
    return value


def _thinking(model: Model, ids: Sequence[int], given: Mapping[str, Any]) -> Thinking | None:
    thinking = thinking_of(model.tokenizer, ids)
    budget = f.thinking_budget(given, thinks=thinking is not None)
    return thinking if budget is None else thinking_of(model.tokenizer, ids, budget, QWEN3_STOP)


def _engine_fields(kind: Kind, given: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    fields: dict[str, Any] = {name: f.whole(given, name) for name in _NUMBERS if name in given}
    if fields.get("n", 1) > rules.answers:
        raise RequestError(f"n is {fields['n']}, it must lie between 1 and {rules.answers}")
    logprobs = f.chat_logprobs(given) if kind == "chat.completion" else f.whole(given, "logprobs")
    fields["prompt_logprobs"] = logprobs if _echoes(kind, given) else None  # what is shown is scored
    return {**fields, "grammar": f.grammar(given), "logprobs": logprobs, "logit_bias": f.biases(given)}


def _echoes(kind: Kind, given: Mapping[str, Any]) -> bool:
    return kind == "text_completion" and f.flag(given, "echo")


def _prompt_alone(kind: Kind, given: Mapping[str, Any]) -> bool:
    """Whether the prompt is wanted back and no answer."""
    lengths = [given[name] for name in _LENGTHS if name in given]
    return _echoes(kind, given) and bool(lengths) and all(type(length) is int and length == 0 for length in lengths)


def _echo(model: Model, prompt: object, ids: Sequence[int]) -> tuple[str, int]:
    """A prompt as a text, and how many characters its tokens spell beside it."""
    text = prompt if isinstance(prompt, str) else model.tokenizer.decode(ids, skip_specials=False)
    spelt = b"".join(map(model.tokenizer.token_bytes, ids))
    return text, characters(spelt) - len(text)


def _ends(request: Request, given: Mapping[str, Any], gap: Gap | None) -> frozenset[int]:
    own = frozenset() if f.flag(given, "ignore_eos") else request.end_ids
    return own | frozenset(f.ids(given, "stop_token_ids")) | (gap.end_ids if gap is not None else frozenset())


def _include_usage(given: Mapping[str, Any]) -> bool:
    options = given.get("stream_options", {})
    if not isinstance(options, Mapping):
        raise RequestError(f"stream_options is {options!r:.40}, it must be an object")
    if options and not f.flag(given, "stream"):
        raise RequestError("stream_options goes with stream, which must be true")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise RequestError(f"stream_options has {name!r:.40}, there is include_usage")
    return f.flag({k: v for k, v in options.items() if v is not None}, "include_usage")


def _gap(model: Model, given: Mapping[str, Any]) -> Gap | None:
    """The prompt of a completion with a `suffix`."""
    if "suffix" not in given:
        return None
    if f.flag(given, "echo"):
        raise RequestError("echo does not go with suffix: the answer stands between two texts")
    return gap_prompt(model.tokenizer, f.text(given, "prompt"), f.text(given, "suffix"))
