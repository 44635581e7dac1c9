"""Quantised GGUF taken over: the same float32 bits as the `gguf` package reads, the same logits as the file itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tenth.api import load
from tenth.errors import RequestError, TensorError, TenthError, WeightsError
from tenth.kernels.packed import PackedWeight
from tenth.quantize.streaming import Tally
from tenth.quantize.take_over import pack_checkpoint
from tenth.weights import ggml
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.ggml_packed import PACKED_OF_KIND, pack_blocks
from tests.api.tiny import write_tokenizer
from tests.quantize.outputs import logits, read
from tests.weights.models import ARCHITECTURES, HALVES_OF_KIND, raw_config, write_folder, write_gguf


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


def random_rows(kind: str, rows: int, blocks: int, seed: int) -> torch.Tensor:
    """Rows of blocks: every integer field at random (and all its extremes), scales of ordinary size and both signs."""
    generator = torch.Generator().manual_seed(seed)
    size = ggml.FORMATS[kind].block_bytes
    raw = torch.randint(0, 256, (rows, blocks, size), dtype=torch.uint8, generator=generator)
    raw[0], raw[1] = 0, 255
    for at in HALVES_OF_KIND[kind]:
        scales = torch.randn(rows, blocks, 1, generator=generator) * 0.01
        raw[..., at : at + 2] = scales.half().view(torch.uint8)
    return raw.view(rows, -1)


def convert(source: Path, out: Path, **options: Any) -> Tally:
    with open_checkpoint(source) as checkpoint:
        return pack_checkpoint(checkpoint, out, **options)


@pytest.mark.parametrize("kind", PACKED_OF_KIND)
@pytest.mark.parametrize("rows", [3, 16, 37])
def test_values_have_the_bits_that_the_gguf_package_reads(kind: str, rows: int) -> None:
    raw = random_rows(kind, rows, 4, seed=rows)
    form, columns = PACKED_OF_KIND[kind], 4 * ggml.FORMATS[kind].block_elements
    got = PackedWeight(pack_blocks(raw, kind, "x"), rows, columns, form).dense()
    theirs = gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind])
    assert same_bits(got, torch.from_numpy(np.ascontiguousarray(theirs)))
    assert same_bits(got, ggml.dequantize(raw, kind))
    assert got.abs().max() > 0


@pytest.mark.parametrize("kind", PACKED_OF_KIND)
def test_every_scale_that_float16_has(kind: str) -> None:
    """All 63,488 finite ones, zeros and the smallest included."""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    patterns = patterns[patterns.view(torch.float16).isfinite()]
    raw = random_rows(kind, len(patterns), 1, seed=7)
    for at in HALVES_OF_KIND[kind]:
        raw[:, at : at + 2] = patterns.roll(at)[:, None].view(torch.uint8)
    form = PACKED_OF_KIND[kind]
    packed = PackedWeight(pack_blocks(raw, kind, "x"), len(raw), ggml.FORMATS[kind].block_elements, form)
    assert same_bits(packed.dense(), ggml.dequantize(raw, kind))


@pytest.mark.parametrize("kind", PACKED_OF_KIND)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_scales_that_are_not_finite_are_refused(kind: str, bad: float) -> None:
    for at in HALVES_OF_KIND[kind]:
        raw = random_rows(kind, 20, 2, seed=1)
        raw[13, at : at + 2] = torch.tensor([bad]).half().view(torch.uint8)
        with pytest.raises(WeightsError, match=r"here: a block has (scales|minimums) that are not finite"):
            pack_blocks(raw, kind, "here")


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
@pytest.mark.parametrize("kind", [*PACKED_OF_KIND, "F32", "F16", "BF16"])
def test_a_packed_model_has_the_logits_of_its_gguf(family: str, kind: str, tmp_path: Path) -> None:
    raw = raw_config(family, tie_word_embeddings=kind in ("Q4_0", "Q8_0"))
    write_gguf(tmp_path / "model.gguf", raw, write_folder(tmp_path / "theirs", raw), kind, tokenizer=True)
    tally = convert(tmp_path / "model.gguf", tmp_path / "out")
    assert tally.total.error == 0
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "model.gguf"))


MIXED = {
    "attn_q": "Q4_K",
    "attn_k": "Q4_0",
    "attn_v": "Q6_K",
    "attn_output": "Q4_1",
    "ffn_gate_exps": "Q4_0",
    "ffn_up_exps": "Q4_K",
    "ffn_down_exps": "Q6_K",
    "token_embd": "Q8_0",
    "output": "Q6_K",
}


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "qwen2_moe"])
def test_mixed_types_in_one_file(family: str, tmp_path: Path) -> None:
    raw = raw_config(family)

    def kind(name: str) -> str:
        return MIXED.get(name.split(".")[-2], "BF16")

    write_gguf(tmp_path / "model.gguf", raw, write_folder(tmp_path / "theirs", raw), kind, tokenizer=True)
    tally = convert(tmp_path / "model.gguf", tmp_path / "out")
    expected = {"int4-g32-k-min", "int4-g32", "int8-g16-k", "int4-g32-min", "int8-g32"}
    expected |= {"llama": {"bf16"}, "qwen3_moe": set(), "qwen2_moe": {"bf16", "fp32"}}[family]
    assert set(tally.by_format) == expected
    assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "model.gguf"))


def test_llama_rows_are_turned_back_in_whole_rows(tmp_path: Path) -> None:
    """The blocks themselves move: the packed query matrix equals the one that loading gives, bit for bit."""
    raw = raw_config("llama")
    write_gguf(tmp_path / "model.gguf", raw, write_folder(tmp_path / "theirs", raw), "Q4_0", tokenizer=True)
    convert(tmp_path / "model.gguf", tmp_path / "out")
    packed, dense = read(tmp_path / "out"), read(tmp_path / "model.gguf")
    for mine, theirs in zip(packed.blocks(), dense.blocks(), strict=True):
        for name in ("q", "k", "v", "o"):
            pair = [getattr(block.attention, name).weight for block in (mine, theirs)]
            assert isinstance(pair[0], PackedWeight)
            assert same_bits(pair[0].dense(), pair[1].dense())


def test_other_types_are_refused_or_rounded(tmp_path: Path) -> None:
    raw = raw_config("llama")
    model = write_folder(tmp_path / "theirs", raw)
    kinds = {"attn_v": "Q5_K", "ffn_up": "Q2_K", "ffn_down": "Q5_0", "attn_output": "Q3_K"}
    path = tmp_path / "model.gguf"
    write_gguf(path, raw, model, lambda name: kinds.get(name.split(".")[-2], "Q8_0"), tokenizer=True)
    with pytest.raises(RequestError, match=r"'blk\.0\.attn_v\.weight': type Q5_K has .* --requantize rounds") as caught:
        convert(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    tally = convert(path, tmp_path / "out", requantize=True)
    formats = {name: count.relative_error for name, count in tally.by_format.items()}
    assert set(formats) == {"int8-g32", "int4-g32-min", "int4-g32"}
    assert 0 < formats["int8-g32"] < 1e-4
    assert 0 < formats["int4-g32-min"] < 0.02
    assert torch.nn.functional.cosine_similarity(logits(tmp_path / "out"), logits(path), dim=-1).min() > 0.9


def test_types_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    raw = raw_config("llama")
    writer_kinds = {"attn_v": "IQ4_XS"}
    model = write_folder(tmp_path / "theirs", raw)
    with pytest.MonkeyPatch.context() as patch:
        size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.IQ4_XS]

        def blocks(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
            if kind.name != "IQ4_XS":
                return gguf.quants.quantize(values, kind)
            return np.zeros((*values.shape[:-1], values.shape[-1] // size[0] * size[1]), np.uint8)

        patch.setattr("tests.weights.models._blocks", blocks)
        write_gguf(
            tmp_path / "model.gguf",
            raw,
            model,
            lambda name: writer_kinds.get(name.split(".")[-2], "Q8_0"),
            tokenizer=True,
        )
    for requantize in (False, True):
        with pytest.raises(TenthError, match=r"attn_v\.weight'.*IQ4_XS is not supported"):
            convert(tmp_path / "model.gguf", tmp_path / "out", requantize=requantize)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dtype", "coarse", "form"),
    [
        (torch.bfloat16, False, "bf16"),
        (torch.float16, False, "fp32"),
        (torch.float16, True, "bf16"),
        (torch.float32, False, "fp32"),
        (torch.float32, True, "bf16"),
    ],
)
def test_floats_become_the_least_type_that_has_them(
    dtype: torch.dtype, coarse: bool, form: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    write_folder(source, raw_config("qwen3_moe"), dtype=torch.float32)
    state = {name: value.clamp(-1, 1) for name, value in load_file(source / "model.safetensors").items()}
    if coarse:  # few bits, and none that float16 lacks
        state = {name: (value * 64).round() / 64 for name, value in state.items()}
    save_file({name: value.to(dtype) for name, value in state.items()}, source / "model.safetensors", {"format": "pt"})
    write_tokenizer(source)
    tally = convert(source, tmp_path / "out")
    assert set(tally.by_format) == {form}
    assert tally.total.error == 0
    assert torch.equal(logits(tmp_path / "out"), logits(source))


def test_a_float_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "source", raw_config("qwen3_moe"), dtype=torch.bfloat16)
    state = load_file(tmp_path / "source" / "model.safetensors")
    state["model.layers.1.mlp.experts.2.up_proj.weight"][200, 3] = float("nan")
    save_file(state, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    write_tokenizer(tmp_path / "source")
    with pytest.raises(TensorError, match=r"layers\.1\.mlp\.experts\.2\.up_proj\.weight': holds a value that is not"):
        convert(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_bundled_model_packs_and_talks(smollm2: Path, tmp_path: Path) -> None:
    tally = convert(smollm2, tmp_path / "out")
    assert {name: count.error for name, count in tally.by_format.items()} == {"int4-g32-min": 0, "int8-g32": 0}
    assert torch.equal(logits(tmp_path / "out"), logits(smollm2))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in load(tmp_path / "out", backend="reference").chat(question, max_tokens=8, temperature=0).text
