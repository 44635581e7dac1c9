"""Tokens one after the other: naively, as the oracle that stays, and with a cache. V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tenth.engine.captured import Runner
from tenth.engine.sampler import Sampler
from tenth.engine.sequence import CachedSequence
from tenth.errors import RequestError
from tenth.model.batch import Batch, Want
from tenth.model.config import fitted_limit
from tenth.model.decoder import Decoder
from tenth.routing.limit import ExpertLimit
from tenth.routing.record import RecordKind, Routing


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token, the logits (V) that it was drawn from, and the routing of the tokens shown to get them."""

    token: int
    logits_V: Tensor
    routing: Routing | None


def naive_generate(
    decoder: Decoder,
    prompt: Sequence[int],
    sampler: Sampler,
    *,
    max_tokens: int,
    end_ids: Collection[int] = (),
    record: RecordKind = "none",
    limit: ExpertLimit | None = None,
) -> Iterator[Step]:
    """The whole sequence through the network for each token, no cache: the oracle of everything faster.

    Ends behind a token of `end_ids`, or after `max_tokens`, or where the context is full.
    """
    shown: list[int] = []
    limit = fitted_limit(limit, decoder.config)

    @torch.inference_mode()
    def show(tokens: Sequence[int]) -> tuple[Tensor, Routing | None]:
        new = len(tokens)
        shown.extend(tokens)
        batch = Batch.of([shown], device=decoder.device, limit=limit)
        out = decoder(batch, want=Want(logits="last", routing=record))
        assert out.logits_NV is not None
        routing = None if out.routing is None else out.routing.select(slice(len(shown) - new, None)).detach()
        return out.logits_NV[0], routing

    room = check_room(decoder, prompt, max_tokens)
    return _generate(show, list(prompt), sampler, room, end_ids)


def cached_generate(
    sequence: CachedSequence,
    prompt: Sequence[int],
    sampler: Sampler,
    *,
    max_tokens: int,
    end_ids: Collection[int] = (),
    record: RecordKind = "none",
    limit: ExpertLimit | None = None,
) -> Iterator[Step]:
    """The same tokens with the keys and values kept; what `sequence` shares with the prompt is not computed again.

    The sequence belongs to the generation that began last; one that it was taken from ends with a RequestError.
    """
    room = check_room(sequence.decoder, prompt, max_tokens)
    limit = fitted_limit(limit, sequence.decoder.config)

    def run() -> Iterator[Step]:
        rest = sequence.restart(prompt, limit)
        mine = sequence.turn

        def show(tokens: Sequence[int]) -> tuple[Tensor, Routing | None]:
            if sequence.turn != mine:
                raise RequestError("another generation has begun on this sequence; give each a CachedSequence")
            return sequence.extend(tokens, record)

        yield from _generate(show, rest, sampler, room, end_ids)

    return run()


def _generate(
    show: Callable[[Sequence[int]], tuple[Tensor, Routing | None]],
    tokens: list[int],
    sampler: Sampler,
    room: int,
    end_ids: Collection[int],
) -> Iterator[Step]:
    for _ in range(room):
        logits_V, routing = show(tokens)
        token = sampler.draw(logits_V)
        yield Step(token, logits_V, routing)
        if token in end_ids:
            return
        tokens = [token]


def check_room(decoder: Runner, prompt: Sequence[int], max_tokens: int) -> int:
    """Tokens that may follow the prompt; RequestError where there is no prompt, or none may."""
    if not prompt:
        raise RequestError("the prompt is empty; it must hold at least one token")
    if max_tokens < 1:
        raise RequestError(f"max_tokens is {max_tokens}, it must be at least 1")
    context = decoder.config.context_length
    if len(prompt) >= context:
        raise RequestError(f"the prompt has {len(prompt)} tokens, the model's context is {context}, answer included")
    return min(max_tokens, context - len(prompt))
