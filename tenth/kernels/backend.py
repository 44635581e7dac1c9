"""Where a module's weights live, in what type, and which kernels work on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenth.kernels import reference
from tenth.kernels.contract import Kernels


@dataclass(frozen=True, slots=True)
class Backend:
    """Passed to every module when it is built; two modules of one network may have different ones."""

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    kernels: Kernels = reference
