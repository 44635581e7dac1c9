"""What the next token of each sequence is: biases on the model's logits, then its sampler.

N rows, V vocabulary, B tokens with a bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tenth.engine.masks import Mask
from tenth.engine.progress import Progress
from tenth.engine.sampler import Drawn, allowed_tokens, draw_rows
from tenth.errors import RequestError


def draw(drawing: Sequence[Progress], logits_NV: Tensor, masks: Sequence[Mask]) -> list[Drawn | RequestError]:
    """A token for each; log-probabilities are the model's own, before biases and masks."""
    wanted = [progress.request.logprobs for progress in drawing]
    most = max((number for number in wanted if number is not None), default=None)
    changed = {row for row, one in enumerate(drawing) if one.biases is not None or one.must_go_on}
    drawn: dict[int, Drawn | RequestError] = {n: mask for n, mask in enumerate(masks) if isinstance(mask, RequestError)}
    allowed = [mask if isinstance(mask, Tensor) else None for mask in masks]
    plain = [row for row in range(len(drawing)) if row not in changed and row not in drawn]
    rows_NV = logits_NV if len(plain) == len(drawing) else logits_NV[plain]
    samplers = [drawing[row].sampler for row in plain]
    found = draw_rows(samplers, rows_NV, logprobs=most, allowed=[allowed[row] for row in plain])
    drawn.update(zip(plain, found, strict=True))
    for row in changed - drawn.keys():
        drawn[row] = _draw_biased(drawing[row], logits_NV[row], most, allowed[row])
    return [_trimmed(drawn[row], number) for row, number in enumerate(wanted)]


def candidates(progress: Progress, logits_V: Tensor, count: int, mask: Mask) -> list[tuple[int, float]] | RequestError:
    """The likeliest next tokens of a beam that may follow, with the model's own log-probabilities, best first."""
    if isinstance(mask, RequestError):
        return mask
    if torch.isnan(logits_V).any():
        return RequestError("the model's logits are not numbers (NaN): its weights or its precision are at fault")
    logprobs_V = torch.log_softmax(logits_V.double(), dim=0)
    biased_V = _biased(progress, logprobs_V)
    biased_V[list(progress.request.forbidden)] = -math.inf
    if mask is not None:
        biased_V[~allowed_tokens(mask, len(biased_V))] = -math.inf
    values, ids = torch.topk(biased_V, min(count, len(biased_V)))
    return [(token, value) for token, value in zip(ids.tolist(), values.tolist(), strict=True) if value > -math.inf]


def of_prompt(tokens: Sequence[int], logits_NV: Tensor, count: int) -> list[Drawn]:
    """Log-probabilities of given tokens, one a row, and of so many likeliest ones."""
    logprobs_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    own_N = logprobs_NV[torch.arange(len(tokens)), torch.tensor(tokens)]
    values_NK, ids_NK = torch.topk(logprobs_NV, count, dim=-1)
    return [
        Drawn(token, own, list(zip(ids, values, strict=True)))
        for token, own, ids, values in zip(tokens, own_N.tolist(), ids_NK.tolist(), values_NK.tolist(), strict=True)
    ]


def _biased(progress: Progress, logits_V: Tensor) -> Tensor:
    """Logits with what is added to them before the next draw, in memory of their own."""
    biased_V = logits_V.clone()
    if progress.biases is not None:
        ids_B, values_B = progress.biases
        biased_V.index_add_(0, ids_B.to(biased_V.device), values_B.to(biased_V))
    if progress.must_go_on:
        biased_V[list(progress.request.end_ids)] = -math.inf
    return biased_V


def _draw_biased(
    progress: Progress, logits_V: Tensor, logprobs: int | None, allowed_W: Tensor | None
) -> Drawn | RequestError:
    drawn = draw_rows([progress.sampler], _biased(progress, logits_V)[None], allowed=[allowed_W])[0]
    if logprobs is None or isinstance(drawn, RequestError):
        return drawn
    own = of_prompt([drawn.token], logits_V[None], logprobs)[0]
    return Drawn(drawn.token, own.logprob, own.top)


def _trimmed(drawn: Drawn | RequestError, wanted: int | None) -> Drawn | RequestError:
    """Without what only neighbours asked for."""
    if isinstance(drawn, RequestError):
        return drawn
    return Drawn(drawn.token) if wanted is None else replace(drawn, top=drawn.top[:wanted])
