"""How many replicas there should be, by how much they have to do; Serve's controller calls this."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tenth.cluster.replica import LOAD


def replicas_for(jobs: Iterable[float], target: float, now: int) -> int:
    """So many that each has `target` requests; without any numbers, as many as there are now."""
    told = list(jobs)
    return math.ceil(sum(told) / target) if told else now


def wanted(context: Any) -> tuple[int, dict[str, Any]]:
    """A policy of Ray Serve's (`AutoscalingContext`): bounds, delays and steps are its own."""
    jobs = (context.aggregated_metrics or {}).get(LOAD, {}).values()
    return replicas_for(jobs, context.config.target_ongoing_requests, context.target_num_replicas), {}
