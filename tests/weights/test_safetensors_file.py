"""The safetensors reader: equal to the library on good files, one clear line on bad ones."""

import json
import os
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tenth.errors import FileFormatError, TensorError, TenthError, WeightsError
from tenth.weights.safetensors_file import INDEX_NAME, SINGLE_NAME, SafetensorsFiles
from tenth.weights.source import TensorSource

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool]
TYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8]


def every_type() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    tensors = {str(dtype): (torch.randn(5, 3) * 9).abs().to(dtype) for dtype in TYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "four": torch.randn(2, 3, 4, 5)}
    return tensors | {"name with 'quotes' ½": torch.randn(7)}


def raw_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def item(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def shards(folder: Path, **files: list[str]) -> Path:
    """Shards by name with one small tensor each name, and an index that is right."""
    weight_map = {}
    for shard, names in files.items():
        save_file({name: torch.full((2, 3), float(len(name))) for name in names}, folder / f"{shard}.safetensors")
        weight_map |= dict.fromkeys(names, f"{shard}.safetensors")
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def refused(path: Path, kind: type[TenthError] = FileFormatError) -> str:
    with pytest.raises(kind) as caught:
        SafetensorsFiles(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 2 * len(str(path)) + 300
    return message


def test_every_type_equals_the_library(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    save_file(every_type(), path, metadata={"format": "pt"})
    source: TensorSource = SafetensorsFiles(str(path))
    with source as file:
        oracle = load_file(path)
        assert file.tensors.keys() == oracle.keys()
        for name, want in oracle.items():
            got = file.read(name)
            assert got.dtype == want.dtype
            assert torch.equal(got, want)
            assert file.tensors[name].shape == tuple(want.shape)
            assert file.tensors[name].nbytes == want.nbytes
    assert SafetensorsFiles(path).metadata == {"format": "pt"}


def test_rows_are_slices_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    tensors = every_type()
    save_file(tensors, path)
    with SafetensorsFiles(path) as file:
        for name, want in tensors.items():
            for start in range(want.shape[0] + 1 if want.ndim else 0):
                for stop in range(start, want.shape[0] + 1):
                    assert torch.equal(file.read(name, start, stop), want[start:stop])
        for start, stop in ((0, 6), (-1, 2), (3, 2), (6, None)):
            with pytest.raises(TensorError, match=rf"all.safetensors: tensor 'torch.int8': rows {start}:.*\(5, 3\)"):
                file.read("torch.int8", start, stop)
        with pytest.raises(TensorError, match="'scalar': rows 0:1"):
            file.read("scalar", 0, 1)
        with pytest.raises(TensorError, match="no tensor 'absent' among its 17"):
            file.read("absent")


def test_bool_bytes_beyond_one_are_true(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "b.safetensors", {"b": item("BOOL", [3], [0, 3])}, b"\0\1\7")
    assert SafetensorsFiles(path).read("b").tolist() == [False, True, True]


def test_float8_is_listed_and_refused_when_read(tmp_path: Path) -> None:
    path = tmp_path / "f8.safetensors"
    save_file({"a": torch.ones(4).to(torch.float8_e4m3fn), "b": torch.ones(2)}, path)
    with SafetensorsFiles(path) as file:
        assert (file.tensors["a"].kind, file.tensors["a"].nbytes) == ("F8_E4M3", 4)
        assert file.read("b").tolist() == [1, 1]
        with pytest.raises(WeightsError, match="tensor 'a': F8_E4M3 is not supported yet; F64, F32"):
            file.read("a")


def test_folder_with_one_file_and_with_shards(tmp_path: Path) -> None:
    shards(tmp_path, one=["a", "bb"], two=["ccc"])
    with SafetensorsFiles(tmp_path) as file:
        assert {name: file.read(name)[0, 0].item() for name in file.tensors} == {"a": 1, "bb": 2, "ccc": 3}
        assert file.tensors["ccc"].where == tmp_path / "two.safetensors"
    save_file({"x": torch.ones(1)}, tmp_path / SINGLE_NAME)
    assert list(SafetensorsFiles(tmp_path).tensors) == ["x"]


def test_links_of_the_hugging_face_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    shards(tmp_path / "blobs", one=["a"], two=["bb"])
    for number, blob in enumerate(sorted((tmp_path / "blobs").iterdir())):
        hidden = blob.rename(blob.with_name(f"{number}abc"))
        (tmp_path / "snapshot" / blob.name).symlink_to(Path("..") / "blobs" / hidden.name)
    assert list(SafetensorsFiles(tmp_path / "snapshot").tensors) == ["a", "bb"]


A = "tensor 'a': "
BAD_HEADERS: dict[str, tuple[Any, bytes, str]] = {
    "no object": (b"[1]", b"", "header is a JSON list, an object would be right"),
    "no JSON": (b'{"a": ', b"", "header is not JSON: Expecting value"),
    "not UTF-8": (b'{"\xff": 1}', b"", "header is not UTF-8 at byte 2"),
    "deep": (b'{"a":' + b"[" * 200_000, b"", "header is not JSON"),
    "long number": (b'{"a":' + b"1" * 10_000 + b"}", b"", "header is not JSON"),
    "duplicate": (b'{"a": 1, "b": 2, "a": 3}', b"", "key 'a' appears twice"),
    "duplicate field": (b'{"a": {"dtype": "F32", "dtype": "F16"}}', b"", "key 'dtype' appears twice"),
    "metadata": ({"__metadata__": {"x": 1}}, b"", "__metadata__ should be an object of strings"),
    "entry": ({"a": 1}, b"", A + "its entry should have exactly data_offsets, dtype, shape"),
    "field missing": ({"a": {"dtype": "F32", "shape": [1]}}, b"", A + "its entry should have exactly"),
    "field extra": ({"a": item() | {"x": 1}}, b"\0" * 8, A + "its entry should have exactly"),
    "dtype": ({"a": item("F33")}, b"\0" * 8, A + "unknown dtype 'F33'; known are F64"),
    "dtype is no text": ({"a": item(["F32"])}, b"\0" * 8, A + "unknown dtype ['F32']"),  # type: ignore[arg-type]
    "negative size": ({"a": item(shape=[-2])}, b"\0" * 8, A + "shape [-2] should be"),
    "fraction": ({"a": item(shape=[2.0])}, b"\0" * 8, A + "shape [2.0] should be"),
    "bool size": ({"a": item(shape=[True, 2])}, b"\0" * 8, A + "shape [True, 2] should be"),
    "dimensions": ({"a": item(shape=[1] * 17)}, b"\0" * 4, A + "shape [1, 1, 1"),
    "product": ({"a": item(shape=[2**62, 2**62])}, b"", A + "shape [4611686018427387904, 461"),
    "product of an empty one": ({"a": item(shape=[0, 2**62, 2**62], offsets=[0, 0])}, b"", A + "shape [0, 46"),
    "disagree": ({"a": item(shape=[3])}, b"\0" * 8, A + "F32 of shape [3] takes 12 bytes, it has 8 bytes (data_off"),
    "half byte": ({"a": item("F4", [3], [0, 2])}, b"\0" * 2, A + "F4 of shape [3] takes 1.5 bytes, it has 2"),
    "reversed": ({"a": item(offsets=[8, 0])}, b"\0" * 8, A + "data_offsets [8, 0] should be two byte offsets"),
    "negative offset": ({"a": item(offsets=[-8, 0])}, b"\0" * 8, A + "data_offsets [-8, 0] should be"),
    "three offsets": ({"a": item(offsets=[0, 8, 9])}, b"\0" * 8, A + "data_offsets [0, 8, 9] should be"),
    "beyond the end": ({"a": item()}, b"\0" * 7, A + "ends at 8, beyond the 7 bytes of data"),
    "overlap": (
        {"b": item(), "a": item(offsets=[4, 12])},
        b"\0" * 12,
        A + "begins at 4, overlaps the one before; 8 is",
    ),
    "twice": ({"a": item(), "b": item()}, b"\0" * 8, "tensor 'b': begins at 0, overlaps the one before"),
    "hole": ({"b": item(), "a": item(offsets=[9, 17])}, b"\0" * 17, A + "begins at 9, leaves a hole before it; 8 is"),
    "hole at the start": ({"a": item(offsets=[1, 9])}, b"\0" * 9, A + "begins at 1, leaves a hole before it; 0 is"),
    "rest": ({"a": item()}, b"\0" * 9, "1 bytes after the last tensor belong to none"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_header_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    header, data, said = BAD_HEADERS[case]
    assert said in refused(raw_file(tmp_path / "bad.safetensors", header, data))


def test_header_length(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"\0" * 7)
    assert "7 bytes are no safetensors file" in refused(path)
    for length in (3, 2**31, 2**63, 2**64 - 1):
        assert f"header length {length}, 2 remain in the file" in refused(raw_file(path, b"{}", length=length))
    raw_file(path, b"{}", length=10**8 + 1)
    os.truncate(path, 2**33)
    assert "header length 100000001, 100000000 are the limit" in refused(path)


def test_names_that_would_break_a_line(tmp_path: Path) -> None:
    name = "line\nbreak\x1b[31m" + "x" * 5000 + "\ud800"
    assert "line\\nbreak" in refused(raw_file(tmp_path / "bad.safetensors", {name: 1}))


@pytest.mark.parametrize(
    "shard",
    ["../one.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b", "", ".", "..", "a\0b", "a\nb", "\ud800", 3, None],
)
def test_index_names_only_files_of_its_folder(shard: Any, tmp_path: Path) -> None:
    write_index(tmp_path, {"a": shard})
    with pytest.raises(FileFormatError, match=rf"{INDEX_NAME}: weight_map of 'a' is .*; a plain file name") as caught:
        SafetensorsFiles(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [], {}, "x"])
def test_index_without_a_map(value: Any, tmp_path: Path) -> None:
    write_index(tmp_path, value)
    assert "weight_map should be an object" in refused(tmp_path)


def test_index_that_is_no_json(tmp_path: Path) -> None:
    index = tmp_path / INDEX_NAME
    index.write_text('{"weight_map": {"a": "x", "a": "y"}}')
    assert f"{INDEX_NAME}: key 'a' appears twice" in refused(tmp_path)
    index.write_text("")
    assert "index is not JSON" in refused(tmp_path)
    os.truncate(index, 10**8 + 1)
    assert "100000001 bytes, 100000000 are the limit" in refused(tmp_path)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    good = {"a": "one.safetensors", "bb": "one.safetensors", "ccc": "two.safetensors"}
    shards(tmp_path, one=["a", "bb"], two=["ccc"])
    write_index(tmp_path, good | {"d": "two.safetensors"})
    assert f"two.safetensors: no tensor 'd', which {INDEX_NAME} has in it" in refused(tmp_path, TensorError)
    write_index(tmp_path, {"a": "one.safetensors", "ccc": "two.safetensors"})
    assert f"one.safetensors: tensor 'bb': {INDEX_NAME} does not have it" in refused(tmp_path, TensorError)
    write_index(tmp_path, good | {"a": "two.safetensors"})
    assert f"tensor 'a': {INDEX_NAME} has it in two.safetensors" in refused(tmp_path, TensorError)
    write_index(tmp_path, good | {"d": "three.safetensors"})
    assert "shard three.safetensors is missing; it should lie in the same folder" in refused(tmp_path, WeightsError)
    save_file({"ccc": torch.ones(1), "a": torch.ones(1)}, tmp_path / "two.safetensors")
    write_index(tmp_path, good)
    said = refused(tmp_path, TensorError)
    assert "two.safetensors: tensor 'a': it is also in" in said


def test_truncated_shard(tmp_path: Path) -> None:
    shards(tmp_path, one=["a"], two=["bb"])
    os.truncate(tmp_path / "two.safetensors", (tmp_path / "two.safetensors").stat().st_size - 1)
    assert "two.safetensors: tensor 'bb': ends at 24, beyond the 23 bytes of data" in refused(tmp_path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    words = f"no weights here; {SINGLE_NAME}, {INDEX_NAME} or packed.json would be read"
    assert words in refused(tmp_path, WeightsError)
    assert "cannot be opened: No such file" in refused(tmp_path / "absent.safetensors", WeightsError)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe", WeightsError)


def test_file_cut_while_open(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({"a": torch.ones(100)}, path)
    with SafetensorsFiles(path) as file:
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(FileFormatError, match=r"cut.safetensors: ends at byte \d+, 4 bytes short; it had \d+ when"):
            file.read("a")
        assert file.read("a", 0, 99).sum() == 99


def test_rows_of_a_large_file_take_little_memory(tmp_path: Path) -> None:
    """8 GiB in a sparse file, read with 256 MiB of address space: neither the map nor the whole would fit."""
    path = raw_file(tmp_path / "large.safetensors", {"a": item("BF16", [2**20, 4096], [0, 2**33])})
    os.truncate(path, path.stat().st_size + 2**33)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), before[1]))
    try:
        with SafetensorsFiles(path) as file:
            assert file.read("a", 2**19, 2**19 + 512).shape == (512, 4096)
            with pytest.raises(TenthError, match=f"'a': this machine has no {2**33} bytes of memory free"):
                file.read("a")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
