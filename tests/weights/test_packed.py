"""Packed models on disk: written, opened, mapped, checked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tenth.errors import FileFormatError, MachineError, TensorError, TenthError, TokenizerError, WeightsError
from tenth.kernels.packed import PackedExpert, PackedFormat, PackedWeight
from tenth.model.batch import Batch
from tenth.model.config import ModelConfig, MoeConfig
from tenth.model.decoder import Decoder, initialise
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.packed_index import PAGE, file_of, is_padding, parts_of
from tenth.weights.packed_writer import PackedWriter, new_packed
from tenth.weights.save import save_model
from tenth.weights.synthetic import write_synthetic
from tests.kernels.packed import drawn_weight
from tests.weights.packed_models import ODD, SMALL, TINY, change_header, change_index, fp32, write_dense

INT4 = PackedFormat.parse("int4-g32")
TOKENS = [5, 17, 50, 3, 41, 7]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest model; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("packed") / "model"
    write_synthetic(folder, SMALL, INT4, seed=1)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "model")


def _load(folder: Path) -> Decoder:
    with open_checkpoint(folder) as checkpoint:
        return load_decoder(checkpoint)


def _damaged(folder: Path) -> list[str]:
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.packed is not None
        return [info.name for info in checkpoint.packed.damaged()]


def assert_same_bits(folder: Path, decoder: Decoder) -> None:
    with open_checkpoint(folder) as checkpoint:
        files = checkpoint.packed
        assert files is not None
        for name, part in parts_of(decoder.config).items():
            if part.matrices == 3:
                table, number = name.rsplit(".", 1)
                w13_2FD, w2_DF = decoder.get_submodule(table).expert(int(number))  # type: ignore[operator]
                expert = files.expert(name)
                assert torch.equal(torch.cat((expert.gate.dense(), expert.up.dense())), w13_2FD)
                assert torch.equal(expert.down.dense(), w2_DF)
            elif part.matrices == 1:
                assert torch.equal(files.matrix(name).dense(), decoder.get_submodule(name).dense())  # type: ignore[operator]


@pytest.mark.parametrize("config", [TINY, ODD, replace(TINY, sparse_layers=())], ids=["sparse", "odd", "dense"])
def test_what_was_written_comes_back(config: ModelConfig, tmp_path: Path) -> None:
    """Every weight as float32 through the files: the same bits. Torch's products may depend on alignment."""
    dense = initialise(Decoder(config), 3, std=0.1)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.01)
    write_dense(tmp_path / "model", dense)
    packed = _load(tmp_path / "model")
    assert replace(packed.config, model_type=config.model_type) == config
    batch = Batch.of([TOKENS, TOKENS[:2]])
    with torch.no_grad():
        torch.testing.assert_close(packed(batch).logits_NV, dense(batch).logits_NV, rtol=1e-5, atol=1e-6)
    assert_same_bits(tmp_path / "model", dense)
    assert _damaged(tmp_path / "model") == []
    assert (packed.head.weight is packed.embedding) == config.tie_word_embeddings
    assert not any(parameter.requires_grad for parameter in packed.parameters())


def test_formats_may_differ_from_tensor_to_tensor(tmp_path: Path) -> None:
    names = ["int4-g32", "int8-g64-min", "bf16", "fp32", "int4-g64", "int4-g16-s4"]
    config = replace(SMALL, hidden_size=128, moe=replace(SMALL.moe, intermediate_size=64))
    drawn: dict[str, list[PackedWeight]] = {}
    with new_packed(tmp_path / "model", config) as writer:
        for number, (name, part) in reversed(list(enumerate(writer.parts.items()))):  # in any order
            forms = [PackedFormat.parse(names[(number + n) % len(names)]) for n in range(part.matrices)]
            weights = [drawn_weight(f, *shape, number) for f, shape in zip(forms, part.shapes(), strict=True)]
            drawn[name] = weights
            if not weights:
                writer.floats(name, torch.full(part.shape, float(number)))
            elif len(weights) == 1:
                writer.matrix(name, *weights)
            else:
                writer.expert(name, PackedExpert(*weights))
    with open_checkpoint(tmp_path / "model") as checkpoint:
        files = checkpoint.packed
        assert files is not None
        for number, (name, part) in enumerate(parts_of(config).items()):
            if part.matrices == 3:
                expert = files.expert(name)
                got = [expert.gate, expert.up, expert.down]
            else:
                got = [files.matrix(name)] if part.matrices else []
            for one, other in zip(got, drawn[name], strict=True):
                assert one.format == other.format
                assert torch.equal(one.data_B, other.data_B)
            if not got:
                assert torch.equal(files.floats(name), torch.full(part.shape, float(number)))
        assert set(files.index.bytes_by_format()) == {*names}
        assert sum(files.index.bytes_by_format().values()) == files.index.nbytes
    assert _damaged(tmp_path / "model") == []


@pytest.mark.parametrize("config", [TINY, ODD], ids=["even", "odd"])
def test_files_are_safetensors_with_everything_in_place(config: ModelConfig, tmp_path: Path) -> None:
    """The library reads them; data begins on a page, so does every expert; the smallest alignment is 64."""
    write_synthetic(tmp_path / "model", config, INT4)
    assert {path.name for path in tmp_path.glob("model/*.safetensors")} == {
        "outside.safetensors",
        *(f"layer-{layer:05d}.safetensors" for layer in range(config.num_layers)),
    }
    with open_checkpoint(tmp_path / "model") as checkpoint:
        files = checkpoint.packed
        assert files is not None
        for path in sorted(tmp_path.glob("model/*.safetensors")):
            assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 4096 == 0
            with safe_open(path, "pt") as theirs:
                for name in theirs.keys():  # noqa: SIM118  (not a mapping)
                    assert file_of(name) == path.name
                    value = theirs.get_tensor(name)
                    assert torch.equal(value.flatten().view(torch.uint8), files.data(name))
                    assert is_padding(name) or name in files.index.tensors
        for name, part in parts_of(config).items():
            offset = files.source.tensors[name].offset
            assert offset % (4096 if part.matrices == 3 else 64) == 0
            assert files.data(name).data_ptr() % (4096 if part.matrices == 3 else 64) == 0


def test_large_tensors_begin_on_a_page(tmp_path: Path) -> None:
    """Matrices, and floats as well: router rows of 65,536 bytes."""
    write_synthetic(tmp_path / "model", replace(SMALL, vocab_size=4000, moe=MoeConfig(256, 1, 16)), INT4)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        for name in ("head.weight", "layers.1.mlp.router.weight"):
            info = checkpoint.source.tensors[name]
            assert info.nbytes >= 1 << 16
            assert info.offset % 4096 == 0


# two processes, one after the other and the first still there: every page of the map is shared, none is a copy
_READER = """
import sys
from pathlib import Path
from tenth.weights.checkpoint import open_checkpoint
with open_checkpoint(Path(sys.argv[1])) as checkpoint:
    sums = sum(int(checkpoint.packed.data(name).sum()) for name in checkpoint.source.tensors)
print(sums, flush=True)
sys.stdin.readline()
sizes = {}
for line in open("/proc/self/smaps"):
    words = line.split()
    if not words[0].endswith(":"):
        inside = line.rstrip().endswith(".safetensors")
    elif inside and words[-1] == "kB":
        sizes[words[0]] = sizes.get(words[0], 0) + int(words[1])
print(sizes["Shared_Clean:"] + sizes["Shared_Dirty:"], sizes["Anonymous:"], flush=True)  # dirty: not yet on the disk
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's smaps")
def test_processes_share_the_pages(written: Path) -> None:
    command = [sys.executable, "-c", _READER, str(written)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:
        sums = [process.stdout.readline() for process in (one, other)]
        assert sums[0] == sums[1] != ""
        one.stdin.write("\n")
        one.stdin.flush()
        shared, copied = map(int, one.stdout.readline().split())
        other.communicate("\n")
    with open_checkpoint(written) as checkpoint:
        assert shared * 1024 >= sum(info.nbytes for info in checkpoint.source.tensors.values())
    assert copied == 0


# ---- opening


def _drop(name: str) -> Any:
    return lambda raw: raw["tensors"].pop(name)


def _set(name: str, **values: Any) -> Any:
    return lambda raw: raw["tensors"][name].update(values)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda raw: raw.update(version=2), FileFormatError, "version is 2, this program reads 1"),
        (lambda raw: raw.update(version=True, extra=0), FileFormatError, "version is True"),
        (lambda raw: raw.pop("version"), FileFormatError, "version is None"),
        (lambda raw: raw.update(colour="red"), FileFormatError, "key 'colour' is not known here"),
        (lambda raw: raw.pop("files"), FileFormatError, "key 'files' is missing"),
        (lambda raw: raw.update(tensors=[]), FileFormatError, "must be objects"),
        (lambda raw: raw["files"].pop("outside.safetensors"), FileFormatError, "2 files, a model of 2 layers has 3"),
        (lambda raw: raw["files"].update({"../up": "0" * 32}), FileFormatError, "4 files, a model of 2 layers has 3"),
        (lambda raw: raw["files"].update({"outside.safetensors": "x"}), FileFormatError, "hash is 'x'"),
        (_drop("norm.weight"), TensorError, "'norm.weight' is missing"),
        (_drop("layers.1.mlp.experts.1"), TensorError, "layers.1.mlp.experts.1"),
        (lambda raw: raw["tensors"].update(extra=raw["tensors"]["head.weight"]), TensorError, "'extra' has no place"),
        (_set("head.weight", colour=1), FileFormatError, "'head.weight': key 'colour' is not known"),
        (_set("head.weight", shape=[64, "64"]), FileFormatError, "shape is"),
        (_set("head.weight", shape=[64, 0]), FileFormatError, "shape is"),
        (_set("head.weight", shape=[64]), FileFormatError, "a matrix has two sizes"),
        (_set("head.weight", shape=[63, 64]), TensorError, "'head.weight' is a matrix of shape .63, 64."),
        (_set("head.weight", formats=["int3-g32"]), FileFormatError, "no packed format is named 'int3-g32'"),
        (_set("head.weight", formats=["int4-g128"]), FileFormatError, "does not divide a width of 64"),
        (_set("head.weight", formats=["int4-g32-k"]), FileFormatError, "does not divide a width of 64"),
        (_set("head.weight", formats=["int8-g32"]), TensorError, "its formats ask for U8 .4, 1088."),
        (_set("head.weight", formats=[]), TensorError, "is floats of shape"),
        (_set("head.weight", formats=["fp32"] * 2), FileFormatError, "none, one or three"),
        (_set("head.weight", formats="bf16"), FileFormatError, "none, one or three"),
        (_set("head.weight", hash="0" * 31), FileFormatError, "32 hexadecimal digits"),
    ],
)
def test_an_index_that_is_wrong_is_refused(folder: Path, change: Any, error: type[TenthError], words: str) -> None:
    change_index(folder, change)
    with pytest.raises(error, match=words):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("once", "twice"),
    [
        ('"version": 1', '"version": 2, "version": 1'),
        ('"norm.weight": {', '"norm.weight": {}, "norm.weight": {'),
        ('"hash": ', '"hash": "", "hash": '),
    ],
)
def test_keys_that_appear_twice_are_refused(folder: Path, once: str, twice: str) -> None:
    """Of two equal keys JSON's reader would take the last, which is the right one here."""
    path = folder / "packed.json"
    text = path.read_text()
    assert once in text
    path.write_text(text.replace(once, twice, 1))
    key = once.split('"')[1]
    with pytest.raises(FileFormatError, match=rf"packed\.json: key '{key}' appears twice in one JSON object"):
        open_checkpoint(folder)


def test_an_index_that_is_too_large_is_refused(folder: Path) -> None:
    path, most = folder / "packed.json", 16 << 20
    path.write_text(path.read_text().ljust(most))
    open_checkpoint(folder).source.close()
    with path.open("a") as file:
        file.write(" ")
    words = rf"packed\.json: {most + 1} bytes, {most} are the limit for an index"
    with pytest.raises(FileFormatError, match=words):
        open_checkpoint(folder)


def _swap(raw: dict[str, Any]) -> None:
    one, other = "layers.1.mlp.experts.0", "layers.1.mlp.experts.1"
    raw[one], raw[other] = raw[other], raw[one]


def test_a_header_that_was_changed_is_refused(folder: Path) -> None:
    path = folder / "layer-00001.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"experts.0", b"experts.9").replace(b"experts.1", b"experts.0"))
    with pytest.raises(FileFormatError, match=r"its header is not the one that packed\.json has the hash of"):
        open_checkpoint(folder)
    path.write_bytes(data)
    change_header(folder, path.name, _swap)  # the hash of the header agrees: only the bytes can tell
    assert _damaged(folder) == ["layers.1.mlp.experts.1", "layers.1.mlp.experts.0"]  # in the order of the file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.update(strange=raw.pop("norm.weight")), "'norm.weight' is missing"),
        (lambda raw: raw["norm.weight"].update(shape=[32, 2]), "is F32 of shape .32, 2., its formats ask for F32 .64,"),
        (lambda raw: raw["head.weight"].update(dtype="I8"), "is I8 of shape"),
        (lambda raw: raw["head.weight"].update(data_offsets=[0, 1 << 40]), "it has 1099511627776 bytes"),
    ],
)
def test_a_header_that_is_wrong_is_refused(folder: Path, change: Any, words: str) -> None:
    change_header(folder, "outside.safetensors", change)
    with pytest.raises(TenthError, match=words):
        open_checkpoint(folder)


def test_experts_off_their_pages_are_refused(folder: Path) -> None:
    """The library writes the same tensors without regard to pages."""
    path = folder / "layer-00001.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if not is_padding(name)}
    save_file(tensors, path)
    change_header(folder, path.name, lambda raw: None)
    with pytest.raises(FileFormatError, match=r"begins at byte .*, not at a multiple of"):
        open_checkpoint(folder)


def test_tensors_that_nobody_asked_for_are_refused(folder: Path) -> None:
    path = folder / "outside.safetensors"
    save_file(load_file(path) | {"zzz": torch.zeros(64, dtype=torch.uint8)}, path)
    change_header(folder, path.name, lambda raw: None)
    with pytest.raises(TenthError, match=r"'zzz': packed.json does not have it|not at a multiple"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["layer-00000.safetensors", "outside.safetensors", "packed.json", "config.json"])
def test_files_that_are_missing_or_cut_are_refused(folder: Path, name: str) -> None:
    path = folder / name
    data = path.read_bytes()
    for size in (0, 5, 100, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:size])
        with pytest.raises(TenthError, match=name):
            open_checkpoint(folder)
    path.unlink()
    with pytest.raises(TenthError):
        open_checkpoint(folder)
    if name.endswith(".safetensors"):
        path.write_bytes(data + b"\0")
        with pytest.raises(FileFormatError, match="1 bytes after the last tensor"):
            open_checkpoint(folder)


def test_a_file_that_is_cut_after_opening_is_an_error_not_a_crash(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        path = folder / "layer-00001.safetensors"
        with path.open("r+b") as file:
            file.truncate(8192)
        assert checkpoint.packed is not None
        with pytest.raises(FileFormatError, match="shorter"):
            load_decoder(checkpoint)
        with pytest.raises(FileFormatError, match="ends at byte"):
            checkpoint.packed.damaged()


def test_another_config_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    good = json.loads(path.read_text())
    for key, value in [("num_hidden_layers", 3), ("hidden_size", 128), ("num_experts", 65000), ("vocab_size", 65)]:
        path.write_text(json.dumps(good | {key: value}))
        with pytest.raises(TenthError, match=r"the config asks for|a model of"):
            open_checkpoint(folder)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_changed_byte_is_noticed(written: Path, tmp_path: Path, data: st.DataObject) -> None:
    """By opening, or by the hashes: headers, weights, norms, padding."""
    copy = tmp_path / "copy"
    if not copy.exists():
        shutil.copytree(written, copy)
    name = data.draw(st.sampled_from(sorted(path.name for path in written.glob("*.safetensors"))))
    good = (written / name).read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    flip = data.draw(st.integers(1, 255))
    (copy / name).write_bytes(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
    try:
        if at < 8 + int.from_bytes(good[:8], "little"):
            with pytest.raises(TenthError, match=name):
                open_checkpoint(copy)
        else:
            assert len(_damaged(copy)) == 1
    finally:
        (copy / name).write_bytes(good)


def test_padding_of_a_page_or_more_is_refused(folder: Path) -> None:
    """A check reads it whole: it could have any size, and none of it on the disk."""
    path = folder / "outside.safetensors"

    def change(raw: dict[str, Any]) -> None:
        end = max(entry["data_offsets"][1] for entry in raw.values())
        raw["padding.99"] = {"dtype": "U8", "shape": [PAGE], "data_offsets": [end, end + PAGE]}

    change_header(folder, path.name, change)
    with path.open("ab") as file:
        file.write(bytes(PAGE))
    with pytest.raises(TensorError, match=r"padding of 4096 bytes, less than 4096 is ever needed"):
        open_checkpoint(folder)


STRANGE: list[Any] = [None, True, 0, -1, 1 << 70, 0.5, "", "x", [], {}, [[]], [1, 2], "0" * 32, ["bf16"], ["fp32"] * 3]


@given(data=st.data(), what=st.sampled_from(["index", "header", "config"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_strange_values(written: Path, tmp_path: Path, data: st.DataObject, what: str) -> None:
    """Anywhere in the index, in a header whose hash agrees, in the config: a model, or one line."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(written, copy)

    def change(raw: dict[str, Any]) -> None:
        for _ in range(data.draw(st.integers(1, 2))):
            at: Any = raw
            while isinstance(at, dict) and at and (at is raw or data.draw(st.integers(0, 3))):
                holder, key = at, data.draw(st.sampled_from(sorted(at)))
                at = at[key]
            holder[key] = data.draw(st.sampled_from(STRANGE))

    if what == "header":
        change_header(copy, data.draw(st.sampled_from(["outside.safetensors", "layer-00001.safetensors"])), change)
    else:
        change_index(copy, change, "packed.json" if what == "index" else "config.json")
    message = ""
    try:
        _load(copy)
    except TenthError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000


# ---- what packed weights cannot do


def test_packed_weights_are_not_cast_moved_or_saved_as_floats(folder: Path, tmp_path: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        with pytest.raises(WeightsError, match="computed with in float32, not bfloat16"):
            load_decoder(checkpoint, dtype=torch.bfloat16)
        with pytest.raises(WeightsError, match="run on the cpu, not on cuda"):
            load_decoder(checkpoint, device="cuda")
        with pytest.raises(TokenizerError, match="has no tokenizer"):
            checkpoint.tokenizer()
        decoder = load_decoder(checkpoint, dtype=torch.float32)
    assert decoder.dtype == torch.float32
    with pytest.raises(WeightsError, match="save the model that they were made from"):
        save_model(decoder, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# ---- writing


def test_a_model_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    parts = parts_of(SMALL)
    words = f"{len(parts) - 1} of {len(parts)} weights were not written"
    with pytest.raises(TensorError, match=words), new_packed(tmp_path / "model", SMALL) as writer:
        writer.floats("norm.weight", torch.ones(64))
    with pytest.raises(KeyboardInterrupt), new_packed(tmp_path / "model", SMALL):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_writer_refuses_what_does_not_belong(tmp_path: Path) -> None:
    matrix = fp32(torch.zeros(64, 64))
    with PackedWriter(tmp_path, SMALL) as writer:
        for words, name in [("no place", "nothing"), ("asks for an expert of shape", "layers.1.mlp.experts.0")]:
            with pytest.raises(TensorError, match=words):
                writer.matrix(name, matrix)
        with pytest.raises(TensorError, match=r"is floats of shape \(63,\), the config asks for floats of shape"):
            writer.floats("norm.weight", torch.ones(63))
        writer.floats("norm.weight", torch.ones(64))
        with pytest.raises(TensorError, match="written before"):
            writer.floats("norm.weight", torch.ones(64))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def full(path: Path, mode: str = "r", **rest: Any) -> Any:
        return opened(Path("/dev/full") if path.suffix == ".safetensors" else path, mode, **rest)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(MachineError, match="No space left"):
        write_synthetic(tmp_path / "model", SMALL, INT4)
    assert list(tmp_path.iterdir()) == []
