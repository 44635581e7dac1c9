"""From files into a decoder, tensor by tensor; the peak of memory is the model in its type and under 100 MB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tenth.errors import MachineError, RequestError, WeightsError
from tenth.kernels import reference
from tenth.kernels.contract import Kernels
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.weights.checkpoint import Checkpoint
from tenth.weights.names import Slot, check_shapes
from tenth.weights.packed import PackedBackend, PackedFiles
from tenth.weights.source import TensorInfo

_PIECE_BYTES = 8 << 20  # as float32; its raw bytes and their conversion come on top

Progress = Callable[[int, int], None]
"""Told the bytes read so far and in all."""


def load_decoder(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | Literal["auto"] = "auto",
    device: torch.device | str = "cpu",
    kernels: Kernels = reference,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Decoder:
    """Read every tensor into its place; packed ones are mapped where they lie, and computed with in float32.

    `memory` is a budget in bytes for a packed model (`tenth.weights.budget`): experts beyond it stay on disk.
    RequestError where there is none for this model, or it is too small.

    `auto` keeps a file's own bfloat16 or float32, and makes bfloat16 of everything else. Shapes, and the memory that is
    free, are checked before anything is allocated: TensorError, MachineError. WeightsError for another type or device
    than packed weights have.
    """
    config, source = checkpoint.config, checkpoint.source
    if checkpoint.packed is not None:
        return _packed_decoder(checkpoint, checkpoint.packed, dtype, torch.device(device), kernels, memory)
    if memory is not None:
        raise RequestError(f"{checkpoint.path}: a budget of memory is for packed models: `tenth quantize` makes one")
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
        fill(slot, slot.view(parameters[slot.parameter]), info, checkpoint)
        done += info.nbytes
        if progress is not None:
            progress(done, total)
    return decoder.eval()


def _packed_decoder(
    checkpoint: Checkpoint,
    files: PackedFiles,
    dtype: torch.dtype | Literal["auto"],
    device: torch.device,
    kernels: Kernels,
    memory: int | None,
) -> Decoder:
    if dtype not in ("auto", torch.float32):
        name = str(dtype).removeprefix("torch.")
        raise WeightsError(f"{checkpoint.path}: packed weights are computed with in float32, not {name}")
    if device.type != "cpu":
        raise WeightsError(f"{checkpoint.path}: packed weights run on the cpu, not on {device}")
    if memory is not None:
        from tenth.weights import budget  # it needs the native module

        budget.check_kernels(kernels)
        spent = budget.spend(files, checkpoint.config, memory)
        if spent is not None:
            _check_free(checkpoint.path, spent.nbytes)
            return budget.budget_decoder(files, checkpoint.config, kernels, spent)
    return Decoder(checkpoint.config, on=PackedBackend(files=files, kernels=kernels)).eval()


def natural_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The type that `auto` stands for: float32 if most of the file is, else bfloat16."""
    sizes: dict[str, int] = {}
    for info in checkpoint.source.tensors.values():
        sizes[info.kind] = sizes.get(info.kind, 0) + info.nbytes
    most = max(sizes, key=lambda kind: sizes[kind], default="")
    return torch.float32 if most == "F32" else torch.bfloat16


def fill(slot: Slot, target: Tensor, info: TensorInfo, checkpoint: Checkpoint) -> None:
    """Copy a tensor of a file into its view of a parameter, by rows (by whole heads where GGUF has pairs)."""
    if info.shape != tuple(target.shape):  # the same but for axes of size one
        target.copy_(_float(checkpoint.source.read(info.name), info).reshape(target.shape))
        return
    rows = info.shape[0]
    unit = rows // slot.rope_heads if slot.rope_heads else 1
    step = max(_PIECE_BYTES // (4 * max(target[0].numel(), 1)) // unit, 1) * unit
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        piece = _float(checkpoint.source.read(info.name, start, stop), info)
        target[start:stop].copy_(halves(piece, unit) if slot.rope_heads else piece)


def _float(values: Tensor, info: TensorInfo) -> Tensor:
    if not values.is_floating_point():
        raise WeightsError(f"{info}: holds {info.kind}, weights are floats or GGUF's block types")
    return values


def halves(values: Tensor, head_dim: int) -> Tensor:
    """Rows of rotated heads from GGUF's pairs (0, 1), (2, 3) ... to halves (0, C/2), (1, C/2 + 1) ..."""
    pairs = values.reshape(-1, head_dim // 2, 2, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape)


def check_memory(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> None:
    """MachineError where the weights alone do not fit into the memory that is free now."""
    need = config.parameters.total * dtype.itemsize
    free = free_bytes(torch.device(device))
    if free is not None and need > free:
        raise MachineError(
            f"the model needs {need / 1e9:.1f} GB as {str(dtype).removeprefix('torch.')}, "
            f"{torch.device(device).type} has {free / 1e9:.1f} GB free: choose a smaller type or model"
        )


def _check_free(path: Path, need: int) -> None:
    free = free_bytes(torch.device("cpu"))
    if free is not None and need > free:
        raise MachineError(f"{path}: the budget is {need / 1e9:.1f} GB, the machine has {free / 1e9:.1f} GB free")


def free_bytes(device: torch.device) -> int | None:
    """What may still be allocated: of the GPU, or of the machine and the container around us. None: not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration):  # not Linux: let the allocator decide
        return None
    return min(free, _container_bytes(Path("/sys/fs/cgroup"), free))


def _container_bytes(group: Path, otherwise: int) -> int:
    """What the container's limit (cgroup v2) leaves; its file pages can be dropped, so they do not count as used."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return otherwise
    return otherwise if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
