"""Whole models quantised from disk to disk: complete, close to the source, in little memory, all of it or nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tenth.errors import MachineError, TensorError, TenthError, WeightsError
from tenth.kernels.packed import PackedExpertTable, PackedWeight
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp
from tenth.model.huggingface_export import config_to_huggingface
from tenth.model.preset import preset
from tenth.quantize.nearest import quantize
from tenth.quantize.policy import Policy
from tenth.quantize.streaming import Tally
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.generation import GenerationDefaults
from tenth.weights.names import huggingface_slots
from tenth.weights.packed_index import parts_of
from tests.api.tiny import write_tokenizer
from tests.quantize.outputs import logits, read
from tests.weights.models import ARCHITECTURES, raw_config, write_folder, write_gguf

PRECISE = Policy(8, embedding_bits=32, head_bits=32)


def convert(source: Path, out: Path, policy: Policy | None = None, progress: Any = None) -> Tally:
    with open_checkpoint(source) as checkpoint:
        return quantize(checkpoint, out, policy, progress)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse model in bfloat16 with a tokenizer and sampling defaults."""
    folder = tmp_path_factory.mktemp("models") / "source"
    write_folder(folder, raw_config("qwen3_moe"), dtype=torch.bfloat16)
    write_tokenizer(folder)
    (folder / "generation_config.json").write_text(GenerationDefaults(frozenset({257}), temperature=0.7).to_json())
    return folder


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_every_family_from_both_forms(family: str, form: str, tmp_path: Path) -> None:
    raw = raw_config(family, tie_word_embeddings=family == "qwen2")
    model = write_folder(tmp_path / "folder", raw)
    write_tokenizer(tmp_path / "folder")
    write_gguf(tmp_path / "gguf", raw, model, tokenizer=True)
    (tmp_path / "gguf").rename(tmp_path / "model.gguf")
    path = tmp_path / ("model.gguf" if form == "gguf" else "folder")
    tally = convert(path, tmp_path / "out", PRECISE)
    assert 0 < tally.total.relative_error < 1e-4
    expected, got = logits(path), logits(tmp_path / "out")
    assert (got - expected).norm() < 0.06 * expected.norm()
    coarse = convert(path, tmp_path / "coarse")
    assert coarse.total.bits_per_weight < 6.5
    assert 2e-3 < coarse.by_format["int4-g16-s4"].relative_error < 0.02
    assert logits(tmp_path / "coarse").isfinite().all()


def test_both_forms_give_the_same_bytes(tmp_path: Path) -> None:
    """Llama's rows are turned, experts stacked: what is written does not show it."""
    for family in ("llama", "qwen3_moe"):
        raw = raw_config(family)
        model = write_folder(tmp_path / family, raw)
        write_tokenizer(tmp_path / family)
        write_gguf(tmp_path / f"{family}.gguf", raw, model, tokenizer=True)
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        stacked = shutil.copytree(tmp_path / family, tmp_path / f"{family}-stacked")
        save_file(state, stacked / "model.safetensors", {"format": "pt"})
        names = (family, f"{family}.gguf", f"{family}-stacked")
        for name in names:
            convert(tmp_path / name, tmp_path / "out" / name, Policy(4, 64, True, 4, 16))
        for file in ("layer-00000.safetensors", "layer-00001.safetensors", "outside.safetensors"):
            assert len({(tmp_path / "out" / name / file).read_bytes() for name in names}) == 1, (family, file)


def test_values_are_those_of_the_formats_asked_for(source: Path, tmp_path: Path) -> None:
    policy = Policy(4, 128, embedding_bits=16, head_bits=8)
    tally = convert(source, tmp_path / "out", policy)
    packed, dense = read(tmp_path / "out"), read(source)
    assert isinstance(packed.embedding, PackedWeight)
    assert torch.equal(packed.embedding.dense(), dense.embedding.dense())  # bfloat16 of bfloat16
    head = packed.head.weight
    assert isinstance(head, PackedWeight)
    assert head.format.name == "int8-g128"
    for mine, theirs in zip(packed.blocks(), dense.blocks(), strict=True):
        assert torch.equal(mine.attention_norm.weight, theirs.attention_norm.weight)
        assert isinstance(mine.mlp, SparseMlp)
        assert isinstance(theirs.mlp, SparseMlp)
        assert torch.equal(mine.mlp.router.weight_ED, theirs.mlp.router.weight_ED)
        table = mine.mlp.experts
        assert isinstance(table, PackedExpertTable)
        assert {part.format.name for one in table.experts for part in (one.gate, one.up, one.down)} == {"int4-g128"}
        for index in range(table.num_experts):
            for ours, its in zip(table.expert(index), theirs.mlp.experts.expert(index), strict=True):
                assert (ours - its).square().sum() < 0.02 * its.square().sum()
    assert {name: count.error > 0 for name, count in tally.by_format.items()} == {
        "int4-g128": True,
        "int8-g128": True,
        "bf16": False,
    }
    matrices = [part for part in parts_of(dense.config).values() if part.matrices]
    assert tally.total.weights == sum(rows * columns for part in matrices for rows, columns in part.shapes())


def test_text_and_sampling_come_along(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    with open_checkpoint(tmp_path / "out") as packed, open_checkpoint(source) as checkpoint:
        assert packed.tokenizer().encode("Grüße") == checkpoint.tokenizer().encode("Grüße")
        assert packed.tokenizer().chat_template == checkpoint.tokenizer().chat_template
        assert packed.generation().temperature == 0.7
        assert packed.generation().end_ids >= {257}


def test_progress_counts_the_bytes_of_all_matrices(source: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    convert(source, tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    state = load_file(source / "model.safetensors")
    matrices = sum(t.nbytes for name, t in state.items() if t.dim() > 1 and not name.endswith("mlp.gate.weight"))
    assert told[-1] == (matrices, matrices)
    assert told == sorted(told)
    assert len(told) == 2 + 2 * (4 + 4)  # the ends; four matrices of attention and four experts a layer


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")])
def test_interrupted_it_leaves_nothing(fault: BaseException, source: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            assert any(tmp_path.iterdir())
            raise fault

    with pytest.raises(MachineError if isinstance(fault, OSError) else type(fault)):
        convert(source, tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_before_anything_is_written(source: Path, tmp_path: Path, monkeypatch: Any) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("x")
    with pytest.raises(WeightsError, match="exists and is not an empty folder"):
        convert(source, full)
    convert(source, tmp_path / "packed")
    with pytest.raises(WeightsError, match="is packed already; name the model that it was made from"):
        convert(tmp_path / "packed", tmp_path / "again")
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    with pytest.raises(MachineError, match=r"needs [\d.]+ (bytes|MB), the disk has 1000 bytes free"):
        convert(source, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "packed"]


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.experts.2.down_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.0.mlp.gate.weight",
        "model.norm.weight",
    ],
)
def test_a_value_that_is_not_finite_is_named(name: str, source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "source")
    state = load_file(folder / "model.safetensors")
    state[name].flatten()[-1] = float("inf")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    for policy in (Policy(), Policy(8, embedding_bits=16, head_bits=32)):
        with pytest.raises(TensorError, match="not finite") as caught:
            convert(folder, tmp_path / "out", policy)
        ours = {"model.layers.0.mlp.gate.weight": "layers.0.mlp.router.weight", "model.norm.weight": "norm.weight"}
        assert ours.get(name, name) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["missing", "shape", "integers"])
def test_tensors_that_do_not_fit(change: str, source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "source")
    state = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    if change == "missing":
        del state[name]
    else:
        state[name] = torch.zeros(256, 255) if change == "shape" else torch.ones(256, 256, dtype=torch.int8)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TenthError, match=name.replace(".", r"\.")):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- memory

_PEAK = """
import sys
from pathlib import Path
import torch
from tenth.quantize.nearest import quantize
from tenth.quantize.take_over import pack_checkpoint
from tenth.weights.checkpoint import open_checkpoint
def peak():
    line = [l for l in open("/proc/self/status") if l.startswith("VmHWM")][0]
    return int(line.split()[1]) * 1024
torch.zeros(1) @ torch.zeros(1)
before = peak()
with open_checkpoint(Path(sys.argv[1])) as checkpoint:
    tally = (quantize if sys.argv[3] == "quantize" else pack_checkpoint)(checkpoint, Path(sys.argv[2]))
print(before, peak(), tally.total.nbytes)
"""


def _peak(source: Path, out: Path, what: str) -> list[int]:
    """Peak of memory of a process before it begins and at its end, and the bytes of matrices it wrote."""
    run = subprocess.run([sys.executable, "-c", _PEAK, source, out, what], capture_output=True, text=True, check=True)
    return [int(number) for number in run.stdout.split()]


def write_source(folder: Path, config: ModelConfig) -> int:
    """A bfloat16 source of any size, a shard for each layer; returns its bytes. All values come from one pool."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_to_huggingface(config)))
    write_tokenizer(folder)
    parameters = dict(Decoder(config, device="meta").named_parameters())
    pool = (torch.randn(1 << 20) * 0.02).bfloat16()
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for number, (name, slot) in enumerate(huggingface_slots(config).items()):
        shape = slot.view(parameters[slot.parameter]).shape
        repeats = -(-shape.numel() // len(pool))
        values = pool.roll(number * 12_347).repeat(repeats)[: shape.numel()].view(shape)
        part = name.split(".")[2] if name.startswith("model.layers.") else "outside"
        shards.setdefault(part, {})[name] = torch.ones(shape) if len(shape) == 1 else values
        if len(shards) > 1:
            _write_shards(folder, shards, keep=part)
    _write_shards(folder, shards, keep=None)
    files = {path.name: _names(path) for path in sorted(folder.glob("model-*.safetensors"))}
    index = {"weight_map": {name: file for file, names in files.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(path.stat().st_size for path in folder.glob("model-*.safetensors"))


def _write_shards(folder: Path, shards: dict[str, dict[str, torch.Tensor]], keep: str | None) -> None:
    for part in [part for part in shards if part not in (keep, "outside" if keep else None)]:
        save_file(shards.pop(part), folder / f"model-{part}.safetensors", {"format": "pt"})


def _names(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return (name for name in header if name != "__metadata__")


def test_memory_is_that_of_one_matrix(tmp_path: Path) -> None:
    """A source of 370 MB grows the process by less than 130 MB; so does packing it."""
    config = replace(preset("qwen3-30b-a3b"), num_layers=3, sparse_layers=(0, 1, 2), vocab_size=4096)
    assert config.moe is not None
    config = replace(config, moe=replace(config.moe, num_experts=8))
    size = write_source(tmp_path / "source", config)
    assert size > 350e6
    for what in ("quantize", "pack"):
        before, peak, written = _peak(tmp_path / "source", tmp_path / what, what)
        assert written > size / 4
        assert peak - before < 130e6, what


@pytest.mark.slow
def test_memory_at_the_flagships_shape(tmp_path: Path) -> None:
    """12 layers of Qwen3-30B-A3B in bfloat16, 15.8 GB: under 4 GB of memory, embedding and head included."""
    config = replace(preset("qwen3-30b-a3b"), num_layers=12, sparse_layers=tuple(range(12)))
    try:
        size = write_source(tmp_path / "source", config)
        assert size > 15e9
        _, peak, written = _peak(tmp_path / "source", tmp_path / "out", "quantize")
        print(f"\nsource {size / 1e9:.1f} GB, packed {written / 1e9:.1f} GB, peak {peak / 1e9:.2f} GB")
        assert peak < 4e9
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)
