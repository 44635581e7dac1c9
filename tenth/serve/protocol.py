"""uvicorn's HTTP protocol with bounds on what comes ahead of a body: its size, and the time it may take."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_BYTES = 64 << 10
"""The address and all headers of a request."""
SECONDS = 30.0
"""From the first byte of a request, or the beginning of a connection, until its headers are there."""

_ANSWER = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"


class BoundedProtocol(HttpToolsProtocol):
    """A connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
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
                self._refuse(b"431 Request Header Fields Too Large", "headers larger than 65,536 bytes")
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

    def _wait(self) -> None:
        self._head_timer = self.loop.call_later(
            SECONDS, self._refuse, b"408 Request Timeout", f"the request did not come within {SECONDS:g} seconds"
        )

    def _waited(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: bytes, words: str) -> None:
        self._waited()
        body = f'{{"error":{{"message":"{words}","type":"invalid_request_error","param":null,"code":null}}}}'.encode()
        if not self.transport.is_closing():
            if self._in_head or self._head:  # nobody waits for an answer to nothing
                self.transport.write(_ANSWER % (status, len(body), body))
            self.transport.close()
