"""A batch moved to where the model is."""

from __future__ import annotations

from dataclasses import replace

import torch

from tenth.data.collate import TrainBatch


def moved(batch: TrainBatch, device: torch.device) -> TrainBatch:
    """The same batch on another device; itself where it is there already."""
    if device.type == "cpu":
        return batch
    inner = batch.batch
    return replace(
        batch,
        batch=replace(
            inner,
            positions_T=inner.positions_T.to(device),
            tokens_T=None if inner.tokens_T is None else inner.tokens_T.to(device),
        ),
        targets_T=batch.targets_T.to(device),
        domains_T=batch.domains_T.to(device),
        real_T=batch.real_T.to(device),
    )
