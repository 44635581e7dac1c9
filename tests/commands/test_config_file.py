"""`tenth serve --config`: every option by its own name; what goes first; and what is wrong, in one line."""

from __future__ import annotations

from functools import wraps
from inspect import signature
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner, Result

from tenth.commands import app, serve_command

CHOSEN: dict[Any, tuple[str, Any]] = {  # a value of each type that no option has unless it is told
    str: ("'7GB'", "7GB"),
    Path: ("'some/file'", Path("some/file")),
    int: ("77", 77),
    float: ("1.0", 1.0),
    bool: ("true", True),
    list[str]: ("['a', 'b']", ["a", "b"]),
}
NAMED: dict[str, tuple[str, Any]] = {  # where not every text, or no number so large, is a value
    "log": ("'json'", "json"),
    "tool_call_parser": ("'hermes'", "hermes"),
    "privacy": ("'mask'", "mask"),
    "kv": ("'int8'", "int8"),
    "allow_origin": ("['https://a', '*']", ["https://a", "*"]),
}


def probe() -> tuple[typer.Typer, dict[str, Any]]:
    """A command with the options of `serve` that only notes what it is given."""
    found: dict[str, Any] = {}

    @wraps(serve_command.command)
    def noted(**options: Any) -> None:
        found.update(options)

    noting = typer.Typer(add_completion=False)
    noting.command()(noted)
    return noting, found


def defaults() -> dict[str, Any]:
    """Of each parameter of `serve` but the file itself."""
    declared = signature(serve_command.command).parameters
    return {name: one.default for name, one in declared.items() if name != "config"}


def given(text: str, folder: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    file = folder / "serve.toml"
    file.write_text(text)
    noting, found = probe()
    result = CliRunner().invoke(noting, ["--config", str(file), *arguments], env={"TENTH_API_KEY": None, **environment})
    assert result.exit_code == 0, (result.output, result.exception)
    return found


def refused(content: str | bytes, folder: Path) -> str:
    """The one line of the real command about a file."""
    file = folder / "serve.toml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return one_line(CliRunner().invoke(app, ["serve", "--config", str(file)]), str(file))


def one_line(result: Result, file: str) -> str:
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.startswith(f"tenth: {file}: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix(f"tenth: {file}: ").strip()


def test_every_option_can_be_given_in_the_file(tmp_path: Path) -> None:
    hints = get_type_hints(serve_command.command)
    lines, expected = list[str](), dict[str, Any]()
    for name, default in defaults().items():
        (kind,) = [one for one in get_args(hints[name]) or [hints[name]] if one is not NoneType]
        written, expected[name] = NAMED.get(name) or CHOSEN[kind]
        assert expected[name] != default
        lines.append(f"{name.replace('_', '-')} = {written}")
    assert len(lines) > 30
    assert given("\n".join(lines), tmp_path) == {**expected, "config": tmp_path / "serve.toml"}


def test_what_is_not_in_the_file_stays_as_it_is(tmp_path: Path) -> None:
    assert given("", tmp_path) == {**defaults(), "config": tmp_path / "serve.toml"}


@pytest.mark.parametrize("key", ["max-model-len", "max_model_len"])
def test_names_are_spelt_with_either_line(tmp_path: Path, key: str) -> None:
    assert given(f"{key} = 99", tmp_path)["max_model_len"] == 99


def test_second_names_of_options(tmp_path: Path) -> None:
    assert given("kv-cache-dtype = 'int8'", tmp_path)["kv"] == "int8"
    assert "kv-cache-dtype is there twice" in refused("kv = 'int8'\nkv-cache-dtype = 'bf16'", tmp_path)


def test_the_command_line_goes_first(tmp_path: Path) -> None:
    text = "model = 'a'\nport = 1\nallow-origin = ['https://a', 'https://b']\nmax-queue = 5\nlog = 'json'"
    found = given(text, tmp_path, "b", "--port", "2", "--allow-origin", "https://c", "--log", "human")
    assert (found["model"], found["port"], found["allow_origin"]) == ("b", 2, ["https://c"])
    assert (found["max_queue"], found["log"]) == (5, "human")


def test_it_does_so_ahead_of_the_file_too(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("port = 1\nmax-queue = 5")
    noting, found = probe()
    assert CliRunner().invoke(noting, ["--port", "2", "--config", str(file)]).exit_code == 0
    assert (found["port"], found["max_queue"]) == (2, 5)


def test_the_environment_goes_before_the_file_and_behind_the_command_line(tmp_path: Path) -> None:
    text = "api-key = 'of the file'"
    assert given(text, tmp_path)["api_key"] == "of the file"
    assert given(text, tmp_path, TENTH_API_KEY="of the environment")["api_key"] == "of the environment"
    found = given(text, tmp_path, "--api-key", "of the line", TENTH_API_KEY="of the environment")
    assert found["api_key"] == "of the line"


def test_the_real_command_takes_it(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("host = '192.0.2.1'\nport = 45678")  # an address of documentation: nobody has it
    result = CliRunner().invoke(app, ["serve", "--config", str(file)])
    assert result.exit_code == 2
    assert result.stderr.startswith("tenth: cannot listen at 192.0.2.1, port 45678: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "no option is named 'prot' (did you mean port?)"),
        ("max_modellen = 1", "no option is named 'max_modellen' (did you mean max-model-len?)"),
        ("HOST = 'a'", "no option is named 'HOST' (did you mean"),
        ("xyzzy = 1", "no option is named 'xyzzy' (there are: model, host, port, "),
        ("config = 'other.toml'", "no option is named 'config' ("),
        ("--port = 1", "no option is named '--port' (did you mean port?)"),
        ("'' = 1", "no option is named ''"),
        ("[server]\nport = 1", "no option is named 'server'"),
        ("a.b.c = 1", "no option is named 'a'"),
        ("max-queue = 1\nmax_queue = 1", "max_queue is there twice"),
    ],
)
def test_names_that_are_no_options(tmp_path: Path, text: str, words: str) -> None:
    assert words.replace("(did you mean", "(") in refused(text, tmp_path).replace("(did you mean", "(")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = '8000'", "port is '8000', it must be a whole number"),
        ("port = 8000.0", "port is 8000.0, it must be a whole number"),
        ("port = true", "port is True, it must be a whole number"),
        ("port = [8000]", "port is [8000], it must be a whole number"),
        ("drain = '30'", "drain is '30', it must be a number"),
        ("drain = false", "drain is False, it must be a number"),
        ("log-prompts = 1", "log-prompts is 1, it must be true or false"),
        ("log-prompts = 'no'", "log-prompts is 'no', it must be true or false"),
        ("host = 127", "host is 127, it must be a text"),
        ("host = ['a']", "host is ['a'], it must be a text"),
        ("host = 2026-01-01", "it must be a text"),
        ("keys = {}", "keys is {}, it must be a text"),
        ("port = {a = 1}", "it must be a whole number"),
        ("allow-origin = 1", "allow-origin is 1, it must be a text, or a list of such"),
        ("allow-origin = ['a', 2]", "allow-origin is 2, it must be a text, or a list of such"),
        ("allow-origin = [['a']]", "allow-origin is ['a'], it must be a text, or a list of such"),
        (f"host = [{'1,' * 1000}]", "it must be a text"),
    ],
)
def test_values_of_other_types(tmp_path: Path, text: str, words: str) -> None:
    found = refused(text, tmp_path)
    assert words in found
    assert len(found) < 200


def test_what_may_be_several_may_be_one(tmp_path: Path) -> None:
    assert given("served-model-name = 'a'", tmp_path)["served_model_name"] == ["a"]
    assert given("served-model-name = []", tmp_path)["served_model_name"] in (None, [])


def test_whole_numbers_are_numbers(tmp_path: Path) -> None:
    assert given("drain = 3", tmp_path)["drain"] == 3.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 70000", "port: Input should be less than or equal to 65535"),
        ("drain = -1", "drain: Input should be greater than or equal to 0"),
        ("drain = nan", "drain: "),
        ("max-num-seqs = 0", "max-num-seqs: "),
        ("log = 'xml'", "log: --log is 'xml', it must be one of human, json"),
        ("tool-call-parser = 'x'", "tool-call-parser: --tool-call-parser is 'x', it must be one of auto, hermes, "),
        ("privacy = 'odd'", "privacy: --privacy is 'odd', it must be one of off, mask, refuse"),
        ("kv_cache_dtype = 'fp3'", "kv_cache_dtype: kv is 'fp3', it must be one of bf16, int8"),
        ("max-body = 'lots'", "max-body: --max-body is 'lots', it must be a size such as 8GB"),
        ("kv-memory = '2 gallons'", "kv-memory: --kv-memory is '2 gallons'"),
        ("memory = ''", "memory: --memory is ''"),
        ("response-cache-size = '1'", "response-cache-size: --response-cache-size is '1'"),
        ("expert-mass = 7.0", "expert-mass: expert_mass is 7.0, it must be above 0 and at most 1"),
        ("max-experts = 0", "max-experts: max_experts is 0, it must be a whole number"),
        ("allow-origin = ['https://a', 'nonsense']", "allow-origin: --allow-origin is 'nonsense', it must be * or a"),
        ("allow-host = ['a', 'http://a']", "allow-host: --allow-host is 'http://a', it must be a name"),
    ],
)
def test_values_that_the_option_does_not_take(tmp_path: Path, text: str, words: str) -> None:
    assert words.split("Input")[0] in (found := refused(text, tmp_path))
    assert all(number in found for number in words.split("equal to")[1:])  # the sentence about it is typer's


@pytest.mark.parametrize("text", ["= ['sk-secret']", "= {a = 'sk-secret'}", "= 'sk-secret'\napi_key = 'sk-secret'"])
def test_a_secret_is_not_repeated(tmp_path: Path, text: str) -> None:
    found = refused(f"api-key {text}", tmp_path)
    assert "sk-secret" not in found
    assert "api-key must be a text" in found or "api_key is there twice" in found


@pytest.mark.parametrize(
    "content",
    [
        "port",
        "port = ",
        "port = 1\nport = 2",
        "port = 1 max-queue = 2",
        "host = 'a",
        "[a",
        b"\xff\xfe",
        b"host = '\xe9'",
        b"\x00\x01\x02\x7fELF",
        b"GGUF" + bytes(1000),
        "host = " + "[" * 100_000,
        "host = " + "{a=" * 100_000,
        "port = " + "9" * 5000,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_toml(tmp_path: Path, content: str | bytes) -> None:
    assert refused(content, tmp_path).startswith("is no TOML: ")


def test_files_that_cannot_be_options(tmp_path: Path) -> None:
    assert refused("# " + "x" * (1 << 20), tmp_path).startswith("is larger than 1,048,576 bytes")
    for path, words in ((tmp_path / "none.toml", "No such file or directory"), (tmp_path, "Is a directory")):
        assert one_line(CliRunner().invoke(app, ["serve", "--config", str(path)]), str(path)) == words
