"""How a server is at a moment: its experts, requests, cache and speed, as numbers that add up over several servers.

L sparse layers, E experts.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, Literal

import numpy as np

from tenth.routing.counts import Floats, Ints, RoutingCounts
from tenth.routing.drift import Drift

Json = dict[str, Any]

_LISTED = 100  # requests that are told one by one
_OTHERS = "the servers' models have other layers or experts than each other"


@dataclass(frozen=True, slots=True)
class Row:
    """A request. `tenant` is whose it is, and not shown; `seconds` are since it came."""

    id: str
    key: str
    tenant: str
    state: Literal["running", "waiting"]
    prompt_tokens: int
    generated_tokens: int
    seconds: float

    @property
    def json(self) -> Json:
        """As it is shown."""
        return {
            "id": self.id,
            "key": self.key,
            "state": self.state,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True, eq=False)
class DriftSeen:
    """How far routing was from the stored profile at the last look, and whether that was an alarm."""

    drift: Drift
    threshold: float
    alarm: bool

    @property
    def json(self) -> Json:
        """Bits are beyond chance; a layer that moved no further than chance has 0."""
        drift = self.drift
        return {
            "bits": round(drift.excess, 6),
            "threshold": self.threshold,
            "alarm": self.alarm,
            "layer": drift.worst if drift.judged else None,
            "by_layer": [None if bits is None else max(bits, 0.0) for bits in _numbers(drift.beyond_L)],
            "judged": drift.judged,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """What routers decided: `now` since the look before, `recent` in the last `seconds`."""

    now: RoutingCounts
    recent: RoutingCounts
    seconds: float
    drift: DriftSeen | None = None

    @property
    def json(self) -> Json:
        """Counts as they are, and what they say of each layer."""
        recent = self.recent
        return {
            "layers": list(recent.layers),
            "experts": recent.counts_LE.shape[1],
            "now": {"tokens": self.now.tokens, "counts": packed(self.now.counts_LE)},
            "recent": {"tokens": recent.tokens, "seconds": self.seconds, "counts": packed(recent.counts_LE)},
            "entropy": _numbers(recent.load_entropy_L),
            "balance": _numbers(recent.max_violation_L + 1),
            "dead": recent.dead_L.tolist(),
            "drift": None if self.drift is None else self.drift.json,
        }


@dataclass(frozen=True, slots=True)
class CacheUse:
    """Tokens of the pages that answers at work hold, and of all; tokens looked for in the prefix cache and found."""

    used: int = 0
    tokens: int = 0
    sought: int = 0
    found: int = 0

    @property
    def json(self) -> Json:
        """The rate is null where nothing was looked for."""
        rate = round(self.found / self.sought, 4) if self.sought else None
        return {"used_tokens": self.used, "tokens": self.tokens, "prefix_hit_rate": rate}


@dataclass(frozen=True, slots=True)
class Speed:
    """Each a second: tokens generated, tokens of prompts computed, bytes of weights read, and those that could be."""

    generated: float = 0.0
    prompt: float = 0.0
    read: float | None = None
    machine: float | None = None

    @property
    def json(self) -> Json:
        """Without a limit where one of its sides is not known."""
        limit = None
        if self.read is not None and self.machine:
            share = round(self.read / self.machine, 4)
            limit = {"bytes_per_s": round(self.read), "machine_bytes_per_s": round(self.machine), "share": share}
        return {"generated_per_s": round(self.generated, 2), "prompt_per_s": round(self.prompt, 2), "limit": limit}


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A server; `why` there are no experts. `rows` are all its requests."""

    model: str
    phase: str
    uptime_s: float
    experts: Experts | None
    why: str | None
    rows: tuple[Row, ...]
    cache: CacheUse
    speed: Speed

    def json(self, tenant: str | None) -> Json:
        """As a viewer sees it: of the requests, one by one, only this tenant's; all where it is None."""
        own = [row for row in self.rows if tenant in (None, row.tenant)]
        running = sum(row.state == "running" for row in self.rows)
        return {
            "model": self.model,
            "phase": self.phase,
            "uptime_s": round(self.uptime_s, 1),
            "experts": None if self.experts is None else self.experts.json,
            **({} if self.why is None else {"why": self.why}),
            "requests": {
                "running": running,
                "waiting": len(self.rows) - running,
                "list": [row.json for row in nlargest(_LISTED, own, key=lambda row: row.seconds)],
            },
            "cache": self.cache.json,
            "speed": self.speed.json,
        }


def packed(counts_LE: Ints) -> str:
    """uint32, little endian, row by row, in base64; no window comes to four milliards."""
    return base64.b64encode(counts_LE.astype("<u4").tobytes()).decode()


def merge(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Several servers of one model as one; at least one. Model and phase are those of the first that is ready, if any.

    Measures of layers are of the summed counts. Drift is that of the server that moved furthest: it is judged where the
    stored profile is. The machine's speed adds up too, which for servers of one machine is more than memory gives.
    """
    first = next((one for one in snapshots if one.phase == "ready"), snapshots[0])
    experts, why = _merged_experts(snapshots)
    caches, speeds = [one.cache for one in snapshots], [one.speed for one in snapshots]
    return Snapshot(
        first.model,
        first.phase,
        max(one.uptime_s for one in snapshots),
        experts,
        why,
        tuple(row for one in snapshots for row in one.rows),
        CacheUse(
            *(sum(column) for column in zip(*((c.used, c.tokens, c.sought, c.found) for c in caches), strict=True))
        ),
        Speed(
            sum(speed.generated for speed in speeds),
            sum(speed.prompt for speed in speeds),
            _sum(speed.read for speed in speeds),
            _sum(speed.machine for speed in speeds),
        ),
    )


def _merged_experts(snapshots: Sequence[Snapshot]) -> tuple[Experts | None, str | None]:
    """Of those that have any, all of one shape; else why there are none."""
    found = [one.experts for one in snapshots if one.experts is not None]
    if not found:
        return None, snapshots[0].why
    if len({(one.recent.layers, one.recent.counts_LE.shape) for one in found}) > 1:
        return None, _OTHERS
    now, recent = found[0].now.copy(), found[0].recent.copy()
    for one in found[1:]:
        now.add(one.now)
        recent.add(one.recent)
    drifts = [one.drift for one in found if one.drift is not None]
    worst = max(drifts, key=lambda seen: seen.drift.excess, default=None)
    return Experts(now, recent, max(one.seconds for one in found), worst), None


def _sum(values: Iterable[float | None]) -> float | None:
    """None where one of them is not known: a part is no sum."""
    known = list(values)
    return None if any(value is None for value in known) else math.fsum(value for value in known if value is not None)


def _numbers(values_L: Floats) -> list[float | None]:
    """Null for what is no number."""
    return [round(value, 6) if np.isfinite(value) else None for value in values_L.tolist()]
