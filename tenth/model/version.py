"""Which weights a decoder has, told by a few of them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from tenth.kernels.packed import PackedExpertTable, PackedWeight
from tenth.model.decoder import Decoder

_FEW = 4096  # numbers of a matrix that are looked at
_OF_EXPERT = 512  # and of each expert's


@torch.no_grad()
def version_of(decoder: Decoder) -> str:
    """A hash of routers and norms, of the beginning of each other matrix (of each expert too), of packed ones' formats.

    It does not depend on where files are. A model that was trained further, or quantised otherwise, has another one. Of
    packed experts the formats alone are looked at: their bytes may be on disk.
    """
    told = hashlib.blake2b(repr(decoder.config.moe).encode(), digest_size=16)
    for name, part in decoder.named_parameters():
        told.update(name.encode())
        shown: Tensor = part
        if "router" not in name and part.dim() > 1:
            shown = part.flatten(1)[:, :_OF_EXPERT] if part.dim() == 3 else part.flatten()[:_FEW]
        told.update(_bytes(shown))
    for name, module in decoder.named_modules():
        if isinstance(module, PackedWeight):
            told.update(f"{name} {module.format}".encode())
            told.update(_bytes(module.data_B[:_FEW]))
        elif isinstance(module, PackedExpertTable):
            told.update(
                " ".join(f"{one.gate.format} {one.up.format} {one.down.format}" for one in module.experts).encode()
            )
    return told.hexdigest()


def _bytes(values: Tensor) -> bytes:
    raw: bytes = values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return raw
