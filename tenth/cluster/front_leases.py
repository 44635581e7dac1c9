"""Requests on leases of the front's books, while replicas work on them.

The guard stands in front, but only a replica knows how many tokens a prompt has: it asks for them here before it
computes, and says at the end what was used.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tenth.serve.limits import Lease

_LAST_WORD_S = 2.0  # that a replica has, behind its answer's end, to say what was used


class OpenLeases:
    """By the names that replicas know them by; each name is new, so that nobody guesses one."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Lease, asyncio.Event]] = {}

    @asynccontextmanager
    async def open(self, lease: Lease) -> AsyncIterator[str | None]:
        """A lease that a replica may speak of; None where it has no books. Waits for the last word where one is due."""
        if lease.charge is None:
            yield None
            return
        name, told = secrets.token_hex(16), asyncio.Event()
        self._open[name] = lease, told
        try:
            yield name
        finally:
            try:
                if lease.prompt_tokens:  # tokens were set aside
                    await asyncio.wait_for(told.wait(), _LAST_WORD_S)
            except TimeoutError:
                pass  # a replica that was killed: what was set aside stays charged
            finally:
                del self._open[name]

    def reserve(self, name: str, prompt_tokens: int, max_tokens: int) -> bool:
        """Set tokens aside; LimitReached where there are not so many. False for a lease that is not open."""
        if name not in self._open:
            return False
        lease, told = self._open[name]
        lease.reserve(prompt_tokens, max_tokens)
        lease.used(prompt_tokens, max_tokens)
        told.clear()
        return True

    def used(self, name: str, prompt_tokens: int, completion_tokens: int) -> bool:
        """The last word of a replica. False for a lease that is not open any more."""
        if name not in self._open:
            return False
        lease, told = self._open[name]
        lease.used(prompt_tokens, completion_tokens)
        told.set()
        return True
