"""The door of a replica: the front alone may ask, and says on whose behalf."""

from __future__ import annotations

import logging

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tenth.cluster import wire
from tenth.cluster.to_front import ToFront
from tenth.errors import MachineError
from tenth.serve.guard import ANONYMOUS, Caller, let_in
from tenth.serve.keys import Keys
from tenth.serve.limits import Lease, LimitReached, Limits
from tenth.serve.problems import HttpProblem, openai_form
from tenth.serve.trace import record_of

log = logging.getLogger("tenth.serve")


class FarLease(Lease):
    """A lease of the front's books: it is asked before tokens are used, and told how many were."""

    def __init__(self, front: ToFront, name: str, key: str) -> None:
        super().__init__(None, key, Limits(), None)
        self._front, self._number, self._asked = front, name, False

    async def set_aside(self, prompt_tokens: int, max_tokens: int) -> None:
        """Ask for tokens; LimitReached, MachineError where they cannot be had."""
        status, said = await self._front.say(self._path("reserve"), prompt=prompt_tokens, completion=max_tokens)
        if status == 429:
            raise LimitReached(said["message"], said["limit"], said["wait_s"])
        if status != 200:
            raise MachineError("what the key may use cannot be asked for: the request is not known in front")
        self._asked = True

    async def report(self) -> None:
        """The last word: what was used."""
        if not self._asked:
            return
        try:
            await self._front.say(self._path("used"), prompt=self.prompt_tokens, completion=self.completion_tokens)
        except MachineError as error:
            log.error("what was set aside stays charged: %s", error)

    def _path(self, what: str) -> str:
        return f"{wire.LEASES}/{self._number}/{what}"


class JudgedKeys(Keys):
    """That the front has asked for keys: so callers are told apart here too, though no key opens anything."""

    def __init__(self) -> None:
        super().__init__(lambda: (), lambda: None)

    def holds(self, sha256: str) -> bool:
        """Whether whoever came in by this key may stay: that is the front's matter."""
        return True


class TrustedDoor:
    """ASGI middleware in the guard's place."""

    def __init__(self, app: ASGIApp, front: ToFront, secret: str) -> None:
        self._app, self._front, self._secret = app, front, secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let in what comes from the front."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if not wire.knows_secret(scope["headers"], self._secret):
            record_of(scope).error = "not from the front"
            problem = HttpProblem(403, "ask the cluster's front", "not_from_the_front")
            await JSONResponse(openai_form(problem), 403)(scope, receive, send)
            return
        name = headers.get(wire.CALLER, ANONYMOUS)
        number = headers.get(wire.LEASE)
        lease = FarLease(self._front, number, name) if number is not None else Lease.free(name)
        let_in(scope, Caller(name, headers.get(wire.TENANT, ANONYMOUS), lease, wire.REVIEWER in headers))
        try:
            await self._app(scope, receive, send)
        finally:
            if isinstance(lease, FarLease):
                await lease.report()
