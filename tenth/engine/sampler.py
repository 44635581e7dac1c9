"""From logits to a token: penalties, temperature, top-k, top-p, min-p, in that order, by a seed of the request's own.

What plain torch does here is the oracle; where the native kernels are built, they do the same in one call for a batch.

R rows, one a request; V vocabulary; S tokens seen by a request, each once; W words of 32 bits.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tenth.engine.bounds import whole, within
from tenth.engine.seen import PromptTokens, SeenTokens
from tenth.errors import RequestError
from tenth.kernels.cpu.machine import built, machine

if TYPE_CHECKING:
    import tenth.kernels.cpu._native as _native
    from tenth.kernels.cpu.sampling import RowSampling

_SEEDS = 1 << 63
_DRAWN_SEEDS = 1 << 53  # every JSON reader gives such a number back as it was
_NONE_IDS, _NONE_COUNTS = torch.zeros(0, dtype=torch.int32), torch.zeros(0)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn.

    `temperature` 0 takes the likeliest. `top_k` 0 and `top_p` 1 keep all; `min_p` drops what is less likely than that
    share of the likeliest. `repetition_penalty` divides positive and multiplies negative logits of all tokens seen,
    prompt included; `presence_penalty` is taken once, `frequency_penalty` for each time, from generated tokens only.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        within("temperature", self.temperature, 0.0, 100.0)
        within("top_p", self.top_p, 0.0, 1.0, above=True)
        within("min_p", self.min_p, 0.0, 1.0)
        within("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        within("presence_penalty", self.presence_penalty, -100.0, 100.0)
        within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        whole("top_k", self.top_k, 0, 1 << 31)
        if self.seed is not None:
            whole("seed", self.seed, 0, _SEEDS - 1)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, and where they were asked for its log-probability and those of the likeliest tokens.

    They are the model's own: of the logits as they came, at temperature 1.
    """

    token: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class Sampler:
    """The state of one request: what it has seen, and its stream of random numbers.

    RequestError for a prompt with ids outside the vocabulary. Ids in `forbidden` are never drawn. `native` names the
    team of threads that draws; True is the default one where the kernels are built, False leaves it to torch.
    """

    def __init__(
        self,
        options: Sampling,
        prompt: Sequence[int],
        vocab_size: int,
        forbidden: Collection[int] = (),
        *,
        native: _native.Machine | bool = True,
    ) -> None:
        for bad in (min(prompt, default=0), max(prompt, default=0)):
            if not 0 <= bad < vocab_size:
                raise RequestError(f"token id {bad} is outside the vocabulary, 0 to {vocab_size - 1}")
        self._prompt = PromptTokens(prompt if _penalises(options) else ())  # who takes no penalty looks at nothing
        self._vocab_size = vocab_size
        self._forbidden = torch.tensor(sorted(forbidden), dtype=torch.int64)
        self._allowed_W = _allowed(self._forbidden, vocab_size)
        self._native = native
        self._begin(options.seed, options)

    def beside(self, seed: int | None) -> Sampler:
        """One for another answer to the same prompt, by the same options but the seed."""
        other = copy(self)  # what depends on the prompt alone is shared
        other._begin(seed, self.options)
        return other

    def _begin(self, seed: int | None, options: Sampling) -> None:
        self.options = replace(options, seed=seed)
        self.seed = secrets.randbelow(_DRAWN_SEEDS) if seed is None else seed
        self._generator = torch.Generator().manual_seed(self.seed)
        self._seen = SeenTokens(self._prompt)

    def draw(self, logits_V: Tensor) -> int:
        """Choose the next token and remember it; RequestError where the logits are NaN, or leave no token to draw."""
        drawn = draw_rows([self], logits_V[None])[0]
        if isinstance(drawn, RequestError):
            raise drawn
        return drawn.token

    def note(self, token: int) -> None:
        """Remember a token that came, drawn or not."""
        if _penalises(self.options):
            self._seen.add(token)

    @cached_property
    def _team(self) -> _native.Machine | None:
        if isinstance(self._native, bool):
            return machine() if self._native and built() else None
        return self._native

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    @property
    def _repetition_penalty(self) -> float:
        # not so small that float32 makes 0 of it: minus infinity times it must stay what it is
        return max(self.options.repetition_penalty, torch.finfo(torch.float32).tiny)

    def _also(self, allowed_W: Tensor | None) -> Tensor | None:
        """A mask for one draw, and what is never drawn."""
        own_W = self._allowed_W
        return own_W if allowed_W is None else allowed_W if own_W is None else own_W & allowed_W

    def _row(self, allowed_W: Tensor | None) -> RowSampling:
        from tenth.kernels.cpu.sampling import RowSampling

        options = self.options
        ids_S, counts_S = (self._seen.ids_S, self._seen.counts_S) if _penalises(options) else (_NONE_IDS, _NONE_COUNTS)
        return RowSampling(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            uniform=self._uniform() if options.temperature else 0.0,
            repetition_penalty=self._repetition_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            ids_S=ids_S,
            counts_S=counts_S,
            allowed_W=self._also(allowed_W),
        )

    def _by_torch(self, raw_V: Tensor, logprobs: int | None, allowed_W: Tensor | None) -> Drawn | RequestError:
        if torch.isnan(raw_V).any():
            return _not_numbers()
        logits_V = raw_V.clone()
        logits_V[self._forbidden] = -torch.inf
        if allowed_W is not None:
            logits_V[~allowed_tokens(allowed_W, len(logits_V))] = -torch.inf
        self._penalise(logits_V)
        if not (logits_V > -torch.inf).any():
            return _nothing_left()
        token = int(logits_V.argmax()) if self.options.temperature == 0 else self._random(logits_V)
        if logprobs is None:
            return Drawn(token)
        logprobs_V = torch.log_softmax(_heated(raw_V, 1.0), dim=0)
        values, ids = torch.sort(logprobs_V, descending=True, stable=True)
        top = list(zip(ids[:logprobs].tolist(), values[:logprobs].tolist(), strict=True))
        return Drawn(token, float(logprobs_V[token]), top)

    def _penalise(self, logits_V: Tensor) -> None:
        options, ids_S, counts_S = self.options, self._seen.ids_S.long(), self._seen.counts_S
        known_S = logits_V[ids_S]
        if options.repetition_penalty != 1.0:
            factor = self._repetition_penalty
            known_S = torch.where(known_S > 0, known_S / factor, known_S * factor)
        if options.presence_penalty or options.frequency_penalty:
            known_S -= options.presence_penalty * (counts_S > 0) + options.frequency_penalty * counts_S
        logits_V[ids_S] = known_S

    def _random(self, logits_V: Tensor) -> int:
        p, ids = kept(_heated(logits_V, self.options.temperature), self.options)
        place = int(torch.searchsorted(p.cumsum(0), self._uniform() * p.sum(), right=True))
        return int(ids[min(place, len(ids) - 1)])


def draw_rows(
    samplers: Sequence[Sampler],
    logits_RV: Tensor,
    *,
    logprobs: int | None = None,
    allowed: Sequence[Tensor | None] | None = None,
) -> list[Drawn | RequestError]:
    """One token for each request, which remembers it; an error where the row's logits are NaN or leave no token.

    With `logprobs` the log-probabilities of the token and of so many likeliest ones. `allowed` has a mask (W, int32, a
    bit for each token) for this draw of each, None for all. A row's draw does not depend on the other rows. All
    samplers must be of one vocabulary and one team of threads.
    """
    allowed = allowed or [None] * len(samplers)
    logits_RV = logits_RV.detach().to("cpu", torch.float32).contiguous()
    assert all(sampler._vocab_size == logits_RV.shape[1] for sampler in samplers)
    team = samplers[0]._team if samplers else None
    if team is None:
        rows = zip(samplers, logits_RV, allowed, strict=True)
        drawn = [sampler._by_torch(row_V, logprobs, mask_W) for sampler, row_V, mask_W in rows]
    else:
        drawn = _by_native(team, samplers, logits_RV, logprobs, allowed)
    for sampler, one in zip(samplers, drawn, strict=True):
        if isinstance(one, Drawn):
            sampler.note(one.token)
    return drawn


def _allowed(forbidden: Tensor, vocab_size: int) -> Tensor | None:
    """The mask (W) of all other tokens; None where nothing is forbidden."""
    if not len(forbidden):
        return None
    allowed = np.ones(-(-vocab_size // 32) * 32, dtype=np.bool_)
    allowed[forbidden.numpy()] = False
    return torch.from_numpy(np.packbits(allowed, bitorder="little").view(np.int32))


def _penalises(options: Sampling) -> bool:
    return options.repetition_penalty != 1.0 or bool(options.presence_penalty or options.frequency_penalty)


def _by_native(
    team: _native.Machine,
    samplers: Sequence[Sampler],
    logits_RV: Tensor,
    logprobs: int | None,
    allowed: Sequence[Tensor | None],
) -> list[Drawn | RequestError]:
    from tenth.kernels.cpu.sampling import DrawnRow, Status, sample

    def result(row: DrawnRow) -> Drawn | RequestError:
        if row.status is Status.NOT_NUMBERS:
            return _not_numbers()
        if row.status is Status.NOTHING_LEFT:
            return _nothing_left()
        return Drawn(row.token) if logprobs is None else Drawn(row.token, row.logprob, row.top)

    rows = [sampler._row(mask_W) for sampler, mask_W in zip(samplers, allowed, strict=True)]
    return [result(row) for row in sample(team, logits_RV, rows, logprobs=logprobs)]


def allowed_tokens(allowed_W: Tensor, vocab_size: int) -> Tensor:
    """A mask of words as one of booleans (V)."""
    bits = np.unpackbits(allowed_W.numpy().view(np.uint8), bitorder="little")[:vocab_size]
    return torch.from_numpy(bits.astype(np.bool_))


def _not_numbers() -> RequestError:
    return RequestError("the model's logits are not numbers (NaN): its weights or its precision are at fault")


def _nothing_left() -> RequestError:
    return RequestError("the model's logits leave no token to draw: all are minus infinity")


def _heated(logits_V: Tensor, temperature: float) -> Tensor:
    """Logits over temperature, the highest at 0: neither infinity nor the smallest temperature makes NaN of them."""
    highest = logits_V.max()
    if highest == torch.inf:
        return torch.where(logits_V == torch.inf, 0.0, -torch.inf)
    return (logits_V - highest).double() / temperature


def kept(logits_V: Tensor, options: Sampling) -> tuple[Tensor, Tensor]:
    """Probabilities (float64, likeliest first, not renormalised) and ids of the tokens that may be drawn."""
    count = min(options.top_k or len(logits_V), len(logits_V))
    # all that reach the k-th value, so that ties are cut by id and not by chance; then a sort of these alone
    least = torch.topk(logits_V, count).values[-1] if count < len(logits_V) else -torch.inf
    able = (logits_V >= least).nonzero().flatten()
    top, order = torch.sort(logits_V[able], descending=True, stable=True)
    ids = able[order]
    p = torch.softmax(top[:count].double(), dim=0)
    keep = p > 0
    if options.top_p < 1.0:
        keep &= p.cumsum(0) - p < options.top_p
    if options.min_p > 0.0:
        keep &= p >= options.min_p * p[0]
    keep[0] = True
    return p[keep], ids[:count][keep]
