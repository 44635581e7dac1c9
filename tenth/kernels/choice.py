"""Which kernels a model runs on: the native ones where its weights are packed, the reference otherwise."""

from __future__ import annotations

import torch

from tenth.errors import MachineError, RequestError
from tenth.kernels import reference
from tenth.kernels.contract import Kernels
from tenth.kernels.cpu.machine import built, machine, usable_threads

BACKENDS = ("auto", "reference", "cpu")


HEAD_UNIT = 16
"""Native attention takes heads of a multiple of so many channels."""


def choose_kernels(
    backend: str = "auto",
    *,
    packed: bool,
    head_dim: int,
    threads: int | None = None,
    instruction_set: str | None = None,
) -> Kernels:
    """`reference`, `cpu` (native; packed weights, heads of a multiple of 16), or `auto`: native where it is possible.

    `threads` counts those of the native kernels, or torch's (default: what this process may use); `instruction_set` is
    for native ones. RequestError for another name or a model that is not packed, MachineError where this installation
    or machine has no such kernels or threads.
    """
    if backend not in BACKENDS:
        raise RequestError(f"backend is {backend!r:.40}, it must be one of {', '.join(BACKENDS)}")
    possible = packed and head_dim % HEAD_UNIT == 0 and built()
    if backend == "reference" or (backend == "auto" and not possible):
        if threads is not None:
            torch.set_num_threads(usable_threads(threads))
        return reference
    if not packed:
        raise RequestError("the cpu backend runs packed models: `tenth quantize` or `tenth pack` makes one")
    if head_dim % HEAD_UNIT:
        raise RequestError(f"the cpu backend takes heads of a multiple of {HEAD_UNIT} channels, not {head_dim}")
    if not built():
        raise MachineError("this installation was built without the native kernels: install it with a C++ compiler")
    from tenth.kernels.cpu.operations import CpuKernels

    return CpuKernels(machine(threads, instruction_set))


def describe(kernels: Kernels) -> str:
    """`reference`, or `cpu (avx512, 2 threads)`."""
    team = getattr(kernels, "machine", None)
    if team is None:
        return kernels.name
    return f"{kernels.name} ({team.set}, {team.threads} thread{'s' if team.threads > 1 else ''})"


def chosen_device(name: str) -> torch.device:
    """A device by its name; RequestError where it is none, or not here."""
    try:
        chosen = torch.device(name)
    except (RuntimeError, TypeError):
        raise RequestError(f"device is {name!r:.40}, it must be cpu, cuda or cuda:N") from None
    devices = {"cpu": 1, "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0}
    if (chosen.index or 0) >= devices.get(chosen.type, 0):
        raise RequestError(f"device {name!r:.40} is not available here; cpu is")
    return chosen
