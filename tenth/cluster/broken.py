"""The last event of a stream whose replica has gone, in the form of the API that it belongs to."""

from __future__ import annotations

import re

from tenth.serve.anthropic_answer import anthropic_form
from tenth.serve.problems import HttpProblem, openai_form
from tenth.serve.sse import openai_failed, sse

_NUMBER = re.compile(rb'"sequence_number":\s*(\d+)')

LOST = HttpProblem(502, "the replica that was answering has gone: this answer is not whole", "replica_lost")
STOPPING = HttpProblem(503, "the server has stopped before the answer was whole", "stopping", retry_after=5)


def last_event(path: str, problem: HttpProblem, before: bytes) -> bytes:
    """What ends a stream of this path; `before` are the events that were sent last."""
    if path == "/v1/responses":
        numbers = _NUMBER.findall(before)
        said = {"code": problem.code, "message": problem.message, "param": None}
        return sse({"type": "error", **said, "sequence_number": int(numbers[-1]) + 1 if numbers else 0}, "error")
    if path == "/v1/messages":
        return sse(anthropic_form(problem), "error")
    return sse(openai_form(problem)) if path == "/infill" else openai_failed(problem)
