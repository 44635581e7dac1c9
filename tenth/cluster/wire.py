"""What the front and its replicas say to each other by HTTP: headers, and the front's inner paths.

Whoever knows the cluster's secret is trusted: the front adds it to what it passes on, replicas to what they tell.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass

PREFIX = b"x-tenth-"
"""Headers that begin so are the cluster's own: those of clients go no further than the front."""
SECRET = b"x-tenth-cluster"
CALLER = b"x-tenth-caller"
TENANT = b"x-tenth-tenant"
REVIEWER = b"x-tenth-reviewer"
"""There where who asks may decide on reviews."""
LEASE = b"x-tenth-lease"
"""Which lease of the front's books a request runs on; not there where its key has no limits."""

ANNOUNCE = "/announce"
LEASES = "/leases"


def knows_secret(headers: Iterable[tuple[bytes, bytes]], secret: str) -> bool:
    """Whether the secret is among these headers, once."""
    given = [value for name, value in headers if name == SECRET]
    return len(given) == 1 and hmac.compare_digest(given[0], secret.encode())


@dataclass(frozen=True, slots=True)
class News:
    """What a replica tells of itself twice a second, and whenever its phase changes.

    `generation` counts the models that the cluster has had; `room` is the tokens that its cache holds, `jobs` are its
    requests.
    """

    id: str
    url: str
    generation: int
    phase: str
    room: int
    jobs: int
    node: str
    pid: int
