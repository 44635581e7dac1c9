"""The default model: a small file and the bundled dense model make it, and it says much the same."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import pytest
import torch

from tenth.api import load
from tenth.data.standard_library import documents
from tenth.kernels.cpu.operations import CpuKernels
from tenth.model.batch import Batch, Want
from tenth.model.decoder import Decoder
from tenth.routing.measures import dead_experts, expert_counts
from tenth.train.artefact import assemble, weights_hash
from tenth.train.artefact_file import open_artefact
from tenth.train.carve import carved_config
from tenth.train.default_model import ARTEFACT, default_model, packed_default
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder


def test_the_small_file_is_small_and_belongs_to_the_bundled_model(smollm2: Path) -> None:
    artefact = open_artefact(ARTEFACT)
    assert ARTEFACT.stat().st_size <= 16 << 20
    with open_checkpoint(smollm2) as checkpoint:
        assert weights_hash(checkpoint) == artefact.source
        dense, carved = checkpoint.config.parameters, carved_config(checkpoint.config, artefact.options).parameters
    assert carved.mlp == dense.mlp
    assert carved.active_mlp * 32 == 27 * dense.mlp


def _loss(decoder: Decoder, texts: list[list[int]]) -> tuple[float, int]:
    """Mean loss of the tokens, and experts that none of them went to."""
    batch, dead = Batch.of(texts), 0
    with torch.inference_mode():
        out = decoder(batch, want=Want(routing="choice"))
    assert out.logits_NV is not None
    log_p_NV = out.logits_NV.float().log_softmax(-1)
    after_N = torch.tensor([token for text in texts for token in (*text[1:], 0)])
    counts_N = torch.ones(len(batch), dtype=torch.bool)
    counts_N[batch.last_T] = False
    if out.routing is not None:
        dead = sum(dead_experts(expert_counts(layer)) for layer in out.routing.layers.values())
    return float(-log_p_NV.gather(1, after_N[:, None])[counts_N].mean()), dead


def test_it_says_what_the_dense_model_says(smollm2: Path) -> None:
    """Perplexity within 15 % on passages that healing did not see; no expert without work."""
    with open_checkpoint(smollm2) as checkpoint:
        tokenizer = checkpoint.tokenizer()
        texts = [tokenizer.encode(text)[:400] for text in islice(documents(12345), 4)]
        dense, none = _loss(load_decoder(checkpoint, dtype=torch.bfloat16), texts)
        sparse, dead = _loss(assemble(checkpoint, open_artefact(ARTEFACT)), texts)
    assert none == 0
    assert dead <= 8  # of 720, on 1,600 tokens
    assert sparse < dense + math.log(1.15)


@pytest.mark.usefixtures("smollm2")
def test_it_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    stages: list[str] = []

    def report(stage: str):
        stages.append(stage)
        return lambda done, total: None

    folder = default_model(report)
    assert stages == ["putting the default model together", "writing the model"]
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config.sparse_layers == tuple(range(30))
        assert checkpoint.generation().temperature == 0.2
        assert checkpoint.tokenizer().encode("fox")
    assert default_model(report) == folder
    assert len(stages) == 2


@pytest.mark.usefixtures("smollm2")
def test_packed_it_says_the_same_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    stages: list[str] = []

    def report(stage: str):
        stages.append(stage)
        return lambda done, total: None

    assert packed_default(report) == packed_default(report) == default_model(report) / "packed"
    assert stages.count("packing the default model") == 1
    plain, packed, reference = (
        load("default"),
        load("default", to_run=True),
        load("default", to_run=True, dtype="float32"),
    )
    assert packed.config == plain.config
    assert isinstance(packed.decoder.kernels, CpuKernels)
    assert not isinstance(plain.decoder.kernels, CpuKernels)
    assert not isinstance(reference.decoder.kernels, CpuKernels)
    text = [reference.tokenizer.encode("The capital of France is Paris, and the capital of Italy is Rome. In winter")]
    expected_TV, *found_TV = (one(text).logits_BTV[0].float().log_softmax(-1) for one in (reference, plain, packed))
    off, off_packed = ((expected_TV.exp() * (expected_TV - one)).sum(-1).mean() for one in found_TV)
    assert off_packed < 2 * off + 1e-4  # of bfloat16's own rounding
