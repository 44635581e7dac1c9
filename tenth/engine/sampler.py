"""From logits to a token: penalties, temperature, top-k, top-p, min-p, in that order, by a seed of the request's own.

V vocabulary.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tenth.errors import RequestError

_SEEDS = 1 << 63
_DRAWN_SEEDS = 1 << 53  # every JSON reader gives such a number back as it was


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
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_p", self.top_p, 0.0, 1.0, above=True)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        _within("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        _whole("top_k", self.top_k, 1 << 31)
        if self.seed is not None:
            _whole("seed", self.seed, _SEEDS - 1)


def _within(name: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (above and value == low):  # NaN is not within anything
        bounds = f"above {low:g}, up to {high:g}" if above else f"between {low:g} and {high:g}"
        raise RequestError(f"{name} is {value!r:.40}, it must lie {bounds}")


def _whole(name: str, value: int, most: int) -> None:
    if type(value) is not int or not 0 <= value <= most:
        raise RequestError(f"{name} is {value!r:.40}, it must be a whole number from 0 to {most}")


class Sampler:
    """The state of one request: what it has seen, and its stream of random numbers.

    RequestError for a prompt with ids outside the vocabulary. Ids in `forbidden` are never drawn.
    """

    def __init__(
        self, options: Sampling, prompt: Sequence[int], vocab_size: int, forbidden: Collection[int] = ()
    ) -> None:
        self.options = options
        self.seed = secrets.randbelow(_DRAWN_SEEDS) if options.seed is None else options.seed
        self._generator = torch.Generator().manual_seed(self.seed)
        for bad in (min(prompt, default=0), max(prompt, default=0)):
            if not 0 <= bad < vocab_size:
                raise RequestError(f"token id {bad} is outside the vocabulary, 0 to {vocab_size - 1}")
        self._prompt_V = torch.zeros(vocab_size, dtype=torch.bool)
        self._prompt_V[torch.tensor(list(prompt), dtype=torch.int64)] = True
        self._counts_V = torch.zeros(vocab_size)
        self._forbidden = torch.tensor(sorted(forbidden), dtype=torch.int64)

    def draw(self, logits_V: Tensor) -> int:
        """Choose the next token and remember it; RequestError where the logits are NaN, or leave no token to draw."""
        logits_V = logits_V.detach().to("cpu", torch.float32, copy=True)
        if torch.isnan(logits_V).any():
            raise RequestError("the model's logits are not numbers (NaN): its weights or its precision are at fault")
        logits_V[self._forbidden] = -torch.inf
        self._penalise(logits_V)
        if not (logits_V > -torch.inf).any():
            raise RequestError("the model's logits leave no token to draw: all are minus infinity")
        token = int(logits_V.argmax()) if self.options.temperature == 0 else self._random(logits_V)
        self._counts_V[token] += 1
        return token

    def _penalise(self, logits_V: Tensor) -> None:
        options = self.options
        if options.repetition_penalty != 1.0:
            seen = self._prompt_V | (self._counts_V > 0)
            known = logits_V[seen]
            factor = options.repetition_penalty
            logits_V[seen] = torch.where(known > 0, known / factor, known * factor)
        if options.presence_penalty or options.frequency_penalty:
            logits_V -= options.presence_penalty * (self._counts_V > 0) + options.frequency_penalty * self._counts_V

    def _random(self, logits_V: Tensor) -> int:
        p, ids = kept(_heated(logits_V, self.options.temperature), self.options)
        u = torch.rand((), generator=self._generator, dtype=torch.float64)
        place = int(torch.searchsorted(p.cumsum(0), u * p.sum(), right=True))
        return int(ids[min(place, len(ids) - 1)])


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
