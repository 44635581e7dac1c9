"""Shows a model text and sums up what its routers decided: an offline routing profile.

T tokens of a batch, D model width.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tenth.errors import RequestError
from tenth.files import check_new_file
from tenth.model.batch import Batch, Want
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder, LayerResult
from tenth.model.version import version_of
from tenth.observe.corpora import Ids, Progress, TextIds, WatchedText, check_ids
from tenth.routing.profile import BLOCKS, ProfiledModel, RoutingProfile, Span
from tenth.routing.profile_file import read_unfinished, write_profile
from tenth.routing.record import LayerRouting

_SAVE_S = 60.0  # between two savings of an unfinished profile


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """Windows of `context` tokens, `tokens` of each domain at most (None: all), `batch` tokens at once.

    `outputs`: the outputs of experts are measured too.
    """

    context: int = 2048
    tokens: int | None = None
    batch: int = 2048
    outputs: bool = True

    def __post_init__(self) -> None:
        for name in ("context", "tokens", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} is {value}, it must be at least 1")


def profiled_model(decoder: Decoder, name: str) -> ProfiledModel:
    """Whose routers a profile of this decoder tells of; RequestError for a dense model."""
    return profiled_shape(decoder.config, name, version_of(decoder))


def profiled_shape(config: ModelConfig, name: str, version: str) -> ProfiledModel:
    """The same by a config; RequestError where it has no sparse layer."""
    moe = config.moe
    if moe is None or not config.sparse_layers:
        raise RequestError(f"{name}: has no experts: a routing profile is of a mixture of experts")
    return ProfiledModel(name, version, config.sparse_layers, moe.num_experts, moe.top_k, moe.rule.score)


@dataclass(frozen=True, slots=True)
class Part:
    """A window of a document's token ids. `read`: bytes of all files up to the document's end."""

    ids: Ids
    domain: str
    block: int = 0
    read: int = 0


class Profiler:
    """Adds what a decoder does with text to `profile`."""

    def __init__(self, decoder: Decoder, name: str, *, outputs: bool = True) -> None:
        self.profile = RoutingProfile.empty(profiled_model(decoder, name))
        self.vocabulary = decoder.config.vocab_size
        self._decoder, self._outputs = decoder, outputs
        self._layers = {layer: at for at, layer in enumerate(decoder.config.sparse_layers)}

    @property
    def computed(self) -> str:
        """What the numbers depend on beside the weights: kernels, type, device."""
        decoder = self._decoder
        return f"{type(decoder.kernels).__name__} {decoder.dtype} {decoder.device}"

    @torch.inference_mode()
    def show(self, parts: Sequence[Part]) -> None:
        """Run windows as one batch."""
        batch = Batch.of([part.ids for part in parts], device=self._decoder.device)
        want = Want(logits="none", routing="outputs" if self._outputs else "full")
        output = self._decoder(batch, want=want, run=self._run)
        assert output.routing is not None
        spans = [
            Span(begin, end, part.domain, part.block)
            for part, (begin, end) in zip(parts, pairwise(batch.bounds), strict=True)
        ]
        self.profile.take(output.routing, spans)

    def _run(
        self,
        index: int,
        layer: Callable[[Tensor, LayerRouting | None], LayerResult],
        x_TD: Tensor,
        replay: LayerRouting | None,
    ) -> LayerResult:
        y_TD, decided = layer(x_TD, replay)
        if index in self._layers:
            least, most = (float(edge) for edge in y_TD.aminmax())
            largest = max(-least, most)
            extremes_L = self.profile.extremes_L
            at = self._layers[index]
            extremes_L[at] = max(extremes_L[at], largest) if np.isfinite(largest) else np.inf
        return y_TD, decided


def profile_text(
    profiler: Profiler,
    text: WatchedText,
    ids_of: TextIds,
    out: Path,
    options: ProfileOptions | None = None,
    progress: Progress | None = None,
) -> RoutingProfile:
    """Show a model all text and write its profile to `out`; progress is in bytes of the files.

    What is done is saved every minute beside `out` (`.partial`), and gone on with by the next call with the same
    model, text and options. RequestError where `out` is there already or the text has no token.
    """
    options = options or ProfileOptions()
    check_new_file(out)
    partial, key = out.with_name(out.name + ".partial"), _key(profiler, text, ids_of, options)
    done = shown = _resume(profiler, partial, key)
    saved = time.monotonic()
    parts = _parts(text, ids_of, profiler.vocabulary, options)
    for batch in batches(islice(parts, done, None), options.batch):
        profiler.show(batch)
        shown += len(batch)
        if progress is not None:
            progress(batch[-1].read, sum(text.sizes))
        if time.monotonic() - saved > _SAVE_S:
            write_profile(profiler.profile, partial, {"key": key, "windows": shown})
            saved = time.monotonic()
    if not profiler.profile.counts.tokens:
        raise RequestError(
            f"{', '.join(source.path for source in text.sources)}: has no text: there is nothing to profile"
        )
    write_profile(profiler.profile, out)
    partial.unlink(missing_ok=True)
    return profiler.profile


def _key(profiler: Profiler, text: WatchedText, ids_of: TextIds, options: ProfileOptions) -> str:
    limits = [options.context, options.tokens, options.outputs]
    decided = [profiler.profile.model.version, profiler.computed, text.stamp, ids_of.stamp, limits]
    return hashlib.blake2b(json.dumps(decided).encode(), digest_size=16).hexdigest()


def _resume(profiler: Profiler, partial: Path, key: str) -> int:
    """Take over what was done before; how many documents that were."""
    if not partial.exists():
        return 0
    profile, progress = read_unfinished(partial)
    if progress is None or progress.get("key") != key:
        raise RequestError(f"{partial}: was begun with another model, text or option; remove it to begin anew")
    profiler.profile.add(profile)
    return int(progress["windows"])


def _parts(text: WatchedText, ids_of: TextIds, vocabulary: int, options: ProfileOptions) -> Iterator[Part]:
    """Windows of all documents in order, as far as their domains' limits go."""
    taken = Counter[str]()
    for document in text.documents(ids_of, vocabulary):
        left = None if options.tokens is None else options.tokens - taken[document.domain]
        if left == 0:
            continue
        ids = document.ids()[:left]
        check_ids(ids, vocabulary, document.where)
        taken[document.domain] += len(ids)
        block = _block(ids)
        for at in range(0, len(ids), options.context):
            yield Part(ids[at : at + options.context], document.domain, block, document.read)
        if all(taken[source.default_domain] == options.tokens for source in text.sources):
            return


def batches(parts: Iterable[Part], most: int) -> Iterator[list[Part]]:
    """As many windows together as have `most` tokens, or one that has more."""
    batch, tokens = list[Part](), 0
    for part in parts:
        if batch and tokens + len(part.ids) > most:
            yield batch
            batch, tokens = [], 0
        batch.append(part)
        tokens += len(part.ids)
    if batch:
        yield batch


def _block(ids: Ids) -> int:
    """Which of its domain's blocks a document is counted in: the same one wherever it is read again."""
    return int.from_bytes(hashlib.blake2b(np.array(ids, np.int64).tobytes(), digest_size=4).digest(), "little") % BLOCKS
