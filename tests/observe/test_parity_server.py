"""Parity with a model at an address: a real server of ours, and servers that tell of prompts in others' ways."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import tenth
from tenth.errors import MachineError, RequestError
from tenth.model.batch import Batch
from tenth.model.decoder import Decoder
from tenth.observe.parity import VerifyOptions
from tenth.observe.parity_corpus import Question
from tenth.observe.parity_gate import Gate
from tenth.observe.parity_remote import coarse_divergence, verify_server
from tenth.observe.parity_server import Server
from tenth.observe.parity_sides import opened
from tests.observe.parity_models import compared, corpus, decoder_of, noise, write
from tests.serve.real import server


def _readable(decoder: Decoder) -> None:
    """All other tokens than those of a letter each have logits of 0, so that they are hardly ever the likeliest."""
    decoder.get_parameter("head.weight.values_OI")[94:] = 0
    decoder.get_parameter("head.weight.values_OI").mul_(4)


def _noisy(decoder: Decoder) -> None:
    noise(0.1)(decoder)
    _readable(decoder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("parity") / "a", _readable)


@pytest.fixture(scope="module")
def noisy(model: Path) -> Path:
    return write(model.with_name("noisy"), _noisy)


def _measured(path: Path, address: str, *, last: bool = True, key: str | None = None, **more: Any) -> dict[str, Any]:
    with opened(path, "a") as side:
        return verify_server(
            side,
            Server(address, key),
            corpus(),
            VerifyOptions(greedy_tokens=10),
            server_is_b=last,
            report=lambda _: lambda done, total: None,
            **more,
        )


# ---- ours


def test_a_model_is_as_it_is_served(model: Path) -> None:
    loaded = tenth.load(model)
    with server(loaded) as running:
        question = Question("q", tuple(corpus().windows[0][:5]), lambda text: True)
        found = _measured(model, running.url, questions=[question])
    assert found["server"]["method"] == "echo"
    assert found["server"]["positions"] == found["positions"] > 0
    assert found["kl"]["max"] < 1e-6
    assert found["top1"] == 1
    assert found["greedy"]["agreement"] == 1
    assert found["questions"] == {"count": 1, "a": 1.0, "b": 1.0, "drop": 0.0}
    assert found["perplexity"]["a"] == pytest.approx(found["perplexity"]["b"], rel=1e-6)
    assert (found["routing"], found["layers"]) == (None, [])
    assert any("routing and layers cannot be measured" in note for note in found["notes"])


def test_another_model_is_served(model: Path, noisy: Path) -> None:
    with server(tenth.load(noisy)) as running:
        gate = Gate({"max_kl_mean": 1e-5, "min_routing_agreement": 0.1})
        found = _measured(model, running.url + "/v1/", gate=gate)
    assert found["kl"]["mean"] > 1e-4
    assert found["greedy"]["agreement"] < 1
    assert [(bar["name"], bar["passed"]) for bar in found["gate"]["bars"]] == [
        ("max_kl_mean", False),
        ("min_routing_agreement", False),  # not measured
    ]


# ---- others' ways


class _Fake(BaseHTTPRequestHandler):
    """Tells log-probabilities of the prompt as vLLM does, or by `echo`; refuses fields that it does not know."""

    decoder: Decoder
    way: str
    key = "secret"
    names: tuple[str, ...]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "fake"}]})

    @torch.no_grad()
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers.get("authorization") != f"Bearer {self.key}":
            return self._send(401, {"error": "no such key"})
        if ("prompt_logprobs" in body and self.way != "vllm") or body.get("logprobs", 0) > 5:
            return self._send(400, {"error": "unknown field, or too many"})
        logits = self.decoder(Batch.of([body["prompt"]])).logits_NV
        assert logits is not None
        scores = logits.double().log_softmax(-1)
        ids = body["prompt"]
        top = [scores[n].topk(20 if self.way == "vllm" else 5).indices.tolist() for n in range(len(ids))]
        best = int(scores[-1].argmax())
        if "prompt_logprobs" in body:
            told = [
                {str(token): {"logprob": float(scores[n, token])} for token in {*top[n], ids[n + 1]}}
                for n in range(len(ids) - 1)
            ]
            return self._send(200, {"choices": [{"text": "", "prompt_logprobs": [None, *told]}]})
        first, tokens = (0, [*ids, best]) if body.get("echo") and self.way == "echo" else (len(ids), [best])
        lists = {
            "tokens": [self.names[token] for token in tokens],
            "token_logprobs": [
                float(scores[first + n - 1, token]) if first + n else None for n, token in enumerate(tokens)
            ],
            "top_logprobs": [
                {self.names[token]: float(scores[first + n - 1, token]) for token in top[first + n - 1]}
                if first + n
                else None
                for n in range(len(tokens))
            ],
        }
        return self._send(200, {"choices": [{"text": self.names[best], "logprobs": lists}]})

    def _send(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def _faked(path: Path, way: str, decoder: Decoder, *, strange: bool = False) -> Iterator[str]:
    with opened(path, "b") as side:
        assert side.tokenizer is not None
        spelt = [
            (side.tokenizer.token_bytes(token) or f"<{token}>".encode()).decode(errors="replace")
            for token in range(side.config.vocab_size)
        ]
    if strange:
        spelt = [f"~{text}~" for text in spelt]
    handler = type("Handler", (_Fake,), {"way": way, "decoder": decoder, "names": tuple(spelt)})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()
        thread.join(10)


@pytest.mark.parametrize("way", ["vllm", "echo"])
@pytest.mark.parametrize("last", [True, False])
def test_what_is_told_of_prompts_is_measured_on_the_corpus(model: Path, noisy: Path, way: str, last: bool) -> None:
    with _faked(noisy, way, decoder_of(change=_noisy)) as address:
        found = _measured(model, address, last=last, key="secret")
    true = compared(model, noisy) if last else compared(noisy, model)
    assert found["server"] == {
        "side": "b" if last else "a",
        "method": "prompt_logprobs" if way == "vllm" else "echo",
        "positions": 6 * 63,
    }
    assert found["perplexity"]["a"] == pytest.approx(true["perplexity"]["a"], rel=1e-4)
    assert found["perplexity"]["b"] == pytest.approx(true["perplexity"]["b"], rel=1e-4)
    assert 0 < found["kl"]["mean"] < true["kl"]["mean"]
    if way == "vllm":  # by ids; texts leave out tokens that are half a character
        assert found["top1"] == pytest.approx(true["top1"])


def test_a_refused_key_and_a_closed_port_are_said(model: Path) -> None:
    with (
        _faked(model, "vllm", decoder_of(change=_readable)) as address,
        pytest.raises(RequestError, match=r"answers 401: .*no such key"),
    ):
        _measured(model, address, key="wrong")
    with pytest.raises(MachineError, match=r"cannot be reached"):
        _measured(model, "http://127.0.0.1:9")


def test_tokens_of_another_vocabulary_are_refused(model: Path) -> None:
    decoder = decoder_of(change=_readable)
    with (
        _faked(model, "generated", decoder, strange=True) as address,
        pytest.raises(RequestError, match="parity needs one vocabulary"),
    ):
        _measured(model, address, key="secret")


def test_what_is_put_together_diverges_less() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        p, q = torch.randn(2, 50, generator=generator, dtype=torch.float64).mul(3).log_softmax(-1)
        true = float((p.exp() * (p - q)).sum())
        ids = p.topk(7).indices.tolist()
        coarse = coarse_divergence({t: float(p[t]) for t in ids}, {t: float(q[t]) for t in ids})
        whole = coarse_divergence(dict(enumerate(p.tolist())), dict(enumerate(q.tolist())))
        assert 0 <= coarse <= true + 1e-12
        assert whole == pytest.approx(true, abs=1e-6)
