"""What a cache of experts did, in one line."""

from __future__ import annotations

from tenth.kernels.cpu.expert_cache import CacheStatistics, ExpertCache


def describe_cache(cache: ExpertCache, statistics: CacheStatistics) -> str:
    """Its size, how often experts were there, what was read, how long steps waited, how right predictions were."""
    size = cache.slots * cache.slot_bytes / 1e9
    parts = [
        f"{cache.slots:,} of {cache.experts:,} experts in memory ({size:.2f} GB)",
        f"{statistics.hit_rate:.1%} there when asked for",
        f"{statistics.bytes_read / 1e9:.2f} GB read in {statistics.reads:,}",
        f"{statistics.stalled_seconds:.2f} s waited",
    ]
    if statistics.right_rate is not None:
        parts.append(f"{statistics.right_rate:.0%} of predictions right")
    if cache.indirect:
        parts.append(f"slower, {cache.indirect}")
    return " · ".join(parts)
