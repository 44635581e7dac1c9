"""A decoder that is read part by part computes what the whole one computes, and holds nothing behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tenth.errors import TensorError
from tenth.model.batch import Batch, Want
from tenth.model.decoder import Decoder, initialise
from tenth.weights.by_layer import DecoderByLayer
from tenth.weights.checkpoint import Checkpoint, open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.save import save_model
from tests.weights.models import raw_config, write_folder, write_gguf
from tests.weights.packed_models import ODD, write_dense

IDS = [[1, 2, 3, 4, 5], [7, 8, 9]]


@torch.no_grad()
def _by_layer(checkpoint: Checkpoint) -> Tensor:
    model = DecoderByLayer(checkpoint, dtype=torch.float32)
    decoder, batch = model.decoder, Batch.of(IDS)
    assert batch.tokens_T is not None
    cos_sin = decoder.cos_sin(batch)
    with model.part("embedding"):
        x_TD = decoder.kernels.embed(batch.tokens_T, decoder.embedding)
    for index, layer in enumerate(decoder.blocks()):
        with model.part(f"layers.{index}"):
            x_TD, _ = layer(x_TD, batch, cos_sin, None, Want(), None)
    with model.part("norm"), model.part("head"):
        logits_TV: Tensor = decoder.head(decoder.norm(x_TD))
    held = {parameter.device.type for parameter in decoder.parameters()}
    assert held == ({"meta"} if checkpoint.packed is None else {"cpu"})
    return logits_TV


def _same(path: Path) -> None:
    with open_checkpoint(path) as checkpoint, torch.no_grad():
        whole = load_decoder(checkpoint, dtype=torch.float32)(Batch.of(IDS)).logits_NV
        assert whole is not None
        assert torch.equal(_by_layer(checkpoint), whole)


@pytest.mark.parametrize("tied", [True, False])
def test_folders(tmp_path: Path, tied: bool) -> None:
    decoder = initialise(Decoder(replace(ODD, tie_word_embeddings=tied)), 0, std=0.1).requires_grad_(False)
    save_model(decoder, tmp_path / "model")
    _same(tmp_path / "model")
    write_dense(tmp_path / "packed", decoder)
    _same(tmp_path / "packed")


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_gguf(tmp_path: Path, family: str) -> None:
    raw = raw_config(family)
    write_gguf(tmp_path / "model.gguf", raw, write_folder(tmp_path / "theirs", raw), "Q8_0")
    _same(tmp_path / "model.gguf")
    _same(tmp_path / "theirs")


def test_a_missing_tensor_is_named_before_anything_is_read(tmp_path: Path) -> None:
    decoder = initialise(Decoder(ODD), 0).requires_grad_(False)
    save_model(decoder, tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as checkpoint:
        del checkpoint.source.tensors["model.norm.weight"]  # type: ignore[attr-defined]  # a dict here
        with pytest.raises(TensorError, match=r"'model\.norm\.weight' is missing"):
            DecoderByLayer(checkpoint)
