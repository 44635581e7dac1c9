"""Checkpoints of a run: bit for bit, whole or not at all, and what happens where disks fill and bytes rot."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from tenth.errors import FileFormatError, MachineError, TensorError, WeightsError
from tenth.train import run_storage
from tenth.train.run_checkpoint import RunCheckpoints
from tenth.train.run_image import KINDS, FileImage, Pace
from tenth.train.run_log import RunLog
from tests.train.tiny_run import recipe_of, run, trainer_of

FILES = ("state.json", "tensors.safetensors")


def _bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def _random(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Any bits, NaNs with payloads among them."""
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape)


def _run(seed: int = 0) -> dict[str, Tensor]:
    """What a small run keeps: a matrix, low precision, an optimiser's counter, generator state, strides of its own."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "model.w": torch.randn(40, 30, generator=generator),
        "model.half": torch.randn(7, 3, generator=generator).bfloat16(),
        "model.turned": torch.randn(6, 4, generator=generator).t(),
        "optimizer.step": torch.tensor(float(seed)),
        "random": torch.get_rng_state(),
        "counts": torch.arange(11) * seed,
        "nothing": torch.empty(0, 5),
    }


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(_bits(a[name]) == _bits(b[name]) for name in a)


def _saved(folder: Path, *steps: int, keep: int = 5) -> None:
    with RunCheckpoints(folder, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, _run(step), {"step": step})


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


# ---- what comes back


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_type_and_shape_comes_back_bit_for_bit(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    kinds = data.draw(st.lists(st.tuples(st.sampled_from(list(KINDS)), shapes), min_size=1, max_size=6))
    tensors = {f"t{i}": _random(dtype, shape, generator) for i, (dtype, shape) in enumerate(kinds)}
    image = FileImage(tensors)
    image.fill(tensors)
    assert _same(dict(image.tensors), tensors)
    assert image.fits(tensors)
    assert not image.fits(tensors | {"another": torch.zeros(1)})


@pytest.mark.parametrize("dtype", KINDS, ids=KINDS.values())
def test_every_type_through_the_disk(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {"a": _random(dtype, (3, 4), generator), "b": _random(dtype, (), generator)}
    with RunCheckpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(0, tensors, {})
        checkpoints.wait()
        found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        checkpoints.load(0, found)
    assert _same(found, tensors)


def test_a_run_comes_back_in_place(tmp_path: Path) -> None:
    run, state = _run(3), {"cursor": [1, 2.5, None], "nested": {"best": float("inf"), "done": False}}
    with RunCheckpoints(tmp_path / "made" / "here", 2) as checkpoints:
        checkpoints.save(120, run, state)
    other = _run(4)
    learns = other["model.w"] = torch.nn.Parameter(other["model.w"])
    before = learns.data_ptr()
    assert RunCheckpoints(tmp_path / "made" / "here", 2).load(120, other) == state
    assert _same(other, run)
    assert (learns.data_ptr(), other["model.turned"].stride()) == (before, run["model.turned"].stride())


def test_the_file_is_one_that_the_library_reads(tmp_path: Path) -> None:
    _saved(tmp_path, 7)
    folder = tmp_path / "step-00000007"
    assert _same(load_file(folder / "tensors.safetensors"), _run(7))
    assert tuple(_names(folder)) == FILES  # and no pickle beside it
    listed = json.loads((folder / "state.json").read_text())
    assert listed["tensors"]["model.half"]["dtype"] == "BF16"
    assert listed["tensors"]["model.turned"]["shape"] == [4, 6]


def test_training_may_go_on_at_once(tmp_path: Path) -> None:
    run, state = _run(1), {"places": [1, 2]}
    with RunCheckpoints(tmp_path, 1, share=1e-4) as checkpoints:
        checkpoints.save(1, run, state)
        assert checkpoints.writing
        run["model.w"].zero_()
        state["places"].append(3)
    found = _run(0)
    assert checkpoints.load(1, found) == {"places": [1, 2]}
    assert _same(found, _run(1))


def test_a_large_tensor_takes_many_writes(tmp_path: Path) -> None:
    tensors = {"large": torch.randn(1_234_567), "small": torch.ones(3, dtype=torch.int8)}
    with RunCheckpoints(tmp_path, 1, share=1.0) as checkpoints:
        checkpoints.save(1, tensors, {})
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    checkpoints.load(1, found)
    assert _same(found, tensors)


# ---- which there are


def test_the_newest_are_kept(tmp_path: Path) -> None:
    _saved(tmp_path, 10, 20, 30, 40, keep=2)
    assert _names(tmp_path) == ["step-00000030", "step-00000040"]
    assert RunCheckpoints(tmp_path, 2).latest() == 40


def test_none_yet(tmp_path: Path) -> None:
    checkpoints = RunCheckpoints(tmp_path / "none", 2)
    assert checkpoints.latest() is None
    assert not (tmp_path / "none").exists()
    with pytest.raises(WeightsError, match="step-00000005: no such checkpoint; there are those of steps: none"):
        checkpoints.load(5, {})


def test_going_on_before_a_broken_one_replaces_it(tmp_path: Path) -> None:
    _saved(tmp_path, 10, 20, 30)
    (tmp_path / "step-00000030" / "state.json").unlink()
    (tmp_path / "step-00000020" / "state.json").unlink()
    with RunCheckpoints(tmp_path, 2) as checkpoints:
        with pytest.warns(UserWarning, match="is broken and passed over"):
            assert checkpoints.latest() == 10
        checkpoints.save(20, _run(20), {"step": 20})
    assert _names(tmp_path) == ["step-00000010", "step-00000020"]
    assert RunCheckpoints(tmp_path, 2).latest() == 20


def test_broken_ones_are_no_reason_to_drop_a_whole_one(tmp_path: Path) -> None:
    _saved(tmp_path, 10, 20)
    (tmp_path / "step-00000020" / "state.json").unlink()
    with RunCheckpoints(tmp_path, 2) as checkpoints:
        with pytest.warns(UserWarning, match="is broken and passed over"):
            assert checkpoints.latest() == 10
        checkpoints.save(25, _run(25), {"step": 25})
    assert _names(tmp_path) == ["step-00000010", "step-00000025"]


def test_what_lies_ahead_and_was_not_looked_at_stays(tmp_path: Path) -> None:
    _saved(tmp_path, 10, 30)
    with RunCheckpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(20, _run(20), {"step": 20})
    assert _names(tmp_path) == ["step-00000020", "step-00000030"]


def _locked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for one who may not read it; root may read all."""
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == file:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize("file", FILES)
def test_one_that_cannot_be_read_now_is_not_passed_over(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _saved(tmp_path, 10, 20)
    _locked(tmp_path / "step-00000020" / file, monkeypatch)
    with pytest.raises(WeightsError, match=rf"step-00000020/{file}: cannot be opened: Permission denied"):
        RunCheckpoints(tmp_path, 2).latest()


def test_one_of_another_version_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _saved(tmp_path, 10)
    monkeypatch.setattr(run_storage, "_VERSION", 2)
    _saved(tmp_path, 20)
    monkeypatch.undo()
    with pytest.raises(WeightsError, match=r"state\.json: is of version 2, this program reads 1"):
        RunCheckpoints(tmp_path, 2).latest()


def test_what_a_killed_save_left_goes_at_the_next_start(tmp_path: Path) -> None:
    _saved(tmp_path, 10)
    left = tmp_path / ".step-00000020.partial-0123"
    left.mkdir()
    (left / "tensors.safetensors").write_bytes(b"half")
    reader = RunCheckpoints(tmp_path, 2)
    assert reader.latest() == 10
    assert left.exists()  # somebody else may be writing it
    with RunCheckpoints(tmp_path, 2) as checkpoints:
        checkpoints.prepare(_run())
        assert _names(tmp_path) == ["step-00000010"]


def test_one_run_at_a_time_writes(tmp_path: Path) -> None:
    with RunCheckpoints(tmp_path, 2) as checkpoints:
        checkpoints.prepare(_run())
        with pytest.raises(MachineError, match="another run writes its checkpoints here"):
            RunCheckpoints(tmp_path, 2).save(1, _run(), {})
    _saved(tmp_path, 1)


# ---- bytes that rot


def _truncate(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size * 2 // 3)


def _flip(file: Path) -> None:
    """One bit in the middle of the last quarter: of a tensor's bytes, or of the state."""
    data = bytearray(file.read_bytes())
    data[-len(data) // 8] ^= 1
    file.write_bytes(data)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _flip, _empty, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_broken_one_is_passed_over_and_named(file: str, damage: object, tmp_path: Path) -> None:
    _saved(tmp_path, 10, 20)
    assert callable(damage)
    damage(tmp_path / "step-00000020" / file)
    checkpoints = RunCheckpoints(tmp_path, 2)
    with pytest.warns(UserWarning, match=rf"checkpoint step-00000020 is broken and passed over: .*{file}"):
        assert checkpoints.latest() == 10
    run = _run(1)
    with pytest.raises(WeightsError, match=file):
        checkpoints.load(20, run)
    assert _same(run, _run(1))
    assert checkpoints.load(10, run) == {"step": 10}


def test_every_flipped_byte_of_the_tensors_is_found(tmp_path: Path) -> None:
    _saved(tmp_path, 1)
    file = tmp_path / "step-00000001" / "tensors.safetensors"
    data = file.read_bytes()
    for at in range(4096, len(data), 997):
        file.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(FileFormatError, match="not those that were written"):
            RunCheckpoints(tmp_path, 1).load(1, _run())


def test_a_renamed_one_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path, 10)
    (tmp_path / "step-00000010").rename(tmp_path / "step-00000020")
    with pytest.raises(FileFormatError, match="holds step 10"):
        RunCheckpoints(tmp_path, 1).load(20, _run())


def test_tensors_that_do_not_fit_are_named_and_nothing_is_filled(tmp_path: Path) -> None:
    _saved(tmp_path, 1)
    run = _run(0)
    wrong = [
        (run | {"model.new": torch.zeros(2)}, "has no tensor 'model.new'"),
        ({name: t for name, t in run.items() if name != "counts"}, "'counts' has no place"),
        (run | {"counts": torch.zeros(12, dtype=torch.int64)}, r"'counts' is I64 \[11\], .* has I64 \[12\]"),
        (run | {"counts": torch.zeros(11)}, r"'counts' is I64 \[11\], .* has F32 \[11\]"),
    ]
    for tensors, message in wrong:
        with pytest.raises(TensorError, match=message):
            RunCheckpoints(tmp_path, 1).load(1, tensors)
        assert _same(run, _run(0))


def test_what_cannot_be_kept_is_refused_at_once(tmp_path: Path) -> None:
    with RunCheckpoints(tmp_path, 1) as checkpoints:
        with pytest.raises(TensorError, match=r"'z' is torch\.complex64"):
            checkpoints.save(1, {"z": torch.zeros(2, dtype=torch.complex64)}, {})
        with pytest.raises(TypeError, match="has the key 3"):
            checkpoints.save(1, _run(), {"counts": [{3: "three"}]})
    assert _names(tmp_path) == []


# ---- a full disk


@contextmanager
def _files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: what a full disk is to one of them (Python ignores the signal)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_save_is_told_once_and_loses_nothing(tmp_path: Path) -> None:
    _saved(tmp_path, 10)
    with RunCheckpoints(tmp_path, 2) as checkpoints:
        with _files_up_to(2000):
            checkpoints.save(20, _run(20), {})
            with pytest.raises(MachineError, match=r"step-00000020: cannot be written: File too large"):
                checkpoints.wait()
        assert _names(tmp_path) == ["step-00000010"]
        assert checkpoints.latest() == 10
        checkpoints.wait()
        checkpoints.save(30, _run(30), {})
    assert _names(tmp_path) == ["step-00000010", "step-00000030"]


def test_a_failed_save_is_told_by_the_next_one_too(tmp_path: Path) -> None:
    with RunCheckpoints(tmp_path, 2) as checkpoints:
        with _files_up_to(2000):
            checkpoints.save(1, _run(), {})
            with pytest.raises(MachineError):
                checkpoints.save(2, _run(), {})
        checkpoints.save(3, _run(), {})
    assert _names(tmp_path) == ["step-00000003"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """192 KB of memory as a disk; skipped where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    run = {"w": torch.randn(30_000)}  # 120 KB: one has room, a second one beside it has none
    with RunCheckpoints(small_disk, 1) as checkpoints:
        checkpoints.save(10, run, {})
        checkpoints.save(20, run, {})
        with pytest.raises(MachineError, match="step-00000020: cannot be written: No space left on device"):
            checkpoints.wait()
        assert _names(small_disk) == ["step-00000010"]
        checkpoints.load(10, run)


class _Full:
    """Asked behind every step: from step `begin` on files cannot grow, until step `end` or the end of the context."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end, self.step = begin, end, -1
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def __call__(self) -> bool:
        self.step += 1
        if self.step in (self.begin, self.end):
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join(60)
            limit = 20_000 if self.step == self.begin else self.before[0]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, self.before[1]))
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_run_goes_on_where_a_checkpoint_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "well").mkdir()
    (tmp_path / "full").mkdir()
    well = run(recipe_of(tmp_path / "well"))[1]
    with _Full(2, 5) as full:
        told = run(recipe_of(tmp_path / "full"), stop=full)[1]
    unsaved = [record for record in told if record["kind"] == "unsaved"]
    assert len(unsaved) == 1
    assert "step-00000003: cannot be written: File too large" in unsaved[0]["what"]
    losses = [[record["loss"] for record in records if record["kind"] == "step"] for records in (well, told)]
    assert losses[0] == losses[1]
    assert _names(tmp_path / "full" / "run" / "checkpoints") == ["step-00000006"]


def test_a_run_may_stop_there_and_lose_no_more(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, checkpoint={"on_failure": "stop", "every": 2})
    with _Full(3, 100) as full, pytest.raises(MachineError, match="step-00000004: cannot be written: File too large"):
        run(recipe, stop=full)
    assert _names(tmp_path / "run" / "checkpoints") == ["step-00000002"]
    outcome = run(recipe)[0]
    assert (outcome.first_step, outcome.step, outcome.ended) == (2, 6, True)


def test_the_last_checkpoint_is_tried_again(tmp_path: Path) -> None:
    """The one of the last step fails while the loop still looks: the closing save is not taken for done."""
    recipe = recipe_of(tmp_path, checkpoint={"every": 6})
    trainer, _ = trainer_of(recipe)
    told: list[str] = []
    save, saves = trainer.checkpoints.save, list[int]()

    def fails_once(step: int, *arguments: Any) -> None:
        saves.append(step)
        with _files_up_to(2000) if len(saves) == 1 else nullcontext():
            save(step, *arguments)
            if trainer.checkpoints._thread is not None:
                trainer.checkpoints._pace.hurry()
                trainer.checkpoints._thread.join()

    trainer.checkpoints.save = fails_once  # type: ignore[method-assign]
    with trainer.checkpoints, RunLog(Path(recipe.run.out), None, tensorboard=False) as log:
        assert trainer.run(log, lambda record: told.append(record["kind"]))
    assert (saves, told.count("unsaved")) == ([6, 6], 1)
    assert trainer.checkpoints.latest() == 6


def test_the_model_is_written_where_the_last_checkpoint_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is smaller; what a run has learned is not lost for want of the rest."""
    save = RunCheckpoints.save

    def full(self: RunCheckpoints, step: int, *arguments: Any) -> None:
        if step == 6:
            raise MachineError("step-00000006: cannot be written: No space left on device")
        save(self, step, *arguments)

    monkeypatch.setattr(RunCheckpoints, "save", full)
    with pytest.raises(MachineError, match="step-00000006: cannot be written"):
        run(recipe_of(tmp_path))
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_memory_that_is_not_there(tmp_path: Path) -> None:
    huge = torch.empty(1, dtype=torch.uint8).expand(1 << 40)  # a terabyte that takes a byte
    with RunCheckpoints(tmp_path, 1) as checkpoints, pytest.raises(MachineError, match=r"no 1099\.51 GB to copy"):
        checkpoints.prepare({"huge": huge})


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"file/checkpoints: cannot be written"):
        RunCheckpoints(tmp_path / "file" / "checkpoints", 1).save(1, _run(), {})


# ---- time


def test_waiting_ends_the_slow_pace(tmp_path: Path) -> None:
    with RunCheckpoints(tmp_path, 1, share=1e-6) as checkpoints:
        checkpoints.save(1, {"w": torch.randn(3_000_000)}, {})
        assert checkpoints.writing
        start = time.perf_counter()
        checkpoints.wait()
        assert time.perf_counter() - start < 10
        assert not checkpoints.writing
    assert checkpoints.latest() == 1


def test_the_pace_is_a_share_of_one_core() -> None:
    pace, start = Pace(0.1), time.perf_counter()
    pace.start()
    while time.thread_time() < pace._since + 0.02:
        pass
    pace.rest()
    assert time.perf_counter() - start >= 0.19
    threading.Timer(0.05, pace.hurry).start()
    start = time.perf_counter()
    pace._since -= 10.0  # as after ten seconds of work
    pace.rest()
    assert time.perf_counter() - start < 5


def test_an_error_in_the_run_does_not_lose_the_checkpoint(tmp_path: Path) -> None:
    def fail() -> None:
        with RunCheckpoints(tmp_path, 1, share=1e-4) as checkpoints:
            checkpoints.save(1, _run(1), {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert RunCheckpoints(tmp_path, 1).latest() == 1


KILLED = """
import sys, time, torch
from pathlib import Path
from tenth.train.run_checkpoint import RunCheckpoints
checkpoints = RunCheckpoints(Path(sys.argv[1]), 2)
for step in (1, 2):
    checkpoints.save(step, {"w": torch.full((1_000_000,), float(step))}, {"step": step})
    checkpoints.wait()
checkpoints.share = 1e-6
checkpoints.save(3, {"w": torch.full((1_000_000,), 3.0)}, {"step": 3})
while not any(".partial-" in path.name for path in Path(sys.argv[1]).iterdir()):
    time.sleep(0.01)
print("writing", flush=True)
time.sleep(60)
"""


def test_killed_in_the_middle_of_a_checkpoint(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "writing\n"
        run.send_signal(signal.SIGKILL)
    assert len(_names(tmp_path)) == 3
    with RunCheckpoints(tmp_path, 2) as checkpoints:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is broken
            assert checkpoints.latest() == 2
        w = torch.zeros(1_000_000)
        assert checkpoints.load(2, {"w": w}) == {"step": 2}
        assert torch.equal(w, torch.full((1_000_000,), 2.0))
        checkpoints.prepare({"w": w})
        assert _names(tmp_path) == ["step-00000001", "step-00000002"]
