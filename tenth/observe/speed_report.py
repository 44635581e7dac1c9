"""What `tenth bench` measures and what it finds, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from tenth.engine.sequence import PROMPT_CHUNK
from tenth.errors import RequestError
from tenth.kernels.contract import KVType
from tenth.kernels.cpu.expert_cache import CacheStatistics, ExpertCache
from tenth.model.config import ModelConfig, fitted_limit
from tenth.observe.expert_cache import describe_cache
from tenth.routing.limit import ExpertLimit


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What to measure: a prompt of `prompt` tokens and `generate` steps of decoding, each `repeat` times.

    Both behind each of `depths` earlier tokens, decoding with the smallest of `batches`; with the other batches at the
    smallest depth. `chunk` tokens of a prompt go through the network at once. `kv` is the type of the cache's pages;
    `limit` has fewer experts work on each token.
    RequestError for what cannot be.
    """

    prompt: int = 512
    generate: int = 64
    depths: tuple[int, ...] = (0, 1024, 4096)
    batches: tuple[int, ...] = (1, 4, 8, 16)
    repeat: int = 5
    chunk: int = PROMPT_CHUNK
    kv: KVType = "bf16"
    limit: ExpertLimit | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "generate", "repeat", "chunk"):
            _check_least(1, name, (getattr(self, name),))
        _check_least(0, "depth", self.depths)
        _check_least(1, "batch", self.batches)

    def fit(self, config: ModelConfig) -> None:
        """RequestError where the model's context is too short, or it cannot have the limit."""
        fitted_limit(self.limit, config)
        depth, behind = max(self.depths), max(self.prompt, self.generate)
        if depth + behind > config.context_length:
            raise RequestError(
                f"a depth of {depth} and {behind} tokens behind it do not fit the model's context of "
                f"{config.context_length}: choose a smaller depth, prompt or generate"
            )


def _check_least(least: int, name: str, values: Sequence[int]) -> None:
    if not values or min(values) < least:
        raise RequestError(f"{name} is {', '.join(map(str, values)) or 'empty'}, it must be at least {least}")


@dataclass(frozen=True, slots=True)
class DiskLimit:
    """What a run read from disk where experts are there: medians over its repetitions.

    `gb_s` is what the disk gave, right before, to as many readers of experts at random as the cache has; `fraction` is
    the time that the bytes take at that speed as a share of the time of the run. It exceeds 1 where the disk has become
    faster meanwhile.
    """

    bytes_per_token: float
    gb_s: float
    fraction: float


@dataclass(frozen=True, slots=True)
class Run:
    """One figure: medians over the repetitions, and the range of the speed, which is that of all sequences together.

    `tokens` is how many each sequence was shown. For decoding, of a step: `bytes_per_token` (weights and cache that
    must be read, shared by the sequences), `read_gb_s` (the speed at which a walk reads them) and `bandwidth_fraction`
    (the walk's time as a share of the step's). For a prompt `peak_fraction`: the time that its operations take at the
    machine's peaks, as a share of the time that it took (None under a limit of experts: it is not counted). None is
    what does not apply. Where experts are on disk, `disk` says what came from there; in `bytes_per_token` all bytes
    count, as if they were in memory.
    """

    kind: Literal["prefill", "decode"]
    tokens: int
    depth: int
    batch: int
    tok_s: float
    tok_s_min: float
    tok_s_max: float
    bytes_per_token: float | None = None
    read_gb_s: float | None = None
    bandwidth_fraction: float | None = None
    peak_fraction: float | None = None
    disk: DiskLimit | None = None


@dataclass(frozen=True, slots=True)
class CacheReport:
    """A cache of experts: how many it holds, of how many, the bytes of it, what it did, and that as text."""

    slots: int
    experts: int
    nbytes: int
    statistics: CacheStatistics
    text: str

    @classmethod
    def of(cls, cache: ExpertCache) -> Self:
        """What a cache has done so far."""
        now = cache.statistics
        return cls(cache.slots, cache.experts, cache.slots * cache.slot_bytes, now, describe_cache(cache, now))


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All figures of a model. GB are 10^9 bytes; GOPS 10^9 operations a second of all threads, an addition is one.

    `first_token_s` begins with the loading and ends with the logits behind one token. `rss_gb` is the most memory that
    was resident, mapped weights included. `kv` is the type of the cache's pages. `float_gops` is the better of bfloat16
    and float32. `disk_gb_s` and `expert_cache` are there where experts are on disk: what their cache did while
    everything was measured. None is what does not apply, or what this system does not say.
    """

    model: str
    backend: str
    kv: KVType
    load_s: float
    first_token_s: float
    rss_gb: float | None
    weights_gb: float
    bits_per_weight: float
    read_gb_s: float | None
    disk_gb_s: float | None
    int8_gops: float | None
    float_gops: float | None
    runs: list[Run]
    expert_cache: CacheReport | None = None
