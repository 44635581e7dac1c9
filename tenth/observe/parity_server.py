"""A model at an address: what an OpenAI-like server tells of its probabilities and its greedy answers.

Servers differ: vLLM has `prompt_logprobs`, some give a prompt's log-probabilities with `echo`, most give those of the
tokens they generate. They are tried in this order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, Literal

from tenth.errors import RequestError
from tenth.observe.http_client import Client, Refused
from tenth.observe.parity_spelling import Spelling, Token, logprob

Json = dict[str, Any]
Method = Literal["prompt_logprobs", "echo"]

_TOPS = (20, 5)  # log-probabilities a token that servers may allow, the more the better
_PROMPTS: tuple[tuple[Method, Json], ...] = tuple(
    way
    for top in _TOPS
    for way in (("prompt_logprobs", {"prompt_logprobs": top}), ("echo", {"echo": True, "logprobs": top}))
)
_ANSWERS: tuple[Json, ...] = (
    {"logprobs": _TOPS[0], "return_tokens_as_token_ids": True},
    *({"logprobs": top} for top in _TOPS),
    {},
)
_UNKNOWN_FIELD = (400, 422, 501)
_BROKEN = 500


@dataclass(frozen=True, slots=True)
class Generated:
    """A greedy answer: its text, and its tokens, which are None where the server does not tell them."""

    text: str
    tokens: list[Token] | None


class Server:
    """An OpenAI-like server, asked by a `Client`, whose errors it passes on."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.address = client.address
        self.refusals = dict[str, Refused]()
        """What was last said against each way to be told of prompts, where it was not taken."""
        self._way: tuple[Method, Json] | None = None  # that told of the first prompt
        self._answers = 0  # the first form of a request for an answer that it takes

    @cached_property
    def model(self) -> str:
        """The name of the first model that it serves."""
        listed = self._client.json("/v1/models")
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise RequestError(f"{self.address}/v1/models: names no model; is it an OpenAI-like server?") from None

    def facts(self) -> dict[str, object]:
        """As a report names it."""
        return {"name": self.address, "format": "server", "backend": self.model, "bits_per_weight": None}

    def complete(self, ids: Sequence[int], tokens: int, spelling: Spelling) -> Generated:
        """A greedy answer, with all that the server tells of its tokens."""
        body = {"prompt": list(ids), "max_tokens": tokens, "temperature": 0}
        for number in range(self._answers, len(_ANSWERS)):
            try:
                choice = self._choice({**body, **_ANSWERS[number]})
            except Refused as error:
                if error.status not in _UNKNOWN_FIELD or number == len(_ANSWERS) - 1:
                    raise
                continue
            self._answers = number
            return _generated(choice, spelling)
        raise AssertionError

    def of_prompt(self, ids: Sequence[int], spelling: Spelling) -> tuple[Method, list[Token]] | None:
        """What is told of each token of a prompt behind the first; None where nothing is.

        Later prompts are asked about in the way that told of the first one.
        """
        body = {"prompt": list(ids), "max_tokens": 1, "temperature": 0}
        for method, extra in _PROMPTS if self._way is None else (self._way,):
            try:
                choice = self._choice({**body, **extra})
            except Refused as error:  # some say "internal error" of a field that they do not know
                if error.status not in (*_UNKNOWN_FIELD, _BROKEN):
                    raise
                self.refusals[method] = error
                continue
            told = _of_prompt(choice, method, ids, spelling)
            if told is not None:
                self._way = method, extra
                self.refusals.pop(method, None)
                return method, told
        return None

    def _choice(self, body: Json) -> Json:
        answer = self._client.json("/v1/completions", {"model": self.model, **body})
        try:
            choice = answer["choices"][0]
            if isinstance(choice, dict):
                return choice
        except (KeyError, IndexError, TypeError):
            pass
        raise RequestError(f"{self.address}/v1/completions: its answer has no choices")


def _of_prompt(choice: Json, method: Method, ids: Sequence[int], spelling: Spelling) -> list[Token] | None:
    try:
        if method == "prompt_logprobs":
            rows = choice["prompt_logprobs"][1 : len(ids)]
            return [_numbered(row, ids[at], spelling) for at, row in enumerate(rows, 1)]
        told = choice["logprobs"]
        if len(told["token_logprobs"]) < len(ids):  # of what it generated alone
            return None
        return [
            _echoed(spelling, ids[at], *(told[name][at] for name in ("tokens", "token_logprobs", "top_logprobs")))
            for at in range(1, len(ids))
        ]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None


def _numbered(row: Mapping[str, Any], token: int, spelling: Spelling) -> Token:
    """A token of a prompt where log-probabilities stand by id."""
    found = {spelling.checked(int(name)): logprob(one["logprob"]) for name, one in row.items()}
    text = row[str(token)].get("decoded_token") if str(token) in row else None
    return Token(token, text if isinstance(text, str) else None, found, max(found, key=lambda t: found[t]))


def _echoed(spelling: Spelling, token: int, text: Any, value: Any, top: Mapping[str, Any] | None) -> Token:
    """A token of a prompt where log-probabilities stand by text: which one it is itself is known."""
    own = logprob(value)
    named = [(spelling.by_text(name), logprob(number)) for name, number in (top or {}).items()]
    # by text the token itself may be listed without being told apart: it is the likeliest if none lies above it
    found, best = _row([(token, own), *named])
    return Token(token, str(text), {**found, token: own}, best)


def _generated(choice: Json, spelling: Spelling) -> Generated:
    """Either form of log-probabilities: parallel lists, or a list `content` of objects."""
    text, told = str(choice.get("text") or ""), choice.get("logprobs")
    try:
        if not told or not (told.get("content") or told.get("tokens")):
            return Generated(text, None if text else [])
        if told.get("content"):
            return Generated(text, [_described(one, spelling) for one in told["content"]])
        lists = [told.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs")]
        return Generated(text, [_listed(spelling, *one) for one in zip_longest(*lists)])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RequestError("the server's log-probabilities are of a form that is not known") from None


def _described(one: Mapping[str, Any], spelling: Spelling) -> Token:
    named = [(spelling.of(each), logprob(each["logprob"])) for each in (one, *(one.get("top_logprobs") or ()))]
    return Token(named[0][0], str(one["token"]), *_row(named))


def _listed(spelling: Spelling, text: str, value: Any, top: Mapping[str, Any] | None) -> Token:
    token = spelling.by_text(text)
    if value is None:
        return Token(token, text, {}, None)
    named = [(spelling.by_text(name), logprob(number)) for name, number in (top or {}).items()]
    return Token(token, text, *_row([(token, logprob(value)), *named]))


def _row(named: Sequence[tuple[int | None, float]]) -> tuple[Mapping[int, float], int | None]:
    """All that have ids, and the id of the likeliest."""
    found = {token: value for token, value in named if token is not None}
    return found, max(named, key=lambda one: one[1])[0]
