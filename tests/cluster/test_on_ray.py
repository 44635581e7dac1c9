"""`tenth cluster` for real: Ray, replicas in processes of their own, and what happens when they are killed."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from tenth.api import Model
from tenth.commands import app
from tests.api.tiny import tiny_model
from tests.cluster.clustered import CONTROLLER, FRONT, REPLICA, Clustered, descendants
from tests.cluster.streams import Oracle, Streams, oracle

pytestmark = pytest.mark.skipif(
    find_spec("ray") is None, reason="needs the extra `cluster`: ray[serve] is not installed"
)

TOKENS = 32
BACK_S = 15.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    """Two models with the same weights, `one` and `same`, and another, `other`; a corpus and a gate."""
    folder = tmp_path_factory.mktemp("clustered")
    model = tiny_model(folder, context=2048)
    model.save(folder / "one")
    model.save(folder / "same")
    tiny_model(folder, seed=1, context=2048).save(folder / "other")
    (folder / "corpus.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    (folder / "gate.toml").write_text("max_kl_mean = 0.001\n")
    return folder, model


@pytest.fixture(scope="module")
def right(made: tuple[Path, Model]) -> Oracle:
    return oracle(made[1], TOKENS)


@pytest.fixture(scope="module")
def running(made: tuple[Path, Model]) -> Iterator[Clustered]:
    """Two replicas; behind all tests nothing of them is left, and they have ended in order."""
    cluster = Clustered(made[0] / "one", made[0])
    try:
        cluster.wait_line("ready: ")
        yield cluster
    finally:
        code = cluster.close()
    assert code == 0, "".join(cluster.lines)
    assert "\x1b" not in "".join(cluster.lines), "Ray speaks past the log"


def under_load(running: Clustered, right: Oracle, kind: str) -> tuple[Streams, float]:
    """Four clients for some seconds, in which a process is killed; when."""
    streams, at = Streams(running.url, TOKENS, right), list[float]()

    def kill() -> None:
        at.append(time.monotonic())
        running.kill(kind)

    killer = threading.Timer(1.5, kill)
    killer.start()
    asyncio.run(asyncio.wait_for(streams.run(4, 6.0), 90))
    killer.join()
    assert streams.wrong == []
    assert sum(streams.ends.values()) == streams.asked
    assert min(end for end in streams.whole_at if end > at[0]) - at[0] < BACK_S
    return streams, at[0]


def test_a_replica_that_is_killed_costs_its_own_streams_alone(running: Clustered, right: Oracle) -> None:
    assert len(running.pids(REPLICA)) == 2
    assert listening_elsewhere(running) == []
    found = httpx.post(running.url + "/v1/completions", json={"prompt": "a", "max_tokens": 3}, timeout=30)
    assert found.json()["usage"]["completion_tokens"] == 3
    streams, _ = under_load(running, right, REPLICA)
    assert set(streams.ends) <= {"whole", "told"}, streams.ends
    assert streams.ends["told"] <= 4
    assert set(streams.codes) <= {"replica_lost"}
    assert running.wait_ready(2) < BACK_S


def listening_elsewhere(running: Clustered) -> list[str]:
    """Addresses beyond loopback at which something of it listens."""
    inodes = set()
    for pid in [running.process.pid, *descendants(running.process.pid)]:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(path.readlink()))
            except OSError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            loopback = fields[1].startswith(("0100007F", "0000000000000000FFFF00000100007F"))
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes and not loopback:
                found.append(fields[1])
    return found


@pytest.mark.slow
def test_without_its_controller_requests_go_on(running: Clustered, right: Oracle) -> None:
    before = running.pids(CONTROLLER)
    streams, _ = under_load(running, right, CONTROLLER)
    assert set(streams.ends) == {"whole"}, streams.ends
    end = time.monotonic() + BACK_S
    while not (after := running.pids(CONTROLLER)) or after == before:
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_front_that_is_killed_is_back(running: Clustered, right: Oracle) -> None:
    before = running.pids(FRONT)
    streams, _ = under_load(running, right, FRONT)
    assert set(streams.ends) <= {"whole", "cut"}, streams.ends
    assert streams.ends["cut"] <= 4
    assert running.pids(FRONT) != before
    assert running.wait_ready(2) < BACK_S


def replaced(running: Clustered, folder: Path, model: str) -> subprocess.CompletedProcess[str]:
    judged = ["--gate", str(folder / "gate.toml"), "--corpus", str(folder / "corpus.txt")]
    where = ["--port", str(running.port), "--state", str(folder)]
    command = [sys.executable, "-m", "tenth", "cluster", "--replace", str(folder / model), *judged, *where]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_another_model_takes_its_place_and_drops_no_request(
    running: Clustered, made: tuple[Path, Model], right: Oracle
) -> None:
    folder = made[0]
    before = running.pids(REPLICA)
    socket = folder / f"cluster-{running.port}.sock"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    failed = replaced(running, folder, "other")
    assert (failed.returncode, "has not passed the gate" in failed.stderr) == (1, True), failed.stderr
    assert running.pids(REPLICA) == before
    streams, found = Streams(running.url, TOKENS, right), list[subprocess.CompletedProcess[str]]()
    changing = threading.Thread(target=lambda: found.append(replaced(running, folder, "same")))

    async def until_changed() -> None:
        changing.start()
        while changing.is_alive():
            await streams.run(4, 1.0)

    asyncio.run(asyncio.wait_for(until_changed(), 150))
    assert found[0].returncode == 0, found[0].stderr
    assert set(streams.ends) == {"whole"}, streams.ends
    assert streams.wrong == []
    assert not set(running.pids(REPLICA)) & set(before)
    assert running.wait_ready(2) < BACK_S


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_leaves_the_old_one(
    running: Clustered, made: tuple[Path, Model], right: Oracle
) -> None:
    from tenth.cluster.admin import admin_path, ask_cluster
    from tenth.errors import MachineError

    path = admin_path(made[0], running.port)
    before = asyncio.run(ask_cluster(path, print, do="status"))["model"]
    with pytest.raises(MachineError, match="can be started"):
        asyncio.run(asyncio.wait_for(ask_cluster(path, print, do="replace", model=str(made[0] / "none")), 150))
    assert asyncio.run(ask_cluster(path, print, do="status"))["model"] == before
    streams = Streams(running.url, TOKENS, right)
    asyncio.run(streams.run(2, 1.0))
    assert set(streams.ends) == {"whole"}
    assert streams.wrong == []


@pytest.mark.slow
def test_replicas_come_with_load_and_keys_are_asked_for(made: tuple[Path, Model], tmp_path: Path) -> None:
    from tenth.serve.keys import new_key
    from tenth.serve.limits import Limits

    key = new_key(tmp_path / "keys.toml", "alice", Limits(tokens_per_day=10**7))
    options = ("--replicas", "1:2", "--keys", str(tmp_path / "keys.toml"))
    cluster = Clustered(made[0] / "one", tmp_path, *options, replicas=1)
    try:
        cluster.wait_line("ready: ")
        body = {"prompt": "a", "max_tokens": 200, "temperature": 1, "ignore_eos": True}
        assert httpx.post(cluster.url + "/v1/completions", json=body, timeout=30).status_code == 401

        async def crowd() -> set[int]:
            coming = asyncio.create_task(asyncio.to_thread(cluster.wait_ready, 2))

            async def one(http: httpx.AsyncClient) -> set[int]:
                found = set()
                while not coming.done():
                    found.add((await http.post(cluster.url + "/v1/completions", json=body)).status_code)
                return found

            async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=120) as http:
                found = await asyncio.gather(*(one(http) for _ in range(24)))
            await coming
            return set[int]().union(*found)

        assert asyncio.run(asyncio.wait_for(crowd(), 150)) == {200}
        said = httpx.get(cluster.url + "/metrics", headers={"authorization": f"Bearer {key}"}, timeout=30).text
        assert said.count('tenth_cluster_replicas{phase="ready"') == 2
    finally:
        assert cluster.close() == 0


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    judged = ["--gate", "g", "--corpus", "c"]
    for options, words in (
        (["--replicas", "4:1"], "--replicas is '4:1'"),
        (["--route", "best"], "--route is 'best'"),
        (["--replace", "new"], "needs --gate FILE and --corpus FILE"),
        (["--gate", "g.toml"], "go with --replace MODEL"),
        (["--replace", "n", *judged, "--port", "1", "--state", str(tmp_path)], "no cluster listens there"),
        (["--replace", "n", *judged, "--replicas", "3"], "--replicas does nothing with --replace"),
        (["other", "--replace", "n", *judged], "no other is named"),
    ):
        run = CliRunner().invoke(app, ["cluster", *options])
        assert (run.exit_code, words in run.stderr) == (2, True), run.stderr
        assert (run.stderr.count("\n"), run.stdout) == (1, "")
