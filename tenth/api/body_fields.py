"""Single fields of a body: what JSON says of them, judged. Every error is a RequestError that begins with the field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tenth.engine.grammar import Grammar
from tenth.engine.request import MOST_LOGPROBS
from tenth.errors import RequestError

Body = Mapping[str, Any]

_FORMS: dict[str, Callable[[Any], Grammar]] = {
    "json": Grammar.json_schema,
    "regex": Grammar.regex,
    "choice": Grammar.choice,
    "grammar": Grammar.lark,
    "python": lambda _: Grammar.python(),
    "json_object": lambda _: Grammar.json(),
}
_FLAGS = ("python", "json_object")  # which are true, or as if they were not there
GUIDED = {f"guided_{name}": name for name in ("json", "regex", "choice", "grammar")}
"""vLLM's older names of what `structured_outputs` holds."""

EFFORTS = {"minimal": 512, "low": 1024, "medium": 4096, "high": 16384, "xhigh": None, "max": None}
"""Tokens of thinking that a `reasoning_effort` stands for; None is no bound. `none` switches thinking off."""


def flag(given: Body, name: str, default: bool = False) -> bool:
    """True or false."""
    value = given.get(name, default)
    if type(value) is not bool:
        raise RequestError(f"{name} is {value!r:.40}, it must be true or false")
    return value


def whole(given: Body, name: str, default: int | None = None) -> int | None:
    """A whole number, of any size: who uses it knows its bounds."""
    value = given.get(name, default)
    if value is not None and type(value) is not int:
        raise RequestError(f"{name} is {value!r:.40}, it must be a whole number")
    return value


def text(given: Body, name: str, default: str = "") -> str:
    """A text."""
    value = given.get(name, default)
    if not isinstance(value, str):
        raise RequestError(f"{name} is {value!r:.40}, it must be a text")
    return value


def ids(given: Body, name: str) -> tuple[int, ...]:
    """A list of token ids."""
    value = given.get(name, ())
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(type(one) is int for one in value):
        raise RequestError(f"{name} is {value!r:.40}, it must be a list of token ids")
    return tuple(value)


def template_arguments(given: Body) -> dict[str, object] | None:
    """`chat_template_kwargs`, with what other fields say of thinking."""
    arguments = given.get("chat_template_kwargs", {})
    if not isinstance(arguments, Mapping):
        raise RequestError(f"chat_template_kwargs is {arguments!r:.40}, it must be an object")
    if effort(given) == "none":
        arguments = {"enable_thinking": False, **arguments}
    if "enable_thinking" in given:
        arguments = {**arguments, "enable_thinking": flag(given, "enable_thinking")}
    return dict(arguments) or None


def effort(given: Body) -> str | None:
    """`reasoning_effort`: one of the names above, or `none`."""
    value = given.get("reasoning_effort")
    if value is not None and (not isinstance(value, str) or value not in ("none", *EFFORTS)):
        raise RequestError(f"reasoning_effort is {value!r:.40}, it must be one of none, {', '.join(EFFORTS)}")
    return value


def thinking_budget(given: Body, *, thinks: bool) -> int | None:
    """Tokens of thinking: `thinking_token_budget`, or what an effort stands for, which a model may not heed."""
    budget = whole(given, "thinking_token_budget")
    if budget is not None and not thinks:
        raise RequestError("thinking_token_budget: the model's vocabulary has no <think> and </think>")
    if budget is None and thinks:
        return EFFORTS.get(effort(given) or "")
    return budget


def grammar(given: Body) -> Grammar | None:
    """What the answer must look like, as OpenAI's `response_format` or vLLM's `structured_outputs` say it."""
    form, outputs = given.get("response_format", {"type": "text"}), _outputs(given)
    kind = form.get("type") if isinstance(form, Mapping) else None
    if outputs:
        if len(outputs) != 1 or not outputs.keys() <= _FORMS.keys():
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


def _outputs(given: Body) -> Body:
    """The forms that are asked for; what is null, or a flag that is false, is not."""
    old = {new: given[name] for name, new in GUIDED.items() if name in given}
    if old and ("structured_outputs" in given or len(old) > 1):
        names = ", ".join(name for name in (*GUIDED, "structured_outputs") if name in given)
        raise RequestError(f"{names} do not go together: an answer has one form")
    new = given.get("structured_outputs", {})
    if not isinstance(new, Mapping):
        raise RequestError(f"structured_outputs must be an object with one of {', '.join(_FORMS)}")
    stated = {name: value for name, value in new.items() if value is not None}
    off = [name for name in _FLAGS if name in stated and not flag(stated, name)]
    return old or {name: value for name, value in stated.items() if name not in off}


def biases(given: Body) -> dict[int, float]:
    """`logit_bias`: token ids, which JSON writes as texts, with numbers."""
    value = given.get("logit_bias", {})
    if not isinstance(value, Mapping):
        raise RequestError(f"logit_bias is {value!r:.40}, it must be an object of token ids and numbers")
    found: dict[int, float] = {}
    for token, bias in value.items():
        number = isinstance(bias, int | float) and not isinstance(bias, bool) and abs(bias) <= 100
        name = str(token)
        if not (name.isascii() and name.isdecimal() and len(name) < 10):
            raise RequestError(f"logit_bias has {token!r:.20}: {bias!r:.20}, it must be a token id with a number")
        if not number or not math.isfinite(bias):
            raise RequestError(f"logit_bias must lie between -100 and 100; it has {token!r:.20}: {bias!r:.20}")
        found[int(name)] = float(bias)
    return found


def chat_logprobs(given: Body) -> int | None:
    """How many likeliest tokens are wanted with each token of a chat's answer: a flag and a number."""
    top = whole(given, "top_logprobs")
    if not flag(given, "logprobs"):
        if top is not None:
            raise RequestError("top_logprobs goes with logprobs, which must be true")
        return None
    if top is not None and not 0 <= top <= MOST_LOGPROBS:
        raise RequestError(f"top_logprobs is {top}, it must lie between 0 and {MOST_LOGPROBS}")
    return top or 0


def several(value: Any) -> list[Any]:
    """The prompts of a field that holds one or many: texts, or lists of token ids."""
    if isinstance(value, list) and value and not all(type(item) is int for item in value):
        return value
    return [value]
