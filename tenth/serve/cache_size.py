"""How much room a server gives to keys and values."""

from __future__ import annotations

from tenth.api.model import Model
from tenth.engine.engine import EngineOptions
from tenth.engine.scheduler import SchedulerOptions
from tenth.model.cache import bytes_per_page
from tenth.weights.load import free_bytes

_EACH = 16 << 10  # tokens for each sequence at work, and of this a share of what is free
_SHARE = 4


def cache_options(model: Model, memory: int | None, sequences: int, context: int | None) -> EngineOptions:
    """Options of an engine for so many sequences at once.

    `memory` is what keys and values may take, in bytes. Where it is not said: 16,384 tokens a sequence, or its whole
    context where that is shorter, but no more than a quarter of the memory that is free. RequestError where there is no
    room for a page.
    """
    decoder = model.decoder
    options = EngineOptions(scheduler=SchedulerOptions(sequences=sequences), kv=model.kv)
    if memory is not None:
        return options.within(memory, decoder)
    size = options.page_size
    each = min(_EACH, context or _EACH, model.config.context_length)
    page = bytes_per_page(decoder.config, size, model.kv, dtype=decoder.dtype, kernels=decoder.kernels)
    free = free_bytes(decoder.device)
    wanted = sequences * -(-each // size) * page
    longest = -(-min(context or each, model.config.context_length) // size) * page  # one request must fit
    return options.within(max(min(wanted, (free or wanted * _SHARE) // _SHARE), longest), decoder)
