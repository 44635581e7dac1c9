"""How a server is at a moment: its experts, requests, cache and speed, as numbers that add up over several.

L sparse layers, E experts.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, Literal

import numpy as np

from tenth.routing.counts import Floats, Ints, RoutingCounts
from tenth.routing.drift import Drift

Json = dict[str, Any]

_LISTED = 100  # requests that are told one by one


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
        return {"used_tokens": self.used, "tokens": self.tokens, "sought_tokens": self.sought, "prefix_hit_rate": rate}


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


def _numbers(values_L: Floats) -> list[float | None]:
    """Null for what is no number."""
    return [round(value, 6) if np.isfinite(value) else None for value in values_L.tolist()]
