"""SmolLM2 against llama.cpp on the same float32 weights, token by token."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from tenth.data.standard_library import documents
from tenth.model.batch import Batch
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder


def _dequantised(source: Path, target: Path) -> None:
    """The same file with every tensor in F32, by the `gguf` package."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_teacher_forced_agreement(smollm2: Path, tmp_path: Path) -> None:
    llama_cpp: Any = pytest.importorskip("llama_cpp")
    _dequantised(smollm2, tmp_path / "f32.gguf")
    f32 = 0  # GGML_TYPE_F32, for keys and values
    llama = llama_cpp.Llama(
        str(tmp_path / "f32.gguf"), n_ctx=1024, logits_all=True, type_k=f32, type_v=f32, flash_attn=False, verbose=False
    )
    with open_checkpoint(smollm2) as checkpoint:
        decoder, tokenizer = load_decoder(checkpoint, dtype=torch.float32), checkpoint.tokenizer()
    tokens = agree = 0
    gaps: list[float] = []
    largest = 0.0
    for text in islice(documents(2026, characters=1500), 20):
        ids = tokenizer.encode(text)[:1000]
        llama.reset()
        llama.eval(ids)
        theirs = torch.from_numpy(llama.scores[: len(ids)].copy())
        with torch.inference_mode():
            ours = decoder(Batch.of([ids])).logits_NV
        best = ours.topk(2).values
        differs = ours.argmax(1) != theirs.argmax(1)
        tokens, agree = tokens + len(ids), agree + int((~differs).sum())
        gaps += (best[:, 0] - best[:, 1])[differs].tolist()
        largest = max(largest, float((ours - theirs).abs().max()))
    print(f"\nllama.cpp: {agree} of {tokens} tokens agree ({agree / tokens:.4%}), largest logit gap {largest:.2e}")
    print(f"our two best logits where they do not: {sorted(gaps)}")
    assert agree / tokens >= 0.995
    assert all(gap < 1e-3 for gap in gaps)
