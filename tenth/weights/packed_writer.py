"""Writes a packed model, tensor by tensor: no more than one is held, and the last 2 MB of each file. All of the folder
or nothing.

`docs/packed.md` describes what is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from tenth.errors import ConfigError, MachineError, TensorError
from tenth.kernels.packed import PackedExpert, PackedWeight
from tenth.model.config import ModelConfig
from tenth.model.huggingface import OWN_MODEL_TYPE
from tenth.model.huggingface_export import config_to_huggingface, exportable_as
from tenth.weights.generation import GenerationDefaults
from tenth.weights.packed_index import (
    PACKED_NAME,
    PAGE,
    PackedIndex,
    PackedTensor,
    Part,
    file_of,
    header_hash,
    padding_name,
    parts_of,
)
from tenth.weights.save import new_folder
from tenth.weights.tokenizer import Tokenizer

_ENTRY_BYTES = 330  # of a header, at most, for a tensor and the padding before it, without its name
_BLOCK = 2 << 20  # written at once, at multiples of it: the system then keeps the file in pages of that size


@contextmanager
def new_packed(
    folder: Path,
    config: ModelConfig,
    *,
    tokenizer: Tokenizer | None = None,
    generation: GenerationDefaults | None = None,
) -> Iterator[PackedWriter]:
    """A writer of a packed model, whose folder appears when the block ends without an error, or not at all.

    Every weight that `config` asks for (`parts_of`) must be given, in any order; TensorError names the first that was
    not. WeightsError where `folder` exists and is not empty; MachineError where the disk refuses.
    """
    with new_folder(folder) as place:
        (place / "config.json").write_text(json.dumps(config_to_huggingface(_named(config)), indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save(place)
        if generation is not None:
            (place / "generation_config.json").write_text(generation.to_json())
        with PackedWriter(place, config) as writer:
            yield writer
            index = writer.finish()
        (place / PACKED_NAME).write_text(index.to_json())


def _named(config: ModelConfig) -> ModelConfig:
    """The same under our own type where its class would compute something else."""
    try:
        return exportable_as(config, config.model_type)
    except ConfigError:
        return exportable_as(config, OWN_MODEL_TYPE)


def check_disk(folder: Path, nbytes: int) -> None:
    """MachineError where the disk that will hold `folder` has less than `nbytes` free."""
    nearest = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(nearest).free
    if nbytes > free:
        raise MachineError(f"{folder}: needs {_size(nbytes)}, the disk has {_size(free)} free")


def _size(nbytes: int) -> str:
    if nbytes < 1e6:
        return f"{nbytes} bytes"
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


class PackedWriter:
    """Takes the weights of one model by the names of the network (`layers.3.attention.q.weight`), each once."""

    def __init__(self, place: Path, config: ModelConfig) -> None:
        """`place` is a folder that exists; see `new_packed` for one that becomes whole or vanishes."""
        self.parts = parts_of(config)
        self._tensors: dict[str, PackedTensor] = {}
        self._open = ExitStack()
        rooms: dict[str, int] = {}
        for name in self.parts:
            rooms[file_of(name)] = rooms.get(file_of(name), 0) + len(name) + _ENTRY_BYTES
        self._files = {name: self._open.enter_context(_File(place / name, room)) for name, room in rooms.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def matrix(self, name: str, weight: PackedWeight) -> None:
        """Write what a linear layer multiplies with, or an embedding."""
        self._add(name, (weight.out_features, weight.in_features), [weight])

    def expert(self, name: str, expert: PackedExpert) -> None:
        """Write one expert, `layers.3.mlp.experts.17`."""
        shape = (expert.gate.out_features, expert.gate.in_features)
        self._add(name, shape, [expert.gate, expert.up, expert.down])

    def floats(self, name: str, values: Tensor) -> None:
        """Write a norm, a bias or router rows, as float32."""
        data = values.detach().to(torch.float32).contiguous().flatten().view(torch.uint8)
        self._add(name, tuple(values.shape), [], data)

    def _add(self, name: str, shape: tuple[int, ...], weights: Sequence[PackedWeight], *floats: Tensor) -> None:
        part = Part(len(weights), shape)
        if name not in self.parts:
            raise TensorError(f"{name!r} has no place in a model of this config")
        if name in self._tensors:
            raise TensorError(f"{name!r} was written before")
        if self.parts[name] != part:
            raise TensorError(f"{name!r} is {part!s}, the config asks for {self.parts[name]!s}")
        pieces = [*(weight.data_B for weight in weights), *floats]
        tensor = PackedTensor(name, part, tuple(weight.format for weight in weights))
        digest = tensor.hash_of(pieces)
        self._tensors[name] = PackedTensor(name, part, tensor.formats, digest)
        self._files[file_of(name)].add(tensor, pieces)

    def finish(self) -> PackedIndex:
        """Write the headers; returns what belongs into `packed.json`. TensorError where a weight is missing."""
        missing = [name for name in self.parts if name not in self._tensors]
        if missing:
            raise TensorError(
                f"{len(missing)} of {len(self.parts)} weights were not written, the first is {missing[0]!r}"
            )
        headers = {name: file.finish() for name, file in self._files.items()}
        return PackedIndex(headers, {name: self._tensors[name] for name in self.parts})


class _File:
    """One safetensors file: data behind room for a header, which is written last."""

    def __init__(self, path: Path, room: int) -> None:
        self._room = -(-(room + 8) // PAGE) * PAGE
        self._entries: dict[str, dict[str, Any]] = {}
        self._at = self._paddings = 0
        self._file = path.open("wb", buffering=0)
        self._block = bytearray(self._room % _BLOCK)
        self._file.seek(self._room - len(self._block))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, tensor: PackedTensor, pieces: Sequence[Tensor]) -> None:
        """Append a tensor at its place, with padding before it where there is a gap."""
        gap = -self._at % tensor.alignment
        if gap:
            self._append(padding_name(tensor.name, self._paddings), "U8", (gap,), [torch.zeros(gap, dtype=torch.uint8)])
            self._paddings += 1
        self._append(tensor.name, *tensor.stored, pieces)

    def _append(self, name: str, kind: str, shape: Sequence[int], pieces: Sequence[Tensor]) -> None:
        start = self._at
        for piece in pieces:
            self._write(piece.numpy().data)
            self._at += piece.nbytes
        self._entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, self._at]}

    def _write(self, data: memoryview) -> None:
        while len(data):
            room = _BLOCK - len(self._block)
            self._block += data[:room]
            data = data[room:]
            if len(self._block) == _BLOCK:
                self._flush()

    def _flush(self) -> None:
        rest = memoryview(self._block)
        while len(rest):
            rest = rest[self._file.write(rest) :]
        self._block = bytearray()

    def finish(self) -> str:
        """Write the header, spaces up to the data; returns its hash."""
        self._flush()
        length = self._room - 8
        text = json.dumps(self._entries, separators=(",", ":")).encode().ljust(length)
        assert len(text) == length, "the room for the header was counted too small"
        header = length.to_bytes(8, "little") + text
        self._file.seek(0)
        self._block += header
        self._flush()
        return header_hash(header)
