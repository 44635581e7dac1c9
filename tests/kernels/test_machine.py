"""How many threads the kernels take: what the process and its control groups allow."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tenth.errors import MachineError
from tenth.kernels.choice import choose_kernels
from tenth.kernels.cpu.machine import machine, quota, usable_cpus


def _group(root: Path, membership: str, **files: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_max", ".max").replace("cfs-", "cpu.cfs_")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu_max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu_max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/b/cpu_max": "max 100000\n", "a/cpu_max": "200000 100000\n"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu_max": "50000 100000\n", "a/cpu_max": "200000 100000\n"}, 0.5),
        ("0::/../elsewhere\n", {"cpu_max": "100000 100000\n"}, 1.0),
        (
            "5:memory:/\n4:cpu,cpuacct:/job\n",
            {"cpu,cpuacct/job/cfs-quota_us": "300000\n", "cpu,cpuacct/job/cfs-period_us": "100000\n"},
            3.0,
        ),
        ("4:cpu:/\n", {"cpu/cfs-quota_us": "-1\n", "cpu/cfs-period_us": "100000\n"}, math.inf),
        ("4:cpu:/\n", {"cpu_max": "?\n"}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_the_least_quota_of_all_groups_counts(
    membership: str, files: dict[str, str], cores: float, tmp_path: Path
) -> None:
    assert quota(_group(tmp_path, membership, **files)) == cores


def test_a_system_without_groups_has_no_quota(tmp_path: Path) -> None:
    assert quota(tmp_path) == math.inf


def test_the_same_settings_share_a_team() -> None:
    one = machine()
    assert machine(None, None) is one
    assert machine(one.threads) is one
    assert machine(one.threads, one.set) is one


@pytest.mark.parametrize("threads", [-5, 0, 5000])
def test_threads_that_are_not_to_be_had(threads: int) -> None:
    for backend in ("reference", "auto"):
        with pytest.raises(MachineError, match=f"{threads} threads are not to be had: this process may use 1 to"):
            choose_kernels(backend, packed=False, head_dim=16, threads=threads)


def test_the_reference_computes_on_so_many_threads() -> None:
    before = torch.get_num_threads()
    try:
        for count in range(1, len(usable_cpus()) + 1):
            choose_kernels("reference", packed=False, head_dim=16, threads=count)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
