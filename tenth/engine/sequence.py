"""One sequence and its cache: the simple way to run a decoder token by token.

N tokens that are judged together; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tenth.engine.captured import Runner
from tenth.errors import RequestError
from tenth.kernels.contract import KVType
from tenth.model.batch import Batch, Placement, Want
from tenth.model.cache import KVCache
from tenth.model.config import fitted_limit
from tenth.routing.limit import ExpertLimit, TokenLimits
from tenth.routing.record import RecordKind, Routing

PROMPT_CHUNK = 2048
"""Tokens of a prompt that go through the network at once: bounds the memory of activations; more share an expert."""


class CachedSequence:
    """Tokens that a decoder has seen, with their keys and values; `extend` shows it more.

    A new list of tokens that begins like the old one keeps the common part: a chat pays for each turn once. Under
    another limit of experts nothing is kept.
    """

    def __init__(self, decoder: Runner, kv: KVType = "bf16") -> None:
        self.decoder, self.kv = decoder, kv
        self.turn = 0  # counts the restarts: a generation that is no longer the latest must not go on
        self._tokens: list[int] = []
        self._limit: ExpertLimit | None = None
        self._cache = self._grown(0)

    def restart(self, tokens: Sequence[int], limit: ExpertLimit | None = None) -> list[int]:
        """Keep what the cache and `tokens` share; returns the rest of `tokens`, one at least, still to be shown."""
        limit = fitted_limit(limit, self.decoder.config)
        if limit != self._limit:
            self._tokens, self._limit = [], limit
        shared = 0
        while shared < min(len(tokens) - 1, len(self._tokens)) and tokens[shared] == self._tokens[shared]:
            shared += 1
        self._tokens = self._tokens[:shared]
        self.turn += 1
        return list(tokens[shared:])

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int], record: RecordKind = "none") -> tuple[Tensor, Routing | None]:
        """Show more tokens, one at least; returns the logits (V) after the last, and the routing of those shown."""
        if not tokens:
            raise RequestError("there is no token to show")
        self._reserve(len(self._tokens) + len(tokens))
        records: list[Routing] = []
        logits_V = torch.empty(0)
        for start in range(0, len(tokens), PROMPT_CHUNK):
            logits_NV, routing = self._step(tokens[start : start + PROMPT_CHUNK], Want(logits="last", routing=record))
            logits_V = logits_NV[0]
            if routing is not None:
                records.append(routing.detach())
        return logits_V, Routing.join(records) if record != "none" else None

    @torch.inference_mode()
    def judge(self, tokens: Sequence[int], record: RecordKind = "none") -> tuple[Tensor, Routing | None]:
        """Show a few tokens, of which all but the first are guesses: logits (N, V) after each, and their routing.

        `forget` takes those back that turn out to be wrong.
        """
        self._reserve(len(self._tokens) + len(tokens))
        return self._step(tokens, Want(logits=torch.arange(len(tokens), device=self.decoder.device), routing=record))

    def forget(self, count: int) -> None:
        """The last tokens were not the right ones: what is shown next takes their place."""
        del self._tokens[len(self._tokens) - count :]

    def _step(self, tokens: Sequence[int], want: Want) -> tuple[Tensor, Routing | None]:
        start, device = len(self._tokens), self.decoder.device
        place = torch.arange(start, start + len(tokens), device=device)
        pages = torch.arange(1, device=device)
        batch = Batch(
            bounds=(0, len(tokens)),
            positions_T=place,
            tokens_T=torch.tensor(tokens, device=device),
            placement=Placement(place, (pages,), (start + len(tokens),)),
            limits=TokenLimits.of([self._limit], [len(tokens)], device),
        )
        out = self.decoder(batch, self._cache, want)
        self._tokens.extend(tokens)
        assert out.logits_NV is not None
        return out.logits_NV, out.routing

    def _reserve(self, length: int) -> None:
        if length > self._cache.page_size:
            self._cache = self._grown(max(length, 2 * self._cache.page_size))

    def _grown(self, length: int) -> KVCache:
        """A cache of one page for `length` tokens, holding what the present one holds."""
        config, device = self.decoder.config, self.decoder.device
        size = min(max(length, PROMPT_CHUNK), config.context_length)
        cache = KVCache(config, 1, size, self.decoder.dtype, device, self.decoder.kernels, self.kv)
        if self._tokens:
            cache.copy_from(self._cache)
        return cache
