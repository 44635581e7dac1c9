"""What goes wrong with a request, as an answer of HTTP: a status, and the error object of the API that was called."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tenth.api.bodies import PromptTooLong
from tenth.errors import EngineError, MachineError, RequestError, TemplateError, TenthError, TokenizerError

Json = dict[str, Any]

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass(slots=True, eq=False)
class HttpProblem(Exception):
    """An answer that is no success. `retry_after` is in seconds; `param` names the field of the body."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.message

    @property
    def kind(self) -> str:
        """OpenAI's word for this sort of error."""
        return _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    @property
    def all_headers(self) -> dict[str, str]:
        """Those of the answer."""
        retry = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return {**dict(self.headers), **retry}


def problem_of(error: TenthError | HttpProblem, body: Mapping[str, Any] | None = None) -> HttpProblem:
    """What an error is to a client; `body` tells which of its fields the error speaks of."""
    if isinstance(error, HttpProblem):
        return error
    message = " ".join(str(error).split())
    if isinstance(error, PromptTooLong):
        return HttpProblem(400, message, "context_length_exceeded", _field(message, body))
    if isinstance(error, RequestError | TemplateError | TokenizerError):
        return HttpProblem(400, message, param=_field(message, body))
    if isinstance(error, EngineError):
        return HttpProblem(503, "the engine failed; the server's log says more", "unavailable", retry_after=1)
    if isinstance(error, MachineError):
        return HttpProblem(503, message, "unavailable", retry_after=1)
    return HttpProblem(500, message)


def unforeseen() -> HttpProblem:
    """Something of ours has failed: what it was is for the log."""
    return HttpProblem(500, "the server failed; its log says more, under this answer's x-request-id")


def _field(message: str, body: Mapping[str, Any] | None) -> str | None:
    """The field that a message begins with, as all messages about a field do; one that is missing says so."""
    first = re.match(r"([a-z_]+)( is missing)?", message)
    return first[1] if first is not None and (first[2] or first[1] in (body or {})) else None


def openai_form(problem: HttpProblem) -> Json:
    """OpenAI's error object."""
    error = {"message": problem.message, "type": problem.kind, "param": problem.param, "code": problem.code}
    return {"error": error}


FORMS: dict[str, Callable[[HttpProblem], Json]] = {}
"""Other APIs' error objects, by the beginning of their paths."""


def answer_of(path: str, problem: HttpProblem) -> Json:
    """The error object of the API that this path belongs to."""
    form = next((form for prefix, form in FORMS.items() if path.startswith(prefix)), openai_form)
    return form(problem)
