"""The small file of a carved model: the same bits again, for its own source only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tenth.errors import FileFormatError, RequestError, TensorError, TenthError, WeightsError
from tenth.model.decoder import Decoder
from tenth.train.artefact import Artefact, assemble, healed_artefact, nearest_delta, weights_hash
from tenth.train.artefact_file import open_artefact, save_artefact
from tenth.train.carve import CarveOptions, carve
from tenth.train.low_rank import LowRankOptions, attach, merge
from tenth.weights.checkpoint import Checkpoint, open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.save import save_model
from tests.train.dense import texts, tiny_dense

OPTIONS = CarveOptions(12, 3, 6)


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    save_model(tiny_dense(torch.bfloat16), tmp_path / "dense")
    return open_checkpoint(tmp_path / "dense")


def _carving(source: Checkpoint, split: str = "coactivation") -> tuple[Artefact, Decoder]:
    carved = carve(load_decoder(source, dtype=torch.bfloat16), texts(4, 1), replace(OPTIONS, split=split))
    return Artefact(weights_hash(source), replace(OPTIONS, split=split), carved.layers, ({},) * 3), carved.decoder


def _healed(before: Decoder, seed: int = 0) -> Decoder:
    """A copy that has learned other routers, and deltas of rank 3 and 5 (of which the file keeps as much)."""
    after = Decoder(before.config)
    after.load_state_dict(before.state_dict())
    attach(after, LowRankOptions(3, 5))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in after.named_parameters():
        if "outer" in name or "router.weight" in name:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.03)
    return merge(after)


@pytest.mark.parametrize("split", ["coactivation", "prune"])
def test_a_carved_model_is_rebuilt_to_the_bit(source: Checkpoint, tmp_path: Path, split: str) -> None:
    artefact, carved = _carving(source, split)
    size = save_artefact(artefact, tmp_path / "carving")
    assert size == (tmp_path / "carving").stat().st_size
    rebuilt = assemble(source, open_artefact(tmp_path / "carving"))
    values, others = carved.state_dict(), rebuilt.state_dict()
    assert values.keys() == others.keys()
    assert all(torch.equal(values[name], others[name]) for name in values)


@pytest.mark.parametrize("split", ["coactivation", "prune"])
def test_a_healed_model_comes_back_from_the_file(source: Checkpoint, tmp_path: Path, split: str) -> None:
    artefact, carved = _carving(source, split)
    before = Decoder(carved.config)
    before.load_state_dict(carved.state_dict())
    after = _healed(before)
    kept = healed_artefact(artefact, before, after, rank=3, shared_rank=5)
    save_artefact(kept, tmp_path / "carving")
    opened = open_artefact(tmp_path / "carving")
    one, other = assemble(source, kept).state_dict(), assemble(source, opened).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    start = before.state_dict()
    for name, end in after.state_dict().items():
        rounding = end.abs() * 2**-8
        if name.endswith(("values_OI", "E2FD", "EDF")) and "mlp" in name:
            change = (end - start[name]).square().mean().sqrt()
            assert change > 0.005
            assert ((other[name].float() - end).abs() <= rounding + 0.1 * change).all()
        else:
            assert ((other[name].float() - end).abs() <= rounding).all()
    save_artefact(opened, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "carving").read_bytes()


def test_deltas_are_the_nearest_of_their_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    outer, inner = (torch.randn(4, *shape, dtype=torch.float64, generator=generator) for shape in ((20, 3), (3, 30)))
    difference = outer @ inner
    error = (nearest_delta(difference, 3).values() - difference).norm() / difference.norm()
    assert error < 0.01
    first = nearest_delta(difference, 1).values()
    left = torch.linalg.svdvals(difference)[:, 1:].norm() / difference.norm()
    assert (first - difference).norm() / difference.norm() == pytest.approx(float(left), abs=0.01)
    assert nearest_delta(difference, 99).scale.shape == (4, 20)


def test_another_source_is_refused(source: Checkpoint, tmp_path: Path) -> None:
    artefact, _ = _carving(source)
    other = tiny_dense(torch.bfloat16)
    other.blocks()[0].mlp.gate.weight.values_OI[0, 0] += 1
    save_model(other, tmp_path / "other")
    with pytest.raises(RequestError, match="is not the model that was carved"):
        assemble(open_checkpoint(tmp_path / "other"), artefact)
    assert weights_hash(source) == artefact.source


Change = Callable[[dict[str, torch.Tensor], dict], None]


def _rename(tensors: dict[str, torch.Tensor], _: dict) -> None:
    tensors["layers.0.experts.w9.outer"] = torch.zeros(1, 2, 1, dtype=torch.int8)
    tensors["layers.0.experts.w9.inner"] = torch.zeros(1, 1, 2, dtype=torch.int8)
    tensors["layers.0.experts.w9.scale"] = torch.zeros(1, 1)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda t, a: t["layers.1.neurons"].fill_(3), TensorError, "layer 1 does not name 96 neurons"),
        (lambda t, a: t["layers.1.neurons"].add_(1), TensorError, "layer 1 does not name 96 neurons"),
        (lambda t, a: t["layers.1.neurons"].sub_(1), TensorError, "layer 1 does not name 96 neurons"),
        (lambda t, a: t.update({"layers.0.router.rows": torch.zeros(2, 2)}), TensorError, "router of shapes"),
        (lambda t, a: t.pop("layers.0.router.rows"), TensorError, "router of shapes"),
        (lambda t, a: t.pop("layers.1.neurons"), FileFormatError, "broken carving"),
        (lambda t, a: [t.pop(n) for n in list(t) if n.startswith("layers.2")], TensorError, "2 layers, the model 3"),
        (lambda t, a: a.update(format="tenth-carving-9"), FileFormatError, "not a carving of this version"),
        (lambda t, a: a.update(options={"shared": 99}), FileFormatError, "broken carving"),
        (lambda t, a: a.update(options={"shard": 99}), FileFormatError, "broken carving"),
        (lambda t, a: a.update(source="0" * 64), RequestError, "another hash"),
        (_rename, TensorError, "delta 'experts.w9'"),
    ],
)
def test_broken_files_are_refused(
    source: Checkpoint, tmp_path: Path, change: Change, error: type[TenthError], words: str
) -> None:
    path = tmp_path / "carving"
    artefact, _ = _carving(source)
    save_artefact(artefact, path)
    tensors, about = load_file(path), json.loads(_metadata(path)["carving"])
    change(tensors, about)
    save_file(tensors, path, {"carving": json.dumps(about)})
    with pytest.raises(error, match=words):
        assemble(source, open_artefact(path))


def _metadata(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        open_artefact(tmp_path / "none")
    (tmp_path / "text").write_text("what")
    with pytest.raises(FileFormatError, match="cannot be read as a carving"):
        open_artefact(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(FileFormatError, match="not a carving of this version"):
        open_artefact(tmp_path / "other")
