"""From files into a decoder, tensor by tensor; the peak of memory is the model in its type and 64 MB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tenth.errors import MachineError, WeightsError
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.weights.checkpoint import Checkpoint
from tenth.weights.names import Slot, check_shapes
from tenth.weights.source import TensorInfo

_PIECE_BYTES = 64 << 20

Progress = Callable[[int, int], None]
"""Told the bytes read so far and in all."""


def load_decoder(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | Literal["auto"] = "auto",
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Decoder:
    """Read every tensor into its place.

    `auto` keeps a file's own bfloat16 or float32, and makes bfloat16 of everything else. Shapes, and the memory that is
    free, are checked before anything is allocated: TensorError, MachineError.
    """
    config, source = checkpoint.config, checkpoint.source
    chosen = natural_dtype(checkpoint) if dtype == "auto" else dtype
    decoder = Decoder(config, dtype=chosen, device="meta")
    shapes = {name: info.shape for name, info in source.tensors.items()}
    check_shapes(decoder, checkpoint.slots, shapes, str(checkpoint.path))
    check_memory(config, chosen, device)
    decoder = decoder.to_empty(device=device).requires_grad_(False)
    parameters = dict(decoder.named_parameters(remove_duplicate=False))
    infos = sorted((source.tensors[name] for name in checkpoint.slots), key=lambda i: (i.where, i.offset))
    total, done = sum(info.nbytes for info in infos), 0
    for info in infos:
        slot = checkpoint.slots[info.name]
        _fill(slot, slot.view(parameters[slot.parameter]), info, checkpoint)
        done += info.nbytes
        if progress is not None:
            progress(done, total)
    return decoder.eval()


def natural_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The type that `auto` stands for: float32 if most of the file is, else bfloat16."""
    sizes: dict[str, int] = {}
    for info in checkpoint.source.tensors.values():
        sizes[info.kind] = sizes.get(info.kind, 0) + info.nbytes
    return torch.float32 if max(sizes, key=lambda kind: sizes[kind]) == "F32" else torch.bfloat16


def _fill(slot: Slot, target: Tensor, info: TensorInfo, checkpoint: Checkpoint) -> None:
    """Copy one tensor of a file into its view of a parameter, in pieces of rows."""
    if slot.rope_heads or info.shape != tuple(target.shape):
        whole = _float(checkpoint.source.read(info.name), info)
        target.copy_(_halves(whole, slot.rope_heads).reshape(target.shape))
        return
    rows = info.shape[0]
    values_per_row = max(target[0].numel(), 1)
    step = max(_PIECE_BYTES // (4 * values_per_row), 1)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        target[start:stop].copy_(_float(checkpoint.source.read(info.name, start, stop), info))


def _float(values: Tensor, info: TensorInfo) -> Tensor:
    if not values.is_floating_point():
        raise WeightsError(f"{info}: holds {info.kind}, weights are floats or GGUF's block types")
    return values


def _halves(values: Tensor, heads: int) -> Tensor:
    """Rows of rotated heads from GGUF's pairs (0, 1), (2, 3) ... to halves (0, C/2), (1, C/2 + 1) ..."""
    if not heads:
        return values
    return values.reshape(heads, -1, 2, *values.shape[1:]).transpose(1, 2).flatten(0, 2)


def check_memory(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> None:
    """MachineError where the weights alone do not fit into the memory that is free now."""
    need = config.parameters.total * dtype.itemsize
    free = _free_bytes(torch.device(device))
    if free is not None and need > free:
        raise MachineError(
            f"the model needs {need / 1e9:.1f} GB as {str(dtype).removeprefix('torch.')}, "
            f"{torch.device(device).type} has {free / 1e9:.1f} GB free: choose a smaller type or model"
        )


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: let the allocator decide
        return None
    return int(kilobytes) * 1024
