"""What a machine and a model have room for: pages of keys and values, tokens of an answer."""

from __future__ import annotations

from tenth.engine.captured import Runner
from tenth.engine.generate import check_room
from tenth.engine.request import Request
from tenth.engine.scheduler import Scheduler
from tenth.errors import MachineError, RequestError
from tenth.kernels.contract import KVType
from tenth.model.cache import KVCache, bytes_per_page
from tenth.weights.load import free_bytes


def cache_of(decoder: Runner, pages: int, page_size: int, kv: KVType) -> KVCache:
    """A cache of so many pages; MachineError where they are more than the memory that is free."""
    config, dtype, device, kernels = decoder.config, decoder.dtype, decoder.device, decoder.kernels
    page, free = bytes_per_page(config, page_size, kv, dtype=dtype, kernels=kernels), free_bytes(device)
    needs = f"keys and values of {pages * page_size:,} tokens need {pages * page / 1e9:,.1f} GB"
    if free is not None and pages * page > free:
        right = f"{free / 1e9:,.1f} GB are free, which is {free // page * page_size:,} tokens"
        raise MachineError(f"{needs}, on {device.type} {right}: ask for less room")
    try:
        return KVCache(config, pages, page_size, dtype, device, kernels, kv)
    except (RuntimeError, MemoryError, TypeError, ValueError):  # the last two: a number that nothing can hold
        raise MachineError(f"{needs}, {device.type} does not have them: ask for less room") from None


def room_of(request: Request, decoder: Runner, scheduler: Scheduler) -> int:
    """Tokens that may follow; RequestError where the context or the cache is too small."""
    if request.rolling is None:
        room = check_room(decoder, request.prompt, request.max_tokens)
        scheduler.check(len(request.prompt) + room, request.beams or 1)
        return room
    visible, context = scheduler.visible(request.rolling), decoder.config.context_length
    if visible > context:
        raise RequestError(f"rolling sees {visible} tokens, first page included, the model's context is {context}")
    scheduler.check(min(len(request.prompt) + request.max_tokens, visible), 1)
    return request.max_tokens
