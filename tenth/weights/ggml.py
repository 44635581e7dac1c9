"""The block formats of ggml: their sizes, their layouts, and their values as float32.

A quantised row is a run of blocks, each with its own scale. In the drawings below `d` and `m` are a block's float16
scale and minimum, `q` its packed integers; a number in brackets counts bytes. Inside `q` one rule holds throughout:
bytes are taken in runs, and a run of S bytes holds first the lowest bits of its S bytes, then the next bits of the
same bytes, and so on (written "4 bits, runs of 16"). The K formats cut a block of 256 into 8 or 16 groups whose scales
are themselves integers.

    Q4_0  d[2] q[16]                        4 bits, runs of 16      d * (q - 8)
    Q4_1  d[2] m[2] q[16]                   4 bits, runs of 16      d * q + m
    Q5_0  d[2] h[4] q[16]                   as Q4, fifth bit in h   d * (q - 16)
    Q5_1  d[2] m[2] h[4] q[16]              h: 1 bit, runs of 1     d * q + m
    Q8_0  d[2] q[32]                        signed bytes            d * q
    Q2_K  s[16] q[64] d[2] m[2]             2 bits, runs of 32      d * low(s) * q - m * high(s)
    Q3_K  h[32] q[64] s[12] d[2]            as Q2, h: 1, runs of 32 d * (s - 32) * (q - 4)
    Q4_K  d[2] m[2] s[12] q[128]            4 bits, runs of 32      d * s * q - m * t
    Q5_K  d[2] m[2] s[12] h[32] q[128]      as Q4, h: 1, runs of 32 d * s * q - m * t
    Q6_K  q[128] h[64] s[16] d[2]           4, runs of 64; h: 2, 32 d * s * (q - 32), s signed

Source: the definitions of `block_*` in ggml's ggml-common.h. Tests hold the values bit-equal to the `gguf` package.

Legend of shapes: N blocks, B bytes of a block, V values of a block, G groups of a block, S values of a group.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tenth.errors import TensorError, WeightsError

__all__ = ["FORMATS", "FORMAT_OF_ID", "READABLE", "BlockFormat", "dequantize", "group_steps", "half_at", "integers"]

_CHUNK_VALUES = 1 << 18  # 1 MiB of float32: temporaries stay within a core's cache


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """How many values a block of a type has, and in how many bytes. Unquantised types have blocks of one value."""

    name: str
    type_id: int
    block_elements: int
    block_bytes: int

    def bytes_of(self, values: int) -> int:
        """Bytes of `values` values, a multiple of block_elements."""
        return values // self.block_elements * self.block_bytes


FORMATS: Mapping[str, BlockFormat] = {
    name: BlockFormat(name, type_id, elements, size)
    for name, type_id, elements, size in (
        ("F32", 0, 1, 4),
        ("F16", 1, 1, 2),
        ("Q4_0", 2, 32, 18),
        ("Q4_1", 3, 32, 20),
        ("Q5_0", 6, 32, 22),
        ("Q5_1", 7, 32, 24),
        ("Q8_0", 8, 32, 34),
        ("Q8_1", 9, 32, 40),
        ("Q2_K", 10, 256, 84),
        ("Q3_K", 11, 256, 110),
        ("Q4_K", 12, 256, 144),
        ("Q5_K", 13, 256, 176),
        ("Q6_K", 14, 256, 210),
        ("Q8_K", 15, 256, 292),
        ("IQ2_XXS", 16, 256, 66),
        ("IQ2_XS", 17, 256, 74),
        ("IQ3_XXS", 18, 256, 98),
        ("IQ1_S", 19, 256, 50),
        ("IQ4_NL", 20, 32, 18),
        ("IQ3_S", 21, 256, 110),
        ("IQ2_S", 22, 256, 82),
        ("IQ4_XS", 23, 256, 136),
        ("I8", 24, 1, 1),
        ("I16", 25, 1, 2),
        ("I32", 26, 1, 4),
        ("I64", 27, 1, 8),
        ("F64", 28, 1, 8),
        ("IQ1_M", 29, 256, 56),
        ("BF16", 30, 1, 2),
        ("TQ1_0", 34, 256, 54),
        ("TQ2_0", 35, 256, 66),
        ("MXFP4", 39, 32, 17),
        ("NVFP4", 40, 64, 36),
        ("Q1_0", 41, 128, 18),
    )
}
"""Every type a GGUF file may name today, by name; ids that are left out were withdrawn from the format."""

FORMAT_OF_ID: Mapping[int, BlockFormat] = {form.type_id: form for form in FORMATS.values()}
"""The same by type id."""


def dequantize(raw: Tensor, kind: str, out: Tensor | None = None) -> Tensor:
    """The float32 values of whole blocks.

    `raw` is uint8 [..., bytes of a row], the result float32 [..., values of a row], written into `out` (contiguous,
    of as many values) where it is given. Temporary memory is a few MiB whatever the size.
    Raises WeightsError for a kind that is not READABLE, TensorError when the bytes are not whole blocks.
    """
    if kind not in _UNPACK:
        raise WeightsError(f"type {kind} cannot be dequantised; {', '.join(READABLE)} can")
    form = FORMATS[kind]
    if not raw.shape or raw.shape[-1] % form.block_bytes:
        raise TensorError(f"{kind}: rows of shape {tuple(raw.shape)} are not whole blocks of {form.block_bytes} bytes")
    if out is None:
        values = raw.shape[-1] // form.block_bytes * form.block_elements
        out = torch.empty(*raw.shape[:-1], values, dtype=torch.float32)
    raw_NB, out_NV = raw.reshape(-1, form.block_bytes), out.view(-1, form.block_elements)
    if len(raw_NB) != len(out_NV):
        raise TensorError(f"{kind}: {len(raw_NB)} blocks do not fill {len(out_NV)} blocks of `out`")
    step = _CHUNK_VALUES // form.block_elements
    for at in range(0, len(raw_NB), step):
        _UNPACK[kind](raw_NB[at : at + step], out_NV[at : at + step])
    return out


def half_at(raw_NB: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of each block, as float32 [N, 1]. A copy, because a view would have to be aligned."""
    return raw_NB[:, at : at + 2].clone().view(torch.float16).float()


def integers(raw_NB: Tensor, start: int, stop: int, run: int, bits: int) -> Tensor:
    """The integers packed in bytes start:stop of each block, by the rule of runs above: uint8 [N, values]."""
    packed = raw_NB[:, start:stop].reshape(len(raw_NB), -1, run)
    mask = (1 << bits) - 1
    return torch.stack([packed >> shift & mask for shift in range(0, 8, bits)], dim=2).flatten(1)


def _grouped(out_NV: Tensor, q_NV: Tensor, scale_NG: Tensor, min_NG: Tensor | None = None) -> None:
    """out = q * scale - min, with a scale (and a minimum) for each group."""
    out_NGS = out_NV.view(len(out_NV), scale_NG.shape[1], -1)
    out_NGS.copy_(q_NV.view(out_NGS.shape)).mul_(scale_NG.unsqueeze(2))
    if min_NG is not None:
        out_NGS.sub_(min_NG.unsqueeze(2))


def _plain(dtype: torch.dtype) -> Callable[[Tensor, Tensor], None]:
    def unpack(raw_NB: Tensor, out_NV: Tensor) -> None:
        out_NV.copy_(raw_NB.clone().view(dtype))

    return unpack


def _q4_0(raw_NB: Tensor, out_NV: Tensor) -> None:
    out_NV.copy_(integers(raw_NB, 2, 18, 16, 4)).sub_(8).mul_(half_at(raw_NB, 0))


def _q4_1(raw_NB: Tensor, out_NV: Tensor) -> None:
    out_NV.copy_(integers(raw_NB, 4, 20, 16, 4)).mul_(half_at(raw_NB, 0)).add_(half_at(raw_NB, 2))


def _q5_0(raw_NB: Tensor, out_NV: Tensor) -> None:
    q_NV = integers(raw_NB, 6, 22, 16, 4) | integers(raw_NB, 2, 6, 1, 1) << 4
    out_NV.copy_(q_NV).sub_(16).mul_(half_at(raw_NB, 0))


def _q5_1(raw_NB: Tensor, out_NV: Tensor) -> None:
    q_NV = integers(raw_NB, 8, 24, 16, 4) | integers(raw_NB, 4, 8, 1, 1) << 4
    out_NV.copy_(q_NV).mul_(half_at(raw_NB, 0)).add_(half_at(raw_NB, 2))


def _q8_0(raw_NB: Tensor, out_NV: Tensor) -> None:
    out_NV.copy_(raw_NB[:, 2:34].view(torch.int8)).mul_(half_at(raw_NB, 0))


def _q2_k(raw_NB: Tensor, out_NV: Tensor) -> None:
    s_NG = raw_NB[:, :16]
    scale_NG, min_NG = half_at(raw_NB, 80) * (s_NG & 15), half_at(raw_NB, 82) * (s_NG >> 4)
    _grouped(out_NV, integers(raw_NB, 16, 80, 32, 2), scale_NG, min_NG)


def _q3_k(raw_NB: Tensor, out_NV: Tensor) -> None:
    # A scale has 6 bits: the low 4 of all sixteen in 8 bytes, the high 2 in the next 4.
    s_NG = integers(raw_NB, 96, 104, 8, 4) | integers(raw_NB, 104, 108, 4, 2) << 4
    q_NV = integers(raw_NB, 32, 96, 32, 2) | integers(raw_NB, 0, 32, 32, 1) << 2
    scale_NG = half_at(raw_NB, 108) * (s_NG.float() - 32)
    _grouped(out_NV, q_NV.view(torch.int8) - 4, scale_NG)


def group_steps(raw_NB: Tensor) -> tuple[Tensor, Tensor]:
    """The integers s and t of each of the 8 groups of Q4_K and Q5_K, uint8 [N, 8].

    They have 6 bits and fill bytes 4 to 15 as three fours a, b, c: groups 0 to 3 have scale a and minimum b (low 6
    bits); groups 4 to 7 have the low 4 bits in c (scale in its low, minimum in its high half), the high 2 in the top
    of a and of b.
    """
    a_N4, b_N4, c_N4 = raw_NB[:, 4:8], raw_NB[:, 8:12], raw_NB[:, 12:16]
    s_N8 = torch.cat((a_N4 & 63, c_N4 & 15 | a_N4 >> 6 << 4), dim=1)
    t_N8 = torch.cat((b_N4 & 63, c_N4 >> 4 | b_N4 >> 6 << 4), dim=1)
    return s_N8, t_N8


def _scales_and_minima(raw_NB: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and minimum of each of the 8 groups of Q4_K and Q5_K, float32 [N, 8]."""
    s_N8, t_N8 = group_steps(raw_NB)
    return half_at(raw_NB, 0) * s_N8, half_at(raw_NB, 2) * t_N8


def _q4_k(raw_NB: Tensor, out_NV: Tensor) -> None:
    _grouped(out_NV, integers(raw_NB, 16, 144, 32, 4), *_scales_and_minima(raw_NB))


def _q5_k(raw_NB: Tensor, out_NV: Tensor) -> None:
    q_NV = integers(raw_NB, 48, 176, 32, 4) | integers(raw_NB, 16, 48, 32, 1) << 4
    _grouped(out_NV, q_NV, *_scales_and_minima(raw_NB))


def _q6_k(raw_NB: Tensor, out_NV: Tensor) -> None:
    q_NV = integers(raw_NB, 0, 128, 64, 4) | integers(raw_NB, 128, 192, 32, 2) << 4
    scale_NG = half_at(raw_NB, 208) * raw_NB[:, 192:208].view(torch.int8)
    _grouped(out_NV, q_NV.view(torch.int8) - 32, scale_NG)


_UNPACK: Mapping[str, Callable[[Tensor, Tensor], None]] = {
    "F32": _plain(torch.float32),
    "F16": _plain(torch.float16),
    "BF16": _plain(torch.bfloat16),
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}

READABLE = tuple(_UNPACK)
"""The kinds that `dequantize` takes."""
