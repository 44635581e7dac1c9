"""A model that says what a script says: a public fake, for tests of everything around a model.

It keeps each token in the cache's pages, where a real model keeps its key and value, and reads the whole sequence back
from them before it answers: a page that is missing, mixed up or written over shows as a wrong answer.

T tokens, S documents, N positions with logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tenth.errors import RequestError
from tenth.kernels import reference
from tenth.kernels.contract import Kernels
from tenth.model.batch import Batch, Output, Want
from tenth.model.cache import KVCache
from tenth.model.config import ModelConfig
from tenth.routing.record import Routing

Script = Callable[[Sequence[int]], int | None]
"""The token that follows a sequence, prompt and all; None where the script knows nothing of it."""


class ScriptedModel:
    """Stands where an engine, a `CachedSequence` or `naive_generate` takes a decoder.

    The first script that knows a sequence says its next token; where none does, or a script is over, that is `end_id`.
    Its logit is `margin`, all others are 0: at 20, sampling follows it but once in 3,000 draws at temperature 1 and a
    vocabulary of 150,000, and biases, penalties, masks and forced tokens act on it as on a model's.
    """

    def __init__(
        self,
        vocab_size: int,
        scripts: Sequence[Script],
        end_id: int,
        *,
        margin: float = 20.0,
        context_length: int = 1 << 20,
    ) -> None:
        if not 0 <= end_id < vocab_size:
            raise RequestError(f"end_id {end_id} is outside the vocabulary, 0 to {vocab_size - 1}")
        self.config = ModelConfig(
            model_type="scripted",
            vocab_size=vocab_size,
            hidden_size=2,
            intermediate_size=1,
            num_layers=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=2,
            context_length=context_length,
        )
        self.dtype = torch.float64  # every token id is exact in it
        self.device = torch.device("cpu")
        self.kernels: Kernels = reference
        self._scripts, self._end_id, self._margin = tuple(scripts), end_id, margin

    def __call__(
        self,
        batch: Batch,
        cache: KVCache | None = None,
        want: Want | None = None,
        routing: Routing | None = None,
    ) -> Output:
        """Logits (N, V) of the positions that `want` names. There are no experts: a routing is empty.

        A hidden state is a token and its place, from 1.
        """
        want = want or Want()
        assert batch.tokens_T is not None, "a scripted model has no embeddings"
        documents = self._documents(batch, cache)
        rows = [(document, at) for document, start in documents for at in range(start, len(document))]
        last = [end - 1 for end in batch.bounds[1:]]
        kinds = {"all": list(range(len(rows))), "last": last, "none": []}
        chosen = want.logits.tolist() if isinstance(want.logits, Tensor) else kinds[want.logits]
        logits_NV = torch.zeros(len(chosen), self.config.vocab_size)
        for row, index in enumerate(chosen):
            document, at = rows[index]
            logits_NV[row, self._next(document[: at + 1])] = self._margin
        empty = want.logits == "none" if isinstance(want.logits, str) else False
        hidden_TD = torch.stack([batch.tokens_T, batch.positions_T + 1], -1).to(self.dtype) if want.hidden else None
        return Output(None if empty else logits_NV, hidden_TD, Routing({}) if want.routing != "none" else None)

    def _next(self, tokens: Sequence[int]) -> int:
        said = (script(tokens) for script in self._scripts)
        return next((token for token in said if token is not None), self._end_id)

    def _documents(self, batch: Batch, cache: KVCache | None) -> list[tuple[list[int], int]]:
        """The tokens of each document, and how many of them this batch did not bring."""
        assert batch.tokens_T is not None
        place = batch.placement
        if cache is None or place is None:
            return [(batch.tokens_T[start:end].tolist(), 0) for start, end in pairwise(batch.bounds)]
        cache.check(place)
        keys, values = cache.pools(0)
        token_TGC = batch.tokens_T[:, None, None].expand(-1, 1, 2)
        position_TGC = batch.positions_T[:, None, None].expand(-1, 1, 2)
        self.kernels.store(token_TGC, position_TGC + 1, keys, values, place.slots_T)  # 0 is a slot never written
        documents = []
        for (start, end), table, length in zip(pairwise(batch.bounds), place.pages, place.lengths, strict=True):
            tokens, positions = (pool[table].flatten(0, 2)[:length, 0, 0].long() for pool in (keys, values))
            assert torch.equal(positions, torch.arange(1, length + 1)), "the pages hold another sequence's tokens"
            documents.append((tokens.tolist(), length - (end - start)))
        return documents


def replay(prompt: Sequence[int], tokens: Sequence[int]) -> Script:
    """Behind this prompt come these tokens; a sequence that has left them is unknown."""
    whole, start = [*prompt, *tokens], len(prompt)

    def script(seen: Sequence[int]) -> int | None:
        count = len(seen)
        return whole[count] if start <= count < len(whole) and list(seen) == whole[:count] else None

    return script


def thinking(prompt: Sequence[int], thought: Sequence[int], answer: Sequence[int], close_id: int) -> Script:
    """Behind this prompt the thought, `close_id`, the answer; wherever else `close_id` comes, the answer follows it.

    As a model does that is told to stop thinking: tokens put into the thought do not change the answer.
    """
    start, said = list(prompt), [*thought, close_id]

    def script(seen: Sequence[int]) -> int | None:
        if list(seen[: len(start)]) != start:
            return None
        rest = list(seen[len(start) :])
        if close_id not in rest:
            return said[min(len(rest), len(said) - 1)]
        behind = rest[rest.index(close_id) + 1 :]
        return answer[len(behind)] if len(behind) < len(answer) else None

    return script
