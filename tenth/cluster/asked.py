"""A request as the front passes it on: its bytes, and of a prompt the text that decides what a cache can save."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from tenth.cluster.wire import PREFIX
from tenth.serve.problems import HttpProblem

PROMPTS = frozenset(
    f"/{path}"
    for path in (
        *("v1/chat/completions v1/completions v1/messages v1/responses v1/embeddings infill".split()),
        *("v1/messages/count_tokens tokenize detokenize".split()),
    )
)
"""Paths whose requests change nothing: asked again of another replica, they are answered as well."""
_PARTS = ("tools", "system", "instructions", "messages", "input_extra", "input_prefix", "prompt", "input")  # in order
_APART = 64 << 10  # bytes of a body that is read in a thread, so that no stream waits
_OWN = frozenset(b"host connection content-length transfer-encoding keep-alive te upgrade expect authorization".split())
_OWN_TOO = frozenset(b"x-api-key x-request-id accept-encoding".split())


@dataclass(frozen=True, slots=True)
class Asked:
    """One request; `headers` are those that go on to a replica, `target` is path and query as they came."""

    method: str
    path: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    text: bytes

    @property
    def repeatable(self) -> bool:
        """Whether it may be asked twice."""
        return self.method in ("GET", "HEAD") or self.path in PROMPTS


async def read_asked(request: Request, body: bytes) -> Asked:
    """A request with this body; HttpProblem 404 for an address that is no path (`OPTIONS *`)."""
    path = request.scope["path"]
    raw, query = request.scope.get("raw_path") or path.encode(), request.scope["query_string"]
    target = raw.partition(b"?")[0] + (b"?" + query if query else b"")
    if not target.startswith(b"/"):
        raise HttpProblem(404, f"there is nothing at {target.decode('latin-1')!r:.80}")
    headers = tuple(
        (name, value)
        for name, value in request.scope["headers"]
        if name not in _OWN and name not in _OWN_TOO and not name.startswith(PREFIX)
    )
    text = b""
    if request.method == "POST" and path in PROMPTS:
        text = await asyncio.to_thread(beginning, body) if len(body) > _APART else beginning(body)
    return Asked(request.method, path, target.decode("latin-1"), headers, body, text)


def beginning(body: bytes) -> bytes:
    """What the model is shown first, first: bodies whose prompts begin alike give texts that do.

    Empty for a body that is no JSON object, which a replica will say.
    """
    try:
        read: Any = json.loads(body)
    except (ValueError, RecursionError):
        return b""
    if not isinstance(read, dict):
        return b""
    parts = [json.dumps(read[name], ensure_ascii=False) for name in _PARTS if read.get(name)]
    return "".join(parts).encode("utf-8", "surrogatepass")
