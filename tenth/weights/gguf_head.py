"""The head of a GGUF file: metadata and tensor entries, every size checked before it is used.

A head is: magic, version, number of tensors, number of metadata pairs; the pairs (key, type, value); the entries (name,
dimensions innermost first, type, offset from the start of the data). The data begins at the next multiple of the
alignment. Sizes are compared with what is left of the file before anything is allocated for them, so that reading a
head takes a small multiple of its own size.

Source: docs/gguf.md in the ggml repository.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from tenth.errors import FileFormatError
from tenth.weights.ggml import FORMAT_OF_ID
from tenth.weights.source import HEADER_LIMIT, OpenFile, TensorInfo, quoted

__all__ = ["MetadataValue", "read_head"]

MetadataValue: TypeAlias = "str | int | float | bool | list[MetadataValue]"

_U32, _U64, _BOOL, _STRING, _ARRAY = 4, 10, 7, 8, 9
_NUMBERS: Mapping[int, str] = {  # metadata type id to its numpy name; _STRING and _ARRAY are the other two
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", _U32: "<u4", 5: "<i4", 6: "<f4"},
    **{_BOOL: "<u1", _U64: "<u8", 11: "<i8", 12: "<f8"},
}
_LEAST_PAIR, _LEAST_ENTRY = 8 + 1 + 4 + 1, 8 + 1 + 4 + 4 + 8  # bytes of the shortest metadata pair and tensor entry
_MAX_DEPTH = 4  # arrays in arrays; real files have one level
_MAX_DIMS = 4
_MAX_NAME = 65535
_MAX_ALIGNMENT = 1 << 20
_FIRST_READ = 1 << 20


class _Head:
    """The head of a file, read forwards in growing pieces; never beyond the file's end or HEADER_LIMIT."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.at = 0
        self._data = b""

    def error(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self.file.path}: {what}")

    def expect(self, count: int, what: str) -> None:
        """Refuse `what` when `count` more bytes cannot be in the head, before anything is allocated for them."""
        left = self.file.size - self.at
        if count > left:
            raise self.error(f"{what} at byte {self.at} takes {count} bytes or more, {left} remain in the file")
        if self.at + count > HEADER_LIMIT:
            raise self.error(f"{what} at byte {self.at} takes {count} bytes or more, a head has at most {HEADER_LIMIT}")

    def numbers(self, kind: int, count: int, what: str) -> list[MetadataValue]:
        """`count` numbers of one metadata type."""
        dtype = np.dtype(_NUMBERS[kind])
        self.expect(count * dtype.itemsize, what)
        end = self.at + count * dtype.itemsize
        array = np.frombuffer(self._upto(end), dtype, count, self.at)
        if kind == _BOOL:
            if array.size and array.max() > 1:
                raise self.error(f"{what}: a bool has the byte {array.max()}, 0 or 1 would be right")
            array = array.astype(np.bool_)
        self.at = end
        return array.tolist()  # type: ignore[no-any-return]

    def integer(self, kind: int, what: str) -> int:
        """One U32 or U64."""
        return int(self.numbers(kind, 1, what)[0])  # type: ignore[arg-type]

    def texts(self, count: int, what: str) -> list[str]:
        """`count` strings, each its length in 8 bytes and then UTF-8. Written flat: vocabularies have 10^5 of them."""
        self.expect(8 * count, what)
        found: list[str] = []
        data, length_at = self._data, struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = self.at + 8
            if start > len(data):
                self.expect(8, what)
                data = self._upto(start)
            end = start + length_at(data, self.at)[0]
            if end > len(data):
                self.expect(end - self.at, what)
                data = self._upto(end)
            try:
                found.append(data[start:end].decode())
            except UnicodeDecodeError as error:
                raise self.error(f"{what} is not UTF-8 at byte {start + error.start}") from error
            self.at = end
        return found

    def name(self, what: str) -> str:
        """One string that may not be empty or endless."""
        name = self.texts(1, what)[0]
        if not 0 < len(name) <= _MAX_NAME:
            raise self.error(f"{what} has {len(name)} characters, 1 to {_MAX_NAME} would be right")
        return name

    def _upto(self, end: int) -> bytes:
        """All bytes so far, at least up to `end`, which is known to be in the file."""
        held = len(self._data)
        if end > held:
            goal = min(max(end, 2 * held, _FIRST_READ), self.file.size)
            self._data += self.file.read(held, goal - held)
        return self._data


def read_head(file: OpenFile) -> tuple[dict[str, MetadataValue], list[TensorInfo]]:
    """Metadata by key, and the tensors in the file's order with offsets from the file's start.

    Raises FileFormatError for anything that docs/gguf.md does not allow, or that the file is too short for.
    """
    head = _Head(file)
    _check_version(head)
    tensor_count, pair_count = head.integer(_U64, "tensor count"), head.integer(_U64, "metadata count")
    least = pair_count * _LEAST_PAIR + tensor_count * _LEAST_ENTRY
    head.expect(least, f"list of {pair_count} metadata pairs and {tensor_count} tensors")
    metadata: dict[str, MetadataValue] = {}
    for number in range(pair_count):
        key = head.name(f"metadata key {number}")
        if key in metadata:
            raise head.error(f"metadata key {quoted(key)} appears twice")
        metadata[key] = _read_value(head, f"metadata {quoted(key)}")
    entries: dict[str, TensorInfo] = {}
    for number in range(tensor_count):
        info = _read_entry(head, number)
        if info.name in entries:
            raise FileFormatError(f"{info}: the name appears twice")
        entries[info.name] = info
    return metadata, _place(head, list(entries.values()), _alignment(head, metadata))


def _check_version(head: _Head) -> None:
    head.expect(24, "head")
    magic = head.integer(_U32, "magic").to_bytes(4, "little")
    if magic != b"GGUF":
        raise head.error(f"starts with {magic!r}; a GGUF file starts with b'GGUF'")
    version = head.integer(_U32, "version")
    if version & 0xFFFF == 0:
        raise head.error("big-endian GGUF is not supported, little-endian is")
    if version not in (2, 3):
        raise head.error(f"GGUF version {version} is not supported, 2 and 3 are")


def _alignment(head: _Head, metadata: Mapping[str, MetadataValue]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 0 < value <= _MAX_ALIGNMENT or value & (value - 1):
        raise head.error(f"general.alignment is {quoted(value)}, a power of two up to {_MAX_ALIGNMENT} would be right")
    return value


def _read_value(head: _Head, what: str) -> MetadataValue:
    kind = head.integer(_U32, what)
    if kind == _STRING:
        return head.texts(1, what)[0]
    if kind == _ARRAY:
        return _read_array(head, what, 1)
    if kind not in _NUMBERS:
        raise head.error(f"{what}: unknown metadata type {kind}; 0 to 12 are known")
    return head.numbers(kind, 1, what)[0]


def _read_array(head: _Head, what: str, depth: int) -> list[MetadataValue]:
    if depth > _MAX_DEPTH:
        raise head.error(f"{what}: arrays nested more than {_MAX_DEPTH} deep")
    kind, count = head.integer(_U32, what), head.integer(_U64, what)
    if kind == _STRING:
        return [*head.texts(count, what)]
    if kind == _ARRAY:
        head.expect(12 * count, what)
        return [_read_array(head, what, depth + 1) for _ in range(count)]
    if kind not in _NUMBERS:
        raise head.error(f"{what}: unknown array element type {kind}; 0 to 12 are known")
    return head.numbers(kind, count, what)


def _read_entry(head: _Head, number: int) -> TensorInfo:
    """One tensor, its offset still counted from the start of the data."""
    name = head.name(f"name of tensor {number}")
    what = f"tensor {quoted(name)}"
    dim_count = head.integer(_U32, what)
    if dim_count > _MAX_DIMS:
        raise head.error(f"{what}: {dim_count} dimensions, {_MAX_DIMS} are the most")
    dims = [int(size) for size in head.numbers(_U64, dim_count, what)]  # type: ignore[arg-type]
    type_id, offset = head.integer(_U32, what), head.integer(_U64, what)
    form = FORMAT_OF_ID.get(type_id)
    if form is None:
        raise head.error(f"{what}: unknown tensor type {type_id}; the highest known is {max(FORMAT_OF_ID)}")
    row = dims[0] if dims else 1
    if 0 in dims or row % form.block_elements:
        rule = f"no size may be 0 and the first must divide by {form.block_elements} for {form.name}"
        raise head.error(f"{what}: dimensions {dims}: {rule}")
    nbytes = form.bytes_of(math.prod(dims))
    if nbytes > head.file.size:
        raise head.error(f"{what}: dimensions {dims} of {form.name} take {nbytes} bytes, the file has {head.file.size}")
    return TensorInfo(name, tuple(reversed(dims)), form.name, nbytes, head.file.path, offset)


def _place(head: _Head, entries: list[TensorInfo], alignment: int) -> list[TensorInfo]:
    """Count the offsets from the start of the file, and check that tensors are aligned, inside and apart."""
    data_start = -(-head.at // alignment) * alignment
    placed = [replace(info, offset=data_start + info.offset) for info in entries]
    end = data_start
    for info in sorted(placed, key=lambda info: info.offset):
        at = info.offset - data_start
        if at % alignment:
            raise FileFormatError(f"{info}: offset {at} is no multiple of the alignment {alignment}")
        if info.offset + info.nbytes > head.file.size:
            fault = f"{info.nbytes} bytes at offset {at} end beyond the file"
            raise FileFormatError(f"{info}: {fault}, which has {max(0, head.file.size - data_start)} bytes of data")
        if info.offset < end:
            raise FileFormatError(f"{info}: offset {at} overlaps the tensor before, which ends at {end - data_start}")
        end = info.offset + info.nbytes
    return placed
