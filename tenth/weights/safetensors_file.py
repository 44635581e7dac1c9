"""Reads safetensors, one file or a folder of shards, judging every header before it is used.

A file is 8 bytes of length, that many bytes of JSON, then the tensors' bytes without a gap; a folder has either
`model.safetensors` or shards that `model.safetensors.index.json` names. The library `safetensors` writes these files
and is the oracle of the tests; the reader is ours so that an error names file and tensor, and so that rows go from
the file into the tensor's memory without a map.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from tenth.errors import FileFormatError, TensorError, WeightsError
from tenth.weights.source import DTYPES, HEADER_LIMIT, OpenFile, TensorInfo, quoted, read_plain

__all__ = ["INDEX_NAME", "SINGLE_NAME", "SafetensorsFiles"]

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"

_BITS: Mapping[str, int] = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64, "BOOL": 8},
    **{"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_DIMS = 16
_MAX_ELEMENTS = 1 << 62  # torch counts elements and strides in 64 bits with a sign


class SafetensorsFiles:
    """The tensors of a safetensors file, or of all shards in a folder: a TensorSource.

    `path` as given; `tensors` by name, in the order of the shards' names and of the bytes in each; `metadata` the
    texts under `__metadata__`, an earlier shard's before a later one's. `files` names the shards of a folder whose
    index is of another kind. Raises FileFormatError for a malformed header or index, TensorError where index and shards
    disagree about a tensor, WeightsError for a missing or unreadable file.
    """

    def __init__(self, path: Path | str, files: Iterable[str] | None = None) -> None:
        self.path = Path(path)
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._files: dict[Path, OpenFile] = {}
        try:
            if files is not None:
                for file in files:
                    self._add(self.path / file)
            elif self.path.is_dir():
                self._open_folder()
            else:
                self._add(self.path)
        except BaseException:
            self.close()
            raise

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows start:stop of the first dimension, in the file's own type and fresh memory; see TensorSource."""
        if name not in self.tensors:
            raise TensorError(f"{self.path}: no tensor {quoted(name)} among its {len(self.tensors)}")
        info = self.tensors[name].rows(start, stop)
        if info.kind not in DTYPES:
            raise WeightsError(f"{info}: {info.kind} is not supported yet; {', '.join(DTYPES)} are")
        return read_plain(self._files[info.where], info)

    def read_into(self, name: str, view: memoryview) -> None:
        """All bytes of a tensor into memory of exactly its size."""
        info = self.tensors[name]
        self._files[info.where].read_into(view, info.offset)

    def forget(self) -> None:
        """Let the system drop what its page cache holds of these files."""
        for file in self._files.values():
            file.forget()

    def header(self, file: str) -> bytes:
        """All that stands before the data of one file of the folder: the length of its header, and the header."""
        opened = self._files[self.path / file]
        return opened.read(0, 8 + int.from_bytes(opened.read(0, 8), "little"))

    def close(self) -> None:
        """Close all files; a second time does nothing."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_folder(self) -> None:
        single, index = self.path / SINGLE_NAME, self.path / INDEX_NAME
        if single.exists():
            self._add(single)
        elif index.exists():
            self._open_shards(index)
        else:
            names = f"{SINGLE_NAME}, {INDEX_NAME} or packed.json"
            raise WeightsError(f"{self.path}: no weights here; {names} would be read")

    def _open_shards(self, index: Path) -> None:
        shard_of = _read_index(index)
        for shard in sorted(set(shard_of.values())):
            path = self.path / shard
            if not path.is_file():
                raise WeightsError(f"{index}: shard {shard} is missing; it should lie in the same folder")
            for info in self._add(path):
                if shard_of.get(info.name) != shard:
                    where = "does not have it" if info.name not in shard_of else f"has it in {shard_of[info.name]}"
                    raise TensorError(f"{info}: {INDEX_NAME} {where}")
        for name, shard in shard_of.items():
            if name not in self.tensors:
                raise TensorError(f"{self.path / shard}: no tensor {quoted(name)}, which {INDEX_NAME} has in it")

    def _add(self, path: Path) -> list[TensorInfo]:
        """Open one file and take its tensors."""
        file = self._files[path] = OpenFile(path)
        header, data_start = _read_header(file)
        self.metadata = _read_metadata(header.pop("__metadata__", {}), path) | self.metadata
        infos = [_read_entry(name, entry, path, data_start) for name, entry in header.items()]
        infos.sort(key=lambda info: (info.offset, info.nbytes))
        _check_layout(infos, file, data_start)
        for info in infos:
            if info.name in self.tensors:
                raise TensorError(f"{info}: it is also in {self.tensors[info.name].where}; one shard should hold it")
            self.tensors[info.name] = info
        return infos


def _read_header(file: OpenFile) -> tuple[dict[str, Any], int]:
    """The JSON object at the start of a file, and where the tensors' bytes begin."""
    if file.size < 8:
        raise FileFormatError(f"{file.path}: {file.size} bytes are no safetensors file, its header length takes 8")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(file.size - 8, HEADER_LIMIT):
        limit = f"{file.size - 8} remain in the file" if length > file.size - 8 else f"{HEADER_LIMIT} are the limit"
        raise FileFormatError(f"{file.path}: header length {length}, {limit}")
    return parse_object(file.read(8, length), file.path, "header"), 8 + length


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name to shard name, every shard a plain file name."""
    file = OpenFile(path)
    try:
        if file.size > HEADER_LIMIT:
            raise FileFormatError(f"{path}: {file.size} bytes, {HEADER_LIMIT} are the limit for an index")
        index = parse_object(file.read(0, file.size), path, "index")
    finally:
        file.close()
    shard_of = index.get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise FileFormatError(f"{path}: weight_map should be an object from tensor names to file names")
    for name, shard in shard_of.items():
        plain = isinstance(shard, str) and shard.isprintable() and shard not in ("", ".", "..")
        if not plain or "/" in shard or "\\" in shard:
            raise FileFormatError(
                f"{path}: weight_map of {quoted(name)} is {quoted(shard)}; a plain file name in this folder is right"
            )
    return shard_of


def parse_object(data: bytes, path: Path, part: str) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=partial(_unique, path))
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: {part} is not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: {part} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path}: {part} is a JSON {type(value).__name__}, an object would be right")
    return value


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; the last of two equal keys must not win in silence."""
    built = dict(pairs)
    if len(built) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise FileFormatError(f"{path}: key {quoted(twice)} appears twice in one JSON object")
    return built


def _read_metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FileFormatError(f"{path}: __metadata__ should be an object of strings")
    return value


def _read_entry(name: str, entry: Any, path: Path, data_start: int) -> TensorInfo:
    """One tensor of a header, checked by itself: fields, type, shape, byte count."""
    where = f"{path}: tensor {quoted(name)}"
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise FileFormatError(f"{where}: its entry should have exactly {', '.join(sorted(_FIELDS))}")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _BITS:
        raise FileFormatError(f"{where}: unknown dtype {quoted(kind)}; known are {', '.join(_BITS)}")
    if not _sizes(shape) or len(shape) > _MAX_DIMS or math.prod(size or 1 for size in shape) > _MAX_ELEMENTS:
        raise FileFormatError(f"{where}: shape {quoted(shape)} should be up to {_MAX_DIMS} sizes of a possible tensor")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FileFormatError(f"{where}: data_offsets {quoted(offsets)} should be two byte offsets, begin and end")
    begin, end = offsets
    bits = math.prod(shape) * _BITS[kind]
    if bits != (end - begin) * 8:
        size = f"{end - begin} bytes (data_offsets {begin} to {end})"
        raise FileFormatError(f"{where}: {kind} of shape {quoted(shape)} takes {bits / 8:g} bytes, it has {size}")
    return TensorInfo(name, tuple(shape), kind, end - begin, path, data_start + begin)


def _sizes(value: Any) -> bool:
    """Whether `value` is a list of whole numbers that 63 bits can hold (JSON's true is no number)."""
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def _check_layout(infos: list[TensorInfo], file: OpenFile, data_start: int) -> None:
    """Tensors in the order of their offsets must fill the file: no overlap, no hole, nothing beyond the end."""
    at = data_start
    for info in infos:
        if info.offset != at:
            fault = "overlaps the one before" if info.offset < at else "leaves a hole before it"
            raise FileFormatError(f"{info}: begins at {info.offset - data_start}, {fault}; {at - data_start} is right")
        at += info.nbytes
        if at > file.size:
            size = file.size - data_start
            raise FileFormatError(f"{info}: ends at {at - data_start}, beyond the {size} bytes of data in the file")
    if at != file.size:
        raise FileFormatError(f"{file.path}: {file.size - at} bytes after the last tensor belong to none")
