"""A checkpoint into a packed folder, matrix by matrix: the memory is that of the largest matrix, not of the model.

What becomes of a matrix is a `Quantiser`'s choice. Rounding to nearest (`nearest`) and taking blocks over (`take_over`)
are two; a calibrated method is one more function of that kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tenth.errors import TensorError, WeightsError
from tenth.kernels.packed import PackedExpert, PackedFormat, PackedWeight
from tenth.weights.checkpoint import Checkpoint
from tenth.weights.load import Progress
from tenth.weights.matrices import Matrices, SourceMatrix
from tenth.weights.packed_writer import PackedWriter, check_disk, new_packed
from tenth.weights.save import check_new_folder


class Quantised(NamedTuple):
    """A matrix as it is to be written, and the sums of squared differences and of squares where it was rounded."""

    weight: PackedWeight
    error: float = 0.0
    power: float = 0.0


Quantiser = Callable[[SourceMatrix, PackedFormat], Quantised]
"""A matrix of the source into one of a format."""

Choice = Callable[[SourceMatrix], PackedFormat]
"""The format of a matrix, from its name in the network, its shape and its type."""


@dataclass(slots=True)
class Count:
    """Values and bytes of some matrices; squared error and squares of those that were rounded."""

    weights: int = 0
    nbytes: int = 0
    error: float = 0.0
    power: float = 0.0

    def add(self, one: Quantised) -> None:
        """Count one matrix more."""
        self.weights += one.weight.out_features * one.weight.in_features
        self.nbytes += one.weight.nbytes
        self.error += one.error
        self.power += one.power

    @property
    def bits_per_weight(self) -> float:
        """Bits of a value with its share of scales and filling."""
        return 8 * self.nbytes / self.weights

    @property
    def relative_error(self) -> float:
        """Squared error over squares; 0 where nothing was rounded."""
        return self.error / self.power if self.power else 0.0


@dataclass(slots=True)
class Tally:
    """What was written: all matrices, and those of each format."""

    total: Count = field(default_factory=Count)
    by_format: dict[str, Count] = field(default_factory=dict)

    def add(self, one: Quantised) -> None:
        """Count one matrix more."""
        self.total.add(one)
        self.by_format.setdefault(one.weight.format.name, Count()).add(one)


@torch.no_grad()
def write_packed(
    checkpoint: Checkpoint, folder: Path, choose: Choice, quantise: Quantiser, progress: Progress | None = None
) -> Tally:
    """Write all of `checkpoint` as the packed model `folder`, which appears whole or not at all.

    `progress` is told the bytes of matrices read, of how many. WeightsError where `folder` is not empty or the source
    is packed already, MachineError where the disk is too small, TensorError where a tensor cannot be used.
    """
    check_new_folder(folder)
    if checkpoint.packed is not None:
        raise WeightsError(f"{checkpoint.path}: is packed already; name the model that it was made from")
    matrices, tally = Matrices(checkpoint), Tally()
    tokenizer = checkpoint.tokenizer()
    generation = checkpoint.generation().with_ends(tokenizer.end_ids)
    with new_packed(folder, checkpoint.config, tokenizer=tokenizer, generation=generation) as writer:
        plan = {
            name: [(matrix, choose(matrix)) for matrix in matrices.of(name, part)]
            for name, part in writer.parts.items()
            if part.matrices
        }
        pairs = [pair for part in plan.values() for pair in part]
        check_disk(folder, sum(form.bytes_of(matrix.rows, matrix.columns) for matrix, form in pairs))
        done, total = 0, sum(matrix.nbytes for matrix, _ in pairs)
        for name, part in writer.parts.items():
            if not part.matrices:
                writer.floats(name, _finite(matrices.floats(name, part), name, checkpoint))
                continue
            made = [quantise(*pair) for pair in plan[name]]
            _write(writer, name, [one.weight for one in made])
            for one in made:
                tally.add(one)
            done += sum(matrix.nbytes for matrix, _ in plan[name])
            if progress is not None:
                progress(done, total)
    return tally


def _write(writer: PackedWriter, name: str, weights: list[PackedWeight]) -> None:
    if len(weights) == 3:
        writer.expert(name, PackedExpert(*weights))
    else:
        writer.matrix(name, weights[0])


def _finite(values: Tensor, name: str, checkpoint: Checkpoint) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise TensorError(f"{checkpoint.path}: {name} holds a value that is not finite")
    return values
