"""uvicorn's HTTP protocol with bounds on what comes ahead of a body: its size, and the time it may take.

What is refused here never comes to the application: it gets its error, its id and its line in the log here.
"""

from __future__ import annotations

import asyncio
import json
import logging
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tenth.serve.problems import HttpProblem, answer_of
from tenth.serve.trace import id_headers, request_id

MOST_BYTES = 64 << 10
"""The address and all headers of a request."""
SECONDS = 30.0
"""From the first byte of a request, or the beginning of a connection, until its headers are there."""

_HEADERS = ((b"content-type", b"application/json"), (b"connection", b"close"))
log = logging.getLogger("tenth.serve.access")


class BoundedProtocol(HttpToolsProtocol):
    """A connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.url = b""
        self._head = 0
        self._in_head = False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._waited()
        self._unset_keepalive_if_required()  # uvicorn's own does it for those alone that closed in order
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes that belong to a head are counted before they are read: its parts may be as large as they like."""
        if self._in_head or self._head_timer is not None:
            self._head += len(data)
            if self._head > MOST_BYTES and not self._ends_within(data):
                if not self._in_head:
                    self._peek(data)
                self._refuse(HttpProblem(431, f"address and headers are larger than {MOST_BYTES:,} bytes"))
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        super().on_message_begin()
        self._in_head, self._head = True, 0
        if self._head_timer is None:
            self._wait()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, unless there are too many of them."""
        self._head += len(name) + len(value)
        if self._head <= 2 * MOST_BYTES:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head has come."""
        self._in_head = False
        self._waited()
        super().on_headers_complete()

    def _ends_within(self, data: bytes) -> bool:
        """Whether the head is over early in these bytes: the rest is a body's."""
        end = data.find(b"\r\n\r\n")
        return end >= 0 and self._head - len(data) + end <= MOST_BYTES

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, in our form."""
        self._refuse(HttpProblem(400, "this is no request of HTTP/1.1, or its body is cut wrongly", "invalid_http"))

    def _peek(self, data: bytes) -> None:
        """Which address bytes that will not be read have."""
        words = data[:MOST_BYTES].split(b" ", 2)
        self.url, self.headers = words[1] if len(words) == 3 else b"", []

    def _wait(self) -> None:
        late = HttpProblem(408, f"the request did not come within {SECONDS:g} seconds", "timeout")
        self._head_timer = self.loop.call_later(SECONDS, self._refuse, late)

    def _waited(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, problem: HttpProblem) -> None:
        self._waited()
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        begun = self._in_head or self._head or problem.status == 400  # nobody waits for an answer to nothing
        if begun and not answering:  # and no error stands in the middle of another answer
            self._answer(problem)
        self.transport.close()

    def _answer(self, problem: HttpProblem) -> None:
        path, name = self.url.partition(b"?")[0].decode("latin-1"), request_id(self.headers or ())
        body = json.dumps(answer_of(path, problem)).encode()
        headers = [*_HEADERS, (b"content-length", str(len(body)).encode()), *id_headers(path, name)]
        head = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}".encode()]
        self.transport.write(b"\r\n".join([*head, *(b": ".join(pair) for pair in headers), b"", body]))
        fields: dict[str, object] = {"request_id": name, "client": (self.client or ("-",))[0], "path": path[:200]}
        fields |= {"status": problem.status, "error": problem.message}
        log.info("request", extra={"fields": fields})
