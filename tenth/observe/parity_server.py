"""A model at an address: what an OpenAI-like server tells of its probabilities and its greedy answers.

Servers differ: vLLM has `prompt_logprobs`, some give a prompt's log-probabilities with `echo`, all that are asked here
give those of the tokens they generate. They are tried in this order.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tenth.errors import MachineError, RequestError
from tenth.weights.tokenizer import Tokenizer

Method = Literal["prompt_logprobs", "echo", "generated"]

_TOPS = (20, 5)  # log-probabilities a token that servers may allow, the more the better
_SECONDS = 300.0
_LARGEST = 256 << 20  # bytes of an answer


@dataclass(frozen=True, slots=True)
class Told:
    """What the server tells of one position: the token that follows it, and log-probabilities by id.

    `best` is the likeliest id (None: a token that our vocabulary does not spell).
    """

    window: int
    place: int  # the position that predicts
    target: int
    logprobs: Mapping[int, float]
    best: int | None


@dataclass(frozen=True, slots=True)
class Generated:
    """A greedy answer: its text, the spelling of its tokens, and what was told of each."""

    text: str
    tokens: list[str]
    told: list[tuple[int | None, Mapping[int, float], int | None]]  # the token's id, log-probabilities, the likeliest


class Spelling:
    """From a token as a server spells it to its id; None where several are spelt so, or none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._ids: dict[str, int | None] = {}
        self._by_bytes: dict[bytes, int] = {}
        for token, spelt in enumerate(tokenizer.bytes_by_id):
            if spelt is not None:
                text = spelt.decode(errors="replace")  # parts of a character look alike
                self._ids[text] = None if text in self._ids else token
                self._by_bytes.setdefault(spelt, token)

    def __call__(self, text: str) -> int | None:
        """The id."""
        return self._ids.get(text)

    def __contains__(self, text: str) -> bool:
        """Whether any token is spelt so."""
        return text in self._ids

    def of(self, one: Mapping[str, Any]) -> int | None:
        """The id of an object that may have it, or its bytes, beside its text."""
        if type(one.get("id")) is int:
            return int(one["id"])
        if one.get("bytes"):
            return self._by_bytes.get(bytes(one["bytes"]))
        return self(str(one["token"]))


def is_address(name: str) -> bool:
    """Whether a model is named by an address."""
    return name.startswith(("http://", "https://"))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: a key is for the server that was named."""


class Server:
    """An OpenAI-like server. MachineError where it cannot be reached, RequestError where it refuses."""

    def __init__(self, address: str, key: str | None = None) -> None:
        self.address = address.rstrip("/").removesuffix("/v1")
        self._key = key
        self._opener = urllib.request.build_opener(_NoRedirect)

    @cached_property
    def model(self) -> str:
        """The name of the first model that it serves."""
        listed = self._ask("/v1/models", None)
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise RequestError(f"{self.address}/v1/models: names no model; is it an OpenAI-like server?") from None

    def facts(self) -> dict[str, object]:
        """As a report names it."""
        return {"name": self.address, "format": "server", "backend": self.model, "bits_per_weight": None}

    def complete(self, ids: Sequence[int], tokens: int, spelling: Spelling) -> Generated:
        """A greedy answer with its log-probabilities."""
        for top in _TOPS:
            try:
                choice = self._choice({"prompt": list(ids), "max_tokens": tokens, "temperature": 0, "logprobs": top})
                return _generated(choice, spelling)
            except RequestError:
                if top == _TOPS[-1]:
                    raise
        raise AssertionError

    def of_prompt(self, ids: Sequence[int], spelling: Spelling) -> tuple[Method, list[Mapping[int, float]]] | None:
        """Log-probabilities of each token of a prompt behind the first; None where it tells nothing of prompts."""
        body = {"prompt": list(ids), "max_tokens": 1, "temperature": 0}
        for top in _TOPS:
            extras: tuple[tuple[Method, dict[str, Any]], ...] = (
                ("prompt_logprobs", {"prompt_logprobs": top}),
                ("echo", {"echo": True, "logprobs": top}),
            )
            for method, extra in extras:
                try:
                    choice = self._choice({**body, **extra})
                except RequestError:  # a field or a number that it does not know
                    continue
                told = _of_prompt(choice, method, ids, spelling)
                if told is not None:
                    return method, told
        return None

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._ask("/v1/completions", {"model": self.model, **body})
        try:
            choice = answer["choices"][0]
            if isinstance(choice, dict):
                return choice
        except (KeyError, IndexError, TypeError):
            pass
        raise RequestError(f"{self.address}/v1/completions: its answer has no choices")

    def _ask(self, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        url = self.address + path
        try:
            request = urllib.request.Request(url, data, headers)
            with self._opener.open(request, timeout=_SECONDS) as answer:
                return json.loads(answer.read(_LARGEST))
        except urllib.error.HTTPError as error:
            said = error.read(400).decode(errors="replace")
            raise RequestError(f"{url}: answers {error.code}: {' '.join(said.split())[:200]}") from None
        except (urllib.error.URLError, OSError) as error:
            raise MachineError(f"{url}: cannot be reached: {getattr(error, 'reason', error)}") from None
        except ValueError:  # a bad address too
            raise RequestError(f"{url}: its answer is not JSON, or the address is none") from None


def _of_prompt(
    choice: Mapping[str, Any], method: Method, ids: Sequence[int], spelling: Spelling
) -> list[Mapping[int, float]] | None:
    try:
        if method == "prompt_logprobs":
            listed = choice["prompt_logprobs"]
            return [{int(token): float(one["logprob"]) for token, one in each.items()} for each in listed[1 : len(ids)]]
        told = choice["logprobs"]
        if len(told["token_logprobs"]) < len(ids):  # of what it generated alone
            return None
        found = list[Mapping[int, float]]()
        for at in range(1, len(ids)):
            top = _by_id(told["top_logprobs"][at], spelling)
            found.append({**top, ids[at]: float(told["token_logprobs"][at])})
        return found
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None


def _generated(choice: Mapping[str, Any], spelling: Spelling) -> Generated:
    """Either form of log-probabilities: parallel lists, or a list `content` of objects."""
    told = choice.get("logprobs") or {}
    rows = list(_rows(told, spelling))
    return Generated(
        str(choice.get("text", "")), [text for text, *_ in rows], [(token, top, best) for _, token, top, best in rows]
    )


def _rows(
    told: Mapping[str, Any], spelling: Spelling
) -> Iterator[tuple[str, int | None, Mapping[int, float], int | None]]:
    try:
        if "content" in told:
            for one in told["content"]:
                named = [(spelling.of(each), float(each["logprob"])) for each in (one, *one["top_logprobs"])]
                yield str(one["token"]), *_row(named)
        else:
            lists = (told.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
            for text, logprob, top in zip(*lists, strict=False):
                named = [(spelling(each), float(value)) for each, value in [(text, logprob), *(top or {}).items()]]
                yield text, *_row(named)
    except (KeyError, TypeError, ValueError):
        raise RequestError("the server's log-probabilities are of a form that is not known") from None


def _row(named: Sequence[tuple[int | None, float]]) -> tuple[int | None, Mapping[int, float], int | None]:
    """The id of the first, all that have ids, and the id of the likeliest."""
    found = {token: logprob for token, logprob in named if token is not None}
    return named[0][0], found, max(named, key=lambda one: one[1])[0]


def _by_id(top: Mapping[str, float] | None, spelling: Spelling) -> dict[int, float]:
    named = ((spelling(text), float(logprob)) for text, logprob in (top or {}).items())
    return {token: logprob for token, logprob in named if token is not None}
