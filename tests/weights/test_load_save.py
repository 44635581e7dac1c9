"""Whole models through files and back: safetensors, GGUF, `transformers`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tenth.errors import ConfigError, FileFormatError, MachineError, ModelNotFoundError, TensorError, WeightsError
from tenth.model.batch import Batch
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.generation import GenerationDefaults
from tenth.weights.load import load_decoder
from tenth.weights.save import new_folder, save_model
from tests.weights.models import ARCHITECTURES, change_json, raw_config, write_folder, write_gguf

TOKENS = torch.tensor([5, 17, 250, 3, 99, 41, 7])


def _load(path: Path, dtype: Any = torch.float32) -> Decoder:
    with open_checkpoint(path) as checkpoint:
        return load_decoder(checkpoint, dtype=dtype)


def _logits(decoder: Decoder) -> torch.Tensor:
    logits = decoder(Batch.of([TOKENS])).logits_NV
    assert logits is not None
    return logits


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
@pytest.mark.parametrize("tied", [False, True])
def test_folders_of_transformers(family: str, tied: bool, tmp_path: Path) -> None:
    model = write_folder(tmp_path, raw_config(family, tie_word_embeddings=tied), max_shard_size="2MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    torch.testing.assert_close(_logits(_load(tmp_path)), model(TOKENS[None]).logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_saved_folders_are_bit_equal_and_load_in_transformers(family: str, tmp_path: Path) -> None:
    model = write_folder(tmp_path / "theirs", raw_config(family))
    decoder = _load(tmp_path / "theirs")
    save_model(decoder, tmp_path / "ours")
    again = _load(tmp_path / "ours")
    for (name, one), (_, other) in zip(decoder.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert again.config == decoder.config
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert type(theirs) is type(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_gguf_to_safetensors_to_transformers(family: str, tmp_path: Path) -> None:
    raw = raw_config(family)
    model = write_folder(tmp_path / "theirs", raw)
    write_gguf(tmp_path / "model.gguf", raw, model)
    decoder = _load(tmp_path / "model.gguf")
    torch.testing.assert_close(_logits(decoder), model(TOKENS[None]).logits[0], atol=1e-4, rtol=0)
    save_model(decoder, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
)
def test_gguf_rope_scaling(rope: dict[str, Any], tmp_path: Path) -> None:
    raw = raw_config("llama", rope_parameters=rope, tie_word_embeddings=True)
    model = write_folder(tmp_path / "theirs", raw)
    write_gguf(tmp_path / "model.gguf", raw, model)
    decoder = _load(tmp_path / "model.gguf")
    assert decoder.config.rope == _load(tmp_path / "theirs").config.rope
    torch.testing.assert_close(_logits(decoder), model(TOKENS[None]).logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_quantised_gguf(kind: str, tmp_path: Path) -> None:
    """The network runs on exactly the values that the `gguf` package reads from the blocks."""
    import gguf

    raw = raw_config("qwen3_moe")
    model = write_folder(tmp_path / "theirs", raw)
    write_gguf(tmp_path / "model.gguf", raw, model, kind)
    decoder = _load(tmp_path / "model.gguf")
    source = model.state_dict()["model.layers.1.mlp.experts.down_proj"].numpy()
    quantised = gguf.GGMLQuantizationType[kind]
    expected = gguf.quants.dequantize(gguf.quants.quantize(source, quantised), quantised)
    assert torch.equal(decoder.blocks()[1].mlp.experts.w2_EDF, torch.from_numpy(expected.copy()))
    assert _load(tmp_path / "model.gguf", "auto").dtype == torch.bfloat16


def test_stacked_experts(tmp_path: Path) -> None:
    """Some tools write a layer's experts as one tensor; all of a layer's names must agree on one form."""
    model = write_folder(tmp_path, raw_config("qwen3_moe"))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    torch.testing.assert_close(_logits(_load(tmp_path)), model(TOKENS[None]).logits[0], atol=1e-4, rtol=0)
    extra = state | {"model.layers.0.mlp.experts.0.down_proj.weight": torch.zeros(256, 256)}
    save_file(extra, tmp_path / "model.safetensors")
    with pytest.raises(TensorError, match=r"experts\.0\.down_proj"):
        open_checkpoint(tmp_path)


def test_precision_of_norms_and_router_is_kept(tmp_path: Path) -> None:
    write_folder(tmp_path / "theirs", raw_config("qwen3_moe"), dtype=torch.bfloat16)
    decoder = _load(tmp_path / "theirs", "auto")
    layer = decoder.blocks()[0]
    assert decoder.dtype == torch.bfloat16
    assert layer.mlp.router.weight_ED.dtype == layer.mlp_norm.weight.dtype == torch.float32
    save_model(decoder, tmp_path / "ours")
    again = _load(tmp_path / "ours", "auto")
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), again.parameters(), strict=True))


def _broken(tmp_path: Path, change: Any, family: str = "qwen3_moe") -> Path:
    write_folder(tmp_path, raw_config(family))
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        (
            lambda s: s.pop("model.layers.1.mlp.experts.3.up_proj.weight"),
            "layers.1.mlp.experts.3.up_proj.weight' is missing",
        ),
        (lambda s: s.pop("model.norm.weight"), "model.norm.weight' is missing"),
        (lambda s: s.update({"model.layers.1.mlp.experts.4.up_proj.weight": torch.zeros(256, 256)}), "has no place"),
        (lambda s: s.update({"model.layers.2.input_layernorm.weight": torch.zeros(256)}), "has no place"),
        (lambda s: s.update({"model.norm.weight": torch.zeros(255)}), r"shape \(255,\), the config asks for \(256,\)"),
        (lambda s: s.update({"lm_head.weight": torch.zeros(256, 300)}), "lm_head.weight' has shape"),
    ],
)
def test_wrong_tensors(change: Any, needle: str, tmp_path: Path) -> None:
    with pytest.raises(TensorError, match=needle) as caught:
        _load(_broken(tmp_path, change))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["model.norm.weight"] = torch.ones(256, dtype=torch.int8)

    with pytest.raises(WeightsError, match="I8"):
        _load(_broken(tmp_path, change))


def test_skipped_tensors_are_named(tmp_path: Path) -> None:
    raw = raw_config("llama", tie_word_embeddings=True)
    write_folder(tmp_path, raw)
    state = load_file(tmp_path / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(state, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.skipped) == {"lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"}
        load_decoder(checkpoint)


def test_configs_that_ask_for_the_moon(tmp_path: Path) -> None:
    write_folder(tmp_path, raw_config("qwen3_moe"))
    change_json(tmp_path / "config.json", num_hidden_layers=9_000, num_experts=60_000, num_local_experts=60_000)
    with pytest.raises(FileFormatError, match="the config asks for"):
        open_checkpoint(tmp_path)


def test_memory_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, raw_config("llama"))
    monkeypatch.setattr("tenth.weights.load.free_bytes", lambda device: 1000)
    with pytest.raises(MachineError, match=r"needs 0\.0 GB as float32"):
        _load(tmp_path)


def test_what_is_not_a_model(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", tmp_path / "a.safetensors", tmp_path / "b.gguf"):
        with pytest.raises((ModelNotFoundError, WeightsError), match=path.name):
            open_checkpoint(path)
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    (tmp_path / "c.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match=r"b\.gguf, c\.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "needle"),
    [
        ("general.architecture", "mamba", "mamba"),
        ("qwen3moe.expert_gating_func", 2, "expert_gating_func"),
        ("qwen3moe.rope.scaling.type", "longrope", "longrope"),
        ("qwen3moe.rope.scaling.attn_factor", 1.5, "attn_factor"),
        ("qwen3moe.rope.scaling.type", "yarn", "factor is missing"),
        ("qwen3moe.attention.causal", False, "causal"),
        ("qwen3moe.attention.value_length", 16, "value_length"),
        ("qwen3moe.attention.layer_norm_rms_epsilon", None, "layer_norm_rms_epsilon is missing"),
        ("qwen3moe.embedding_length", "x", "hidden_size"),
        ("general.architecture", ["llama"], "not supported"),
        ("qwen3moe.attention.head_count", "8", "num_attention_heads"),
        ("qwen3moe.attention.head_count_kv", [4, 4], "num_key_value_heads"),
        ("qwen3moe.block_count", None, "num_hidden_layers is missing"),
        ("qwen3moe.expert_count", 5, "shape"),
    ],
)
def test_gguf_metadata_we_cannot_use(key: str, value: Any, needle: str, tmp_path: Path) -> None:
    from tenth.weights.gguf import GgufFile

    raw = raw_config("qwen3_moe")
    model = write_folder(tmp_path / "theirs", raw)
    write_gguf(tmp_path / "model.gguf", raw, model)
    metadata = GgufFile(tmp_path / "model.gguf").metadata
    changed = {k: v for k, v in metadata.items() if k != key} | ({} if value is None else {key: value})

    class Changed(GgufFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.metadata = changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tenth.weights.checkpoint.GgufFile", Changed)
        with pytest.raises((ConfigError, TensorError), match=needle):
            _load(tmp_path / "model.gguf")


def test_saving_is_all_or_nothing(tmp_path: Path) -> None:
    decoder = initialise(Decoder(preset("tiny-moe")), 0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    with pytest.raises(WeightsError, match="exists"):
        save_model(decoder, tmp_path / "full")
    with pytest.raises(ConfigError, match="something else"):
        save_model(decoder, tmp_path / "new", model_type="llama")

    def fail(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(MachineError, match="No space left"):
        save_model(decoder, tmp_path / "new", progress=fail)
    with pytest.raises(SystemExit), new_folder(tmp_path / "new"):  # what a polite kill becomes
        raise SystemExit(143)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["full", "precious"]
    save_model(decoder, tmp_path / "new", generation=GenerationDefaults(frozenset({3}), top_k=5))
    assert json.loads((tmp_path / "new" / "generation_config.json").read_text()) == {"eos_token_id": [3], "top_k": 5}


def test_our_own_type_round_trips(tmp_path: Path) -> None:
    config = replace(preset("tiny-moe"), model_type="tenth", qk_norm=False, qkv_bias=True)
    decoder = initialise(Decoder(config), 5)
    save_model(decoder, tmp_path / "own")
    again = _load(tmp_path / "own")
    assert again.config == config
    assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), again.parameters(), strict=True))


_PEAK = """
import resource, sys, torch
from pathlib import Path
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.model.decoder import Decoder
from tenth.weights import gguf, safetensors_file, tokenizer
torch.zeros(1) @ torch.zeros(1)
def peak():
    line = [l for l in open("/proc/self/status") if l.startswith("VmHWM")][0]
    return int(line.split()[1]) * 1024
before = peak()
with open_checkpoint(Path(sys.argv[1])) as checkpoint:
    decoder = load_decoder(checkpoint, dtype=torch.bfloat16)
print(peak() - before, sum(p.nbytes for p in decoder.parameters()))
"""


@pytest.mark.parametrize(("kind", "family"), [("safetensors", "qwen3_moe"), ("gguf", "qwen3_moe"), ("gguf", "llama")])
def test_peak_memory_of_loading(kind: str, family: str, tmp_path: Path) -> None:
    """The model in its type and under 100 MB, the code itself included: float32 and Q8_0 to bfloat16."""
    changes: dict[str, Any] = {"vocab_size": 40_000, "hidden_size": 1024}
    changes |= {"moe_intermediate_size": 1024, "num_experts": 16} if family == "qwen3_moe" else {}
    changes |= {"hidden_size": 2048, "num_attention_heads": 64, "intermediate_size": 8192} if family == "llama" else {}
    raw = raw_config(family, **changes)
    model = write_folder(tmp_path / "theirs", raw)
    path = tmp_path / "theirs"
    if kind == "gguf":
        path = tmp_path / "model.gguf"
        write_gguf(path, raw, model, "Q8_0")
    del model
    run = subprocess.run([sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, check=True)
    grown, size = (int(n) for n in run.stdout.split())
    assert size > 300e6
    assert grown < size + 100e6
