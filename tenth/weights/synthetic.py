"""Packed models of random weights: the shape, bytes and speed of a model that is not here, without its sense.

O outputs, I inputs, G groups of columns.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenth.errors import RequestError
from tenth.kernels.packed import PackedExpert, PackedFormat, PackedWeight, pack
from tenth.model.config import ModelConfig
from tenth.weights.load import Progress
from tenth.weights.packed_index import PackedTensor, Part, parts_of
from tenth.weights.packed_writer import check_disk, new_packed
from tenth.weights.save import check_new_folder

_STD = 0.02  # of weights and router rows, as models are initialised; see `_deviations` for the others
_SPREAD = (0.5, 1.5)  # of scales about their mean: a kernel that mixes up two groups is seen
_MEAN_SQUARE = 13 / 12  # of a number of even chance in that range


def with_layers(config: ModelConfig, layers: int) -> ModelConfig:
    """The first layers of a config; RequestError where it has fewer."""
    if not 1 <= layers <= config.num_layers:
        raise RequestError(f"layers is {layers}, it must lie between 1 and the {config.num_layers} of the preset")
    sparse = tuple(layer for layer in config.sparse_layers if layer < layers)
    return replace(config, num_layers=layers, sparse_layers=sparse)


def write_synthetic(
    folder: Path, config: ModelConfig, form: PackedFormat, *, seed: int = 0, progress: Progress | None = None
) -> int:
    """Write a packed model of `config` with every matrix in `form` (its group halved where it does not divide a width).

    Weights have mean 0 and most a deviation of 0.02, norms are 1, biases 0, router rows normal: tokens spread over the
    experts. The same seed gives the same bytes. It has no tokenizer: token ids go in and come out. Returns the bytes
    of the weights. WeightsError where `form` does not fit a width, or the folder is not empty; MachineError where the
    disk is too small: before anything is written.
    """
    if not 0 <= seed < 1 << 64:
        raise RequestError(f"seed is {seed}, it must lie between 0 and 2^64")
    check_new_folder(folder)
    tensors = [_planned(name, part, form) for name, part in parts_of(config).items()]
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    check_disk(folder, total)
    with new_packed(folder, config) as writer:
        for number, tensor in enumerate(tensors):
            # a stream of random numbers for each tensor: none depends on what was drawn before
            dice = np.random.Generator(np.random.PCG64DXSM([seed, number]))
            how = zip(tensor.formats, tensor.part.shapes(), _deviations(tensor, config), strict=True)
            weights = [_drawn(*arguments, dice) for arguments in how]
            match weights:
                case []:
                    writer.floats(tensor.name, _floats(tensor, dice))
                case [matrix]:
                    writer.matrix(tensor.name, matrix)
                case _:
                    writer.expert(tensor.name, PackedExpert(*weights))
            done += tensor.nbytes
            if progress is not None:
                progress(done, total)
    return total


def _planned(name: str, part: Part, form: PackedFormat) -> PackedTensor:
    formats = tuple(form.fitted(columns) for _, columns in part.shapes())
    for fitted, (_, columns) in zip(formats, part.shapes(), strict=True):
        fitted.segments(columns)  # says which width does not fit
    return PackedTensor(name, part, formats)


def _floats(tensor: PackedTensor, dice: np.random.Generator) -> Tensor:
    shape = tensor.part.shape
    if len(shape) == 1:
        return torch.full(shape, 0.0 if tensor.name.endswith("bias") else 1.0)
    return torch.from_numpy(_normal(shape, _STD, dice))


def _deviations(tensor: PackedTensor, config: ModelConfig) -> list[float]:
    """The deviation of each matrix.

    Embeddings have 1, and what adds to the stream is small, as where training begins: otherwise the mean that attention
    takes over earlier tokens drowns what tokens differ in, and all go to the same few experts.
    """
    name = tensor.name.removesuffix(".weight").split(".")[-1]
    into_stream = _STD / (2 * config.num_layers) ** 0.5
    if len(tensor.formats) == 3:
        return [_STD, _STD, into_stream]
    return [{"embedding": 1.0, "o": into_stream, "down": into_stream}.get(name, _STD)] * len(tensor.formats)


def _drawn(form: PackedFormat, shape: tuple[int, int], deviation: float, dice: np.random.Generator) -> PackedWeight:
    """A matrix of mean 0: quants of equal chance under scales of either sign."""
    rows, columns = shape
    if not form.group:
        return PackedWeight(pack(form, torch.from_numpy(_normal(shape, deviation, dice))), rows, columns, form)
    levels, groups = 1 << form.bits, form.groups(columns)
    words = dice.integers(0, 1 << 64, -(-rows * columns // 8), dtype=np.uint64)
    quants_OI = words.view(np.uint8)[: rows * columns].reshape(shape)
    if form.bits == 4:
        quants_OI &= levels - 1
    # without minimums the quants' mean is half a step below their zero
    variance = (levels**2 - 1) / 12 + (0 if form.minimums else 0.25)
    mean = deviation / (variance * _MEAN_SQUARE) ** 0.5
    parts: dict[str, Tensor | None] = {}
    if form.superblock:
        low, high, mean_square = (4, 8, 31.5) if form.step_bits == 4 else (16, 48, 1077.5)
        steps_OG = torch.from_numpy(dice.integers(low, high, (rows, groups), dtype=np.int8))
        parts = {"group_scales_OG": steps_OG, "group_minimums_OG": steps_OG if form.minimums else None}
        mean /= mean_square**0.5
    scales = _scales((rows, form.shared(columns)), mean, dice)
    if form.minimums:
        parts["minimums"] = scales * ((levels - 1) / (2 if form.superblock else -2))
    return PackedWeight(pack(form, torch.from_numpy(quants_OI), scales=scales, **parts), rows, columns, form)


def _normal(shape: tuple[int, ...], deviation: float, dice: np.random.Generator) -> NDArray[np.float32]:
    values = dice.standard_normal(shape, dtype=np.float32)
    values *= deviation
    return values


def _scales(shape: tuple[int, int], mean: float, dice: np.random.Generator) -> Tensor:
    low, high = _SPREAD
    share = dice.random(shape, dtype=np.float32) * 2 - 1  # its sign is the scale's
    return torch.from_numpy((share * (high - low) + np.copysign(low, share)) * np.float32(mean))
