"""`tenth health` as people meet it: verdict, exit codes, JSON, and what is refused."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from tenth.commands import app
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.observe.corpora import TextIds
from tenth.observe.health_text import library_parts
from tenth.weights.save import save_model
from tests.api.tiny import tiny_tokenizer
from tests.observe.health_models import balance, copy_expert, favour, healthy_decoder


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["health", *map(str, arguments)], env={"COLUMNS": "200"})


def refused(words: str, *arguments: str | Path) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    last = done.stderr.rstrip("\n").split("\n")[-1]
    assert last.startswith("tenth: ")
    assert words in last


def saved(folder: Path, decoder: Decoder) -> Path:
    (folder.parent / "tokenizer").mkdir(exist_ok=True)
    save_model(decoder, folder, tokenizer=tiny_tokenizer(folder.parent / "tokenizer"))
    return folder


def balanced(folder: Path) -> Decoder:
    """A model whose experts share the bundled text evenly."""
    return balance(healthy_decoder(), library_parts(TextIds(tiny_tokenizer(folder), "model")))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return saved(folder / "healthy", balanced(folder))


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    decoder = balanced(folder)
    copy_expert(decoder, 1, 2, 5, shuffled=True)
    favour(decoder, 2, (0, 4), -100)
    return saved(folder / "ill", decoder)


def test_a_healthy_model(healthy: Path) -> None:
    done = invoke(healthy)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith(f"{healthy}: healthy (2 layers of 8 experts, 2 a token; 8,192 tokens)\n")
    assert done.stdout.startswith("   layer     dead  busiest   MaxVio   chance   load H router H ")


def test_an_ill_one(ill: Path) -> None:
    done = invoke(ill, "--tokens", "4096")
    assert done.exit_code == 1, done.output
    words = done.stdout.split("\n\n")[1]
    assert words.startswith(f"{ill}: not healthy: 2 of 2 layers (2 layers of 8 experts, 2 a token; 4,096 tokens)\n")
    assert "ALARM dead: layer 2: 2 of 8 experts get next to no work (0, 4)\n" in words
    assert "ALARM copies: layer 1: 2 of 8 experts have a double (2, 5); 2 and 5 have 100% of their units" in words
    assert "): train with a balance loss over the global batch or loss-free biases" in words


def test_json(ill: Path, healthy: Path) -> None:
    done = invoke(ill, "--json", "--tokens", "2048", "--against", healthy)
    assert (done.exit_code, done.stderr) == (1, "")
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["healthy"], found["tokens"], found["experts"], found["experts_per_token"]) == (False, 2048, 8, 2)
    assert {"copies", "dead"} <= set(found["alarms"])
    assert {tuple(finding) for finding in found["findings"]} == {("kind", "alarm", "layers", "words", "advice")}
    first, second = found["layers"]
    assert (first["layer"], sum(first["counts"])) == (1, 4096)
    assert first["experts"]["units_partner"][2] == 5
    assert first["experts"]["units_nearest"][2] == pytest.approx(1, abs=1e-5)
    assert second["loads"]["dead"] == second["drift"]["newly_dead"] == [0, 4]
    assert second["drift"]["saturation"] < 1


def test_the_page_shows_how_alike_experts_are(ill: Path, tmp_path: Path) -> None:
    done = invoke(ill, "--json", "--tokens", "2048", "-o", tmp_path / "new" / "page.html")
    assert done.exit_code == 1, done.output
    page = (tmp_path / "new" / "page.html").read_text("utf-8")
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    lift, cka, units = data["matrices"]
    assert [one["name"] for one in (lift, cka, units)] == ["Co-activation lift", "CKA of outputs", "Units in common"]
    first = json.loads(done.stdout)["layers"][0]["experts"]
    for matrix, name in ((cka, "cka_unbiased"), (units, "units")):
        assert (matrix["scale"], matrix["rows"]) == ("share", [0, 1])
        values_EE = np.zeros((8, 8))
        values_EE[np.triu_indices(8, 1)] = np.frombuffer(base64.b64decode(matrix["values"]), "i1")[:28] / 127
        nearest_E = (values_EE + values_EE.T).max(1)
        np.testing.assert_allclose(nearest_E, np.clip(first[f"{name}_nearest"], 0, 1), atol=0.005)
        order = matrix["orders"][0]
        assert abs(order.index(2) - order.index(5)) == 1  # copies stand side by side
    assert "Whether the stream behind them" not in page
    refused("pictures are written as .html", ill, "-o", tmp_path / "page.png")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_profiles(ill: Path, healthy: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the expert of a layer, and the router before it. " * 100)
    for name, model in (("ill", ill), ("healthy", healthy)):
        command = ["profile", str(model), str(text), "-o", str(tmp_path / name), "--context", "256"]
        assert CliRunner().invoke(app, command).exit_code == 0
    done = invoke(ill, "--profile", tmp_path / "ill", "--against", tmp_path / "healthy", "--json")
    assert done.exit_code == 1, done.output
    found = json.loads(done.stdout)
    assert found["tokens"] == 4900
    assert found["layers"][1]["drift"]["saturation"] is None
    assert "load drift" in found["alarms"]
    refused("the profile is of other weights", ill, "--profile", tmp_path / "healthy")
    refused("cannot be read", ill, "--profile", tmp_path / "none")
    refused("is no routing profile", ill, "--profile", text)


def test_corpora(healthy: Path, tmp_path: Path) -> None:
    for name in ("code", "prose"):
        (tmp_path / name).write_text("".join(chr(97 + n * 7 % 26) for n in range(3000)))
    done = invoke(healthy, "--corpus", tmp_path / "code", "--corpus", f"other={tmp_path / 'prose'}", "--tokens", "1000")
    assert "1,000 tokens)" in done.stdout
    refused(
        "the text has 1 token, which is too little to judge 8 experts by: give at least 64", healthy, "--tokens", "1"
    )
    (tmp_path / "one").write_text("x")
    refused("the text has 1 token, which is too little", healthy, "--corpus", tmp_path / "one")
    (tmp_path / "empty").write_text("")
    refused("has no text: there is nothing to judge by", healthy, "--corpus", tmp_path / "empty")
    refused("none", healthy, "--corpus", tmp_path / "none")


def test_models_that_do_not_fit(healthy: Path, tmp_path: Path) -> None:
    shape = replace(preset("tiny-moe"), model_type="qwen3", moe=None, sparse_layers=())
    model = saved(tmp_path / "dense", initialise(Decoder(shape), 0).requires_grad_(False))
    refused("has no experts: a routing profile is of a mixture of experts", model)
    refused("has no experts", healthy, "--against", model)
    other = saved(tmp_path / "other", healthy_decoder(experts=4))
    refused("their profiles do not compare", healthy, "--against", other)
    refused("none", tmp_path / "none")
