"""Reads GGUF, versions 2 and 3, little-endian: metadata, tensors, shards; nothing in the file is trusted.

The head is parsed by `gguf_head`, the blocks by `ggml`; here lie the reading of rows and the joining of split files.
The package `gguf` is the oracle of the tests; it takes seconds for a large vocabulary and trusts what it reads.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from tenth.errors import FileFormatError, TensorError, WeightsError
from tenth.weights.ggml import FORMATS, READABLE, dequantize
from tenth.weights.gguf_head import MetadataValue, read_head
from tenth.weights.source import DTYPES, OpenFile, TensorInfo, empty_bytes, quoted, read_plain

__all__ = ["GgufFile", "MetadataValue"]

_CHUNK_BYTES = 1 << 22
_SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class GgufFile:
    """The tensors and metadata of a GGUF file, or of a split one opened by its first shard: a TensorSource.

    `path` as given; `metadata` by key (of the first shard); `tensors` by name, in the order of the file, shapes in
    torch's order. Raises FileFormatError for malformed bytes, TensorError where shards disagree about a tensor,
    WeightsError for a missing or unreadable file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.metadata: dict[str, MetadataValue] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._files: dict[Path, OpenFile] = {}
        try:
            self.metadata = self._add(self.path)
            if _count(self.metadata, "split.count", self.path) > 1:
                self._add_shards()
        except BaseException:
            self.close()
            raise

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows start:stop of the first dimension in fresh memory: float32 for blocks, else the file's own type."""
        info = self._rows(name, start, stop)
        if info.kind in DTYPES:
            return read_plain(self._files[info.where], info)
        if info.kind not in READABLE:
            raise WeightsError(f"{info}: type {info.kind} is not supported yet; {', '.join(READABLE)} are")
        return self._dequantized(info)

    def read_raw(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """The bytes of rows start:stop as they are, of any type: uint8, the last dimension a row's bytes."""
        info = self._rows(name, start, stop)
        raw = empty_bytes(info.nbytes, info)
        self._files[info.where].read_into(raw.numpy().data, info.offset)
        row_bytes = FORMATS[info.kind].bytes_of(math.prod(info.shape[-1:]))
        return raw.view(*info.shape[:-1], row_bytes)

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

    def _rows(self, name: str, start: int, stop: int | None) -> TensorInfo:
        if name not in self.tensors:
            raise TensorError(f"{self.path}: no tensor {quoted(name)} among its {len(self.tensors)}")
        info = self.tensors[name]
        block = FORMATS[info.kind].block_elements
        if len(info.shape) == 1 and (start % block or (stop or 0) % block):  # only here may a cut fall inside a block
            raise TensorError(f"{info}: values {start}:{stop} asked for, {info.kind} is cut at multiples of {block}")
        return info.rows(start, stop)

    def _dequantized(self, info: TensorInfo) -> torch.Tensor:
        """Read and unpack in chunks, so that the packed form is never held whole."""
        form, file = FORMATS[info.kind], self._files[info.where]
        values = math.prod(info.shape)
        out = empty_bytes(values * 4, info).view(torch.float32)
        step = _CHUNK_BYTES // form.block_bytes * form.block_elements
        chunk = empty_bytes(form.bytes_of(min(step, values)), info)
        for at in range(0, values, step):
            part = out[at : at + step]
            raw = chunk[: form.bytes_of(len(part))]
            file.read_into(raw.numpy().data, info.offset + form.bytes_of(at))
            dequantize(raw, info.kind, part)
        return out.view(info.shape)

    def _add(self, path: Path) -> dict[str, MetadataValue]:
        """Open one file, take its tensors, return its metadata."""
        file = self._files[path] = OpenFile(path)
        metadata, infos = read_head(file)
        for info in infos:
            if info.name in self.tensors:
                raise TensorError(f"{info}: it is also in {self.tensors[info.name].where}; one place should hold it")
            self.tensors[info.name] = info
        return metadata

    def _add_shards(self) -> None:
        """Open the other shards of a split file and compare what each says of its place with its name."""
        count = _count(self.metadata, "split.count", self.path)
        match = _SHARD_NAME.fullmatch(self.path.name)
        if match is None or int(match[3]) != count:
            raise FileFormatError(
                f"{self.path}: split.count is {count}; its name should end in -00001-of-{count:05}.gguf"
            )
        paths = [self.path.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
        if int(match[2]) != 1:
            raise WeightsError(f"{self.path}: a shard that is not the first; open {paths[0].name}")
        for number, path in enumerate(paths):
            if not path.is_file():
                raise WeightsError(f"{self.path}: shard {path.name} is missing; it should lie in the same folder")
            metadata = self._add(path) if number else self.metadata
            for key, right in (("split.no", number), ("split.count", count)):
                if _count(metadata, key, path) != right:
                    raise FileFormatError(
                        f"{path}: {key} is {quoted(metadata.get(key))}, by its name it should be {right}"
                    )
        total = _count(self.metadata, "split.tensors.count", self.path)
        if total != len(self.tensors):
            raise TensorError(
                f"{self.path}: {len(self.tensors)} tensors in {count} shards, split.tensors.count says {total}"
            )


def _count(metadata: Mapping[str, MetadataValue], key: str, path: Path) -> int:
    """A whole number of the split metadata, 0 where it is absent."""
    value = metadata.get(key, 0)
    if type(value) is not int:
        raise FileFormatError(f"{path}: {key} is {quoted(value)}, a whole number would be right")
    return value
