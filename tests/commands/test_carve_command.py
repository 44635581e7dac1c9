"""`tenth carve`: into a folder, into a small file, and back."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from tenth.commands import app
from tenth.commands.carve_command import command
from tenth.model.batch import Batch
from tenth.train.carve import CarveOptions
from tenth.train.low_rank import LowRankOptions, attach, merge
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.save import save_model
from tests.api.tiny import tiny_tokenizer
from tests.train.dense import tiny_dense

TEXT = "The quick brown fox jumps over the lazy dog. " * 200
SHAPE = ("--experts", "12", "--shared", "3", "--top-k", "6")


def _invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "80"})


def _done(*arguments: str | Path) -> str:
    done = _invoke(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def _refused(words: str, *arguments: str | Path) -> None:
    done = _invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert words in done.stderr.rstrip("\n").split("\n")[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, text, and the model carved."""
    folder = tmp_path_factory.mktemp("carve")
    tokenizer = tiny_tokenizer(folder)
    save_model(tiny_dense(torch.float32, vocab_size=512), folder / "dense", tokenizer=tokenizer)
    (folder / "text.txt").write_text(TEXT)
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": TEXT[:500]}) + "\n" for _ in range(9)))
    out = _done(
        "carve", folder / "dense", folder / "carved", *SHAPE,
        "--calibrate", folder / "text.txt", "--calibrate", folder / "lines.jsonl",
    )  # fmt: skip
    assert "75.0% of feed-forward neurons); 3 shared and 6 of 9 experts of width 8 a token; model_type tenth" in out
    lines = out.splitlines()
    assert len(lines) == 2 + 3
    assert 0 < float(lines[2].split()[1]) <= 1
    return folder


def test_what_is_carved_loads_with_its_tokenizer(folder: Path) -> None:
    with open_checkpoint(folder / "carved") as checkpoint:
        moe = checkpoint.config.moe
        assert moe is not None
        assert (moe.num_experts, moe.top_k, moe.shared_intermediate_size, moe.routed_scale) == (9, 6, 24, 6.0)
        assert checkpoint.tokenizer().encode("fox") == tiny_tokenizer(folder).encode("fox")


def test_a_carved_folder_is_rebuilt_from_its_small_file(folder: Path, tmp_path: Path) -> None:
    small = folder / "carved" / "carving.safetensors"
    _done("carve", folder / "dense", tmp_path / "again", "--from", small)
    with open_checkpoint(folder / "carved") as one, open_checkpoint(tmp_path / "again") as other:
        values = load_decoder(one, dtype=torch.bfloat16).state_dict()
        assert all(torch.equal(values[name], part) for name, part in load_decoder(other).state_dict().items())


def test_a_healed_model_becomes_a_small_file(folder: Path, tmp_path: Path) -> None:
    with open_checkpoint(folder / "carved") as checkpoint:
        healed = attach(load_decoder(checkpoint), LowRankOptions(2, 4))
        for name, parameter in healed.named_parameters():
            if "outer" in name:
                parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
        save_model(merge(healed), tmp_path / "healed", tokenizer=checkpoint.tokenizer())
    out = _done(
        "carve", folder / "carved", tmp_path / "small", "--healed", tmp_path / "healed", "--rank", 2, "--shared-rank", 4
    )
    assert out.startswith(f"{tmp_path / 'small'}: 0.0")
    _done("carve", folder / "dense", tmp_path / "again", "--from", tmp_path / "small")
    batch = Batch.of([list(range(40))])
    with open_checkpoint(tmp_path / "again") as checkpoint, torch.no_grad():
        rebuilt = load_decoder(checkpoint, dtype=torch.float32)(batch).logits_NV
        wanted = healed(batch).logits_NV
    with open_checkpoint(folder / "carved") as checkpoint, torch.no_grad():
        before = load_decoder(checkpoint)(batch).logits_NV
    assert (rebuilt - wanted).std() < 0.3 * (before - wanted).std()
    ranks = ("--healed", tmp_path / "healed", "--rank", 2, "--shared-rank", 4)
    _refused(
        "top_k is 10, it must lie between 1 and the 9",
        "carve",
        folder / "carved",
        tmp_path / "x",
        *ranks,
        "--top-k",
        10,
    )
    _done("carve", folder / "carved", tmp_path / "more", *ranks, "--top-k", 8)
    assert "3 shared and 8 of 9 experts" in _done(
        "carve", folder / "dense", tmp_path / "m", "--from", tmp_path / "more"
    )


def test_what_a_small_file_does_not_hold_is_refused(folder: Path, tmp_path: Path) -> None:
    with open_checkpoint(folder / "carved") as checkpoint:
        tokenizer = checkpoint.tokenizer()
        healed = attach(load_decoder(checkpoint, dtype=torch.float32), LowRankOptions(6, 4))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in healed.named_parameters():
            if "outer" in name:
                parameter.data.normal_(0, 0.05, generator=generator)
        save_model(merge(healed), tmp_path / "rank6", tokenizer=tokenizer)
        other = load_decoder(checkpoint, dtype=torch.float32)
        other.embedding.dense().data.add_(0.1)
        save_model(other, tmp_path / "other", tokenizer=tokenizer)
    ranks = ("--rank", 2, "--shared-rank", 4)
    small, carved = tmp_path / "small", folder / "carved"
    _refused("layer 0: rank 2 keeps", "carve", carved, small, "--healed", tmp_path / "rank6", *ranks)
    _refused("has changed in healing", "carve", carved, small, "--healed", tmp_path / "other", *ranks)
    assert not small.exists()
    _done("carve", carved, small, "--healed", tmp_path / "rank6", "--rank", 6, "--shared-rank", 4)


def test_training_heals_and_the_small_file_keeps_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "heal.toml").write_text(f"""
        [model]
        from = "{folder / "carved"}"
        [run]
        out = "{tmp_path / "run"}"
        threads = 1
        export_dtype = "float32"
        [distill]
        teacher = "{folder / "dense"}"
        [low_rank]
        rank = 2
        shared_rank = 4
        [[source]]
        path = "{folder / "text.txt"}"
        [[stage]]
        steps = 16
        length = 64
        rows = 4
        [optimizer]
        lr = 1e-2
        router_lr = 2e-6
        weight_decay = 0.0
        [precision]
        compute = "float32"
        [log]
        tensorboard = false
    """)
    _done("train", tmp_path / "heal.toml", "--quiet")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    divergences = [line["kl"] for line in lines if "kl" in line]
    assert len(divergences) == 16
    assert divergences[-1] < 0.8 * divergences[0]
    healed, small = tmp_path / "run" / "model", tmp_path / "small"
    _done("carve", folder / "carved", small, "--healed", healed, "--rank", 2, "--shared-rank", 4)
    _done("carve", folder / "dense", tmp_path / "again", "--from", small)
    batch = Batch.of([tiny_tokenizer(folder).encode(TEXT[:450])])
    with torch.no_grad():
        logits = {}
        paths = {"dense": folder / "dense", "carved": folder / "carved", "healed": healed, "again": tmp_path / "again"}
        for name, path in paths.items():
            with open_checkpoint(path) as checkpoint:
                logits[name] = load_decoder(checkpoint, dtype=torch.float32)(batch).logits_NV.log_softmax(-1)
    kl = {name: float((logits["dense"].exp() * (logits["dense"] - its)).sum(-1).mean()) for name, its in logits.items()}
    assert kl["healed"] < 0.95 * kl["carved"], kl
    assert kl["again"] < kl["carved"], kl  # in bfloat16, which costs a part of it


def test_a_pruned_model_stays_dense(folder: Path, tmp_path: Path) -> None:
    out = _done(
        "carve", folder / "dense", tmp_path / "pruned", *SHAPE, "--split", "prune", "--calibrate", folder / "text.txt"
    )
    assert "dense layers of width 72; model_type qwen3" in out
    with open_checkpoint(tmp_path / "pruned") as checkpoint:
        assert checkpoint.config.intermediate_size == 72


def test_refusals(folder: Path, tmp_path: Path) -> None:
    dense, carved, out = folder / "dense", folder / "carved", tmp_path / "out"
    _refused("must divide the dense width 96", "carve", dense, out, "--experts", 7, "--shared", 1, "--top-k", 2)
    _refused("3 sparse layers already", "carve", carved, out, *SHAPE)
    _refused("split is 'best'", "carve", dense, out, *SHAPE, "--split", "best")
    _refused("top_k is 10, it must lie between 1 and the 9", "carve", dense, out, *SHAPE[:4], "--top-k", 10)
    _refused("is neither a file, nor a folder", "carve", dense, out, *SHAPE, "--calibrate", folder / "none")
    _refused("tokens is 0, it must be at least 1", "carve", dense, out, *SHAPE, "--tokens", 0)
    _refused("rank is -1, it must be at least 1", "carve", carved, out, "--healed", carved, "--rank", -1)
    _refused("exists; name a new file", "carve", carved, folder / "text.txt", "--healed", carved)
    _refused("calibration text are too few", "carve", dense, out, *SHAPE, "--tokens", 9)
    _refused("exists and is not an empty folder", "carve", dense, carved, *SHAPE)
    _refused("there is no such file", "carve", dense, out, "--from", folder / "none")
    _refused("cannot be read as a carving", "carve", dense, out, "--from", folder / "text.txt")
    _refused("--from does nothing with --healed", "carve", dense, out, "--from", folder / "none", "--healed", carved)
    _refused("--experts does nothing with --from", "carve", dense, out, "--from", folder / "none", "--experts", 32)
    _refused("--calibrate does nothing with --healed", "carve", carved, out, "--healed", carved, "--calibrate", dense)
    _refused("--rank does nothing with carving", "carve", dense, out, "--rank", 8)
    _refused("is not a folder of `tenth carve`", "carve", dense, out, "--healed", carved)
    _refused("their configs differ", "carve", carved, out, "--healed", dense)
    assert not out.exists()


def test_options_of_the_command_are_those_of_the_library() -> None:
    defaults = CarveOptions()
    given = {name: part.default for name, part in inspect.signature(command).parameters.items()}
    for option, name in {"experts": "num_experts", "shared": "shared", "split": "split"}.items():
        assert given[option] == getattr(defaults, name)
    assert (given["rank"], given["shared_rank"]) == (LowRankOptions().rank, LowRankOptions().shared_rank)
