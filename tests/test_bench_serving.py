"""What the benchmarks of servers share."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tenth.weights.tokenizer import Tokenizer
from tests.bench_scripts import script

serving = script("serving")


def test_every_token_of_a_made_tokenizer_is_a_text_of_its_own(tmp_path: Path) -> None:
    serving.write_tokenizer(tmp_path, 151_936)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.unknown_ids(151_936) == []
    stream = tokenizer.stream()
    assert [stream.push(token) for token in (1000, 39_999, 97)] == ["tok1000", "tok39999", "a"]
    assert tokenizer.end_ids == {151_643, 151_645}
    assert tokenizer.decode(tokenizer.encode("é, or <|im_end|>")) == "é, or <|im_end|>"


def test_a_model_with_a_tokenizer_is_served_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300}))
    (tmp_path / "weights").write_text("some")
    with serving.servable(tmp_path) as made:
        assert made != tmp_path
        assert (made / "weights").read_text() == "some"
        assert Tokenizer.from_folder(made).vocabulary == 300
    assert not made.exists()
    serving.write_tokenizer(tmp_path, 300)
    with serving.servable(tmp_path) as same:
        assert same == tmp_path


def test_prompts_are_ordinary_tokens_and_differ() -> None:
    prompts = [serving.prompt_ids(seed, 64) for seed in range(50)]
    assert prompts[3] == serving.prompt_ids(3, 64)
    assert len({prompt[0] for prompt in prompts}) > 45
    assert all(1000 <= token < 40_000 for prompt in prompts for token in prompt)


@contextmanager
def _answering(*parts: bytes, pause: float = 0.05) -> Iterator[str]:
    """A server that sends these to whoever asks, with pauses between."""

    def serve() -> None:
        while True:
            try:
                connection, _ = bound.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                for number, part in enumerate(parts):
                    time.sleep(pause if number else 0)
                    connection.sendall(part)

    with socket.create_server(("127.0.0.1", 0)) as bound:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def _stream(*bodies: bytes) -> list[bytes]:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    return [head, *(b"%x\r\n%s\r\n" % (len(body), body) for body in bodies), b"0\r\n\r\n"]


def test_streams_are_heard_however_they_are_cut() -> None:
    usage = b'data: {"usage":{"prompt_tokens":4,"completion_tokens":3}}\n\ndata: [DONE]\n\n'
    parts = _stream(b'data: {"a":', b'1}\n\ndata: {"b":2}\n\n: still at work\n\n', usage)
    body = {"max_tokens": 3}
    with _answering(*parts) as address:
        found = serving.load(serving.Served(address, os.getpid()), [[body, body], [body]])
    assert [(one.tokens, one.events) for one in found.heard] == [(3, 3)] * 3
    assert all(0.1 <= one.first < one.end for one in found.heard)  # the first event is whole with the third part
    assert found.figures()["tok_s"] == pytest.approx(9 / found.seconds)
    with _answering(*parts, pause=0) as address, pytest.raises(SystemExit, match="were asked for"):
        serving.load(serving.Served(address, os.getpid()), [[{"max_tokens": 4}]])


@pytest.mark.parametrize(
    ("parts", "words"),
    [([b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"], "answered 503"), (_stream(b"data: {}\n\n")[:2], "broke off")],
)
def test_failures_end_a_measurement(parts: list[bytes], words: str) -> None:
    with _answering(*parts) as address, pytest.raises(RuntimeError, match=words):
        serving.ask(address, "/", [[{}]])


def test_cpu_of_a_process_and_its_children() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ntime.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        whole, own = serving.cpu_seconds(process.pid), serving.own_cpu_seconds(process.pid)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (*map(int, children), process.pid):
            os.kill(pid, 9)
    assert whole >= own + 0.25


def test_a_server_that_ends_is_told_with_its_last_words() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with (
        pytest.raises(SystemExit, match=r"ended with 1: no such model"),
        serving.running(command, "http://127.0.0.1:1", "/"),
    ):
        pass


def test_figures_are_compared_within_rounds() -> None:
    def taken(name: str, *speeds: float) -> list[object]:
        return [serving.Taken("streams", n, name, 30.0 + n, {"tok_s": s}) for n, s in enumerate(speeds)]

    table = serving.compared([*taken("engine", 100, 50, 80), *taken("server", 90, 50, 60)], "engine")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert lines[2] == ["streams tok_s", "engine", "3", "80 (50-100)", "", "", "31.0"]
    assert lines[3] == ["streams tok_s", "server", "3", "60 (50-90)", "0.900", "0.883 ± 0.313", "31.0"]


def test_a_body_goes_as_it_is() -> None:
    raw = serving.http_request(
        "http://127.0.0.1:80", "/v1/completions", serving.completion(1, 4, 8, cache_prompt=False)
    )
    head, _, content = raw.partition(b"\r\n\r\n")
    assert f"content-length: {len(content)}".encode() in head
    body = json.loads(content)
    assert (body["max_tokens"], body["ignore_eos"], body["cache_prompt"], len(body["prompt"])) == (8, True, False, 4)
