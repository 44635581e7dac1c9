"""HTTP/1.1 by hand: a client that can be slow, rude, or gone at any byte, and costs little."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any, Self

_SMALL = 4096  # bytes that a slow reader's side takes before it stops the server's


class Broken(Exception):
    """The server closed the connection before an answer was whole."""


class Wire:
    """One connection; `status` and `headers` are of the last answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.status, self.headers = 0, dict[str, str]()

    @classmethod
    async def open(cls, port: int, *, small: bool = False) -> Self:
        """Connect; `small`: with little room for what comes."""
        connection = socket.socket()
        if small:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=connection, limit=_SMALL if small else 1 << 20))

    async def send(self, raw: bytes, *, piece: int = 0, pause: float = 0.0) -> None:
        """Send bytes, all at once or in pieces of so many with pauses between."""
        try:
            for start in range(0, len(raw), piece or max(len(raw), 1)):
                self._writer.write(raw[start : start + (piece or len(raw))])
                await self._writer.drain()
                if piece:
                    await asyncio.sleep(pause)
        except (ConnectionError, OSError):
            raise Broken("while it was written to") from None

    async def head(self) -> int:
        """Read an answer's status and headers."""
        lines = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        pairs = (line.partition(": ") for line in lines[1:] if line)
        self.headers = {name.lower(): value for name, _, value in pairs}
        return self.status

    async def body(self) -> AsyncIterator[bytes]:
        """The body, piece by piece."""
        if "content-length" in self.headers:
            yield await self._exactly(int(self.headers["content-length"]))
            return
        assert self.headers.get("transfer-encoding") == "chunked"
        while size := int(await self._until(b"\r\n"), 16):
            yield (await self._exactly(size + 2))[:-2]
        await self._exactly(2)

    async def whole(self) -> Any:
        """The body as JSON."""
        return json.loads(b"".join([piece async for piece in self.body()]))

    async def events(self, pause: float = 0.0) -> list[tuple[str, Any]]:
        """The events of a stream, with their names, to its end; a pause is made behind each piece."""
        raw = b""
        async for piece in self.body():
            raw += piece
            if pause:
                await asyncio.sleep(pause)
        found = []
        for block in raw.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
            if fields:
                data = fields["data"]
                found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
        return found

    async def silent(self) -> bool:
        """Whether the server has closed the connection, and sent nothing more."""
        return await self._reader.read(1) == b""

    def leave(self, *, reset: bool = False) -> None:
        """Close the connection, without the parting words of TCP where it is `reset`."""
        if reset and not self._writer.is_closing():
            linger = struct.pack("ii", 1, 0)
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()

    async def _until(self, end: bytes) -> bytes:
        try:
            return await self._reader.readuntil(end)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Broken("while it was read from") from None

    async def _exactly(self, count: int) -> bytes:
        try:
            return await self._reader.readexactly(count)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Broken("while it was read from") from None


def request(
    method: str, path: str, body: bytes | None, *, name: str, key: str | None, more: tuple[str, ...] = ()
) -> bytes:
    """A request's bytes; `name` is its id, `more` are further headers."""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"x-request-id: {name}", *more]
    lines += [f"authorization: Bearer {key}"] if key is not None else []
    if body is not None:
        lines.append("content-type: application/json")
        if not any(line.startswith("transfer-encoding") for line in more):
            lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")
