"""A dense model run layer by layer, and what another one takes over of it. N calibration tokens, D model width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tenth.errors import RequestError
from tenth.model.batch import Batch, Want
from tenth.model.decoder import Decoder, Layer


def calibration_batch(documents: Sequence[Sequence[int]], least: int, dense: Decoder) -> Batch:
    """The documents as one batch; RequestError where they hold fewer than `least` tokens."""
    batch = Batch.of(documents, device=dense.device)
    if len(batch) < least:
        raise RequestError(
            f"{len(batch)} tokens of calibration text are too few for these routers; give {least} or more"
        )
    return batch


def through(layer: Layer, x_ND: Tensor, batch: Batch, cos_sin: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Run one layer; returns its output and what entered its feed-forward part."""
    kept: list[Tensor] = []
    hook = layer.mlp.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        x_ND, _ = layer(x_ND, batch, cos_sin, None, Want(logits="none"), None)
    finally:
        hook.remove()
    return x_ND, kept[0]


def share_all_but_mlps(dense: Decoder, sparse: Decoder) -> None:
    """Give `sparse` the dense model's own weights, except those of feed-forward layers."""
    sparse.embedding, sparse.norm, sparse.head = dense.embedding, dense.norm, dense.head
    for source, target in zip(dense.blocks(), sparse.blocks(), strict=True):
        target.attention_norm, target.attention, target.mlp_norm = (
            source.attention_norm,
            source.attention,
            source.mlp_norm,
        )
