"""Whole checkpoints with thousands of strange values in config and metadata: one line of ours, or a model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tenth.errors import TenthError
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.gguf import GgufFile
from tenth.weights.load import load_decoder
from tests.weights.models import raw_config, write_folder, write_gguf

STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 1 << 24, 1 << 33, 1 << 63, 10**400, 0.0, 0.5, -1.0, 1e-300, 1e300,
    float("inf"), float("-inf"), float("nan"), "", "x", "0", [], [0], [{}], ["full_attention"], {}, {"a": {}},
    {"rope_type": "yarn"}, {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0},
    {"rope_type": "linear", "factor": 1e-300}, {"type": [], "factor": {}}, "yarn", "none", "linear",
]  # fmt: skip


def _survives(path: Path) -> bool:
    message = ""
    try:
        with open_checkpoint(path) as checkpoint:
            load_decoder(checkpoint, dtype=torch.float32)
    except TenthError as error:
        message = str(error) or "no message"
    assert "\n" not in message
    assert len(message) < 2000
    return not message


@pytest.mark.parametrize("family", ["qwen3_moe", "llama"])
def test_configs(family: str, tmp_path: Path) -> None:
    small = {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 40, "head_dim": 8, "num_attention_heads": 4}
    small |= {"moe_intermediate_size": 16} if family == "qwen3_moe" else {}
    write_folder(tmp_path, raw_config(family, **small))
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    extra = [
        "rope_scaling",
        "rope_theta",
        "quantization_config",
        "layer_types",
        "dual_chunk_attention_config",
        "qkv_bias",
    ]
    dice = random.Random(7)
    outcomes = []
    for _ in range(1500):
        changed = dict(good)
        for _ in range(dice.choice([1, 1, 2, 3])):
            changed[dice.choice([*good, *extra])] = dice.choice(STRANGE)
        path.write_text(json.dumps(changed))
        outcomes.append(_survives(tmp_path))
    assert 50 < sum(outcomes) < 1450  # both happen


@pytest.mark.parametrize("family", ["qwen3_moe", "llama"])
def test_gguf_metadata(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_config(family)
    model = write_folder(tmp_path / "folder", raw)
    write_gguf(tmp_path / "model.gguf", raw, model)
    good = dict(GgufFile(tmp_path / "model.gguf").metadata)
    extra = [
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "attention.sliding_window",
    ]
    keys = [*good, *(f"{good['general.architecture']}.{key}" for key in extra)]
    changed: dict[str, Any] = {}

    class Changed(GgufFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.metadata = changed

    monkeypatch.setattr("tenth.weights.checkpoint.GgufFile", Changed)
    dice = random.Random(8)
    outcomes = []
    for _ in range(400):
        changed.clear()
        changed.update(good)
        for _ in range(dice.choice([1, 1, 2])):
            changed[dice.choice(keys)] = dice.choice(STRANGE)
        outcomes.append(_survives(tmp_path / "model.gguf"))
    assert 10 < sum(outcomes) < 390
