"""Tokens from rows of logits, by native code.

R rows, V vocabulary, S tokens that penalties are for, W words of 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

import tenth.kernels.cpu._native as _native


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How a token is drawn from one row; the meaning is that of `tenth.engine.sampler`.

    `uniform` is the random number, from 0 up to but not 1. `ids_S` (int32) are the tokens that penalties are for, each
    once; `counts_S` (float32) how often each was generated, 0 where it is in the prompt only. `allowed_W` (int32) has a
    bit for each token, the lowest first; None allows all.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    ids_S: Tensor
    counts_S: Tensor
    allowed_W: Tensor | None


class Status(IntEnum):
    """What became of a row."""

    DRAWN = 0
    NOT_NUMBERS = 1
    NOTHING_LEFT = 2


@dataclass(frozen=True, slots=True)
class DrawnRow:
    """The token of a row, -1 where there is none. `kept` is how many could have been drawn, 0 where that is not asked.

    `logprob` and those of the likeliest tokens are by the logits as they came, at temperature 1.
    """

    status: Status
    token: int
    kept: int
    logprob: float
    top: list[tuple[int, float]]


def sample(
    machine: _native.Machine,
    logits_RV: Tensor,
    rows: Sequence[RowSampling],
    *,
    logprobs: int | None = None,
    count_kept: bool = False,
) -> list[DrawnRow]:
    """Draw from each row of float32 logits, which stay as they are.

    With `logprobs` also the log-probability of the token and of so many likeliest ones.
    """
    assert logits_RV.shape[0] == len(rows)
    assert logits_RV.dtype == torch.float32
    assert logits_RV.device.type == "cpu"
    assert logits_RV.stride(1) == 1
    drawn = _native.sample(
        machine,
        logits_RV.data_ptr(),
        logits_RV.stride(0),
        logits_RV.shape[1],
        [_packed(row, logits_RV.shape[1]) for row in rows],
        logprobs is not None,
        logprobs or 0,
        count_kept,
    )
    return [DrawnRow(Status(row[0]), *row[1:]) for row in drawn]


_Packed = tuple[float, float, float, float, int, float, float, float, int, int, int, int]


def _packed(row: RowSampling, vocab_size: int) -> _Packed:
    assert len(row.ids_S) == len(row.counts_S)
    assert row.ids_S.dtype == torch.int32
    assert row.counts_S.dtype == torch.float32
    assert row.allowed_W is None or len(row.allowed_W) * 32 >= vocab_size
    return (
        row.temperature,
        row.top_p,
        row.min_p,
        row.uniform,
        row.top_k,
        row.repetition_penalty,
        row.presence_penalty,
        row.frequency_penalty,
        len(row.ids_S),
        row.ids_S.data_ptr(),
        row.counts_S.data_ptr(),
        0 if row.allowed_W is None else row.allowed_W.data_ptr(),
    )
