"""What the owner of a cluster may ask of it: by a socket in the state folder, which only its owner can open.

A socket of the file system needs no token that could be lost, and no network leads there. One line of JSON each way:
`{"do": "status"}` or `{"do": "replace", "model": NAME}`; lines of progress, then `{"ok": ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tenth.errors import MachineError, RequestError, TenthError

Tell = Callable[[str], Awaitable[None]]
_LONGEST = 64 << 10


def admin_path(state: Path, port: int) -> Path:
    """Where the cluster at this port is asked."""
    return state / f"cluster-{port}.sock"


class AdminServer:
    """Use it as `async with`; `replaced` raises TenthError where the model could not be replaced."""

    def __init__(
        self, path: Path, status: Callable[[], dict[str, object]], replaced: Callable[[str, Tell], Awaitable[None]]
    ) -> None:
        self._path, self._status, self._replaced = path, status, replaced

    async def __aenter__(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)  # the file is the owner's alone from its first moment on
        try:
            self._server = await asyncio.start_unix_server(self._asked, self._path, limit=_LONGEST)
        finally:
            os.umask(before)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self._path.unlink(missing_ok=True)

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def say(**line: object) -> None:
            writer.write(json.dumps(line).encode() + b"\n")
            await writer.drain()

        async def tell(text: str) -> None:
            with suppress(OSError):  # whoever asked has left; it goes on
                await say(progress=text)

        try:
            asked = json.loads(await reader.readline())
            if asked["do"] == "replace":
                await self._replaced(str(asked["model"]), tell)
            elif asked["do"] != "status":
                raise RequestError(f"{asked['do']!r:.40} is nothing that a cluster does")
            await say(ok=self._status())
        except (TenthError, ValueError, KeyError, TypeError) as error:
            with suppress(OSError):
                await say(error=" ".join(str(error).split()))
        except OSError:
            pass
        finally:
            writer.close()


async def ask_cluster(path: Path, told: Callable[[str], object], **asked: object) -> dict[str, Any]:
    """The answer of the cluster whose socket this is; `told` hears of progress. MachineError where it has none."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=_LONGEST)
    except OSError as error:
        raise MachineError(
            f"{path}: no cluster listens there ({error.strerror}); --port and --state say which"
        ) from None
    try:
        writer.write(json.dumps(asked).encode() + b"\n")
        while line := await reader.readline():
            said = json.loads(line)
            if "error" in said:
                raise MachineError(said["error"])
            if "ok" in said:
                found: dict[str, Any] = said["ok"]
                return found
            told(said["progress"])
        raise MachineError(f"{path}: the cluster has ended before it answered")
    finally:
        writer.close()
