"""Small packed models on disk, and ways to change them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tenth.kernels.packed import PackedExpert, PackedFormat, PackedWeight, pack
from tenth.model.config import ModelConfig, MoeConfig
from tenth.model.decoder import Decoder
from tenth.model.preset import preset
from tenth.weights.packed_index import Part, header_hash
from tenth.weights.packed_writer import PackedWriter, new_packed

TINY = preset("tiny-moe")

# everything that a network may have: biases, a shared expert with a gate, a tied head, widths that fill no tile
ODD = ModelConfig(
    model_type="tenth",
    vocab_size=101,
    hidden_size=40,
    intermediate_size=33,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    context_length=64,
    tie_word_embeddings=True,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    qk_norm=True,
    moe=MoeConfig(3, 2, 17, shared_intermediate_size=20, shared_gate=True),
    sparse_layers=(1,),
)

SMALL = replace(TINY, num_layers=2, sparse_layers=(1,), vocab_size=64, moe=MoeConfig(2, 1, 32))
"""The fewest bytes: for tests that change them."""


def fp32(values: torch.Tensor) -> PackedWeight:
    form = PackedFormat.parse("fp32")
    return PackedWeight(pack(form, values), *values.shape, form)


def write_dense(folder: Path, decoder: Decoder) -> None:
    """A decoder's own values, bit for bit, as a packed model of fp32."""
    with new_packed(folder, decoder.config) as writer:
        for name, part in writer.parts.items():
            write_part(writer, name, part, decoder)


def write_part(writer: PackedWriter, name: str, part: Part, decoder: Decoder) -> None:
    if part.matrices == 3:
        table, expert = name.rsplit(".", 1)
        w13, w2 = decoder.get_submodule(table).expert(int(expert))
        writer.expert(name, PackedExpert(*(fp32(values) for values in (*w13.chunk(2), w2))))
    elif part.matrices == 1:
        writer.matrix(name, fp32(decoder.get_submodule(name).dense()))
    else:
        path = name.replace("router.weight", "router.weight_ED").replace("router.bias", "router.bias_E")
        writer.floats(name, decoder.get_parameter(path))


def change_index(folder: Path, change: Callable[[dict[str, Any]], object], file: str = "packed.json") -> None:
    path = folder / file
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def change_header(folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a file's header, keep its length, and tell packed.json so that only the change itself is wrong."""
    path = folder / file
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    raw = json.loads(data[8 : 8 + length])
    change(raw)
    header = data[:8] + json.dumps(raw, separators=(",", ":")).encode().ljust(length)
    assert len(header) == 8 + length
    path.write_bytes(header + data[8 + length :])
    change_index(folder, lambda index: index["files"].update({file: header_hash(header)}))
