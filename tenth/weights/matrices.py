"""The matrices of the network as they lie in a checkpoint, read a piece at a time: what packing and quantising read.

A file may hold an expert's matrix as a tensor, as one of a stack of all experts, or gate over up; GGUF keeps the rows
of Llama's rotated heads in pairs. Here each is a matrix of its own, with its rows in our order.

O outputs, I inputs, E experts, F expert width, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tenth.errors import WeightsError
from tenth.model.decoder import Decoder
from tenth.weights.checkpoint import Checkpoint
from tenth.weights.gguf import GgufFile
from tenth.weights.load import halves
from tenth.weights.names import check_shapes
from tenth.weights.packed_index import Part
from tenth.weights.source import TensorInfo, TensorSource

__all__ = ["Matrices", "SourceMatrix"]

_PIECE = 1 << 22  # weights at a time: 16 MiB as float32
_TILE = 16  # pieces end at whole tiles of the packed form


@dataclass(frozen=True, slots=True)
class SourceMatrix:
    """One matrix (O, I) of the network in a file: rows `first` to `first + rows` of a tensor, or of its expert.

    `name` is its place in the network: `layers.0.attention.q.weight`, `layers.3.mlp.experts.17.gate`.
    """

    name: str
    source: TensorSource
    info: TensorInfo
    rows: int
    columns: int
    first: int = 0
    expert: int | None = None
    rope_heads: int = 0

    def __str__(self) -> str:
        """The place to name in an error."""
        return str(self.info) if self.expert is None else f"{self.info}, expert {self.expert}"

    @property
    def kind(self) -> str:
        """The file's name for the type of its elements or blocks: `BF16`, `Q4_K`."""
        return self.info.kind

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.info.nbytes * self.rows * self.columns // math.prod(self.info.shape)

    def values(self) -> Iterator[Tensor]:
        """Its values (O, I) from the first row to the last, some tiles of 16 rows at a time, in the file's own type.

        Block-quantised kinds come as float32. WeightsError for a type that holds whole numbers.
        """
        for piece in self._pieces(self.source.read):
            _check_float(piece, self.info)
            yield piece

    def blocks(self) -> Iterator[Tensor]:
        """The same as bytes (O, bytes of a row), of a GGUF file."""
        assert isinstance(self.source, GgufFile)
        yield from self._pieces(self.source.read_raw)

    def _pieces(self, read: Callable[[str, int, int | None], Tensor]) -> Iterator[Tensor]:
        unit = self.rows // self.rope_heads if self.rope_heads else 1
        least = math.lcm(unit, _TILE)
        step = max(_PIECE // self.columns // least, 1) * least
        whole = None
        if self.expert is not None:
            whole = read(self.info.name, self.expert, self.expert + 1)[0]
        elif len(self.info.shape) == 1:  # one row
            whole = read(self.info.name, 0, None)[None]
        for start in range(self.first, self.first + self.rows, step):
            stop = min(start + step, self.first + self.rows)
            piece = read(self.info.name, start, stop) if whole is None else whole[start:stop]
            yield halves(piece, unit) if self.rope_heads else piece


class Matrices:
    """All matrices and vectors of a checkpoint, by the names of the network that the packed form uses.

    TensorError where a tensor is missing or misshapen.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._source, self._slots = checkpoint.source, checkpoint.slots
        shapes = {name: info.shape for name, info in self._source.tensors.items()}
        check_shapes(Decoder(checkpoint.config, device="meta"), self._slots, shapes, str(checkpoint.path))
        self._names = {
            (slot.parameter, slot.expert, slot.rows[0] if slot.rows else 0): name for name, slot in self._slots.items()
        }

    def of(self, name: str, part: Part) -> tuple[SourceMatrix, ...]:
        """The matrix of a linear layer or an embedding; gate, up (F, D) and down (D, F) of an expert."""
        if part.matrices == 1:
            tensor = self._names[f"{name}.values_OI", None, 0]
            info, heads = self._source.tensors[tensor], self._slots[tensor].rope_heads
            return tuple(SourceMatrix(name, self._source, info, *shape, rope_heads=heads) for shape in part.shapes())
        gate, up, down = part.shapes()
        return (
            self._of_expert(f"{name}.gate", "w13_E2FD", 0, gate),
            self._of_expert(f"{name}.up", "w13_E2FD", gate[0], up),
            self._of_expert(f"{name}.down", "w2_EDF", 0, down),
        )

    def _of_expert(self, place: str, parameter: str, first: int, shape: tuple[int, int]) -> SourceMatrix:
        """Its own tensor, one of a stack of its kind, or (up only) the lower half of one in a stack of gate over up."""
        table, number, _ = place.rsplit(".", 2)
        expert = int(number)
        for owner, start, inside in ((expert, first, 0), (None, first, 0), (None, 0, first)):
            name = self._names.get((f"{table}.{parameter}", owner, start))
            if name is not None:
                info = self._source.tensors[name]
                stacked = owner is None and len(info.shape) == 3  # GGUF drops the axis of a single expert
                return SourceMatrix(place, self._source, info, *shape, inside, expert if stacked else None)
        raise AssertionError("check_shapes has seen a tensor for every part")

    def floats(self, name: str, part: Part) -> Tensor:
        """A norm's weight, a bias or a router's rows, as float32."""
        places = (name, f"{name}_ED", f"{name}_E")  # the router's parameters carry their shape
        tensor = next(self._names[place, None, 0] for place in places if (place, None, 0) in self._names)
        slot, info = self._slots[tensor], self._source.tensors[tensor]
        values = self._source.read(tensor)
        _check_float(values, info)
        values = values.to(torch.float32).reshape(part.shape)
        return halves(values, part.shape[0] // slot.rope_heads) if slot.rope_heads else values


def _check_float(values: Tensor, info: TensorInfo) -> None:
    if not values.is_floating_point():
        raise WeightsError(f"{info}: holds {info.kind}, weights are floats or GGUF's block types")
