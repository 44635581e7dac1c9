"""Packed models of random weights: what they must resemble, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tenth.errors import MachineError, RequestError, WeightsError
from tenth.kernels.packed import PackedFormat
from tenth.model.batch import Batch, Want
from tenth.model.preset import preset
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.synthetic import with_layers, write_synthetic
from tests.weights.packed_models import ODD, SMALL, TINY

INT4 = PackedFormat.parse("int4-g32")
WIDE = replace(TINY, hidden_size=256, moe=replace(TINY.moe, num_experts=32, top_k=4, intermediate_size=256))


@pytest.mark.parametrize(
    "name", ["int4-g32", "int4-g128-min", "int8-g64", "int4-g16-s4", "int4-g32-k-min", "int8-g16-k", "bf16", "fp32"]
)
def test_values_have_the_mean_and_deviation_of_a_new_model(name: str, tmp_path: Path) -> None:
    config = replace(WIDE, num_layers=1, sparse_layers=(0,), num_heads=16)
    nbytes = write_synthetic(tmp_path / "model", config, PackedFormat.parse(name))
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.packed is not None
        assert checkpoint.packed.index.nbytes == nbytes
        assert checkpoint.packed.damaged() == []
        decoder = load_decoder(checkpoint)
    layer = decoder.blocks()[0]
    w13, w2 = layer.mlp.experts.expert(7)
    into_stream = 0.02 / 2**0.5
    for values, deviation in [
        (decoder.embedding.dense(), 1.0),
        (layer.attention.q.weight.dense(), 0.02),
        (layer.attention.o.weight.dense(), into_stream),
        (w13, 0.02),
        (w2, into_stream),
        (layer.mlp.router.weight_ED, 0.02),
    ]:
        assert float(values.std()) == pytest.approx(deviation, rel=0.06)
        assert abs(float(values.mean())) < 4 * deviation / values.numel() ** 0.5
    assert torch.equal(decoder.norm.weight, torch.ones(256))
    assert layer.attention.q.weight.format.name == name


def test_tokens_spread_over_the_experts(tmp_path: Path) -> None:
    """600 random tokens choose 4 of 32 experts: 75 each on average, and no expert has half or twice that."""
    write_synthetic(tmp_path / "model", WIDE, INT4)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        decoder = load_decoder(checkpoint)
    tokens = torch.randint(512, (600,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = decoder(Batch.of([tokens]), want=Want(logits="last", routing="choice"))
    assert out.logits_NV is not None
    assert out.logits_NV.isfinite().all()
    assert out.routing is not None
    for layer in out.routing.layers.values():
        load = torch.bincount(layer.experts_TK.flatten(), minlength=32)
        assert 37 < int(load.min()) <= int(load.max()) < 150


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> bytes:
        write_synthetic(tmp_path / name, ODD, INT4, seed=seed)
        return b"".join(path.read_bytes() for path in sorted((tmp_path / name).iterdir()))

    assert written("one", 1) == written("same", 1) != written("other", 2)


def test_a_group_is_halved_where_it_does_not_divide(tmp_path: Path) -> None:
    config = replace(SMALL, moe=replace(SMALL.moe, intermediate_size=96))
    write_synthetic(tmp_path / "model", config, PackedFormat.parse("int4-g64"))
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.packed is not None
        formats = checkpoint.packed.index.tensors["layers.1.mlp.experts.0"].formats
    assert [form.name for form in formats] == ["int4-g64", "int4-g64", "int4-g32"]


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="int4-g32-k does not divide a width of 64"):
        write_synthetic(tmp_path / "model", SMALL, PackedFormat.parse("int4-g32-k"))
    for seed in (-1, 1 << 64):
        with pytest.raises(RequestError, match=f"seed is {seed}"):
            write_synthetic(tmp_path / "model", SMALL, INT4, seed=seed)
    for layers in (0, -1, 4):
        with pytest.raises(RequestError, match=f"layers is {layers}, it must lie between 1 and the 3"):
            with_layers(TINY, layers)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(WeightsError, match="not an empty folder"):
        write_synthetic(tmp_path / "full", SMALL, INT4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(MachineError, match=r"needs [\d.]+ (bytes|MB), the disk has 1000 bytes free"):
        write_synthetic(tmp_path / "model", SMALL, INT4)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_layers_of_a_preset() -> None:
    config = with_layers(preset("tiny-moe"), 2)
    assert (config.num_layers, config.sparse_layers) == (2, (1,))


_PEAK = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from tenth.kernels.packed import PackedFormat
from tenth.model.preset import preset
from tenth.weights.synthetic import write_synthetic
tiny = preset("tiny-moe")
moe = replace(tiny.moe, num_experts=32, intermediate_size=512)
config = replace(tiny, num_layers=6, sparse_layers=tuple(range(6)), hidden_size=1024, moe=moe)
write_synthetic(Path(sys.argv[1]) / "small", tiny, PackedFormat.parse("int4-g32"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nbytes = write_synthetic(Path(sys.argv[1]) / "large", config, PackedFormat.parse("int4-g32"))
print(nbytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_no_more_than_a_tensor_is_held(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    nbytes, peak = map(int, done.stdout.split())
    assert nbytes > 170e6
    assert peak < 40e6
