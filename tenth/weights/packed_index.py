"""`packed.json`: what a packed model consists of, in which formats, with the hashes of it.

`docs/packed.md` describes the folder. What has to be there follows from the config alone: the network is built once
without memory, and names its weights.

O outputs, I inputs, E experts, D model width, F expert width.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from tenth.errors import FileFormatError, TensorError, WeightsError
from tenth.kernels.backend import Backend
from tenth.kernels.packed import PackedFormat, tiles_of
from tenth.kernels.weight import DenseExpertTable, DenseWeight, ExpertTable, Weight
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.weights.safetensors_file import parse_object
from tenth.weights.source import OpenFile, quoted

PACKED_NAME = "packed.json"
OUTSIDE = "outside.safetensors"
VERSION = 1

PAGE = 4096
"""Experts, and other tensors of LARGE bytes or more, begin at a multiple of this in their file."""

LARGE = 1 << 16
"""Bytes from which every tensor, of floats too, begins at a multiple of PAGE."""

_SIZE_LIMIT = 16 << 20  # bytes of a `packed.json`; one of 24,000 experts has 4 MB

_LAYER = re.compile(r"layers\.(\d+)\.")
_HEX = re.compile(r"[0-9a-f]{32}")
_PADDING = re.compile(r"(layers\.\d+\.)?padding\.\d+")


class Part(NamedTuple):
    """A weight that the network asks for: floats of any shape (0 matrices), one matrix (O, I), or an expert (F, D)."""

    matrices: int
    shape: tuple[int, ...]

    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of each matrix: an expert has gate, up and down."""
        if not self.matrices:
            return []
        rows, columns = self.shape
        return [(rows, columns), (rows, columns), (columns, rows)][: self.matrices]

    def __str__(self) -> str:
        kind = {0: "floats", 1: "a matrix"}.get(self.matrices, "an expert")
        return f"{kind} of shape {self.shape}"


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A part as it is stored: the formats of its matrices, and the hash of it."""

    name: str
    part: Part
    formats: tuple[PackedFormat, ...]
    digest: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        if not self.formats:
            return 4 * prod(self.part.shape)
        return sum(form.bytes_of(*shape) for form, shape in zip(self.formats, self.part.shapes(), strict=True))

    @property
    def stored(self) -> tuple[str, tuple[int, ...]]:
        """Kind and shape of the safetensors tensor: floats as they are, a matrix by tiles, an expert as bytes."""
        if not self.formats:
            return "F32", self.part.shape
        if len(self.formats) == 1:
            tiles = tiles_of(self.part.shape[0])
            return "U8", (tiles, self.nbytes // tiles)
        return "U8", (self.nbytes,)

    @property
    def alignment(self) -> int:
        """What its place in the file is a multiple of."""
        return PAGE if len(self.formats) == 3 or self.nbytes >= LARGE else 64

    def hash_of(self, pieces: Iterable[Tensor]) -> str:
        """The hash of bytes (uint8, 1-D) under this name, shape and these formats: BLAKE2b, 16 bytes, in hex."""
        shape = "x".join(map(str, self.part.shape))
        formats = ",".join(form.name for form in self.formats)
        state = hashlib.blake2b(f"{self.name} {shape} {formats}\n".encode(), digest_size=16)
        for piece in pieces:
            state.update(piece.numpy().data)
        return state.hexdigest()


@dataclass(frozen=True, slots=True)
class PackedIndex:
    """All of a `packed.json`: the hash of each file's header, and the tensors by name."""

    files: Mapping[str, str]
    tensors: Mapping[str, PackedTensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, padding between them left out."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def bytes_by_format(self) -> dict[str, int]:
        """Bytes of the matrices of each format, largest first; floats count as `fp32`."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            if not tensor.formats:
                sizes["fp32"] = sizes.get("fp32", 0) + tensor.nbytes
            for form, shape in zip(tensor.formats, tensor.part.shapes(), strict=True):
                sizes[form.name] = sizes.get(form.name, 0) + form.bytes_of(*shape)
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))

    def to_json(self) -> str:
        """The file's text."""
        tensors = {
            name: {
                "shape": list(tensor.part.shape),
                "formats": [form.name for form in tensor.formats],
                "hash": tensor.digest,
            }
            for name, tensor in self.tensors.items()
        }
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in tensors.items())
        files = json.dumps(dict(self.files), indent=4).replace("}", "  }")
        return f'{{\n  "version": {VERSION},\n  "files": {files},\n  "tensors": {{\n{lines}\n  }}\n}}\n'


def file_of(name: str) -> str:
    """The file of the folder that holds a tensor."""
    match = _LAYER.match(name)
    return layer_file(int(match[1])) if match else OUTSIDE


def layer_file(layer: int) -> str:
    """The file of one layer."""
    return f"layer-{layer:05d}.safetensors"


def padding_name(beside: str, number: int) -> str:
    """The name of the file's `number`th tensor that only moves the next one, `beside`, to its place."""
    match = _LAYER.match(beside)
    return f"{match[0] if match else ''}padding.{number}"


def header_hash(header: bytes) -> str:
    """The hash of a file's header, its length included: BLAKE2b, 16 bytes, in hex."""
    return hashlib.blake2b(header, digest_size=16).hexdigest()


def is_padding(name: str) -> bool:
    """Whether a tensor only moves the next one to its place."""
    return _PADDING.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class _Listing(Backend):
    """Notes what a network asks for, and gives it nothing: a stranger's config may name impossible sizes."""

    parts: dict[str, Part] = field(default_factory=dict)

    def matrix(self, outputs: int, inputs: int) -> Weight:
        self.parts[self.path] = Part(1, (outputs, inputs))
        return DenseWeight(0, 0, self.dtype, self.device)

    def table(self, experts: int, hidden: int, intermediate: int) -> ExpertTable:
        self.parts.update({f"{self.path}.{expert}": Part(3, (intermediate, hidden)) for expert in range(experts)})
        return DenseExpertTable(0, 0, 0, self.dtype, self.device)

    def bias(self, size: int) -> nn.Parameter:
        self.parts[self.path] = Part(0, (size,))
        return Backend.bias(self, 0)

    def precise(self, *shape: int) -> nn.Parameter:
        self.parts[self.path] = Part(0, shape)
        return Backend.precise(self, 0)


def parts_of(config: ModelConfig) -> dict[str, Part]:
    """Every weight of a network by its name, in the order in which it is built: layer after layer."""
    listing = _Listing()
    Decoder(config, on=listing)
    return listing.parts


def read_index(folder: Path) -> PackedIndex:
    """Read a `packed.json`, each entry judged by itself.

    FileFormatError for another version, an unknown key (in our own files that is a mistake), a key that appears twice
    or a malformed value; WeightsError where the file cannot be read.
    """
    where = folder / PACKED_NAME
    raw = _read_object(where)
    if type(raw.get("version")) is not int or raw["version"] != VERSION:  # JSON's true equals 1
        raise FileFormatError(f"{where}: version is {quoted(raw.get('version'))}, this program reads {VERSION}")
    _exactly(raw, ("version", "files", "tensors"), str(where))
    files, tensors = raw["files"], raw["tensors"]
    if not isinstance(files, dict) or not isinstance(tensors, dict):
        raise FileFormatError(f"{where}: files and tensors must be objects")
    for name, digest in files.items():
        _check_hash(digest, f"{where}: file {quoted(name)}")
    return PackedIndex(files, {name: _read_tensor(name, entry, where) for name, entry in tensors.items()})


def _read_object(path: Path) -> dict[str, Any]:
    file = OpenFile(path)
    try:
        if file.size > _SIZE_LIMIT:
            raise FileFormatError(f"{path}: {file.size} bytes, {_SIZE_LIMIT} are the limit for an index")
        return parse_object(file.read(0, file.size), path, "index")
    finally:
        file.close()


def _read_tensor(name: str, entry: Any, path: Path) -> PackedTensor:
    where = f"{path}: tensor {quoted(name)}"
    if not isinstance(entry, dict):
        raise FileFormatError(f"{where}: must be an object")
    _exactly(entry, ("shape", "formats", "hash"), where)
    shape, names = entry["shape"], entry["formats"]
    if not isinstance(shape, list) or not all(type(size) is int and 0 < size < 1 << 40 for size in shape):
        raise FileFormatError(f"{where}: shape is {quoted(shape)}, it must be a list of sizes")
    if not isinstance(names, list) or not all(isinstance(form, str) for form in names) or len(names) not in (0, 1, 3):
        raise FileFormatError(f"{where}: formats is {quoted(names)}, it must name none, one or three")
    if names and len(shape) != 2:
        raise FileFormatError(f"{where}: shape is {quoted(shape)}, a matrix has two sizes")
    _check_hash(entry["hash"], where)
    try:
        tensor = PackedTensor(
            name, Part(len(names), tuple(shape)), tuple(map(PackedFormat.parse, names)), entry["hash"]
        )
        _ = tensor.nbytes  # formats fit the shape
    except WeightsError as error:
        raise FileFormatError(f"{where}: {error}") from None
    return tensor


def _exactly(raw: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in raw:
        if key not in keys:
            raise FileFormatError(f"{where}: key {quoted(key)} is not known here (known: {', '.join(keys)})")
    for key in keys:
        if key not in raw:
            raise FileFormatError(f"{where}: key {key!r} is missing")


def _check_hash(value: Any, where: str) -> None:
    if not isinstance(value, str) or _HEX.fullmatch(value) is None:
        raise FileFormatError(f"{where}: hash is {quoted(value)}, it must be 32 hexadecimal digits")


def check_files(index: PackedIndex, config: ModelConfig, where: Path) -> None:
    """The files are those of a model of so many layers; FileFormatError names the first that is not."""
    if len(index.files) != config.num_layers + 1:
        raise FileFormatError(
            f"{where}: {len(index.files)} files, a model of {config.num_layers} layers has {config.num_layers + 1}"
        )
    for file in (*map(layer_file, range(config.num_layers)), OUTSIDE):
        if file not in index.files:
            raise FileFormatError(f"{where}: file {file!r} is missing")


def check_tensors(index: PackedIndex, config: ModelConfig, where: Path) -> None:
    """The tensors are what the config asks for; TensorError names the first that is not."""
    least = len(config.sparse_layers) * (config.moe.num_experts if config.moe else 0)
    if len(index.tensors) < least:  # before their names are made
        raise TensorError(f"{where}: {len(index.tensors)} tensors, the config asks for {least} experts alone")
    parts = parts_of(config)
    for name, part in parts.items():
        if name not in index.tensors:
            raise TensorError(f"{where}: tensor {name!r} is missing, the config asks for it")
        if index.tensors[name].part != part:
            raise TensorError(f"{where}: tensor {name!r} is {index.tensors[name].part!s}, the config asks for {part!s}")
    for name in index.tensors:
        if name not in parts:
            raise TensorError(f"{where}: tensor {quoted(name)} has no place in a {config.model_type} of this config")
