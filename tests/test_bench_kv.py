"""`bench/kv_quality.py`: its windows cover a file's tokens once, and its losses are those of whole documents."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tenth.data.token_file import TokenFile
from tenth.model.batch import Batch
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tests.bench_scripts import script
from tests.data.token_files import write_tokens

quality = script("kv_quality")


def _file(path: Path, lengths: list[int]) -> TokenFile:
    documents = [[(7 * i + 13 * n) % 512 for i in range(length)] for n, length in enumerate(lengths)]
    return TokenFile(write_tokens(path, documents, vocab_size=512))


def test_windows_are_the_documents_pieces(tmp_path: Path) -> None:
    """Each token but a document's first is predicted once, behind those of its window."""
    file = _file(tmp_path / "x.tokens", [5, 1, 12, 30])
    pieces = [piece.tolist() for piece in quality.windows(file, 8, 20)]
    assert [len(piece) for piece in pieces] == [5, 9, 4, 6]
    assert pieces[0] == file.document(0).tolist()
    assert pieces[1] + pieces[2][1:] == file.document(2).tolist()
    assert pieces[3] == file.document(3)[:6].tolist()


@torch.inference_mode()
def test_perplexities_of_a_tiny_model(tmp_path: Path) -> None:
    """bf16 pages are float32 here: the perplexity is that of whole documents without a cache."""
    decoder = initialise(Decoder(preset("tiny-moe")), seed=1, std=0.2)
    file = _file(tmp_path / "x.tokens", [40, 25])
    losses = []
    for index in range(2):
        ids_T = torch.from_numpy(file.document(index).astype("int64"))
        log_TV = decoder(Batch.of([ids_T])).logits_NV.double().log_softmax(-1)
        losses += [-float(log_TV[at, ids_T[at + 1]]) for at in range(len(ids_T) - 1)]
    found = quality.measure(decoder, file, tokens=1000, context=64, chunk=7)
    assert found.tokens == len(losses) == 63
    assert found.bf16 == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert found.int8 == pytest.approx(found.bf16 * found.ratio, rel=1e-6)
    assert found.ratio != 1
    assert abs(found.added) < 0.05
    assert 0 < found.kl < 0.05
