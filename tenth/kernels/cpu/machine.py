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


def machine(threads: int | None = None, instruction_set: str | None = None) -> _native.Machine:
    """The team of threads for these settings; the same settings share one. MachineError where they cannot be had."""
    known = instruction_sets()
    chosen = known[0] if instruction_set is None else instruction_set
    if chosen not in known:
        raise MachineError(f"instruction set {chosen!r} is not one this machine runs; it runs {', '.join(known)}")
    cpus = usable_cpus()
    return _team(chosen, tuple(cpus), usable_threads(threads, cpus))


@cache
def _team(instruction_set: str, cpus: tuple[int, ...], threads: int) -> _native.Machine:
    import tenth.kernels.cpu._native as _native

    # a part of the cores is not a certain part: another process may have chosen as many of them
    pinned = threads >= default_threads(list(cpus))
    return _native.Machine(instruction_set, [cpu if pinned else -1 for cpu in cpus[:threads]])


def usable_threads(threads: int | None = None, cpus: list[int] | None = None) -> int:
    """So many threads, or as many as pay; MachineError where this process may not use them."""
    cpus = usable_cpus() if cpus is None else cpus
    if threads is not None and not 1 <= threads <= len(cpus):
        raise MachineError(f"{threads} threads are not to be had: this process may use 1 to {len(cpus)}")
    return threads or default_threads(cpus)


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
    return max(1, int(min(physical, quota())))


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


def quota(root: Path = Path("/")) -> float:
    """Cores' worth of time that the control groups of this process grant it; infinity where there is no limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    least = math.inf
    for line in lines:  # hierarchy:controllers:/path, in version 2 without controllers
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        group = mount / path.lstrip("/")
        for place in (group, *group.parents):  # a container sees its own group at the root
            least = min(least, _quota_of(place))
            if place == mount:
                break
    return least


def _quota_of(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            limit, period = (group / "cpu.max").read_text().split()
        else:  # version 1
            limit, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return math.inf if limit in ("max", "-1") else int(limit) / int(period)
    except (OSError, ValueError):  # this group has no limit, or the kernel does not say
        return math.inf
