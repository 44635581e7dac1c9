"""Asking a server at an address: within limits of time and size, again where it is busy, and no further than there."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from typing import Any

from tenth.errors import MachineError, RequestError
from tenth.files import printable

_SECONDS = 300.0  # that an answer may take
_LARGEST = 256 << 20  # bytes of an answer
_PIECE = 1 << 16
_BUSY = (429, 503)
_TRIES, _LONGEST_WAIT = 6, 60.0  # of a server that is busy; without a word from it 1, 2, 4, 8, 16 seconds
_SAID = 4096  # bytes of a refusal that are looked at


def is_address(name: str) -> bool:
    """Whether a model is named by an address."""
    return name.startswith(("http://", "https://"))


class Refused(RequestError):
    """The server answers, with a status that is no success."""

    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.status = status

    @property
    def broken(self) -> bool:
        """Whether the server says that it is to blame."""
        return self.status >= 500


class Client:
    """Asks one address. MachineError where it cannot be reached or breaks off, Refused for a status of failure.

    RequestError for a bad address or key, and for an answer that is too large or no JSON. Of 429 and 503 it waits as
    long as the server says, up to a minute each time, and asks again. It follows no redirect: a key is for the server
    that was named.
    """

    def __init__(
        self,
        address: str,
        key: str | None = None,
        *,
        seconds: float = _SECONDS,
        largest: int = _LARGEST,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`address` may end in /v1, as OpenAI's clients have it."""
        self.address = address.rstrip("/").removesuffix("/v1")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise RequestError("the API key has characters that a header cannot have")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._seconds, self._largest, self._sleep = seconds, largest, sleep
        self._opener = urllib.request.build_opener(_NoRedirect)

    def json(self, path: str, body: object = None) -> Any:
        """The JSON that it answers to GET, or to POST of a body."""
        data = None if body is None else json.dumps(body).encode()
        try:
            return json.loads(self.ask(path, data))
        except (ValueError, RecursionError):
            raise RequestError(f"{self.address}{path}: its answer is not JSON") from None

    def ask(self, path: str, data: bytes | None = None) -> bytes:
        """What it answers to GET, or to POST of JSON."""
        for number in range(_TRIES):
            answer, again = self._once(self.address + path, data)
            if isinstance(answer, bytes):
                return answer
            wait = 2.0**number if again is None else again
            if answer.status not in _BUSY or number == _TRIES - 1 or wait > _LONGEST_WAIT:
                raise answer
            self._sleep(wait)
        raise AssertionError

    def _once(self, url: str, data: bytes | None) -> tuple[bytes | Refused, float | None]:
        """An answer, or a refusal with the seconds after which it may be asked again."""
        end = time.monotonic() + self._seconds
        try:
            request = urllib.request.Request(url, data, {"content-type": "application/json", **self._headers})
        except ValueError as error:
            raise RequestError(f"{url!r:.200} is no address: {error}") from None
        try:
            with self._opener.open(request, timeout=self._seconds) as answer:
                return self._read(answer, url, end), None
        except urllib.error.HTTPError as error:
            with error:
                return _refusal(error, url), _seconds_of(error.headers.get("retry-after"))
        except (OSError, HTTPException) as error:
            why = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise MachineError(f"{url}: cannot be reached: {_line(str(why))}") from None
        except ValueError as error:  # of a host's name
            raise RequestError(f"{url!r:.200} is no address: {error}") from None

    def _read(self, answer: HTTPResponse, url: str, end: float) -> bytes:
        parts, size = list[bytes](), 0
        while piece := answer.read1(_PIECE):
            parts.append(piece)
            size += len(piece)
            if size > self._largest:
                raise RequestError(f"{url}: its answer is larger than {self._largest:,} bytes")
            if time.monotonic() > end:
                raise MachineError(f"{url}: has not answered within {self._seconds:g} s")
        if answer.length:
            raise MachineError(f"{url}: its answer breaks off {answer.length:,} bytes before its end")
        return b"".join(parts)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: a redirect is an answer as any other."""


def _refusal(error: urllib.error.HTTPError, url: str) -> Refused:
    """With the message of an error in OpenAI's form, else the beginning of what was said."""
    try:
        said = error.read(_SAID).decode(errors="replace")
    except (OSError, HTTPException):
        said = ""
    try:
        found = json.loads(said)["error"]["message"]
        said = found if isinstance(found, str) else said
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    words = _line(said)
    return Refused(f"{url}: answers {error.code}{': ' if words else ''}{words}", error.code)


def _line(said: str) -> str:
    """One line that a terminal can show."""
    return printable(" ".join(said.split()))


def _seconds_of(after: str | None) -> float | None:
    """What `Retry-After` says, as seconds or a date; None where it says nothing."""
    try:
        if after is None or after.strip().isdecimal():
            return None if after is None else float(after)
        return max(parsedate_to_datetime(after).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None
