"""The command line as people meet it: help, output, errors, interrupts, a terminal."""

from __future__ import annotations

import errno
import importlib
import inspect
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import tenth
from tenth.api import Model
from tenth.commands import COMMANDS, app
from tenth.engine import sequence
from tenth.model.cache import KVCache
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset, preset_names
from tenth.weights.generation import GenerationDefaults
from tests.api.tiny import tiny_tokenizer

TENTH = Path(sys.executable).with_name("tenth")
SECONDS = 60.0  # until something that should happen counts as not happening


@dataclass(frozen=True)
class Saved:
    """Folders of small models."""

    sparse: Path
    dense: Path
    config_only: Path


def _talker(folder: Path, *, sparse: bool) -> Model:
    """Greedily, it says printable characters for ever: all other rows of its head are 0."""
    config = replace(preset("tiny-moe"), context_length=4096)
    if not sparse:
        config = replace(config, model_type="qwen3", moe=None, sparse_layers=())
    decoder = initialise(Decoder(config), 0, std=0.2).requires_grad_(False)
    decoder.head.weight.values_OI[94:] = 0  # the byte alphabet begins with ! to ~, 94 letters
    return Model(decoder, tiny_tokenizer(folder), generation=GenerationDefaults(temperature=0.0))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    root = tmp_path_factory.mktemp("models")
    for name in ("sparse", "dense"):
        _talker(root, sparse=name == "sparse").save(root / name)
    (root / "config_only").mkdir()
    (root / "config_only" / "config.json").write_text((root / "sparse" / "config.json").read_text())
    return Saved(root / "sparse", root / "dense", root / "config_only")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An empty cache, one thread, and a terminal's width."""
    home = tmp_path_factory.mktemp("home")
    own = ("_TENTH", "_TYPER", "HF_", "PYTHONUNBUFFERED")  # a pipe's buffer is flushed late, as it is for people
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return kept | {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
        "TERM": "dumb",
    }


def _run(environment: dict[str, str], *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "tenth", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=environment, input=stdin, timeout=SECONDS)


def _invoke(*arguments: str | Path, stdin: bytes | None = None) -> Any:
    """The same in this process, which has torch already."""
    return CliRunner().invoke(app, [*map(str, arguments)], input=stdin, env={"COLUMNS": "80"})


# ---- help and version


def test_version(environment: dict[str, str]) -> None:
    done = _run(environment, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tenth {tenth.__version__}\n".encode(), b"")


def test_help_of_the_group_is_quick_and_names_every_command(environment: dict[str, str]) -> None:
    times = []
    for _ in range(10):  # the machine may be busy; the best of several is the program's own time
        started = time.perf_counter()
        done = subprocess.run([TENTH, "--help"], capture_output=True, env=environment, check=True)
        times.append(time.perf_counter() - started)
        if times[-1] < 0.3:
            break
    assert min(times) < 0.3, times
    text = done.stdout.decode()
    for name in (*COMMANDS, "--version", "--debug", "--help", "--show-completion"):
        assert re.search(rf"(^|\s|│){name}\s", text, re.MULTILINE), name
    assert len(COMMANDS) == len(set(COMMANDS)) >= 10


def test_help_and_list_do_not_import_torch(environment: dict[str, str]) -> None:
    for arguments in (["--help"], ["chat", "--help"], ["list"]):
        command = [sys.executable, "-X", "importtime", "-m", "tenth", *arguments]
        done = subprocess.run(command, capture_output=True, env=environment, check=True)
        assert not re.search(rb"\| +(torch|tokenizers|transformers)\n", done.stderr), arguments


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_names_every_option(name: str) -> None:
    done = _invoke(name, "--help")
    assert done.exit_code == 0
    command = importlib.import_module(f"tenth.commands.{name}_command").command
    table = typer.main.get_command(app)
    declared = table.get_command(typer.Context(table), name)  # type: ignore[attr-defined]
    given = {name for name in inspect.signature(command).parameters if name != "context"}
    assert {parameter.name for parameter in declared.params} == given
    for parameter in declared.params:
        shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar or parameter.name
        found = re.search(rf"(^|\s|│|\[){re.escape(shown)}", done.stdout, re.MULTILINE)
        assert found, (shown, done.stdout)
    assert "…" not in done.stdout  # nothing was cut to the width
    assert command.__doc__.split(".")[0].split()[0] in done.stdout


def test_completion_can_be_printed_and_completes(environment: dict[str, str]) -> None:
    def complete(**variables: str) -> str:
        done = subprocess.run([TENTH], capture_output=True, env=environment | variables, check=True)
        return done.stdout.decode()

    assert "complete -o default -F _tenth_completion tenth" in complete(_TENTH_COMPLETE="source_bash")
    assert "#compdef tenth" in complete(_TENTH_COMPLETE="source_zsh")
    words = {"_TENTH_COMPLETE": "complete_bash", "COMP_CWORD": "1", "COMP_WORDS": "tenth ch"}
    assert complete(**words).split() == ["chat", "check"]
    words = {"_TENTH_COMPLETE": "complete_bash", "COMP_CWORD": "2", "COMP_WORDS": "tenth run --repe"}
    assert complete(**words).split() == ["--repetition-penalty"]


def test_without_a_command_the_help_is_shown() -> None:
    done = _invoke()
    assert "Usage:" in done.output
    assert done.exit_code == 2


# ---- show


@pytest.mark.parametrize("name", preset_names())
def test_show_of_presets(name: str) -> None:
    facts = json.loads(_invoke("show", name, "--json").stdout)
    config = preset(name)
    assert facts["parameters_total"] == sum(facts["parameters_by_part"].values()) == config.parameters.total
    assert 0 < facts["parameters_active"] <= facts["parameters_total"]
    assert facts["bytes_by_bits"]["16"] == 2 * facts["parameters_total"] == 4 * facts["bytes_by_bits"]["4"] // 1
    assert facts["notes"] == [f"preset {name}, no weights"]
    done = _invoke("show", name)
    assert done.exit_code == 0
    assert f"{facts['parameters_total']:,}" in done.stdout
    assert f"{config.context_length:,} tokens" in done.stdout


def test_show_of_the_flagship_has_the_published_numbers() -> None:
    facts = json.loads(_invoke("show", "qwen3-30b-a3b", "--json").stdout)
    assert facts["parameters_total"] == 30_532_122_624
    assert facts["parameters_active"] == 3_353_032_704
    assert facts["kv_bytes_per_token"] == 98_304
    assert facts["kv_bytes_per_token"] == 2 * 48 * 4 * 128 * 2  # keys and values, layers, heads, head size, bf16
    assert (facts["layers"], facts["experts"], facts["experts_per_token"]) == (48, 128, 8)
    text = _invoke("show", "qwen3-30b-a3b").stdout
    for part in ("30,532,122,624", "3,353,032,704", "96.0 KiB a token", "15.27 GB", "30.53 GB", "61.06 GB"):
        assert part in text


def test_show_of_a_config_alone_and_of_a_model(saved: Saved, environment: dict[str, str]) -> None:
    alone = json.loads(_invoke("show", saved.config_only, "--json").stdout)
    whole = json.loads(_invoke("show", saved.sparse, "--json").stdout)
    assert alone["notes"] == ["config.json only, no weights"]
    assert (alone["backend"], whole["backend"]) == (None, "reference")
    figures = alone.keys() - {"notes", "backend"}
    assert {name: alone[name] for name in figures} == {name: whole[name] for name in figures}
    assert whole["notes"][0] == f"safetensors at {saved.sparse}"
    done = _run(environment, "show", saved.sparse)
    assert done.returncode == 0
    assert f"safetensors at {saved.sparse}\n".encode() in done.stdout  # in one piece, however long


def test_show_takes_brackets_in_names_as_they_are(saved: Saved, tmp_path: Path) -> None:
    folder = tmp_path / "[red]x[/red][/bold]\\"
    folder.mkdir(parents=True)  # there are slashes in it
    (folder / "config.json").write_text((saved.config_only / "config.json").read_text())
    done = _invoke("show", folder)
    assert done.exit_code == 0
    assert str(folder) in done.stdout


# ---- run and chat


def test_run_writes_the_text_and_nothing_else_to_standard_output(saved: Saved, environment: dict[str, str]) -> None:
    done = _run(environment, "run", saved.sparse, "-p", "Hello", "-n", "20")
    assert done.returncode == 0
    expected = tenth.load(saved.sparse).generate("Hello", max_tokens=20).text
    assert done.stdout.decode() == expected + "\n"
    assert len(expected) == 20
    speed = done.stderr.decode().splitlines()
    assert speed[0] == "loading weights ..."
    numbers = r"20 tokens · [\d.]+ tok/s · first after [\d.]+ s \(prompt of 5\)"
    assert re.fullmatch(numbers + " · length limit reached", speed[1])
    assert len(speed) == 2
    by_pipe = _run(environment, "run", saved.sparse, "-p", "-", "-n", "20", stdin=b"Hello")
    assert by_pipe.stdout == done.stdout


@pytest.mark.parametrize("command", ["run", "chat"])
def test_json_is_one_object_alone(saved: Saved, environment: dict[str, str], command: str) -> None:
    done = _run(environment, command, saved.sparse, "-p", "Hello", "-n", "6", "--json", "--seed", "3", "--experts")
    assert (done.returncode, done.stderr) == (0, b"")
    answer = json.loads(done.stdout)
    assert done.stdout.count(b"\n") == 1
    assert (answer["tokens"], answer["finish_reason"], answer["stopped_by"], answer["seed"]) == (6, "length", None, 3)
    assert len(answer["text"]) == 6
    assert [layer["layer"] for layer in answer["experts"]] == [1, 2]
    for layer in answer["experts"]:
        assert len(layer["loads"]) == 8
        assert sum(layer["loads"]) == pytest.approx(1)
        assert 0 <= layer["router_entropy"] <= 1
    assert answer["tok_s"] > 0


def test_options_of_sampling_reach_the_sampler(saved: Saved) -> None:
    def answer(*options: str) -> dict[str, Any]:
        done = _invoke("run", saved.dense, "-p", "Hello", "-n", "12", "--json", *options)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    model = tenth.load(saved.dense)
    plain = answer()
    assert plain["experts"] == []
    hot = ["--temperature", "5", "--seed", "1"]
    for options, same in (
        (hot, {"temperature": 5.0, "seed": 1}),
        ([*hot, "--top-k", "3"], {"temperature": 5.0, "seed": 1, "top_k": 3}),
        ([*hot, "--top-p", "0.3"], {"temperature": 5.0, "seed": 1, "top_p": 0.3}),
        ([*hot, "--min-p", "0.6"], {"temperature": 5.0, "seed": 1, "min_p": 0.6}),
        (["--repetition-penalty", "3"], {"repetition_penalty": 3.0}),
        (["--presence-penalty", "50"], {"presence_penalty": 50.0}),
        (["--frequency-penalty", "50"], {"frequency_penalty": 50.0}),
    ):
        text = answer(*options)["text"]
        assert text == model.generate("Hello", max_tokens=12, **same).text  # type: ignore[arg-type]
        assert text != plain["text"], options
    stopped = answer("--stop", "never", "--stop", plain["text"][5:7])
    assert (stopped["text"], stopped["stopped_by"]) == (plain["text"][:5], plain["text"][5:7])


def test_the_answer_may_be_as_long_as_the_context_and_no_longer(saved: Saved) -> None:
    prompt = "x" * 4080
    done = _invoke("run", saved.dense, "-p", prompt, "--max-tokens", "1" + "0" * 30, "--json")
    assert json.loads(done.stdout)["tokens"] == 16


@pytest.mark.parametrize("draft", ["lookup", "suffix", "itself"])
def test_drafts_change_nothing_but_the_line_of_speed(saved: Saved, draft: str) -> None:
    name = str(saved.sparse) if draft == "itself" else draft
    for command in ("run", "chat"):
        arguments = (command, saved.sparse, "-p", "Hello Hello", "-n", "20", "--seed", "3")
        plain, drafted = _invoke(*arguments), _invoke(*arguments, "--draft", name)
        assert drafted.exit_code == plain.exit_code == 0
        assert drafted.stdout == plain.stdout
        assert re.search(r"\d+ of \d+ drafted tokens stood, \d\.\d\d tokens a step", drafted.stderr)
        assert "drafted" not in plain.stderr
        facts = json.loads(_invoke(*arguments, "--draft", name, "--json").stdout)
        assert facts["drafts"]["steps"] + facts["drafts"]["accepted"] == facts["tokens"] - 1
        assert facts["experts"]


def test_a_draft_model_that_does_not_exist_is_refused(saved: Saved) -> None:
    done = _invoke("run", saved.sparse, "-p", "Hello", "--draft", "no/such-model-here", "--json")
    assert done.exit_code != 0


def test_chat_with_experts_prints_their_table(saved: Saved) -> None:
    done = _invoke("chat", saved.sparse, "-p", "Hi", "-n", "5", "--experts", "--system", "Be brief", "--no-think")
    assert done.exit_code == 0
    asked = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    answer = tenth.load(saved.sparse).chat(asked, max_tokens=5)
    assert done.stdout.startswith(answer.text + "\n")
    assert f"Which experts worked ({answer.prompt_tokens + 4} tokens)" in done.stdout
    dense = _invoke("run", saved.dense, "-p", "Hi", "-n", "5", "--experts")
    assert "no expert worked: the model is dense" in dense.stdout


@pytest.mark.parametrize("command", ["run", "chat"])
def test_pages_of_keys_and_values_are_those_asked_for(
    saved: Saved, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    cache = sequence.KVCache

    def noted(*arguments: Any, **options: Any) -> KVCache:
        made.append(cache(*arguments, **options).kv)
        return cache(*arguments, **options)

    monkeypatch.setattr(sequence, "KVCache", noted)
    done = _invoke(command, saved.dense, "-p", "Hello", "-n", "9", "--json", "--kv", "int8", "--temperature", "0")
    answer = json.loads(done.stdout)
    assert set(made) == {"int8"}
    model = tenth.load(saved.dense, kv="int8")
    asked: Any = "Hello" if command == "run" else [{"role": "user", "content": "Hello"}]
    assert answer["text"] == model.generate(asked, max_tokens=9, temperature=0).text
    refused = _invoke(command, saved.dense, "-p", "Hello", "--kv", "int4")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1] == "tenth: kv is 'int4', it must be one of bf16, int8"


def test_another_template_takes_the_place_of_the_models(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "plain.jinja").write_text("{{ messages[0].content }}")
    done = _invoke("chat", saved.dense, "-p", "Hello", "-n", "9", "--chat-template", tmp_path / "plain.jinja")
    assert done.stdout == _invoke("run", saved.dense, "-p", "Hello", "-n", "9").stdout


def test_a_terminal_without_the_characters_shows_others(saved: Saved, environment: dict[str, str]) -> None:
    narrow = environment | {"PYTHONIOENCODING": "ascii"}
    done = _run(narrow, "run", saved.sparse, "-p", "Hello", "-n", "9", "--experts")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert done.stdout.count(b"?") >= 9  # bars are not ASCII
    # bytes at random, most of them no UTF-8
    hot = ["-p", "Hello", "-n", "20", "-t", "100", "--seed", "1"]
    whole = json.loads(_run(narrow, "run", saved.sparse, *hot, "--json").stdout)
    assert "\ufffd" in whole["text"]
    assert _run(narrow, "run", saved.sparse, *hot).stdout == whole["text"].encode("ascii", "replace") + b"\n"


def test_the_real_model_answers(environment: dict[str, str]) -> None:
    question = "What is the capital of France? Answer in one word."
    done = _run(environment, "chat", "default-dense", "-p", question, "-t", "0", "-n", "24", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    answer = json.loads(done.stdout)
    assert "Paris" in answer["text"]
    assert answer["finish_reason"] == "stop"


# ---- export, upcycle, list


def test_export_and_upcycle_write_models_that_run(saved: Saved, tmp_path: Path) -> None:
    exported = _invoke("export", saved.sparse, tmp_path / "out", "--as", "qwen3_moe")
    assert exported.exit_code == 0
    assert exported.stdout.startswith(f"{tmp_path / 'out'}: ")
    first = _invoke("run", saved.sparse, "-p", "Hello", "-n", "9").stdout
    assert _invoke("run", tmp_path / "out", "-p", "Hello", "-n", "9").stdout == first
    (tmp_path / "text").write_text("Some text to calibrate with. " * 20)
    options = ["--experts", "8", "--top-k", "4", "--shards", "2", "--calibrate", tmp_path / "text", "--seed", "5"]
    upcycled = _invoke("upcycle", saved.dense, tmp_path / "sparse", *options)
    assert upcycled.exit_code == 0, upcycled.stderr
    assert "4 copies in shards of 48, 4 of 8 experts a token; model_type qwen3_moe" in " ".join(upcycled.stdout.split())
    assert json.loads(_invoke("show", tmp_path / "sparse", "--json").stdout)["experts"] == 8
    tokens = torch.arange(40)[None]
    before, after = tenth.load(saved.dense), tenth.load(tmp_path / "sparse")
    torch.testing.assert_close(after(tokens).logits_BTV, before(tokens).logits_BTV, atol=2e-4, rtol=1e-4)


def test_list_names_what_is_here(environment: dict[str, str]) -> None:
    def listed() -> dict[str, int]:
        return {model["name"]: model["bytes"] for model in json.loads(_run(environment, "list", "--json").stdout)}

    assert list(listed()) == ["default-dense"]
    made = Path(environment["HF_HOME"]) / "tenth" / "default-0123"
    made.mkdir(parents=True)
    (made / "config.json").write_text("x" * 1000)
    assert listed()["default"] == 1000
    assert b"default-dense" in _run(environment, "list").stdout
    assert b"0.00 GB freed" in _run(environment, "rm", "default").stdout
    assert not made.exists()


def test_a_polite_kill_unwinds(environment: dict[str, str], saved: Saved) -> None:
    """143 by our own leave-taking; killed by the signal itself, the process would clean nothing up."""
    command = [sys.executable, "-m", "tenth", "run", str(saved.sparse), "-p", "Hello", "-n", "500"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"loading weights ...\n"
        process.terminate()
        assert process.wait(timeout=30) == 143


# ---- what is refused


def _configs(folder: Path, saved: Saved) -> dict[str, Path]:
    """Folders whose config.json is wrong in one way each."""
    good = json.loads((saved.config_only / "config.json").read_text())
    texts: dict[str, str | bytes] = {
        "malformed": '{"model_type": "qwen3_moe",',
        "no_text": b"\xff\xfe\x00",
        "a_list": "[1, 2]",
        "unknown_type": json.dumps(good | {"model_type": "mamba"}),
        "no_type": json.dumps({k: v for k, v in good.items() if k != "model_type"}),
        "unsupported": json.dumps(good | {"hidden_act": "gelu"}),
        "quantised": json.dumps(good | {"quantization_config": {"quant_method": "awq"}}),
        "negative": json.dumps(good | {"hidden_size": -64}),
        "missing": json.dumps({k: v for k, v in good.items() if k != "vocab_size"}),
        "text_for_number": json.dumps(good | {"num_hidden_layers": "3"}),
        "nested": "[" * 100_000,
    }
    folders = {}
    for name, text in texts.items():
        folders[name] = folder / name
        folders[name].mkdir()
        (folders[name] / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folders


def _refused(words: str, *arguments: str | Path, stdin: bytes | None = None) -> None:
    done = _invoke(*arguments, stdin=stdin)
    lines = done.stderr.splitlines()
    assert done.exit_code == 2, (arguments, done.exit_code, done.output)
    assert isinstance(done.exception, SystemExit)
    # the stages that went well are named where standard error is no terminal
    assert all(line.endswith(" ...") for line in lines[:-1]), lines
    assert lines[-1].startswith("tenth: "), lines
    assert words in lines[-1], lines
    assert done.stdout in ("", "\n")
    assert len(lines[-1]) < 600


def test_configs_that_are_wrong_are_refused(saved: Saved, tmp_path: Path) -> None:
    words = {
        "malformed": "config.json: is not JSON",
        "no_text": "config.json: is not JSON",
        "a_list": "config.json: must hold a JSON object",
        "unknown_type": "model_type 'mamba' is not supported",
        "no_type": "model_type is missing",
        "unsupported": "hidden_act = 'gelu'",
        "quantised": "'awq'",
        "negative": "hidden_size is '-64'",
        "missing": "vocab_size is missing",
        "text_for_number": "num_hidden_layers is '3'",
        "nested": "config.json: is not JSON",
    }
    for name, folder in _configs(tmp_path, saved).items():
        _refused(words[name], "show", folder)
        _refused(words[name], "run", folder, "-p", "x")


def test_models_that_are_not_there_are_refused(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "broken").mkdir()
    for file in saved.sparse.iterdir():
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    for command in (["show"], ["run", "-p", "x"], ["chat", "-p", "x"]):
        _refused("no such file or folder", *command, "nothing-here")
        _refused("not in the cache", *command, "no/such")
        _refused("holds neither config.json nor a .gguf file", *command, tmp_path / "empty")
        _refused("neither a folder with config.json nor a .gguf file", *command, tmp_path / "text.txt")
        _refused("cannot be looked up: File name too long", *command, "x" * 5000)
        _refused("model.safetensors", *command, tmp_path / "broken")
    _refused("no weights here", "run", saved.config_only, "-p", "x")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("dtype is 'int3', it must be auto or one of float32", ["--dtype", "int3"]),
        ("device is 'gpu', it must be cpu, cuda or cuda:N", ["--device", "gpu"]),
        ("is not available here", ["--device", "cuda:77"]),
        ("is not available here", ["--device", "meta"]),
        ("temperature is -1.0", ["--temperature", "-1"]),
        ("temperature is nan", ["--temperature", "nan"]),
        ("temperature is inf", ["--temperature", "inf"]),
        ("top_k is -1", ["--top-k", "-1"]),
        ("top_p is 0.0", ["--top-p", "0"]),
        ("top_p is 1.5", ["--top-p", "1.5"]),
        ("min_p is nan", ["--min-p", "nan"]),
        ("repetition_penalty is 0.0", ["--repetition-penalty", "0"]),
        ("presence_penalty is 1000.0", ["--presence-penalty", "1000"]),
        ("frequency_penalty is -inf", ["--frequency-penalty", "-inf"]),
        ("seed is -1", ["--seed", "-1"]),
        ("seed is 9223372036854775808", ["--seed", str(1 << 63)]),
        ("max_tokens is 0", ["--max-tokens", "0"]),
        ("max_tokens is -5", ["-n", "-5"]),
        ("stop must be a list of strings that are not empty", ["--stop", ""]),
    ],
)
def test_options_out_of_range_are_refused(saved: Saved, words: str, options: list[str]) -> None:
    for command in ("run", "chat"):
        _refused(words, command, saved.dense, "-p", "Hello", *options)
        _refused(words, command, saved.dense, "-p", "Hello", "--json", *options)


def test_what_no_model_could_take_is_refused_before_one_is_loaded() -> None:
    # were the model looked for, its name would be what is wrong
    _refused("temperature is -1", "run", "no/such", "-p", "x", "-t", "-1")
    _refused("max_tokens is 0", "chat", "no/such", "-p", "x", "-n", "0")
    _refused("dtype is 'x'", "run", "no/such", "-p", "x", "--dtype", "x")
    _refused("device is 'x'", "run", "no/such", "-p", "x", "--device", "x")
    _refused("missing.jinja: cannot be read", "chat", "no/such", "-p", "x", "--chat-template", "missing.jinja")


def test_prompts_that_cannot_be_served_are_refused(saved: Saved) -> None:
    _refused("the prompt is empty", "run", saved.dense, "-p", "")
    _refused("the prompt is empty", "run", saved.dense, "-p", "-", stdin=b"")
    _refused("the prompt has 4096 tokens, the model's context is 4096", "run", saved.dense, "-p", "x" * 4096)
    _refused("standard input: is not UTF-8 text (byte 2)", "run", saved.dense, "-p", "-", stdin=b"ab\xff\xfe")


def test_templates_that_fail_are_refused(saved: Saved, tmp_path: Path) -> None:
    chat = ["chat", saved.dense, "-p", "Hello", "--chat-template"]
    for words, text in (
        ("line 2: no such luck", "\n{{ raise_exception('no such luck') }}"),
        ("chat template, line 1:", "{% if %}"),
        (
            "does not end within 2 seconds",
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        ),
        ("chat template", "{{ messages[0].content.__class__ }}"),
    ):
        (tmp_path / "t.jinja").write_text(text)
        _refused(words, *chat, tmp_path / "t.jinja")
    (tmp_path / "t.jinja").write_bytes(b"abc\xff")
    _refused("t.jinja: is not UTF-8 text (byte 3)", *chat, tmp_path / "t.jinja")
    _refused("cannot be read: Is a directory", *chat, tmp_path)
    _refused("cannot be read: No such file or directory", *chat, tmp_path / "none")


def test_places_to_write_that_are_taken_are_refused(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    for command in (["export", saved.sparse], ["upcycle", saved.dense, "--experts", "8", "--top-k", "2"]):
        _refused("exists and is not an empty folder", *command, tmp_path / "full")
        _refused("exists and is not an empty folder", *command, tmp_path / "file")
        _refused("cannot be written", *command, tmp_path / "file" / "below")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "precious"]
    assert (tmp_path / "full" / "precious").read_text() == "x"


def test_what_cannot_be_upcycled_or_exported_is_refused(saved: Saved, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "blank").write_text("")
    for words, options in (
        ("shards is 5, it must divide top_k 8 and num_experts 32", ["--shards", "5"]),
        ("shards is 64", ["--shards", "64"]),
        ("top_k is 9, it must lie between 1 and the 8 experts", ["--experts", "8", "--top-k", "9"]),
        ("top_k is 8, it must lie between 1 and the 0 experts", ["--experts", "0"]),
        ("reinit is 1.0", ["--reinit", "1"]),
        ("reinit is nan", ["--reinit", "nan"]),
        ("none: cannot be read", ["--calibrate", str(tmp_path / "none")]),
        ("the texts to calibrate with are empty", ["--calibrate", str(tmp_path / "blank")]),
        ("dtype is 'int3'", ["--dtype", "int3"]),
    ):
        _refused(words, "upcycle", saved.dense, out, *options)
    _refused("sparse layers already; upcycling takes a dense model", "upcycle", saved.sparse, out)
    _refused("llama", "export", saved.sparse, out, "--as", "llama")
    _refused("mamba", "export", saved.sparse, out, "--as", "mamba")
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["blank"]


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a--b/c", "owner", "owner/x/y", "owner/..", "", "a b/c", "owner/x\n"]
)
def test_names_that_are_none_on_the_hub_are_refused(name: str) -> None:
    _refused("not a hub name", "pull", name)
    _refused("not a hub name", "rm", name, "--yes")


def test_an_unknown_command_or_option_is_refused() -> None:
    for arguments in (["tell"], ["run"], ["run", "x", "-p", "y", "--unknown"], ["run", "x", "-p", "y", "--top-k", "z"]):
        done = _invoke(*arguments)
        assert done.exit_code == 2
        assert "Usage:" in done.stderr
    assert _invoke("chat", "x", "--json").exit_code == 2


def test_errors_are_one_line_and_with_debug_a_traceback(environment: dict[str, str]) -> None:
    done = _run(environment, "show", "no/such")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"tenth: no/such: ")
    assert done.stderr.count(b"\n") == 1
    debug = _run(environment, "--debug", "show", "no/such")
    assert debug.returncode == 2
    assert debug.stderr.startswith(b"Traceback (most recent call last):")
    assert debug.stderr.endswith(done.stderr)


# ---- interrupts, broken pipes, a terminal


def _start(environment: dict[str, str], *arguments: str | Path, python: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    command = [sys.executable, *python, "-m", "tenth", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


_DROPPED = """
import os, sys, time
import tenth.commands
from tenth.commands.interrupts import heard

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), NUMBER)
        time.sleep(0.1)

def app():
    Finalised()
    try:
        time.sleep(60)
    finally:
        time.sleep(1)  # cleaning up takes longer than it takes to raise again
        print("clean")

tenth.commands.app = app
tenth.commands.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_python_drops_in_a_finaliser_is_raised_again(number: int, code: int) -> None:
    script = _DROPPED.replace("NUMBER", str(int(number)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=SECONDS / 2)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"clean\n", b"")


_LATE = """
import threading, time
import tenth.commands

def last():
    print("over", flush=True)
    time.sleep(60)

def app():
    threading.Timer(0.2, last).start()  # the interpreter waits for it

tenth.commands.app = app
tenth.commands.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_behind_the_command_ends_quietly(number: int, code: int) -> None:
    command = [sys.executable, "-c", _LATE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"over\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (code, b"")


def _interrupt_after(process: subprocess.Popen[bytes], stream: Any, sign: bytes) -> tuple[int, bytes, bytes]:
    """Send SIGINT once `sign` has been written to `stream`; gives exit code and the rest of both outputs."""
    with process:
        seen = b""
        while sign not in seen:
            part = os.read(stream.fileno(), 1 << 16)
            assert part, (seen, sign)
            seen += part
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def test_an_interrupt_while_loading_ends_quietly(environment: dict[str, str]) -> None:
    process = _start(environment, "run", "default-dense", "-p", "Hello")
    assert _interrupt_after(process, process.stderr, b"loading weights") == (130, b"", b"")


def test_an_interrupt_while_importing_ends_quietly(saved: Saved, environment: dict[str, str]) -> None:
    process = _start(environment, "run", saved.dense, "-p", "Hello", python=("-X", "importtime"))
    code, out, err = _interrupt_after(process, process.stderr, b"torch.serialization")
    rest = b"".join(line for line in err.splitlines(keepends=True) if not line.startswith(b"import time:"))
    assert (code, out) == (130, b"")
    assert b"Traceback" not in rest


def test_an_interrupt_in_the_answer_keeps_what_there_is(saved: Saved, environment: dict[str, str]) -> None:
    whole = tenth.load(saved.dense).generate("Hello", max_tokens=200).text.encode()
    process = _start(environment, "run", saved.dense, "-p", "Hello", "-n", "4000")
    code, out, err = _interrupt_after(process, process.stdout, whole[:3])
    assert code == 130
    assert out.endswith(b" [stopped]\n")
    assert b"Traceback" not in err
    assert b"tok/s" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "qwen3-30b-a3b"],
        ["show", "qwen3-30b-a3b", "--json"],
        ["list"],
        ["--help"],
        ["--version"],
        ["chat", "--help"],
    ],
)
def test_a_reader_that_leaves_is_no_error(environment: dict[str, str], arguments: list[str]) -> None:
    process = _start(environment, *arguments)
    assert process.stdout is not None
    process.stdout.close()
    with process:
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_reader_that_leaves_an_answer_is_no_error(saved: Saved, environment: dict[str, str]) -> None:
    process = _start(environment, "run", saved.dense, "-p", "Hello", "-n", "4000")
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        assert process.stdout.read(3)
        process.stdout.close()
        assert process.stderr.read() == b"loading weights ...\n"
    assert process.returncode == 1


class Terminal:
    """A program in a pseudo-terminal of its own, with Ctrl-C and Ctrl-D as keys."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.pid, self._tty = pty.fork()
        if self.pid == 0:
            os.execve(command[0], list(command), environment)
        self._unread = ""
        self._left = False

    def type(self, keys: str) -> None:
        os.write(self._tty, keys.encode())

    def expect(self, text: str, *, again: str = "") -> str:
        """Wait until `text` is on the screen, typing `again` each second; gives what came before it."""
        deadline = time.monotonic() + SECONDS
        while text not in self._unread:
            assert time.monotonic() < deadline, f"no {text!r} in {self._unread!r}"
            if select.select([self._tty], [], [], 1.0)[0]:
                part = self._read()
                assert part, f"no {text!r} in {self._unread!r}, and the program has left"
                self._unread += part
            else:
                self.type(again)
        before, _, self._unread = self._unread.partition(text)
        return before

    def _read(self) -> str:
        try:
            return os.read(self._tty, 1 << 16).decode(errors="replace")
        except OSError as error:  # how Linux says that the other side is closed
            if error.errno != errno.EIO:
                raise
            return ""

    def exit_code(self) -> int:
        """Read to the end, and give the exit code."""
        while self._read():
            pass
        return self._wait()

    def close(self) -> None:
        """End the program, however far it is."""
        if not self._left:
            os.kill(self.pid, signal.SIGKILL)
            self._wait()

    def _wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        self._left = True
        os.close(self._tty)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def terminal(saved: Saved, environment: dict[str, str]) -> Iterator[Terminal]:
    arguments = ["chat", str(saved.sparse), "--max-tokens", "4000"]
    opened = Terminal([sys.executable, "-m", "tenth", *arguments], environment)
    yield opened
    opened.close()


def test_a_chat_in_a_terminal(terminal: Terminal, saved: Saved) -> None:
    beginning = tenth.load(saved.sparse).chat([{"role": "user", "content": "Hello"}], max_tokens=8).text
    terminal.expect("/help lists the commands")
    for keys, answer in (
        ("/experts\n", "Nothing was answered yet."),
        ("/help\n", "Ctrl-C stops an answer and keeps the chat."),
        ("/nonsense and more\n", "/nonsense is not a command; /help lists them"),
        ("Hello\n", beginning),  # its answer would be 4,000 characters long
        ("\x03", " [stopped]"),
    ):
        if keys != "\x03":
            terminal.expect(">>> ")
        terminal.type(keys)
        terminal.expect(answer)
    assert "tok/s" in terminal.expect(">>> ")
    terminal.type("/experts\n")
    terminal.expect("Which experts worked")
    terminal.expect(">>> ")
    terminal.type("/reset\n")
    terminal.expect("The chat begins anew.")
    terminal.expect(">>> ")
    terminal.type("Hel")
    terminal.expect("Hel")
    terminal.type("\x03")  # at the prompt it drops the line
    # readline overlooks a signal between its answer to one key and its wait for the next
    terminal.expect("(Ctrl-D leaves)", again="\x03")
    terminal.expect(">>> ")
    terminal.type("Hello\n")
    terminal.expect(beginning)  # as if nothing had been said
    terminal.type("\x03")
    terminal.expect(" [stopped]")
    terminal.expect(">>> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0


def test_an_interrupt_while_the_prompt_is_made_keeps_the_chat(
    saved: Saved, environment: dict[str, str], tmp_path: Path
) -> None:
    loop = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    (tmp_path / "slow.jinja").write_text("{% if messages[0].content == 'Wait' %}" + loop + "{% endif %}Hello")
    command = [sys.executable, "-m", "tenth", "chat", str(saved.dense), "-n", "9", "--chat-template"]
    terminal = Terminal([*command, str(tmp_path / "slow.jinja")], environment)
    try:
        terminal.expect(">>> ")
        terminal.type("Wait\n")
        children = Path(f"/proc/{terminal.pid}/task/{terminal.pid}/children")
        deadline = time.monotonic() + SECONDS
        while not children.read_text():  # until the process for templates has begun; this one takes two seconds
            assert time.monotonic() < deadline
            time.sleep(0.01)
        terminal.type("\x03")
        terminal.expect("[stopped]")
        terminal.expect(">>> ")
        terminal.type("Go\n")
        terminal.expect(tenth.load(saved.dense).generate("Hello", max_tokens=9).text)
        terminal.expect(">>> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0
    finally:
        terminal.close()


def test_lines_go_on_behind_a_backslash_and_exit_leaves(terminal: Terminal, saved: Saved) -> None:
    beginning = tenth.load(saved.sparse).chat([{"role": "user", "content": "One\ntwo"}], max_tokens=8).text
    terminal.expect(">>> ")
    terminal.type("One\\\n")
    terminal.expect("... ")
    terminal.type("two\n")
    terminal.expect(beginning)
    terminal.type("\x03")
    terminal.expect(">>> ")
    terminal.type("/exit\n")
    assert terminal.exit_code() == 0


def test_a_chat_reads_from_a_pipe(saved: Saved, environment: dict[str, str]) -> None:
    done = _run(environment, "chat", saved.dense, "-n", "8", stdin=b"Hello\n" + b"x" * 5000 + b"\n/reset\nHello\n")
    beginning = tenth.load(saved.dense).chat([{"role": "user", "content": "Hello"}], max_tokens=8).text
    assert done.returncode == 0
    assert done.stdout.decode().count(beginning) == 2
    # a question that is too long is refused, and the chat goes on
    assert re.search(rb"\ntenth: the prompt has 5\d\d\d tokens, the model's context is 4096", done.stderr)
    assert b"Traceback" not in done.stderr
