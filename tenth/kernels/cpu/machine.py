"""Which instruction set and which cores the native kernels use: what this process may, unless it is told otherwise."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tenth.errors import MachineError

if TYPE_CHECKING:
    import tenth.kernels.cpu._native as _native

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def built() -> bool:
    """Whether the native kernels were built into this installation."""
    return find_spec("tenth.kernels.cpu._native") is not None


def instruction_sets() -> list[str]:
    """The sets that this processor and this build have, best first."""
    import tenth.kernels.cpu._native as _native

    return list(_native.instruction_sets())


@cache
def machine(threads: int | None = None, instruction_set: str | None = None) -> _native.Machine:
    """The team of threads for these settings; the same settings share one. MachineError where they cannot be had."""
    import tenth.kernels.cpu._native as _native

    known = instruction_sets()
    chosen = known[0] if instruction_set is None else instruction_set
    if chosen not in known:
        raise MachineError(f"instruction set {chosen!r} is not one this machine runs; it runs {', '.join(known)}")
    cpus = usable_cpus()
    if threads is not None and not 1 <= threads <= len(cpus):
        raise MachineError(f"{threads} threads are not to be had: this process may use 1 to {len(cpus)}")
    return _native.Machine(chosen, cpus[: threads or default_threads(cpus)])


def usable_cpus() -> list[int]:
    """The cores of the affinity mask, one of each physical core first."""
    if not hasattr(os, "sched_getaffinity"):  # not Linux: the threads are not pinned, the numbers only count them
        return list(range(os.cpu_count() or 1))
    allowed = sorted(os.sched_getaffinity(0))
    first = [cpu for cpu in allowed if cpu == min(_siblings(cpu) & set(allowed))]
    return first + [cpu for cpu in allowed if cpu not in first]


def default_threads(cpus: list[int]) -> int:
    """A thread for each physical core, and no more than the container's quota of processor time allows."""
    physical = sum(cpu == min(_siblings(cpu) & set(cpus)) for cpu in cpus)
    return max(1, int(min(physical, _quota(Path("/sys/fs/cgroup")))))


def _siblings(cpu: int) -> set[int]:
    try:
        return set(_cpu_list(Path(_SIBLINGS.format(cpu)).read_text()))
    except (OSError, ValueError):  # the kernel does not say
        return {cpu}


def _cpu_list(text: str) -> Iterable[int]:
    """`0-3,8` as numbers."""
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _quota(group: Path) -> float:
    """Cores' worth of time that cgroup v2 grants; infinity where there is no limit."""
    try:
        limit, period = (group / "cpu.max").read_text().split()
        return math.inf if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return math.inf
