"""A text as one vector: the states behind the last norm, of its last token or the mean of all, of length one.

T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tenth.api.model import Model
from tenth.errors import RequestError
from tenth.model.batch import Batch, Want

Pooling = Literal["last", "mean"]


@torch.inference_mode()
def embedding(model: Model, ids: Sequence[int], pooling: Pooling) -> Tensor:
    """The vector (D, float32) of one text. RequestError where it is empty, too long, or has ids that are no tokens."""
    context, most = model.config.context_length, model.config.vocab_size
    if not ids or len(ids) > context:
        raise RequestError(f"input has {len(ids)} tokens, it must have between 1 and {context}")
    wrong = next((token for token in ids if not 0 <= token < most), None)
    if wrong is not None:
        raise RequestError(f"input has token id {wrong}, which is outside the vocabulary, 0 to {most - 1}")
    batch = Batch.of([ids], device=model.decoder.device)
    states_TD = model.decoder(batch, want=Want(logits="none", hidden=True)).hidden_TD
    assert states_TD is not None
    pooled_D = (states_TD[-1] if pooling == "last" else states_TD.mean(0)).float()
    unit_D: Tensor = pooled_D / pooled_D.norm().clamp(min=1e-12)
    return unit_D
