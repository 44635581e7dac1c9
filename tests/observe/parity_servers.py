"""Servers that tell of prompts and answers in the ways of others, of a decoder or as a script says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenth.model.batch import Batch
from tenth.model.decoder import Decoder
from tenth.observe.http_client import Client
from tenth.observe.parity import VerifyOptions
from tenth.observe.parity_remote import verify_server
from tenth.observe.parity_server import Server
from tenth.observe.parity_sides import opened
from tests.observe.parity_models import corpus

Body = dict[str, Any]
Answer = tuple[int, dict[str, str], Any]  # status, headers, content
KEY = "secret"


def measured(
    path: Path,
    address: str,
    *,
    last: bool = True,
    key: str | None = KEY,
    tokens: int = 10,
    prompts: int = 2,
    waited: list[float] | None = None,
    **more: Any,
) -> dict[str, Any]:
    with opened(path, "a") as side:
        return verify_server(
            side,
            Server(Client(address, key, sleep=[].append if waited is None else waited.append)),
            replace(corpus(), prompts=[window[:8] for window in corpus().windows[:prompts]]),
            VerifyOptions(greedy_tokens=tokens),
            server_is_b=last,
            report=lambda _: lambda done, total: None,
            **more,
        )


@contextmanager
def serving(complete: Callable[[Body], Answer]) -> Iterator[str]:
    """A server of one model, which answers to completions as it is told."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(200, {}, {"data": [{"id": "fake"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.headers.get("authorization") != f"Bearer {KEY}":
                return self._send(401, {}, {"error": "no such key"})
            return self._send(*complete(body))

        def _send(self, status: int, headers: dict[str, str], content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()
        thread.join(10)


def texts(path: Path) -> list[str]:
    """How tokens of a model are spelt: parts of characters alike."""
    with opened(path, "b") as side:
        assert side.tokenizer is not None
        return [
            (side.tokenizer.token_bytes(token) or f"<{token}>".encode()).decode(errors="replace")
            for token in range(side.config.vocab_size)
        ]


@torch.no_grad()
def scores(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    logits_NV = decoder(Batch.of([list(ids)])).logits_NV
    assert logits_NV is not None
    return logits_NV.double().log_softmax(-1)


@contextmanager
def faked(path: Path, way: str, decoder: Decoder, *, strange: bool = False) -> Iterator[str]:
    """A server of a decoder. `way`: `vllm` and `echo` tell of prompts, `texts`, `ids` and `bytes` of answers so named,
    `plain` of nothing. Fields that it does not know are refused.
    """
    names = [f"~{text}~" if strange else text for text in texts(path)]
    with opened(path, "b") as side:
        assert side.tokenizer is not None
        spelt = [list(side.tokenizer.token_bytes(token)) for token in range(side.config.vocab_size)]

    def complete(body: Body) -> Answer:
        known = {"vllm": {"prompt_logprobs", "return_tokens_as_token_ids"}, "echo": {"echo"}}.get(way, set())
        known |= {"model", "prompt", "max_tokens", "temperature"} | ({"logprobs"} if way != "plain" else set())
        if not set(body) <= known or body.get("logprobs", 0) > 5:
            return 400, {}, {"error": "unknown field, or too many"}
        ids, count = list(body["prompt"]), len(body["prompt"])
        for _ in range(body["max_tokens"]):
            ids.append(int(scores(decoder, ids)[-1].argmax()))
        choice: dict[str, Any] = {"text": "".join(names[token] for token in ids[count:])}
        rows_NV = scores(decoder, ids)
        if "prompt_logprobs" in body:
            choice["prompt_logprobs"] = [None, *(_numbered(rows_NV[n], ids[n + 1], names) for n in range(count - 1))]
        elif "logprobs" in body:
            first = 0 if body.get("echo") else count
            choice["logprobs"] = _content(rows_NV, ids, first, names, spelt, way) if way in ("ids", "bytes") else (
                _lists(rows_NV, ids, first, names)
            )  # fmt: skip
        return 200, {}, {"choices": [choice]}

    with serving(complete) as address:
        yield address


def _numbered(row_V: Tensor, token: int, names: Sequence[str]) -> Any:
    top = {*row_V.topk(20).indices.tolist(), token}
    return {str(t): {"logprob": float(row_V[t]), "decoded_token": names[t]} for t in top}


def _lists(rows_NV: Tensor, ids: Sequence[int], first: int, names: Sequence[str]) -> Any:
    at = range(first, len(ids))
    tops = [None if n == 0 else rows_NV[n - 1].topk(5).indices.tolist() for n in at]
    return {
        "tokens": [names[ids[n]] for n in at],
        "token_logprobs": [None if n == 0 else float(rows_NV[n - 1, ids[n]]) for n in at],
        "top_logprobs": [  # of tokens that are spelt alike the better one
            None if top is None else {names[t]: float(rows_NV[n - 1, t]) for t in reversed(top)}
            for n, top in zip(at, tops, strict=True)
        ],
    }


def _content(
    rows_NV: Tensor, ids: Sequence[int], first: int, names: Sequence[str], spelt: Sequence[list[int]], way: str
) -> Any:
    def one(row_V: Tensor, token: int) -> Body:
        which: Body = {"id": token} if way == "ids" else {"bytes": spelt[token]}
        return {"token": names[token], "logprob": float(row_V[token]), **which}

    return {
        "content": [
            {
                **one(rows_NV[n - 1], ids[n]),
                "top_logprobs": [one(rows_NV[n - 1], t) for t in rows_NV[n - 1].topk(5).indices.tolist()],
            }
            for n in range(first, len(ids))
        ]
    }
