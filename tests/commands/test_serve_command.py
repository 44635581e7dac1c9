"""`tenth serve`: the real default model behind a real port, stopped by a signal; what cannot be served is one line."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tenth.api import Model
from tests.api.tiny import tiny_model

LONG = {"prompt": "ab", "max_tokens": 15_000, "ignore_eos": True, "stream": True}


def begin(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tenth", "serve", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@contextmanager
def begun(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server at a free port, ready, and its address; it is no more behind this."""
    process = begin("--port", "0", *options)
    try:
        assert process.stderr is not None
        found = re.match(r"(http://127\.0\.0\.1:\d+)/v1 serves ", process.stderr.readline())
        assert found is not None
        end = time.monotonic() + 120
        while httpx.get(found[1] + "/ready", timeout=60).status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process, found[1]
    finally:
        process.kill()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    folder = tmp_path_factory.mktemp("served")
    model = tiny_model(folder, context=16_384)
    model.save(folder / "tiny")
    return model, folder / "tiny"


@pytest.mark.parametrize("option", ["max-experts = 1", "expert-mass = 0.05"])
def test_fewer_experts_and_names_by_a_file_of_options(tiny: tuple[Model, Path], option: str, tmp_path: Path) -> None:
    """What is served is what the model says with one expert a token, which is not what it says with both."""
    model, folder = tiny
    file = tmp_path / "serve.toml"
    file.write_text(f'model = "{folder}"\n{option}\nserved-model-name = ["one", "two"]\nallow-host = "box.lan"\n')
    body = {"model": "two", "prompt": "Experts", "max_tokens": 24, "temperature": 0}
    with begun("--config", str(file)) as (_, url):
        text = httpx.post(url + "/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
        statuses = [
            httpx.get(url + "/health", headers={"host": host}).status_code for host in ("box.lan", "evil.example")
        ]
    assert statuses == [200, 403]
    alone, both = (model.generate("Experts", max_tokens=24, max_experts=most).text for most in (1, None))
    assert text == alone != both


def test_signals_under_load(tiny: tuple[Model, Path]) -> None:
    """The first lets streams go on until `--drain`, then ends them with an event; the second ends all at once."""
    for signals, drain, code in ((1, "0.5", 0), (2, "60", 1)):
        with begun(str(tiny[1]), "--drain", drain) as (process, url):
            lines = list[str]()
            with httpx.stream("POST", url + "/v1/completions", json=LONG, timeout=60) as answer:
                start = time.monotonic()
                try:
                    for number, line in enumerate(answer.iter_lines()):
                        lines += [line] if line else []
                        if number == 5:
                            start = time.monotonic()
                            process.send_signal(signal.SIGTERM)
                            time.sleep(0.2)  # two signals within a tenth of a second are one
                            assert httpx.post(url + "/v1/completions", json={"prompt": "a"}).status_code == 503
                            if signals == 2:
                                process.send_signal(signal.SIGTERM)
                except httpx.RemoteProtocolError:
                    assert signals == 2  # at once: the last event may not come
            assert process.wait(20) == code
            seconds = time.monotonic() - start
        assert seconds < 20
        if signals == 1:
            assert '"code":"stopping"' in lines[-2]
            assert lines[-1] == "data: [DONE]"
            assert seconds >= 0.4


def test_the_default_model_is_served_until_a_signal() -> None:
    process = begin("--port", "0", "--max-model-len", "1024", "--log", "json", "--allow-host", "Models.lan")
    try:
        assert process.stderr is not None
        found = re.match(r"(http://127\.0\.0\.1:\d+)/v1 serves default", process.stderr.readline())
        assert found is not None
        url, end = found[1], time.monotonic() + 120
        while (ready := httpx.get(url + "/ready", timeout=60)).status_code != 200:
            assert ready.json()["status"] in ("loading", "warming up")
            assert httpx.get(url + "/health", timeout=60).status_code == 200
            assert time.monotonic() < end
            time.sleep(0.2)
        body = {"messages": [{"role": "user", "content": "What is 2+2?"}], "max_tokens": 6, "temperature": 0}
        answer = httpx.post(url + "/v1/chat/completions", json=body, timeout=60).json()
        assert answer["choices"][0]["message"]["content"]
        assert answer["usage"]["completion_tokens"] <= 6
        assert httpx.get(url + "/v1/models").json()["data"][0]["max_model_len"] == 1024
        for host, status in (("evil.example", 403), ("models.lan", 200), ("localhost", 200)):
            assert httpx.get(url + "/v1/models", headers={"host": host}).status_code == status
        vector = httpx.post(url + "/v1/embeddings", json={"input": ["a cat", "a dog"]}, timeout=60).json()["data"]
        assert abs(sum(x * x for x in vector[1]["embedding"]) - 1) < 1e-4
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert '"path": "/v1/chat/completions", "status": 200' in rest


@pytest.mark.parametrize(
    "options",
    [
        *(("--kv-memory", "5XB"), ("--max-body", "5"), ("--response-cache-size", "x"), ("--memory", "8 GBs")),
        ("--allow-origin", "nonsense"),
    ],
)
def test_a_value_that_cannot_be_is_told_by_its_option_before_anything_is_bound(options: tuple[str, str]) -> None:
    process = begin("--port", "0", *options)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words.startswith(f"tenth: {options[0]} is '{options[1]}', it must be ")
    assert words.count("\n") == 1


def test_an_address_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = begin("--port", port)
        _, words = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words.startswith(f"tenth: cannot listen at 127.0.0.1, port {port}: ")
    assert words.count("\n") == 1


def test_a_model_that_is_not_there_ends_it() -> None:
    process = begin("/nowhere/model", "--port", "0")
    _, words = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "/nowhere/model" in words.splitlines()[-1]
    assert "Traceback" not in words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--reviews", "mysql://root:secret@box/db"),
            "--reviews begins with 'mysql://', it must be a file, sqlite:///",
        ),
        (("--reviews", ""), "--reviews is empty, it must be a file"),
        (
            ("--review-rules", "{rules}"),
            "--review-rules flags answers, and there is nowhere to keep them: say --reviews",
        ),
        (("--reviews", "{folder}/q.db", "--review-rules", "{rules}"), "{rules}: rule 'a': share is 2, it must be"),
        (("--reviews", "{folder}/q.db", "--review-rules", "{folder}/no.toml"), "{folder}/no.toml: "),
        (("--reviews", "{folder}"), "{folder}: the reviews cannot be opened"),
        (("--config", "{config}"), "{config}: reviews: --reviews begins with 'redis://'"),
    ],
)
def test_reviews_that_cannot_be_are_told_in_one_line(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    names = {"folder": tmp_path, "rules": tmp_path / "rules.toml", "config": tmp_path / "serve.toml"}
    names["rules"].write_text("[[rule]]\nname = 'a'\nshare = 2\n")
    names["config"].write_text('reviews = "redis://box"\n')
    process = begin("--port", "0", *(option.format(**names) for option in options))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("tenth: " + words.format(**names)), said
    assert said.count("\n") == 1
    assert "secret" not in said


def test_reviews_by_a_file_of_options(tiny: tuple[Model, Path], tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text("[[rule]]\nname = 'all'\nfinish = 'length'\n")
    file = tmp_path / "serve.toml"
    file.write_text(
        f'model = "{tiny[1]}"\nreviews = "{tmp_path}/q.db"\nreview-rules = "{tmp_path}/rules.toml"\nreview-keep = 2\n'
    )
    with begun("--config", str(file)) as (_, url):
        for number in range(3):
            body = {"prompt": f"ab{number}", "max_tokens": 4, "ignore_eos": True}
            assert httpx.post(url + "/v1/completions", json=body, timeout=60).status_code == 200
        end, asked = time.monotonic() + 20, list[str]()
        while asked != ["ab1", "ab2"]:
            assert time.monotonic() < end, asked
            time.sleep(0.05)
            asked = [one["messages"][0]["content"] for one in httpx.get(url + "/v1/reviews").json()["data"]]
