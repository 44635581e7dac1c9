"""`tenth verify` as people meet it: corpora, gates, exit codes, the page."""

from __future__ import annotations

import json
import math
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tenth.commands import app
from tenth.data.token_writer import TokenWriter
from tenth.observe.parity_gate import MEASURES
from tests.observe.parity_models import negate, noise, quantised, write

TEXT = "The quick brown fox jumps over the lazy dog. " * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("verify") / "a")


@pytest.fixture(scope="module")
def noisy(model: Path) -> Path:
    return write(model.with_name("noisy"), noise(0.05))


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    path = model.with_name("corpus.txt")
    path.write_text(TEXT)
    return path


def _verify(*arguments: object, **environment: str) -> Any:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)], env={"COLUMNS": "200", **environment})


def _found(*arguments: object) -> dict[str, Any]:
    done = _verify(*arguments, "--json")
    assert done.exit_code in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _refused(*arguments: object) -> str:
    done = _verify(*arguments)
    assert done.exit_code == 2
    assert done.stderr.count("tenth: ") == 1
    return done.stderr[done.stderr.index("tenth: ") :].strip()


# ---- what is printed


def test_the_same_model(model: Path, text: Path) -> None:
    done = _verify(model, model, "--corpus", text, "--greedy-tokens", 8)
    assert done.exit_code == 0, done.stderr
    assert "verdict: identical: the same probabilities at every position" in done.stdout
    assert "mean 0 " in done.stdout
    assert "512 tokens of 1 document, in 1 window of up to 512" in done.stdout or "540 tokens" in done.stdout


def test_a_copy_of_4_bits(model: Path, text: Path) -> None:
    packed = quantised(model, model.with_name("int4"), 4)
    found = _found(model, packed, "--corpus", text, "--context", 64)
    assert found["verdict"]["kind"] == "compressed"
    assert found["corpus"] == {
        "files": [str(text)],
        "documents": 1,
        "windows": 9,
        "tokens": 540,
        "context": 64,
    }
    assert found["greedy"]["prompts"] == 8
    assert found["replayed"]["positions"] > 0
    assert math.isclose(sum(found["kl_histogram"]["counts"]), found["positions"])
    again = _found(model, packed, "--corpus", text, "--context", 64)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in found.items() if k != "seconds"}


def test_the_page_stands_alone(model: Path, noisy: Path, text: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate.toml"
    gate.write_text("max_kl_mean = 1e-9\nmin_top1 = 0.01\n")
    done = _verify(
        model, noisy, "--corpus", text, "--context", 64, "-o", tmp_path / "new" / "page.html", "--gate", gate
    )
    assert done.exit_code == 1, done.stderr
    page = (tmp_path / "new" / "page.html").read_text()
    for foreign in ("<script", "src=", "href=", "@import", "url("):
        assert foreign not in page
    assert "not passed" in page
    pictures = [part.split("</svg>")[0] + "</svg>" for part in page.split("<svg viewBox")[1:]]
    assert len(pictures) == 5
    for picture in pictures:
        root = ElementTree.fromstring("<svg viewBox" + picture)
        assert sum(1 for _ in root.iter("title")) >= 1


def test_the_page_of_equal_models(model: Path, text: Path, tmp_path: Path) -> None:
    """Errors of 0 have no logarithm."""
    assert _verify(model, model, "--corpus", text, "-o", tmp_path / "page.html").exit_code == 0
    assert "nan" not in (tmp_path / "page.html").read_text().lower()


# ---- gates


def test_a_gate_passes_and_does_not(model: Path, noisy: Path, text: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate.toml"
    most = dict.fromkeys((name for name in MEASURES if name.startswith("max_") and "pass_rate" not in name), 1e3)
    least = dict.fromkeys((name for name in MEASURES if name.startswith("min_") and "pass_rate" not in name), 0.0)
    gate.write_text("".join(f"{name} = {value}\n" for name, value in (most | least).items()))
    done = _verify(model, noisy, "--corpus", text, "--gate", gate)
    assert done.exit_code == 0, done.stdout
    assert "gate: passed" in done.stdout
    gate.write_text("max_kl_mean = 0.0\nmin_top1 = 0.0\n")
    done = _verify(model, noisy, "--corpus", text, "--gate", gate)
    assert done.exit_code == 1
    assert "gate: not passed" in done.stdout
    assert [line.split()[-2:] for line in done.stdout.splitlines() if line.startswith("max_kl_mean")] == [
        ["NOT", "PASSED"]
    ]


def test_what_was_not_measured_does_not_pass(model: Path, text: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate.toml"
    gate.write_text("min_pass_rate = 0\n")
    done = _verify(model, model, "--corpus", text, "--gate", gate)
    assert done.exit_code == 1
    assert "not measured" in done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_kl_men = 1", "no bar is named 'max_kl_men' (did you mean max_kl_mean?)"),
        ("beauty = 1", "no bar is named 'beauty' (there are: max_kl_mean, "),
        ("min_top1 = 1.5", "min_top1 is 1.5, it must be a number between 0 and 1"),
        ("max_kl_mean = -1", "max_kl_mean is -1, it must be a number 0 or more"),
        ("max_kl_mean = nan", "max_kl_mean is nan, it must be a number 0 or more"),
        ("max_kl_mean = true", "max_kl_mean is True, it must be a number 0 or more"),
        ("max_kl_mean = 'low'", "max_kl_mean is 'low', it must be a number"),
        ("", "has no bars; there are: "),
        ("= 1", "is no TOML: "),
    ],
)
def test_gates_are_judged_first(model: Path, text: Path, tmp_path: Path, content: str, message: str) -> None:
    gate = tmp_path / "gate.toml"
    gate.write_text(content)
    assert f"{gate}: {message}" in _refused(tmp_path / "no-model", model, "--corpus", text, "--gate", gate)


def test_a_gate_that_is_not_there(model: Path, text: Path) -> None:
    assert "cannot be read" in _refused(model, model, "--corpus", text, "--gate", "nowhere.toml")


# ---- damage


def test_damage_is_said_with_its_layer(model: Path, text: Path, tmp_path: Path) -> None:
    done = _verify(model, write(tmp_path / "b", negate("layers.4.attention.o.weight.values_OI")), "--corpus", text)
    assert done.exit_code == 0  # no gate: it is for whoever reads it
    assert "verdict: damaged at layer 4, attention: error 2 on A's input" in done.stdout


def test_nan_is_said_with_its_layer(model: Path, text: Path, tmp_path: Path) -> None:
    def change(decoder: Any) -> None:
        decoder.get_parameter("layers.2.mlp.experts.w13_E2FD")[:] = math.nan

    done = _verify(model, write(tmp_path / "b", change), "--corpus", text, "-o", tmp_path / "page.html")
    assert done.exit_code == 1
    assert "verdict: damaged: layer 2 (experts) of B gives NaN or infinity" in done.stdout
    assert "layer 2 (experts) of B" in (tmp_path / "page.html").read_text()
    assert json.loads(_verify(model, tmp_path / "b", "--corpus", text, "--json").stdout)["kl"]["mean"] is None


# ---- corpora


def test_corpora_of_every_kind(model: Path, text: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    chat = [{"role": "user", "content": "What is a fox?"}, {"role": "assistant", "content": "An animal."}]
    lines.write_text(json.dumps({"text": "A fox."}) + "\n\n" + json.dumps({"messages": chat}) + "\n")
    found = _found(model, model, "--corpus", lines, "--corpus", text, "--greedy-tokens", 0)
    assert found["corpus"]["documents"] == 3
    assert found["greedy"] is None
    assert _found(model, model, "--corpus", lines, "--tokens", 6)["corpus"]["tokens"] == 6
    ids = tmp_path / "ids.tokens"
    with TokenWriter(ids, 256) as writer:
        writer.add([1, 2, 3, 4], "text")
        writer.add([5, 6, 7], "text")
        writer.finish()
    found = _found(model, model, "--corpus", ids)
    assert (found["corpus"]["documents"], found["corpus"]["tokens"]) == (2, 7)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "is empty: there is nothing to predict"),
        ("one.txt", "a", "has 1 token and no two in one document: there is nothing to predict"),
        ("empty.jsonl", "\n", "is empty: there is nothing to predict"),
        ("bad.jsonl", '{"body": "x"}', "bad.jsonl:1: needs a text 'text' or a list 'messages'; its keys are: body"),
        ("bad.jsonl", '{"messages": [1]}', "bad.jsonl:1: "),
        ("bad.jsonl", "x", "bad.jsonl:1: is not JSON"),
    ],
)
def test_corpora_that_cannot_be(model: Path, tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    assert message in _refused(model, model, "--corpus", tmp_path / name)


def test_a_corpus_that_is_not_there(model: Path) -> None:
    assert "is neither a file" in _refused(model, model, "--corpus", "nowhere.txt")


# ---- questions


def test_questions(model: Path, text: Path, tmp_path: Path) -> None:
    asked = tmp_path / "questions.jsonl"
    questions = [
        {"prompt": "2 + 2 =", "expected": "nothing of that kind"},
        {"messages": [{"role": "user", "content": "Hello"}], "expected_regex": "(?s).*"},
    ]
    asked.write_text("".join(json.dumps(one) + "\n" for one in questions))
    found = _found(model, model, "--corpus", text, "--questions", asked, "--answer-tokens", 4)
    assert found["questions"] == {"count": 2, "a": 0.5, "b": 0.5, "drop": 0.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x"}, ":1: needs one text, 'expected' (exact) or 'expected_regex'"),
        ({"prompt": "x", "expected": "a", "expected_regex": "a"}, ":1: needs one text"),
        ({"prompt": "x", "expected_regex": "("}, ":1: expected_regex is no regular expression"),
        ({"expected": "x"}, ":1: needs a text 'prompt' or a list 'messages'"),
        ({"prompt": "", "expected": "x"}, ":1: its prompt is empty"),
    ],
)
def test_questions_that_cannot_be(model: Path, text: Path, tmp_path: Path, line: dict[str, str], message: str) -> None:
    asked = tmp_path / "questions.jsonl"
    asked.write_text(json.dumps(line))
    assert f"{asked}{message}" in _refused(model, model, "--corpus", text, "--questions", asked)


# ---- addresses


def test_addresses_that_cannot_be(model: Path, text: Path) -> None:
    both = _refused("http://127.0.0.1:9", "http://127.0.0.1:9", "--corpus", text)
    assert both == "tenth: both models are addresses; one must lie here, as its tokenizer makes the tokens"
    assert "cannot be reached" in _refused(model, "http://127.0.0.1:9", "--corpus", text)


@pytest.mark.skipif(os.name != "posix", reason="a full device")
def test_a_page_that_cannot_be_written(model: Path, text: Path) -> None:
    assert "cannot be written" in _refused(model, model, "--corpus", text, "-o", "/dev/null/page.html")
