"""Random packed weights, and the documented layout read one element at a time."""

from __future__ import annotations

import struct
from typing import Any

import torch

from tenth.kernels.packed import PackedFormat, PackedWeight, pack


def drawn_weight(form: PackedFormat, rows: int, columns: int, seed: int) -> PackedWeight:
    """A weight with every part drawn at random, quants over their whole range."""
    generator = torch.Generator().manual_seed(seed)
    if not form.group:
        values = torch.randn(rows, columns, generator=generator)
        return PackedWeight(pack(form, values), rows, columns, form)
    groups = form.groups(columns)
    shared = -(-columns // 256) if form.superblock else groups
    quants = torch.randint(1 << form.bits, (rows, columns), dtype=torch.uint8, generator=generator)
    parts: dict[str, Any] = {"scales": torch.randn(rows, shared, generator=generator)}
    if form.minimums:
        parts["minimums"] = torch.randn(rows, shared, generator=generator)
    if form.superblock:
        most = 1 << (form.step_bits - 1)
        steps = [torch.randint(-most, most, (rows, groups), generator=generator, dtype=torch.int8) for _ in range(2)]
        parts["group_scales_OG"] = steps[0]
        parts |= {"group_minimums_OG": steps[1]} if form.minimums else {}
    return PackedWeight(pack(form, quants, **parts), rows, columns, form)


def read_slowly(data: bytes, form: PackedFormat, rows: int, columns: int) -> list[list[float]]:
    """Every value by the words of docs/packed.md, with nothing of `tenth`."""
    bits, group = form.bits, form.group
    padded = -(-columns // 32) * 32
    groups = padded // group if group else 0
    shared = -(-columns // 256) if form.superblock else groups
    sizes = {"quants": padded * 16 * bits // 8, "scales": shared * 32}
    sizes["scale steps"] = groups * 2 * form.step_bits if form.superblock else 0
    sizes["minimums"] = shared * 32 if form.minimums else 0
    sizes["minimum steps"] = groups * 16 if form.minimums and form.superblock else 0
    begins, tile_bytes = {}, 0
    for name, size in sizes.items():
        begins[name] = tile_bytes
        tile_bytes += -(-size // 64) * 64
    assert len(data) == -(-rows // 16) * tile_bytes

    def rounded(number: float) -> float:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])

    def half(tile: int, part: str, index: int, row: int) -> float:
        return float(struct.unpack_from("<e", data, tile * tile_bytes + begins[part] + (index * 16 + row) * 2)[0])

    def step(tile: int, part: str, index: int, row: int) -> int:
        if form.step_bits == 4:
            byte = data[tile * tile_bytes + begins[part] + index // 2 * 16 + row]
            low = byte >> 4 if index % 2 else byte & 15
            return low - 16 if low > 7 else low
        return int(struct.unpack_from("<b", data, tile * tile_bytes + begins[part] + index * 16 + row)[0])

    def quant(tile: int, column: int, row: int) -> int:
        if bits == 4:
            byte = data[tile * tile_bytes + column // 8 * 64 + 4 * row + column % 4]
            return byte >> 4 if column % 8 >= 4 else byte & 15
        return data[tile * tile_bytes + column // 4 * 64 + 4 * row + column % 4]

    def value(tile: int, column: int, row: int) -> float:
        if bits == 32:
            return float(struct.unpack_from("<f", data, tile * tile_bytes + column * 64 + 4 * row)[0])
        if bits == 16:
            at = tile * tile_bytes + column // 2 * 64 + 4 * row + 2 * (column % 2)
            return float(struct.unpack("<f", b"\0\0" + data[at : at + 2])[0])
        index = column // 256 if form.superblock else column // group
        scale, minimum = half(tile, "scales", index, row), 0.0
        if form.minimums:
            minimum = half(tile, "minimums", index, row)
        if form.superblock:
            scale *= step(tile, "scale steps", column // group, row)
            minimum *= -step(tile, "minimum steps", column // group, row) if form.minimums else 0
        zero = 0 if form.minimums else 1 << (bits - 1)
        return rounded(rounded(scale * (quant(tile, column, row) - zero)) + minimum)  # float64 holds all of both

    return [[value(row // 16, column, row % 16) for column in range(columns)] for row in range(rows)]
