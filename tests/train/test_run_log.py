"""The log: lines that can be read again, none of a part that was lost, and the same numbers in TensorBoard."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tenth.errors import FileFormatError, MachineError
from tenth.train.run_log import LOG_NAME, RunLog, read_log, scalars


def _record(step: int, loss: float = 1.5) -> dict[str, object]:
    return {"kind": "step", "step": step, "loss": loss, "layers": {3: {"max_vio": 0.5}}}


def _written(folder: Path, steps: range) -> Path:
    log = RunLog(folder, 0, tensorboard=False)
    for step in steps:
        log.write(_record(step))
    log.close()
    return folder / LOG_NAME


def test_lines(tmp_path: Path) -> None:
    path = _written(tmp_path, range(1, 4))
    records = read_log(path)
    assert [record["step"] for record in records] == [1, 2, 3]
    assert records[0]["layers"] == {"3": {"max_vio": 0.5}}


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, tensorboard=False)
    log.write(_record(1, float("inf")))
    log.close()
    line = (tmp_path / LOG_NAME).read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["loss"] is None


def test_lines_behind_the_checkpoint_are_removed(tmp_path: Path) -> None:
    path = _written(tmp_path, range(1, 8))
    with path.open("a") as file:
        file.write('{"kind": "step", "st')  # a kill in the middle of a line
    log = RunLog(tmp_path, 4, tensorboard=False)
    log.write(_record(5))
    log.close()
    assert [record["step"] for record in read_log(path)] == [1, 2, 3, 4, 5]
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_from_the_start_has_an_empty_log(tmp_path: Path) -> None:
    path = _written(tmp_path, range(3))
    RunLog(tmp_path, 0, tensorboard=False).close()  # a checkpoint of the start was loaded: what it evaluated stays
    assert [record["step"] for record in read_log(path)] == [0]
    RunLog(tmp_path, None, tensorboard=False).close()
    assert read_log(path) == []


def test_a_log_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / LOG_NAME
    path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(FileFormatError, match=r"log\.jsonl:2: is no line of a run's log"):
        read_log(path)
    path.write_text('{"steps": 1}\n')
    with pytest.raises(FileFormatError, match="holds no object with a step"):
        read_log(path)
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_log(tmp_path / "none")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot be written"):
        RunLog(tmp_path / "missing", 0, tensorboard=False)


def test_a_full_disk_is_told_once_and_hides_nothing(tmp_path: Path) -> None:
    full = f"{tmp_path / LOG_NAME}: cannot be written: No space left on device"

    def log_on_full_disk() -> RunLog:
        log = RunLog(tmp_path, None, tensorboard=False)
        log._file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
        return log

    def fail() -> None:
        with log_on_full_disk() as log:
            log._file.write("left")
            raise KeyError

    with pytest.raises(MachineError, match=full), log_on_full_disk() as log:
        log.write(_record(1))
    with pytest.raises(KeyError):
        fail()
    log = log_on_full_disk()
    log._file.write("left")
    with pytest.raises(MachineError, match=full):
        log.close()


class _Full:
    """TensorBoard's writer on a full disk."""

    def add_scalar(self, *_: object) -> None:
        raise OSError(28, "No space left on device")

    flush = close = add_scalar


def test_a_full_disk_of_tensorboard(tmp_path: Path) -> None:
    log = RunLog(tmp_path, None, tensorboard=False)
    log._scalars = _Full()
    for act in (lambda: log.write(_record(1)), log.flush, log.close):
        with pytest.raises(MachineError, match=r"tensorboard: cannot be written: No space left on device"):
            act()
    log = RunLog(tmp_path, None, tensorboard=False)
    log._file.close()
    log._file = _Broken()  # type: ignore[assignment]
    with pytest.raises(MachineError, match=r"log\.jsonl: cannot be written: Input/output error"):
        log.flush()


class _Broken:
    def fileno(self) -> int:
        raise OSError(5, "Input/output error")


def test_places_of_scalars() -> None:
    found = dict(scalars({**_record(7), "stage": "main", "ended": True, "domains": {"code": {"low": float("-inf")}}}))
    assert found == {"step/loss": 1.5, "layers/3/max_vio": 0.5}


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((1, 2, 3, 4), (3, 4, 5)):  # the second run goes on behind step 2
        log = RunLog(tmp_path, steps[0] - 1, tensorboard=True)
        for step in steps:
            log.write(_record(step, loss=step + len(steps) / 10))
        log.flush()
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "layers/3/max_vio" in events.Tags()["scalars"]
    points = [(event.step, round(event.value, 4)) for event in events.Scalars("step/loss")]
    assert points == [(1, 1.4), (2, 2.4), (3, 3.3), (4, 4.3), (5, 5.3)]


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MachineError, match=r"pip install 'tenth\[train\]'`, or set log\.tensorboard = false"):
        RunLog(tmp_path, 0, tensorboard=True)
