"""By which names a server may be called: against pages whose name is made to lead to this machine (DNS rebinding).

Such a page is, to a browser, of the same origin as the server, so CORS does not hold it off; but its requests carry
its own name in `Host`. Names of this machine alone cannot be made to lead elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tenth.errors import RequestError
from tenth.serve.problems import HttpProblem, answer_of
from tenth.serve.trace import record_of

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]*)?")  # RFC 9110, section 7.2

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")  # RFC 6454, 6.2


class KnownHosts:
    """ASGI middleware: refuses with 403 what was sent to another name than this machine's own or one of `names`."""

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app, self._names = app, frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(given) == 1 and self._is_known(host_name(given[0])):
            await self._app(scope, receive, send)
            return
        problem = _refused(given)
        record_of(scope).error, record_of(scope).code = problem.message, problem.code
        await JSONResponse(answer_of(scope["path"], problem), problem.status)(scope, receive, send)

    def _is_known(self, name: str | None) -> bool:
        return name is not None and (name == "localhost" or name in self._names or is_loopback(name))


def checked_hosts(address: str, allowed: Iterable[str]) -> tuple[str, ...] | None:
    """The names to allow beside this machine's own for a server that listens at `address`; None: there is no check.

    RequestError where one of `allowed` is no name or address by itself.
    """
    names = tuple(_allowed(name) for name in allowed)
    return names if names or is_loopback(address) else None


def check_origins(origins: Iterable[str]) -> None:
    """RequestError where one is no origin of a page, as browsers write it: a scheme and a host, and nothing behind."""
    for origin in origins:
        if _ORIGIN.fullmatch(origin) is None:
            raise RequestError(
                f"--allow-origin is {origin!r:.80}, it must be * or a scheme and a host, such as https://app.example.org"
            )


def is_loopback(address: str) -> bool:
    """Whether this is an address (127.0.0.0/8, ::1) that only this machine can reach."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return ((found.ipv4_mapped if isinstance(found, IPv6Address) else None) or found).is_loopback


def host_name(header: str) -> str | None:
    """The name or address in a Host header, in one spelling and without its port; None where it is malformed."""
    found = _HOST.fullmatch(header.lower())
    if found is None:
        return None
    address, name = found.groups()
    if name is not None:
        return name.removesuffix(".") or None
    try:
        return str(IPv6Address(address))
    except ValueError:
        return None


def _allowed(name: str) -> str:
    bracketed = f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name
    found = host_name(bracketed)
    if found is None or re.search(r":[0-9]*$", bracketed):
        raise RequestError(f"--allow-host is {name!r:.80}, it must be a name or an address, without scheme and port")
    return found


def _refused(given: list[str]) -> HttpProblem:
    found = f"is {given[0]!r:.80}" if len(given) == 1 else "is missing" if not given else "is there more than once"
    right = "this server answers to localhost, 127.x.x.x and [::1], and to names given by --allow-host"
    return HttpProblem(403, f"the Host header {found}; {right}", "host_not_allowed")
