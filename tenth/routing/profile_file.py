"""A routing profile as one file: safetensors, whose metadata names the model, the domains and the version.

`docs/profile.md` describes it. L sparse layers, E experts, B blocks.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tenth.errors import FileFormatError, RequestError
from tenth.files import write_whole
from tenth.routing.counts import RoutingCounts
from tenth.routing.profile import Block, OutputSums, ProfiledModel, RoutingProfile

FORMAT = "tenth-routing-profile"
VERSION = 2
_MOST_HEADER = 1 << 24  # bytes

Arrays = dict[str, npt.NDArray[Any]]


def to_bytes(profile: RoutingProfile, progress: dict[str, Any] | None = None) -> bytes:
    """The file's content; `progress` is kept beside, for who goes on with an unfinished one."""
    from safetensors.numpy import save

    counts, outputs = profile.counts, profile.outputs
    keys = sorted(profile.blocks)
    none_BLE = np.zeros((0, *counts.counts_LE.shape), np.int64)
    arrays: Arrays = {
        "counts": counts.counts_LE,
        "gates": counts.gates_LE,
        "router_entropy": counts.entropy_L,
        "broken": counts.broken_L,
        "judged": counts.judged_L,
        "pairs": profile.pairs_LEE,
        "blocks": np.stack([profile.blocks[key].counts_LE for key in keys]) if keys else none_BLE,
        "extremes": profile.extremes_L,
    }
    if outputs is not None:
        arrays |= {
            "output_counts": outputs.counts_LE,
            "output_norms": outputs.norms_LE,
            "output_saliency": outputs.saliency_LE,
            "output_peaks": outputs.peaks_LE,
        }
    head = {
        "version": VERSION,
        "model": asdict(profile.model),
        "tokens": counts.tokens,
        "blocks": [[domain, number, profile.blocks[domain, number].tokens] for domain, number in keys],
    }
    if progress is not None:
        head["progress"] = progress
    metadata = {"format": FORMAT, "profile": json.dumps(head)}
    written: bytes = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata)
    return written


def write_profile(profile: RoutingProfile, path: Path, progress: dict[str, Any] | None = None) -> None:
    """Write a file, all or nothing: one that is there is replaced. MachineError where the disk refuses."""
    write_whole(path, to_bytes(profile, progress))


def read_profile(path: Path) -> RoutingProfile:
    """A profile that was written whole.

    RequestError where the file cannot be read or is unfinished, FileFormatError where it is no profile or a broken one.
    """
    profile, progress = read_unfinished(path)
    if progress is not None:
        raise RequestError(f"{path}: is unfinished: `tenth profile` goes on with it")
    return profile


def read_unfinished(path: Path) -> tuple[RoutingProfile, dict[str, Any] | None]:
    """A profile and how far its writer had come, None where it is whole. Errors: as `read_profile`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None
    return from_bytes(data, str(path))


def is_profile(path: Path) -> bool:
    """Whether a file calls itself a routing profile."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return size < _MOST_HEADER and f'"format":"{FORMAT}"'.encode() in file.read(size)
    except OSError:
        return False


def from_bytes(data: bytes, where: str) -> tuple[RoutingProfile, dict[str, Any] | None]:
    """A file's content; FileFormatError, which begins with `where`, for all but a profile that agrees with itself."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        head = json.loads(metadata["profile"]) if metadata.get("format") == FORMAT else None
        arrays: Arrays = load(data) if head is not None else {}
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
        head = None
    if not isinstance(head, dict):
        raise FileFormatError(f"{where}: is no routing profile, or a broken one")
    if head.get("version") != VERSION:
        raise FileFormatError(
            f"{where}: is a routing profile of version {head.get('version')!r:.20}, this reads {VERSION}"
        )
    try:
        return _profile(head, arrays), head.get("progress")
    except _Wrong as wrong:
        raise FileFormatError(f"{where}: is a broken routing profile: {wrong}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FileFormatError(
            f"{where}: is a broken routing profile: {str(error)[:80] or type(error).__name__}"
        ) from None


class _Wrong(Exception):
    """What does not agree."""


def _profile(head: dict[str, Any], arrays: Arrays) -> RoutingProfile:
    model = _model(head["model"])
    shape = len(model.layers), model.experts
    parts = [(str(domain), int(number), _whole(tokens)) for domain, number, tokens in head["blocks"]]
    for name, array in arrays.items():
        _check(name, array, shape, len(parts))
    counts = RoutingCounts(
        model.layers,
        arrays["counts"],
        arrays["gates"],
        arrays["router_entropy"],
        arrays["broken"],
        arrays["judged"],
        _whole(head["tokens"]),
    )
    blocks = {
        (domain, number): Block(tokens, counts_LE)
        for (domain, number, tokens), counts_LE in zip(parts, arrays["blocks"], strict=True)
    }
    if (
        not (arrays["blocks"].sum(0) == counts.counts_LE).all()
        or sum(b.tokens for b in blocks.values()) != counts.tokens
    ):
        raise _Wrong("its blocks do not sum to its counts")
    if len(blocks) != len(parts) or any((block.counts_LE > block.tokens).any() for block in blocks.values()):
        raise _Wrong("a block is there twice, or has more assignments of an expert than tokens")
    if (np.diagonal(arrays["pairs"], axis1=1, axis2=2) != counts.counts_LE).any():
        raise _Wrong("its pairs do not agree with its counts")
    outputs = None
    if "output_counts" in arrays:
        outputs = OutputSums(*(arrays[f"output_{part}"] for part in ("counts", "norms", "saliency", "peaks")))
    return RoutingProfile(model, counts, arrays["pairs"], blocks, outputs, arrays["extremes"])


def _whole(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise _Wrong(f"it counts {value!r:.20} tokens")
    return value


def _model(raw: dict[str, Any]) -> ProfiledModel:
    model = ProfiledModel(
        str(raw["name"]),
        str(raw["version"]),
        tuple(int(layer) for layer in raw["layers"]),
        int(raw["experts"]),
        int(raw["top_k"]),
        "sigmoid" if raw["score"] == "sigmoid" else "softmax",
    )
    if not 1 <= model.top_k <= model.experts or not model.layers:
        raise _Wrong(f"it names {model.experts} experts, {model.top_k} at work, {len(model.layers)} layers")
    return model


def _check(name: str, array: npt.NDArray[Any], shape: tuple[int, int], blocks: int) -> None:
    layers, experts = shape
    int64, float64, float32 = np.dtype(np.int64), np.dtype(np.float64), np.dtype(np.float32)
    expected = {
        "counts": (shape, int64),
        "gates": (shape, float64),
        "router_entropy": ((layers,), float64),
        "broken": ((layers,), int64),
        "judged": ((layers,), int64),
        "pairs": ((layers, experts, experts), int64),
        "blocks": ((blocks, *shape), int64),
        "extremes": ((layers,), float32),
        "output_counts": (shape, int64),
        "output_norms": (shape, float64),
        "output_saliency": (shape, float64),
        "output_peaks": (shape, float32),
    }.get(name)
    if expected is None:
        raise _Wrong(f"it has a tensor {name!r:.40}, which has no meaning here")
    if (array.shape, array.dtype) != expected:
        raise _Wrong(f"{name} is {array.dtype} {array.shape}, it must be {expected[1]} {expected[0]}")
    if array.dtype == int64 and (array < 0).any():
        raise _Wrong(f"{name} has a negative count")
    if array.dtype == float64 and not np.isfinite(array).all():
        raise _Wrong(f"{name} has values that are no numbers")
