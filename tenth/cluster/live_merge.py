"""Looks at several replicas as one: the events of `GET /v1/live`, added up.

L sparse layers, E experts.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Json = dict[str, Any]
Counts = NDArray[np.int64]

_LISTED = 100  # requests that are told one by one
_OTHERS = "the replicas' models have other layers or experts than each other"


@dataclass
class Heard:
    """A replica's last event, of a machine; what it counted since the last look adds up until it is taken."""

    node: str
    event: Json | None = None
    _now: Json | None = field(default=None, repr=False)

    def hear(self, event: Json) -> None:
        """An event has come."""
        experts = event.get("experts")
        if experts is not None:
            before = self._now
            same = before is not None and len(before["counts"]) == len(experts["now"]["counts"])
            self._now = _added([before, experts["now"]]) if same and before is not None else experts["now"]
        self.event = event

    def take(self) -> Json | None:
        """The last event, with all that was counted since the one that was taken before."""
        if self.event is None:
            return None
        event, experts = self.event, self.event.get("experts")
        if experts is not None:
            event = {**event, "experts": {**experts, "now": self._now or _nothing(experts["now"])}}
            self._now = _nothing(experts["now"])
        return event


def merged(events: Sequence[Json], nodes: Sequence[str]) -> Json:
    """Events of replicas on these nodes as one; at least one. Model and phase are those of the first that is ready."""
    first = next((one for one in events if one["phase"] == "ready"), events[0])
    requests, caches = [one["requests"] for one in events], [one["cache"] for one in events]
    sought = sum(cache["sought_tokens"] for cache in caches)
    found = sum(cache["sought_tokens"] * (cache["prefix_hit_rate"] or 0.0) for cache in caches)
    rows = sorted((row for one in requests for row in one["list"]), key=lambda row: -row["seconds"])
    return {
        **first,
        "uptime_s": max(one["uptime_s"] for one in events),
        **_experts(events),
        "requests": {name: sum(one[name] for one in requests) for name in ("running", "waiting")}
        | {"list": rows[:_LISTED]},
        "cache": {name: sum(cache[name] for cache in caches) for name in ("used_tokens", "tokens", "sought_tokens")}
        | {"prefix_hit_rate": round(found / sought, 4) if sought else None},
        "speed": _speed([one["speed"] for one in events], nodes),
        "replicas": len(events),
    }


def _speed(speeds: Sequence[Json], nodes: Sequence[str]) -> Json:
    """A machine's memory is counted once, however many replicas read from it."""
    total = {name: round(sum(one[name] for one in speeds), 2) for name in ("generated_per_s", "prompt_per_s")}
    limits = {node: one["limit"] for node, one in zip(nodes, speeds, strict=True)}
    if any(one["limit"] is None for one in speeds):
        return {**total, "limit": None}
    read = sum(one["limit"]["bytes_per_s"] for one in speeds)
    machine = sum(limit["machine_bytes_per_s"] for limit in limits.values())
    share = round(read / machine, 4) if machine else 0.0
    return {**total, "limit": {"bytes_per_s": read, "machine_bytes_per_s": machine, "share": share}}


def _experts(events: Sequence[Json]) -> Json:
    """Of those that have any, all of one shape; else why there are none."""
    found = [one["experts"] for one in events if one.get("experts") is not None]
    if not found:
        return {"experts": None, **({"why": events[0]["why"]} if "why" in events[0] else {})}
    if len({(tuple(one["layers"]), one["experts"]) for one in found}) > 1:
        return {"experts": None, "why": _OTHERS}
    recent = _added([one["recent"] for one in found])
    counts_LE = _read(recent["counts"]).reshape(len(found[0]["layers"]), -1)
    drifts = [one["drift"] for one in found if one["drift"] is not None]
    return {
        "experts": {
            **found[0],
            "now": _added([one["now"] for one in found]),
            "recent": {**recent, "seconds": max(one["recent"]["seconds"] for one in found)},
            **_measures(counts_LE),
            "drift": max(drifts, key=lambda one: float(one["bits"]), default=None),
        }
    }


def _measures(counts_LE: Counts) -> Json:
    """What the counts say of each layer, as `routing.measures` defines it; null where nothing was routed."""
    sums_L = counts_LE.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share_LE = counts_LE / sums_L[:, None]
        bits_LE = np.where(counts_LE > 0, -share_LE * np.log(share_LE), 0.0)
        entropy_L = bits_LE.sum(axis=1) / np.log(counts_LE.shape[1])
        balance_L = counts_LE.max(axis=1) / counts_LE.mean(axis=1)
    known = sums_L > 0
    return {
        "entropy": [round(float(one), 6) if there else None for one, there in zip(entropy_L, known, strict=True)],
        "balance": [round(float(one), 6) if there else None for one, there in zip(balance_L, known, strict=True)],
        "dead": [int(one) for one in (counts_LE == 0).sum(axis=1)],
    }


def _added(parts: Sequence[Json]) -> Json:
    """Tokens and counts of several."""
    counts = np.sum([_read(part["counts"]) for part in parts], axis=0)
    written = base64.b64encode(counts.astype("<u4").tobytes()).decode()
    return {"tokens": sum(part["tokens"] for part in parts), "counts": written}


def _nothing(part: Json) -> Json:
    return {"tokens": 0, "counts": base64.b64encode(bytes(len(base64.b64decode(part["counts"])))).decode()}


def _read(packed: str) -> Counts:
    return np.frombuffer(base64.b64decode(packed), "<u4").astype(np.int64)
