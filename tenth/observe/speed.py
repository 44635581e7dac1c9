"""How fast a model runs here, beside what the machine could do at most: the measuring behind `tenth bench`.

Every repetition has its limit measured beside it, because memory and clocks of shared machines change within seconds:
between the steps of decoding, walks read the bytes of such steps without computing, and before each prompt the peaks
of integer and float products are measured.

B sequences, T tokens of each, G steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tenth.kernels.choice import choose_kernels, describe
from tenth.model.decoder import Decoder
from tenth.observe.sequences import Sequences
from tenth.observe.speed_report import BenchReport, BenchSettings, CacheReport, DiskLimit, Run
from tenth.observe.step_limits import prefill_work, read_step
from tenth.weights.budget import expert_cache
from tenth.weights.checkpoint import Checkpoint, open_checkpoint
from tenth.weights.load import load_decoder

if TYPE_CHECKING:
    from tenth.kernels.cpu import _native
    from tenth.kernels.cpu.expert_cache import ExpertCache
    from tenth.kernels.cpu.limits import Peaks, StepWalk

Progress = Callable[[int, int], None]

_WALKS = 8  # of a decode run: so many of its steps have their bytes walked
_PEAK_SECONDS = 0.01  # for each kind of product
_DISK_SECONDS = 0.3  # of reads at random


def measure(
    path: Path,
    settings: BenchSettings,
    *,
    backend: str = "auto",
    threads: int | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Load a model (within `memory` bytes, where they are said) and measure it on random tokens.

    `progress` is told the repetitions done, of how many.
    """
    start = time.perf_counter()
    with open_checkpoint(path) as checkpoint:
        settings.fit(checkpoint.config)
        kernels = choose_kernels(
            backend, packed=checkpoint.packed is not None, head_dim=checkpoint.config.head_dim, threads=threads
        )
        decoder = load_decoder(checkpoint, kernels=kernels, memory=memory)
        nbytes = _weight_bytes(checkpoint, decoder)
    loaded = time.perf_counter()
    Sequences(decoder, 1, 1).show(torch.zeros(1, 1, dtype=torch.int64), 0)
    first = time.perf_counter()
    bench = _Bench(decoder, settings, progress)
    runs = bench.runs()
    cache = expert_cache(decoder)
    return BenchReport(
        model=str(path),
        backend=describe(kernels),
        kv=settings.kv,
        load_s=loaded - start,
        first_token_s=first - start,
        rss_gb=_resident_gb(),
        weights_gb=nbytes / 1e9,
        bits_per_weight=nbytes * 8 / decoder.config.parameters.total,
        read_gb_s=_median([run.read_gb_s for run in runs if run.read_gb_s is not None]),
        disk_gb_s=_median([run.disk.gb_s for run in runs if run.disk is not None]),
        int8_gops=_median([peaks.integer / 1e9 for peaks in bench.peaks]),
        float_gops=_median([peaks.floating / 1e9 for peaks in bench.peaks]),
        runs=runs,
        expert_cache=None if cache is None else CacheReport.of(cache),
    )


def _weight_bytes(checkpoint: Checkpoint, decoder: Decoder) -> int:
    if checkpoint.packed is not None:
        return checkpoint.packed.index.nbytes
    return sum(parameter.nbytes for parameter in decoder.parameters())


def _resident_gb() -> float | None:
    """The most that has been resident so far."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return None
    sizes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return sizes[0] * 1024 / 1e9 if sizes else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


class _Disk:
    """What repetitions read from disk, if experts are there, beside what the disk gave right before each."""

    def __init__(self, cache: ExpertCache | None) -> None:
        self._cache = cache
        self._bytes: list[float] = []
        self._speeds: list[float] = []
        self._fractions: list[float] = []

    def begin(self) -> None:
        """A repetition follows."""
        if self._cache is not None:
            self._speeds.append(self._cache.disk_speed(_DISK_SECONDS))
            self._before = self._cache.statistics.bytes_read

    def end(self, seconds: float) -> None:
        """It took so long."""
        if self._cache is not None:
            self._bytes.append(self._cache.statistics.bytes_read - self._before)
            self._fractions.append(self._bytes[-1] / self._speeds[-1] / seconds)

    def limit(self, tokens: int) -> DiskLimit | None:
        """Medians, of repetitions of so many tokens; None where no experts are on disk."""
        if self._cache is None:
            return None
        bytes_, speed, fraction = map(statistics.median, (self._bytes, self._speeds, self._fractions))
        return DiskLimit(bytes_ / tokens, speed / 1e9, fraction)


class _Bench:
    """The runs of one model. `peaks` are the machine's, one for each prompt that was measured."""

    def __init__(self, decoder: Decoder, settings: BenchSettings, progress: Progress | None) -> None:
        self._decoder, self._settings, self._progress = decoder, settings, progress
        self._machine: _native.Machine | None = getattr(decoder.kernels, "machine", None)
        self._cache = expert_cache(decoder)
        self._generator = torch.Generator().manual_seed(0)
        self._depths, self._batches = sorted(set(settings.depths)), sorted(set(settings.batches))
        self._done, self._total = 0, (2 * len(self._depths) + len(self._batches) - 1) * (settings.repeat + 1)
        self.peaks: list[Peaks] = []

    def runs(self) -> list[Run]:
        """Prompts, then decoding, at all depths; then the other batches."""
        first, depths = self._batches[0], self._depths
        runs = list(self._stage(1, depths, prefill=True, decode=first == 1))
        for batch in self._batches:
            if batch > 1:
                runs += self._stage(batch, depths if batch == first else depths[:1], prefill=False, decode=True)
        return sorted(runs, key=lambda run: run.kind == "decode")

    def _stage(self, batch: int, depths: Sequence[int], *, prefill: bool, decode: bool) -> Iterator[Run]:
        """What is measured with one number of sequences, in one cache that goes when it is done."""
        s = self._settings
        behind = max(s.prompt if prefill else 0, s.generate if decode else 0)
        sequences = Sequences(self._decoder, batch, depths[-1] + behind, s.kv, s.limit)
        filled = 0
        for depth in depths:
            sequences.fill(self._tokens(batch, depth - filled), filled, s.chunk)
            filled = depth
            if prefill:
                yield self._prefill(sequences, depth)
            if decode:
                yield self._decode(sequences, depth)

    def _tokens(self, count: int, length: int) -> Tensor:
        return torch.randint(self._decoder.config.vocab_size, (count, length), generator=self._generator)

    def _prefill(self, sequences: Sequences, depth: int) -> Run:
        s, seconds, fractions = self._settings, [], []
        disk = _Disk(self._cache)
        tokens_1T = self._tokens(1, s.prompt)
        sequences.fill(tokens_1T, depth, s.chunk)
        self._count()
        for _ in range(s.repeat):
            peaks = self._measured_peaks()
            disk.begin()
            start = time.perf_counter()
            sequences.fill(tokens_1T, depth, s.chunk)
            seconds.append(time.perf_counter() - start)
            disk.end(seconds[-1])
            if peaks is not None and s.limit is None:
                fractions.append(prefill_work(self._decoder, s.prompt, depth).seconds(peaks) / seconds[-1])
            self._count()
        speeds = [s.prompt / took for took in seconds]
        return Run(
            "prefill",
            s.prompt,
            depth,
            1,
            *_spread(speeds),
            peak_fraction=_median(fractions),
            disk=disk.limit(s.prompt),
        )

    def _measured_peaks(self) -> Peaks | None:
        if self._machine is None:
            return None
        from tenth.kernels.cpu.limits import Peaks

        self.peaks.append(Peaks.measured(self._machine, _PEAK_SECONDS))
        return self.peaks[-1]

    def _decode(self, sequences: Sequences, depth: int) -> Run:
        s, batch = self._settings, sequences.count
        tokens_BG = self._tokens(batch, s.generate)
        walks = self._walks(sequences, tokens_BG, depth)
        nbytes = _median([walk.nbytes for walk in walks.values()])
        speeds, rates, fractions, disk = [], [], [], _Disk(self._cache)
        for _ in range(s.repeat):
            disk.begin()
            steps, walked = _decode_once(sequences, tokens_BG, depth, walks)
            disk.end(steps * s.generate)
            speeds.append(batch / steps)
            if nbytes is not None and walked is not None:
                rates.append(nbytes / walked / 1e9)
                fractions.append(walked / steps)
            self._count()
        return Run(
            "decode",
            s.generate,
            depth,
            batch,
            *_spread(speeds),
            bytes_per_token=None if nbytes is None else nbytes / batch,
            read_gb_s=_median(rates),
            bandwidth_fraction=_median(fractions),
            disk=disk.limit(s.generate * batch),
        )

    def _walks(self, sequences: Sequences, tokens_BG: Tensor, depth: int) -> dict[int, StepWalk]:
        """A first pass that is not measured; walks over what some of its steps have read, by their number."""
        steps = tokens_BG.shape[1]
        marks = set() if self._machine is None else {steps * i // _WALKS for i in range(_WALKS)}
        walks = {}
        for step in range(steps):
            now = (tokens_BG[:, step : step + 1], depth + step)
            sequences.show(*now)
            if step in marks:
                walks[step] = self._walk(sequences, *now)
        self._count()
        return walks

    def _walk(self, sequences: Sequences, tokens_B1: Tensor, at: int) -> StepWalk:
        """What a step reads, by the routing of the step itself: it is run once more and changes nothing."""
        from tenth.kernels.cpu.limits import StepWalk

        assert self._machine is not None
        routing = sequences.show(tokens_B1, at, "choice").routing
        assert routing is not None
        walk = StepWalk(self._machine)
        read_step(walk, self._decoder, routing, sequences.cache, at + 1)
        return walk

    def _count(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _decode_once(
    sequences: Sequences, tokens_BG: Tensor, depth: int, walks: dict[int, StepWalk]
) -> tuple[float, float | None]:
    """Mean seconds of a step, and of the walks between them.

    A walk reads the bytes of another step, which are as far from the processor as those that the next step will need.
    """
    steps, walked, order = [], [], list(walks)
    for step in range(tokens_BG.shape[1]):
        start = time.perf_counter()
        sequences.show(tokens_BG[:, step : step + 1], depth + step)
        steps.append(time.perf_counter() - start)
        if step in walks:
            other = order[(order.index(step) + len(order) // 2) % len(order)]
            walked.append(walks[other].run())
    return statistics.mean(steps), statistics.mean(walked) if walked else None


def _spread(speeds: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(speeds), min(speeds), max(speeds)
