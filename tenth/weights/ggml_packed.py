"""The block formats of ggml that have a packed format of the same values: taken over integer by integer.

Nothing is rounded: the packed matrix dequantises to the same float32 bits. Layouts are drawn in `ggml`.

O rows, B bytes of a row, I columns, N blocks, G groups of a row, S superblocks of a row.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tenth.errors import WeightsError
from tenth.kernels.packed import PackedFormat, pack
from tenth.weights.ggml import FORMATS, group_steps, half_at, integers

__all__ = ["PACKED_OF_KIND", "pack_blocks"]

PACKED_OF_KIND: Mapping[str, PackedFormat] = {
    "Q4_0": PackedFormat(4, 32),
    "Q4_1": PackedFormat(4, 32, minimums=True),
    "Q8_0": PackedFormat(8, 32),
    "Q4_K": PackedFormat(4, 32, minimums=True, superblock=True),
    "Q6_K": PackedFormat(8, 16, superblock=True),
}
"""The packed format that holds a kind's values exactly."""


def pack_blocks(raw_OB: Tensor, kind: str, where: str) -> Tensor:
    """Rows of blocks as packed bytes; WeightsError, which names `where`, for a scale that is not finite."""
    form = FORMATS[kind]
    raw_NB = raw_OB.reshape(-1, form.block_bytes)
    quants_NV, parts = _PARTS[kind](raw_NB)
    rows = len(raw_OB)
    for name, part in parts.items():
        if part.is_floating_point() and not bool(torch.isfinite(part).all()):
            raise WeightsError(f"{where}: a block has {name} that are not finite")
    return pack(PACKED_OF_KIND[kind], quants_NV.view(rows, -1), **{k: part.view(rows, -1) for k, part in parts.items()})


def _q4_0(raw_NB: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return integers(raw_NB, 2, 18, 16, 4), {"scales": half_at(raw_NB, 0).half()}


def _q4_1(raw_NB: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    parts = {"scales": half_at(raw_NB, 0).half(), "minimums": half_at(raw_NB, 2).half()}
    return integers(raw_NB, 4, 20, 16, 4), parts


def _q8_0(raw_NB: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return raw_NB[:, 2:34] ^ 128, {"scales": half_at(raw_NB, 0).half()}


def _q4_k(raw_NB: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    s_N8, t_N8 = group_steps(raw_NB)
    steps = {"group_scales_OG": s_N8.view(torch.int8), "group_minimums_OG": t_N8.view(torch.int8)}
    parts = {"scales": half_at(raw_NB, 0).half(), "minimums": half_at(raw_NB, 2).half()}
    return integers(raw_NB, 16, 144, 32, 4), parts | steps


def _q6_k(raw_NB: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    q_NV = integers(raw_NB, 0, 128, 64, 4) | integers(raw_NB, 128, 192, 32, 2) << 4
    steps_NG = raw_NB[:, 192:208].contiguous().view(torch.int8)
    return q_NV + 96, {"scales": half_at(raw_NB, 208).half(), "group_scales_OG": steps_NG}  # 0 is at 32, here at 128


_PARTS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q6_K": _q6_k}
