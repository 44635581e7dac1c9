"""Drafts from a small model that shares the tokenizer, for many sequences in one forward pass a drafted token.

S sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from tenth.engine.captured import runner_of
from tenth.engine.draft import Draft, Proposer
from tenth.engine.pages import PagePool
from tenth.engine.sequence import PROMPT_CHUNK
from tenth.errors import RequestError
from tenth.model.batch import Batch, Placement, Want
from tenth.model.cache import KVCache
from tenth.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What two models must share for one to draft for the other: ids of the same number and meaning.

    `fingerprint` is the tokenizer's (`Tokenizer.fingerprint`).
    """

    size: int
    fingerprint: str


class DraftModel:
    """A small decoder with `pages` of keys and values of its own; `sequence` gives a proposer for each sequence.

    RequestError where it does not share the vocabulary `of` the model that it drafts for.
    """

    def __init__(
        self, decoder: Decoder, vocabulary: Vocabulary, of: Vocabulary, *, pages: int = 256, page_size: int = 32
    ) -> None:
        if vocabulary.size != of.size:
            raise RequestError(
                f"the draft model has a vocabulary of {vocabulary.size}, the model {of.size}: it must be the same"
            )
        if vocabulary.fingerprint != of.fingerprint:
            raise RequestError("the draft model has another tokenizer than the model: take one with the same")
        self.context = decoder.config.context_length
        self._runner = runner_of(decoder)
        self._cache = KVCache(decoder.config, pages, page_size, decoder.dtype, decoder.device, decoder.kernels)
        self._pool = PagePool(pages)

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return self._pool.free

    def sequence(self) -> DraftSequence:
        """A proposer for one sequence."""
        return DraftSequence(self)

    @torch.inference_mode()
    def propose(self, sequences: Sequence[DraftSequence], most: Sequence[int]) -> list[Draft]:
        """The likeliest continuation of each, up to `most` tokens, the chance of a token its probability.

        The sequences go through the network together, once for each token of the longest draft. What is not read yet is
        read first; a sequence of which more is left, without free pages or with a full context gets no draft.
        """
        drafts = {id(sequence): Draft([], [], "model") for sequence in sequences}
        wanted = [(sequence, count) for sequence, count in zip(sequences, most, strict=True) if sequence.rewind(count)]
        parts, ready = self._unread(wanted)
        while parts:
            tokens, chances = self._likeliest(parts, [sequence for sequence, _ in ready])
            for (sequence, _), token, chance in zip(ready, tokens, chances, strict=True):
                drafts[id(sequence)].tokens.append(token)
                drafts[id(sequence)].chances.append(chance)
            ready = [(sequence, count) for sequence, count in ready if len(drafts[id(sequence)].tokens) < count]
            parts = [(sequence, drafts[id(sequence)].tokens[-1:]) for sequence, _ in ready]
        return list(drafts.values())

    def release(self, sequence: DraftSequence) -> None:
        """Take back a sequence's pages."""
        self._pool.release(sequence.pages)
        sequence.pages = []

    def _unread(
        self, wanted: Sequence[tuple[DraftSequence, int]]
    ) -> tuple[list[_Part], list[tuple[DraftSequence, int]]]:
        """What to read of each, with pages for that and for the draft, and those that can then draft."""
        room, parts, ready = PROMPT_CHUNK, list[_Part](), list[tuple[DraftSequence, int]]()
        for sequence, count in wanted:
            part = sequence.tokens[len(sequence.read) :][:room]
            if part and self._reserve(sequence, len(sequence.read) + len(part) + count - 1):
                room -= len(part)
                parts.append((sequence, part))
                if len(sequence.read) + len(part) == len(sequence.tokens):
                    ready.append((sequence, count))
        return parts, ready

    def _reserve(self, sequence: DraftSequence, length: int) -> bool:
        missing = -(-length // self._cache.page_size) - len(sequence.pages)
        if missing > self._pool.free:
            return False
        sequence.pages += self._pool.take(max(missing, 0))
        return True

    def _likeliest(self, parts: Sequence[_Part], ready: Sequence[DraftSequence]) -> tuple[list[int], list[float]]:
        """Show sequences their next tokens; what is likeliest behind those of `ready`, and its probability."""
        size = self._cache.page_size
        positions, slots, tables = [], [], []
        for sequence, part in parts:
            positions_T = np.arange(len(sequence.read), len(sequence.read) + len(part))
            table = np.asarray(sequence.pages)
            positions.append(positions_T)
            slots.append(table[positions_T // size] * size + positions_T % size)
            tables.append(torch.from_numpy(table))
        bounds = tuple(accumulate((len(part) for _, part in parts), initial=0))
        place = Placement(
            torch.from_numpy(np.concatenate(slots)),
            tuple(tables),
            tuple(len(sequence.read) + len(part) for sequence, part in parts),
        )
        tokens_T = torch.tensor([token for _, part in parts for token in part])
        batch = Batch(bounds, torch.from_numpy(np.concatenate(positions)), tokens_T, placement=place)
        drafting = {id(sequence) for sequence in ready}
        ends = [end - 1 for end, (sequence, _) in zip(bounds[1:], parts, strict=True) if id(sequence) in drafting]
        out = self._runner(batch, self._cache, Want(logits=torch.tensor(ends, dtype=torch.int64)))
        assert out.logits_NV is not None, "asked for"
        for sequence, part in parts:
            sequence.read += part
        return _best(out.logits_NV)


def _best(logits_SV: Tensor) -> tuple[list[int], list[float]]:
    if not len(logits_SV):
        return [], []
    highest_S, ids_S = logits_SV.max(-1)
    return ids_S.tolist(), (highest_S - logits_SV.logsumexp(-1)).exp().nan_to_num(0.0).tolist()


class DraftSequence:
    """One sequence of a draft model. `read` are the tokens whose keys and values are in its pages.

    What was drafted and refused is simply written over.
    """

    def __init__(self, model: DraftModel) -> None:
        self.model = model
        self.tokens: list[int] = []
        self.read: list[int] = []
        self.pages: list[int] = []

    def begin(self, prompt: Sequence[int]) -> None:
        """A new sequence; its prompt is read when a draft is asked for."""
        self.close()
        self.take(prompt)

    def take(self, tokens: Sequence[int]) -> None:
        """Of what was drafted, that much is kept in the cache as was drawn."""
        start = len(self.tokens)
        self.tokens += tokens
        same = start
        while same < min(len(self.read), len(self.tokens)) and self.read[same] == self.tokens[same]:
            same += 1
        del self.read[same:]

    def propose(self, most: int) -> Draft:
        """A draft of this sequence alone; `propose_all` is faster for several."""
        return self.model.propose([self], [most])[0]

    def close(self) -> None:
        """Give the pages back."""
        self.model.release(self)
        self.tokens, self.read = [], []

    def rewind(self, most: int) -> bool:
        """Forget what was drafted behind the last token, and read that again; False where no draft can be made."""
        del self.read[max(len(self.tokens) - 1, 0) :]
        return bool(self.tokens) and 0 < most <= self.model.context - len(self.tokens)


_Part = tuple[DraftSequence, list[int]]
"""The next tokens of a sequence that go through the network."""


def propose_all(proposers: Sequence[Proposer], most: Sequence[int]) -> list[Draft]:
    """A draft from each proposer, up to `most` tokens; the sequences of one draft model go through it together."""
    together: dict[int, list[int]] = {}
    for index, proposer in enumerate(proposers):
        if isinstance(proposer, DraftSequence):
            together.setdefault(id(proposer.model), []).append(index)
    drafts: dict[int, Draft] = {}
    for indices in together.values():
        sequences = [p for index in indices if isinstance(p := proposers[index], DraftSequence)]
        made = sequences[0].model.propose(sequences, [most[index] for index in indices])
        drafts.update(zip(indices, made, strict=True))
    return [
        drafts[index] if index in drafts else proposer.propose(most[index]) for index, proposer in enumerate(proposers)
    ]
