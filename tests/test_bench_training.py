"""The training scripts in `bench/`: their sums, their choices of text, their pictures. Nothing is trained."""

from __future__ import annotations

import itertools
import json
import math
import sys
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bench_scripts import script

step, lab, science = script("train_step"), script("lab_corpus"), script("science")
balance, carving = script("balance_science"), script("carve_science")


# ---- the training step


def _taken(engine: str, number: int, seconds: float, losses: Sequence[float] = (9.0, 8.5, 8.0)) -> Any:
    mfu = 0.5 / seconds if engine == step.TENTH else None
    return step.Taken("bfloat16", engine, number, seconds, seconds * 1.5, tuple(losses), 4096, mfu, 50.0 + number)


def test_a_figure_leaves_the_first_steps_out() -> None:
    said = {"seconds": [9, 9, 2, 4, 3], "processor_seconds": [9, 9, 4, 8, 6], "losses": [5, 4, 3, 2, 1], "tokens": 600}
    taken = step.figure("float32", "grouped_mm:same", 1, f"a line\n{json.dumps(said)}\n", 42.0)
    assert (taken.seconds, taken.processor_seconds, taken.tok_s, taken.mfu) == (3, 6, 200, None)
    assert taken.losses == (5, 4, 3, 2, 1)
    assert step.figure("float32", step.TENTH, 1, json.dumps(said | {"mfu": [0, 0, 0.2, 0.4, 0.3]}), None).mfu == 0.3


def test_ratios_are_of_rounds_and_against_the_best_sound_setting() -> None:
    seconds = {
        step.TENTH: [1.0, 2.0, 4.0],
        "grouped_mm:master": [3.0, 4.0, 8.0],
        "grouped_mm:autocast": [2.0, 6.0, 6.0],
    }
    seconds["grouped_mm:same"] = [1.0, 1.0, 1.0]  # the fastest, and not sound
    taken = [_taken(e, n, s) for e, all_ in seconds.items() for n, s in enumerate(all_)]
    line = step.summarise("bfloat16", taken)
    assert line["rounds"] == 3
    assert line[step.TENTH]["tok_s"] == 2048
    assert line["grouped_mm:master"]["ratio"] == 2.0  # 3, 2, 2: not 4 / 2
    assert (line["grouped_mm:master"]["ratio_min"], line["grouped_mm:master"]["ratio_max"]) == (2.0, 3.0)
    assert line["best_peer"] == "grouped_mm:master"
    assert line["probe_gb_s"] == [50.0, 51.0, 52.0]
    assert line["mfu"] == 0.25
    printed = step.table([line]).splitlines()
    assert "| bfloat16 | grouped_mm:master (best) | 1024 (512-1365) | 2.00 (2.00-3.00) |" in printed[3]
    assert any("grouped_mm:same (not sound)" in row for row in printed)


def test_losses_must_agree() -> None:
    ours = _taken(step.TENTH, 0, 1.0, [9.0, 8.5, 8.2, 8.1, 8.0])
    near = _taken("grouped_mm:master", 0, 1.0, [9.0, 8.5, 4.0, 4.0, 8.008])  # not looked at: behind two and three
    gaps = step.loss_gaps([ours, near, _taken("grouped_mm:same", 0, 1.0, [9.0, 7.0, 6.0, 5.0, 4.0])])
    assert gaps == {"grouped_mm:master": pytest.approx(0.001)}
    step.check_losses({"row": "bfloat16", "loss_gaps": gaps})
    with pytest.raises(SystemExit, match=r"^float32: losses of tenth and grouped_mm:master differ by 1\.0e-03"):
        step.check_losses({"row": "float32", "loss_gaps": gaps})


def test_overhead_is_of_neighbours() -> None:
    """The machine slows down fivefold midway; within pairs the cost is 2 %, 4 % and 6 % in either order."""
    seconds = [9, 9, 1.02, 1.0, 5.0, 5.2, 1.06, 1.0, 5.0, 5.2]
    measured = [True, True, True, False, False, True, True, False, False, True]
    low, middle, high = step.overhead({"seconds": seconds, "measured": measured})
    assert middle == pytest.approx(0.04)
    assert 0.02 <= low <= middle <= high <= 0.06


def test_programs_of_the_two_sides(tmp_path: Path) -> None:
    options = Namespace(steps=3, threads=2)
    ours = list(map(str, step.program(step.TENTH, "float32", tmp_path, options)))
    assert ours[1].endswith("train_step_tenth.py")
    assert ours[-4:] == ["--steps", "5", "--threads", "2"]
    theirs = list(map(str, step.program("grouped_mm:master", "bfloat16", tmp_path, options)))
    assert theirs[-4:] == ["--experts", "grouped_mm", "--keep", "master"]


def test_both_sides_start_alike(tmp_path: Path) -> None:
    from tenth.data.loader import samples

    step.settle(tmp_path, Namespace(layers=1))
    rows = samples(tmp_path / "batch.tokens", 512)
    assert [len(row.bounds) for row in rows] == [2] * 8  # each row is one document
    assert json.loads((tmp_path / "shape.json").read_text())["num_layers"] == 1
    assert (tmp_path / "model" / "config.json").exists()


# ---- text


def test_which_files_are_text() -> None:
    assert lab.wanted("pkg/core.py", "code", False)
    assert not lab.wanted("pkg/_vendor/core.py", "code", False)
    assert not lab.wanted("pkg/core.pyi", "code", False)
    assert lab.wanted("pkg-1.0/docs/topics/guide.rst", "prose", True)
    assert not lab.wanted("pkg-1.0/tests/sample.txt", "prose", True)
    assert not lab.wanted("pkg-1.0/docs/locale/de/guide.rst", "prose", True)
    assert not lab.wanted("pkg-1.0/docs/requirements.txt", "prose", True)
    assert lab.wanted("pkg/notes.md", "prose", False)
    assert lab.wanted("pkg/include/a.hpp", "cpp", False)


def test_texts_of_archives(tmp_path: Path) -> None:
    long = "a line of text\n" * 100
    with zipfile.ZipFile(tmp_path / "p-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("p/a.py", long)
        wheel.writestr("p/short.py", "x = 1\n")
        wheel.writestr("p/latin.py", b"\xff" * 900)
        wheel.writestr("p-1.0.dist-info/METADATA", f"Name: p\nVersion: 1.0\n\n{long}The end\n")
        wheel.writestr("p-1.0.dist-info/LICENSE.txt", long)
    assert lab.texts_of(tmp_path / "p-1.0-py3-none-any.whl", "code") == [long]
    assert lab.texts_of(tmp_path / "p-1.0-py3-none-any.whl", "prose") == [f"{long}The end\n"]
    document = tmp_path / "guide.rst"
    document.write_text(long)
    with tarfile.open(tmp_path / "p-1.0.tar.gz", "w:gz") as source:
        source.add(document, "p-1.0/docs/guide.rst")
        source.add(document, "p-1.0/README.rst")
    assert lab.texts_of(tmp_path / "p-1.0.tar.gz", "prose") == [long]


def test_long_texts_end_with_a_line() -> None:
    cut = lab.shortened("0123456789\n" * 10_000)
    assert lab.LONGEST - 11 < len(cut) <= lab.LONGEST
    assert cut.endswith("9\n")
    assert lab.shortened("x" * 50_000) == "x" * lab.LONGEST


def test_packages_share_and_small_ones_leave_room() -> None:
    packages = {"small": ["s" * 100], "large": [f"{n:03d}" * 100 for n in range(50)], "twin": ["s" * 100]}
    chosen = lab.drawn(packages, 9_000)
    assert chosen == lab.drawn(packages, 9_000)
    assert [package for _, package in chosen].count("small") == 1
    assert [package for _, package in chosen].count("twin") == 0  # an equal text
    assert 9_000 <= sum(len(text) for text, _ in chosen) < 9_300


def test_near_duplicates_are_held_back() -> None:
    pytest.importorskip("datasketch")

    def text(seed: int) -> str:
        return "\n".join(f"the value of number {seed * 1000 + n} is known to be {seed + n * n}" for n in range(60))

    learned, new = text(1), text(2)
    nearly = learned.replace("number 1003 ", "number three ")
    kept = lab.without_duplicates([(nearly, "a"), (new, "b"), (new + "\none line more than that", "c")], [learned])
    assert [package for _, package in kept] == ["b"]


# ---- sums that both drivers share


def test_means_over_seeds() -> None:
    mean = science.mean_of([1.0, 2.0, 3.0])
    assert mean.value == 2
    assert mean.half == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)  # Student's t with two degrees of freedom
    assert f"{mean:.2f}" == "2.00 ± 2.48"
    assert f"{science.mean_of([1.5]):.1f}" == "1.5"
    assert math.isnan(science.mean_of([]).value)


def test_a_program_that_fails_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    science.carried_out("nothing", [sys.executable, "-c", "print('fine')"], log)
    assert log.read_text().endswith("fine\n")
    with pytest.raises(SystemExit, match=r"^work: ended with 3: no room \(more in .*log\)$"):
        science.carried_out("work", [sys.executable, "-c", "import sys; print('no room'); sys.exit(3)"], log)


# ---- balance


def _run(arm: str, seed: int) -> dict[str, Any]:
    """What `measure` tells of a run, made up: loss-free is balanced, the plain loss is not."""
    imbalance = {"free-sigmoid": 0.05, "micro": 0.4}.get(arm, 1.0) * (1 + 0.1 * seed)
    loss = 3.0 + 0.01 * seed
    run: dict[str, Any] = {"loss": loss, "domains": {"code": {"loss": loss - 0.5}, "prose": {"loss": loss + 0.5}}}
    run |= {"tok_s": 1000.0, "max_vio_global": None, "curve": [[0, None, 9.0], [10, None, 8.0]]}
    if arm == "dense":
        return run
    strength = {"value": 0.3, "chance": 0.1, "high": 0.12, "p": 0.001, "excess": 0.2 + 0.01 * seed}
    layer = {"observed": strength, "expected": strength, "residual": strength, "coverage": 1.0}
    measures = {"max_vio_global": imbalance, "max_vio": 2 * imbalance, "held_out_max_vio": imbalance, "saturation": 0.2}
    curve = [[4096 * n, imbalance + 1 / n, 9.0] for n in range(1, 5 + seed)]  # of seeds that ended apart
    loads = {"0": [10, 20, 30, 0], "1": [15, 15, 15, 15]}
    return run | measures | {"dead_experts": 0, "curve": curve, "loads": loads, "specialisation": {"0": layer}}


def _found(arms: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    return {arm: [_run(arm, seed) for seed in range(3)] for arm in arms}


def test_the_verdict_on_loss_free_balance() -> None:
    (said,) = balance.verdicts(_found(["micro", "free-sigmoid"]))
    assert said.startswith("loss-free, sigmoid: global MaxVio 0.055 ± 0.012 against 0.440 ± 0.099")
    assert "8.0 times as high: reached" in said
    worse = _found(["micro", "free-sigmoid"])
    for run in worse["micro"]:
        run["max_vio_global"] = 0.1  # not twice as high
    assert "NOT reached" in balance.verdicts(worse)[0]
    assert balance.verdicts(_found(["free-sigmoid"])) == []


def test_the_table_and_picture_of_balance(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = _found(["none", "micro", "free-sigmoid", "dense"])
    rows = balance.table(found).splitlines()
    assert len(rows) == 6
    assert rows[3].startswith("| micro-batch loss 1e-3 | 0.440 ± 0.099 | 0.880 ± 0.199 | 0.44 ± 0.10 | 0.0 ± 0.0 |")
    assert "| 20.29 ± 0.50 |" in rows[3]  # e to 3.01
    assert rows[-1].startswith("| dense of equal compute |  |  |  |  |")
    balance.picture(found, tmp_path / "balance.png")
    assert (tmp_path / "balance.png").stat().st_size > 20_000


def test_settings_of_an_arm(tmp_path: Path) -> None:
    from tenth.train.recipe_reader import load_recipe

    options = Namespace(lab=tmp_path / "lab", tokens=8192, jobs=1, set=["model.shape.moe.top_k=4", "stage.0.warmup=1"])
    for name, arm in balance.ARMS.items():
        command = balance.train_command(arm, tmp_path / name, 2, options)
        words = [word for flag, word in itertools.pairwise(command) if flag == "--set"]
        recipe = load_recipe(arm.recipe, words)
        assert recipe.run.seed == 2
        assert recipe.source[1].path == (str(tmp_path / "lab" / "prose.tokens"),)
        assert recipe.stage[0].total_steps == 2
        moe = None if recipe.model.shape is None else recipe.model.shape.moe
        assert (moe is None) == (name == "dense")
        assert (recipe.balance.bias_rate > 0) == name.startswith("free") == bool(moe and moe.expert_bias)


def test_documents_go_together(tmp_path: Path) -> None:
    documents = [(0, [1] * 5000), (1, [2] * 4000), (1, [3] * 3000), (2, [4] * 9000)]
    groups = balance.batches(documents)
    assert [[len(ids) for _, ids in group] for group in groups] == [[5000], [4000, 3000], [9000]]


# ---- carving


def test_arms_of_carving() -> None:
    arms = carving.arms()
    assert [arm.name for arm in arms[:3]] == ["coactivation-75-0", "prune-75-0", "random-75-0"]
    assert len(arms) == len({arm.name for arm in arms}) == 15
    assert {arm.ratio for arm in arms if arm.seed} == {"75"}
    for ratio, top_k in carving.RATIOS.items():
        assert (carving.SHARED + top_k) / carving.SLICES == float(ratio) / 100


def test_pruned_models_learn_as_many_numbers() -> None:
    """SmolLM2: deltas of a carved layer, against those of a pruned one, counted one by one."""
    width, inner = 576, 1536
    carved = 24 * 10 * ((576 + 96) + (48 + 576)) + 3 * 56 * (576 + 384) + 24 * 576
    for top_k in carving.RATIOS.values():
        pruned = (8 + top_k) * 48
        numbers = 3 * carving.equal_rank(width, inner, top_k) * (width + pruned)
        assert numbers == pytest.approx(carved, rel=0.01)
    assert carving.equal_rank(width, inner, 16) == 94


def test_losses_are_compared_document_by_document() -> None:
    """Documents differ much and the models little: the interval is that of the difference."""
    dense = [[0, 10.0, 10], [0, 90.0, 30], [1, 200.0, 40], [1, 50.0, 20]]
    mine = [[domain, loss + 0.1 * tokens, tokens] for domain, loss, tokens in dense]
    found = carving.compared(mine, dense, None)
    assert (found.loss, found.documents) == (pytest.approx(3.6), 4)
    assert (found.added, found.half) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-9))
    assert carving.compared(mine, dense, 1).loss == pytest.approx(256 / 60)
    uneven = [[0, 11.0, 10], [0, 90.0, 30], [1, 200.0, 40], [1, 50.0, 20]]
    # r = 0.01, residuals 0.9, -0.3, -0.4, -0.2; Student's t with three degrees of freedom
    half = 3.182446 * math.sqrt(4 / 3 * (0.81 + 0.09 + 0.16 + 0.04)) / 100
    assert carving.compared(uneven, dense, None).half == pytest.approx(half, rel=1e-3)
    with pytest.raises(SystemExit, match="different documents"):
        carving.compared([[0, 1.0, 9]], [[0, 1.0, 10]], None)
    with pytest.raises(SystemExit, match="judged on different documents"):
        carving.compared(dense[:3], dense, None)


def test_speeds_are_compared_within_rounds() -> None:
    found = carving.summed_up([20.0, 60.0, 45.0], [10.0, 60.0, 30.0])
    assert (found["tok_s"], found["ratio"]) == (45.0, 1.5)
    assert (found["ratio_min"], found["ratio_max"]) == (1.0, 2.0)


def test_the_table_and_picture_of_carving(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "measured").mkdir()
    dense = [[n % 2, 100.0 + n, 50] for n in range(20)]
    science.write_json(tmp_path / "measured" / "dense.json", dense)
    cost = {"coactivation": 0.1, "prune": 0.3, "random": 0.5}
    for arm in carving.arms()[:12]:  # some are not there yet
        for stage, factor in (("carved", 3), ("healed", 1)):
            added = factor * cost[arm.split] * (100 - float(arm.ratio)) / 25
            table = [[d, loss + added * n + 0.2 * (at % 3 + arm.seed), n] for at, (d, loss, n) in enumerate(dense)]
            science.write_json(tmp_path / "measured" / f"{stage}-{arm.name}.json", table)
    speeds = {"dense": carving.summed_up([50.0, 52.0], [50.0, 52.0])}
    for ratio, gain in (("75", 1.2), ("62.5", 1.3), ("50", 1.4)):
        for kind in ("coactivation", "prune"):
            speeds[f"{kind}-{ratio}"] = carving.summed_up([50 * gain, 53 * gain], [50.0, 52.0])
    science.write_json(tmp_path / "speed.json", speeds)
    found = carving.gathered(tmp_path)
    assert len(found["arms"]) == 18
    first = found["arms"][0]
    assert (first["split"], first["stage"], len(first["seeds"])) == ("coactivation", "carved", 2)
    assert first["losses"]["all"]["added"] == pytest.approx(0.3 + 0.2 * (0.95 + 0.5) / 50, abs=1e-3)
    rows = carving.table(found).splitlines()
    assert len(rows) == 2 + 1 + 18
    assert rows[2].startswith("| dense | 100 % |  | 51.0 (50.0-52.0) | 1.00 | 0 (loss 2.190) |")
    assert rows[3].startswith("| carved | 75 % | no | 61.8 (60.0-63.6) | 1.21 | +0.306 ±")
    carving.picture(found, tmp_path / "carve.png")
    assert (tmp_path / "carve.png").stat().st_size > 20_000
