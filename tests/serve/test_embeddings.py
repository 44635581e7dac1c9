"""The numbers of `/v1/embeddings`, against the states that `transformers` computes of the same weights."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tenth.api import Model
from tests.api.tiny import tiny_tokenizer
from tests.model.configs import ours, theirs
from tests.serve.served import serving, within

RAW: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "tie_word_embeddings": False,
    "attention_bias": False,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
TEXTS = ["a cat", "Grüße aus Bonn, wo es regnet", "x"]


@pytest.mark.parametrize("pooling", ["last", "mean", None])
def test_vectors_are_the_states_behind_the_last_norm(tmp_path: Path, pooling: str | None) -> None:
    reference = theirs(RAW)
    model = Model(ours(RAW, reference), tiny_tokenizer(tmp_path))
    ids = [model.tokenizer.encode(text, begin=True) for text in TEXTS]
    expected = []
    for one in ids:
        with torch.no_grad():
            states_TD = reference.model(torch.tensor([one])).last_hidden_state[0].double()
        state_D = states_TD.mean(0) if pooling == "mean" else states_TD[-1]
        expected.append((state_D / state_D.norm()).numpy())

    async def work() -> None:
        chosen = {} if pooling is None else {"pooling": pooling}
        async with serving(model, pages=64) as (_, client):
            for given in (TEXTS, ids):
                answer = (await client.post("/v1/embeddings", json={"input": given, **chosen})).json()
                assert [one["index"] for one in answer["data"]] == [0, 1, 2]
                assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))
                found = np.array([one["embedding"] for one in answer["data"]])
                np.testing.assert_allclose(found, np.array(expected), atol=2e-5)
                assert np.abs(found[0] - found[1]).max() > 0.05  # texts differ by more than that
            body = {"input": TEXTS[1], "encoding_format": "base64", "dimensions": 32, **chosen}
            (one,) = (await client.post("/v1/embeddings", json=body)).json()["data"]
            packed = np.frombuffer(base64.b64decode(one["embedding"]), "<f4")
            np.testing.assert_array_equal(packed, found[1].astype("<f4"))

    within(60, work())
