"""What the page expects of `/v1/live` and `/v1/reviews`, around an application: numbers move while it generates."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from typing import Any

import numpy as np

Json = dict[str, Any]
LAYERS, EXPERTS = 48, 128
STATES = {"approve": "approved", "correct": "corrected", "reject": "rejected"}


class Contract:
    """ASGI middleware. `reviews` are what the queue holds, `lookers` how many streams of the feed are open."""

    def __init__(self, app: Any, *, drift: bool = True) -> None:
        self.app, self.drift = app, drift
        self.reviews: list[Json] = []
        self.lookers = 0
        self.generated = 0  # chunks of chats so far
        self.running = 0
        self.random = np.random.default_rng(0)
        shares_LE = self.random.gamma(2.2, size=(LAYERS, EXPERTS))
        shares_LE[self.random.random((LAYERS, EXPERTS)) < 0.006] = 0
        self.shares_LE = shares_LE / shares_LE.sum(1, keepdims=True)
        self.counts_LE = self.random.poisson(self.shares_LE * 90_000 * 8).astype("<u4")
        self.drift_L = (0.01 + 0.05 * self.random.random(LAYERS)).tolist()
        self.start = time.monotonic()

    async def __call__(self, scope: Json, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if path == "/v1/live":
            await self._live(receive, send)
        elif path.startswith("/v1/reviews"):
            await self._review(scope, receive, send)
        elif path == "/v1/chat/completions":
            await self._counted(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _counted(self, scope: Json, receive: Any, send: Any) -> None:
        async def counted(message: Json) -> None:
            self.generated += message.get("body", b"").count(b"data: ")
            await send(message)

        self.running += 1
        try:
            await self.app(scope, receive, counted)
        finally:
            self.running -= 1

    async def _live(self, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(_left(receive))
        self.lookers += 1
        seen = self.generated
        try:
            while not gone.done():
                tokens, seen = self.generated - seen, self.generated
                body = f"data: {json.dumps(self.tick(tokens))}\n\n".encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.wait([gone], timeout=0.2)
        finally:
            gone.cancel()
            self.lookers -= 1

    def tick(self, tokens: int) -> Json:
        """One message of the feed, of so many new tokens."""
        now_LE = self.random.poisson(self.shares_LE * tokens * 8).astype("<u4")
        self.counts_LE += now_LE
        load_LE = self.counts_LE / self.counts_LE.sum(1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy_L = -np.nansum(load_LE * np.log(load_LE), 1) / np.log(EXPERTS)
        drift = {
            "bits": 0.041,
            "threshold": 0.1,
            "alarm": False,
            "layer": 31,
            "by_layer": self.drift_L,
            "judged": True,
        }
        experts = {
            "layers": list(range(LAYERS)),
            "experts": EXPERTS,
            "now": {"tokens": tokens, "counts": _packed(now_LE)},
            "recent": {"tokens": int(self.counts_LE[0].sum()) // 8, "seconds": 300, "counts": _packed(self.counts_LE)},
            "entropy": entropy_L.tolist(),
            "balance": (load_LE.max(1) * EXPERTS).tolist(),
            "dead": (self.counts_LE == 0).sum(1).tolist(),
            "drift": drift if self.drift else None,
        }
        requests = [
            {"id": f"chatcmpl-{n:08x}", "key": "anonymous", "state": "running", "prompt_tokens": 180 + 31 * n,
             "generated_tokens": 7 + 40 * n, "seconds": 1.2 + n} for n in range(self.running)
        ]  # fmt: skip
        speed = {"generated_per_s": 5.0 * tokens, "prompt_per_s": 0.7 * tokens}
        limit = {"bytes_per_s": 2.4e8 * tokens, "machine_bytes_per_s": 2e10, "share": min(1.0, 0.012 * tokens)}
        return {
            "model": "scripted",
            "phase": "ready",
            "uptime_s": time.monotonic() - self.start,
            "experts": experts,
            "requests": {"running": self.running, "waiting": 0, "list": requests},
            "cache": {"used_tokens": 400 * self.running, "tokens": 16384, "prefix_hit_rate": 0.4},
            "speed": {**speed, "limit": limit},
        }

    def add(self, **fields: Any) -> Json:
        """Put an answer into the queue."""
        review = {
            "id": f"rv-{len(self.reviews):04d}", "created": 1_790_000_000 + 600 * len(self.reviews), "state": "waiting",
            "version": 1, "model": "scripted", "key": "anonymous", "reasons": [], "messages": [], "answer": "",
            "reasoning": None, "correction": None, "note": None, "confidence": None, "decided": None,
            "decided_by": None,
        }  # fmt: skip
        self.reviews.append({**review, **fields})
        return self.reviews[-1]

    async def _review(self, scope: Json, receive: Any, send: Any) -> None:
        body = b""
        if scope["method"] == "POST":
            more = True
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
        asked = dict(re.findall(r"(\w+)=([^&]*)", scope["query_string"].decode()))
        status, found = self._answer(scope["path"].removeprefix("/v1/reviews"), asked, json.loads(body or b"null"))
        content = found if isinstance(found, bytes) else json.dumps(found).encode()
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]}
        )
        await send({"type": "http.response.body", "body": content})

    def _answer(self, path: str, asked: Json, body: Json | None) -> tuple[int, Json | bytes]:
        if path == "" and body is not None:
            reasons = [{"kind": "person", "text": body.get("note", "")}]
            return 201, self.add(reasons=reasons, **{k: v for k, v in body.items() if k != "note"})
        if path == "":
            states = asked["state"].split(",") if "state" in asked else None
            found = [one for one in self.reviews if states is None or one["state"] in states]
            waiting = sum(one["state"] == "waiting" for one in self.reviews)
            return 200, {"data": found[: int(asked["limit"])], "has_more": False, "waiting": waiting}
        if path == "/export":
            kept = [one for one in self.reviews if one["state"] in ("approved", "corrected")]
            return 200, b"".join(json.dumps({"messages": one["messages"]}).encode() + b"\n" for one in kept)
        review = next(one for one in self.reviews if one["id"] == path[1:])
        if body is None:
            return 200, review
        if body["seen"] != review["version"]:
            return 409, {"error": {"message": "changed", "type": "conflict", "param": None, "code": "conflict"}}
        review |= {"state": STATES[body["decision"]], "version": review["version"] + 1, "decided": 1_790_009_999}
        review |= {"decided_by": "anonymous", "correction": body.get("correction"), "note": body.get("note")}
        return 200, review


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _packed(counts: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(counts.tobytes()).decode()
