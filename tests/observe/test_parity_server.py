"""Parity with a model at an address: a real server of ours, and servers that tell of prompts in others' ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import tenth
from tenth.errors import MachineError, RequestError
from tenth.model.decoder import Decoder
from tenth.observe.parity_corpus import Question
from tenth.observe.parity_gate import Gate
from tenth.observe.parity_remote import coarse_divergence
from tenth.observe.parity_remote_answers import told_apart
from tenth.observe.parity_sides import opened
from tenth.observe.parity_spelling import Spelling, Token
from tests.observe.parity_models import compared, corpus, decoder_of, noise, write
from tests.observe.parity_servers import faked, measured, scores, texts
from tests.serve.real import server


def _readable(decoder: Decoder) -> None:
    """All other tokens than those of a letter each have logits of 0, so that they are hardly ever the likeliest."""
    decoder.get_parameter("head.weight.values_OI")[94:] = 0
    decoder.get_parameter("head.weight.values_OI").mul_(4)


def _noisy(decoder: Decoder) -> None:
    noise(0.1)(decoder)
    _readable(decoder)


def _halves(decoder: Decoder) -> None:
    """Half of the likeliest tokens are parts of characters, which look alike as text."""
    decoder.get_parameter("head.weight.values_OI")[259:] = 0
    decoder.get_parameter("head.weight.values_OI").mul_(4)


def _noisy_halves(decoder: Decoder) -> None:
    noise(0.2)(decoder)
    _halves(decoder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("parity") / "a", _readable)


@pytest.fixture(scope="module")
def noisy(model: Path) -> Path:
    return write(model.with_name("noisy"), _noisy)


@pytest.fixture(scope="module")
def halves(model: Path) -> Path:
    return write(model.with_name("halves"), _halves)


# ---- ours


def test_a_model_is_as_it_is_served(model: Path) -> None:
    loaded = tenth.load(model)
    with server(loaded) as running:
        question = Question("q", tuple(corpus().windows[0][:5]), lambda text: True)
        found = measured(model, running.url, questions=[question])
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
        found = measured(model, running.url + "/v1/", gate=gate)
    assert found["kl"]["mean"] > 1e-4
    assert found["greedy"]["agreement"] < 1
    assert [(bar["name"], bar["passed"]) for bar in found["gate"]["bars"]] == [
        ("max_kl_mean", False),
        ("min_routing_agreement", False),  # not measured
    ]


# ---- others' ways


def _plain(here: Decoder, there: Decoder, names: Sequence[str] | None) -> tuple[float, int]:
    """The share of positions with the same likeliest token, and how many; by names where they tell which one it is."""
    same = [
        int(ours_V.argmax()) == best
        for window in corpus().windows
        for ours_V, theirs_V, target in zip(scores(here, window), scores(there, window), window[1:], strict=False)
        if (best := int(theirs_V.argmax())) == target or names is None or names.count(names[best]) == 1
    ]
    return sum(same) / len(same), len(same)


@pytest.mark.parametrize("way", ["vllm", "echo"])
@pytest.mark.parametrize("last", [True, False])
def test_what_is_told_of_prompts_is_measured_on_the_corpus(model: Path, noisy: Path, way: str, last: bool) -> None:
    decoder = decoder_of(change=_noisy)
    with faked(noisy, way, decoder) as address:
        found = measured(model, address, last=last)
    true = compared(model, noisy) if last else compared(noisy, model)
    top1, positions = _plain(decoder_of(change=_readable), decoder, None if way == "vllm" else texts(model))
    assert found["server"] == {
        "side": "b" if last else "a",
        "method": "prompt_logprobs" if way == "vllm" else "echo",
        "positions": 6 * 63,
        "top1_positions": positions,
    }
    assert found["perplexity"]["a"] == pytest.approx(true["perplexity"]["a"], rel=1e-4)
    assert found["perplexity"]["b"] == pytest.approx(true["perplexity"]["b"], rel=1e-4)
    assert 0 < found["kl"]["mean"] < true["kl"]["mean"]
    assert found["top1"] == pytest.approx(top1)
    if way == "vllm":
        assert found["top1"] == pytest.approx(true["top1"])


# ---- half characters


def test_likeliest_tokens_that_look_alike_are_left_out(halves: Path) -> None:
    """They were no agreement before: a model was not as likely as itself."""
    decoder = decoder_of(change=_halves)
    gate = Gate({"min_top1": 1.0, "min_greedy_agreement": 1.0})
    with faked(halves, "echo", decoder) as address:
        found = measured(halves, address, gate=gate)
    assert found["gate"]["passed"]
    _, positions = _plain(decoder, decoder, texts(halves))
    assert 50 < positions < 300
    assert (found["top1"], found["server"]["top1_positions"]) == (1.0, positions)
    assert any(
        note.startswith(f"{378 - positions} of 378 positions are left out of the same likeliest token")
        for note in found["notes"]
    )
    other = decoder_of(change=_noisy_halves)
    with faked(halves, "echo", other) as address:
        found = measured(halves, address, tokens=0)
    assert (found["top1"], found["server"]["top1_positions"]) == _plain(decoder, other, texts(halves))
    assert 0.2 < found["top1"] < 0.95


@pytest.mark.parametrize("way", ["ids", "bytes", "texts"])
def test_greedy_answers_are_compared_by_what_tells_most(halves: Path, way: str) -> None:
    decoder = decoder_of(change=_halves)
    with faked(halves, way, decoder) as address:
        found = measured(halves, address, prompts=4)
    left = [note for note in found["notes"] if "left out" in note]
    assert (found["server"]["method"], found["top1"], found["greedy"]["agreement"]) == ("generated", 1.0, 1.0)
    if way == "texts":
        assert [note.split(" are left out: ")[0][-17:] for note in left] == ["tokens of answers", "of greedy answers"]
        assert 0 < found["positions"] < sum(found["greedy"]["lengths"]) < 40
    else:
        assert left == []
        assert (found["greedy"]["lengths"], found["positions"]) == ([10] * 4, 40)


def test_what_looks_alike_may_be_another_token(halves: Path) -> None:
    with opened(halves, "a") as side:
        assert side.tokenizer is not None
        spelling = Spelling(side.tokenizer, side.config.vocab_size)
    names = texts(halves)
    one, other = [token for token in range(256) if names[token] == "�"][:2]

    def token(number: int | None, text: str) -> Token:
        return Token(number, text, {}, None)

    assert told_apart([65, one, 66], [token(65, "b"), token(None, "�"), token(66, "c")], spelling) == (
        [65, 66],
        [65, 66],
        1,
    )
    assert told_apart([65, one], [token(65, "b"), token(other, "�")], spelling) == ([65, one], [65, other], 0)
    assert told_apart([65, 66], [token(None, "�"), token(66, "c")], spelling) == ([65, 66], ["�", 66], 0)
    assert told_apart([one, 65], [token(None, "�")], spelling) == ([65], [], 1)
    assert told_apart([65, one], [token(66, "c"), token(None, "�")], spelling) == ([65, one], [66, "�"], 0)


# ---- refusals


def test_a_refused_key_and_a_closed_port_are_said(model: Path) -> None:
    with (
        faked(model, "vllm", decoder_of(change=_readable)) as address,
        pytest.raises(RequestError, match=r"answers 401: .*no such key"),
    ):
        measured(model, address, key="wrong")
    with pytest.raises(MachineError, match=r"cannot be reached"):
        measured(model, "http://127.0.0.1:9")


def test_tokens_of_another_vocabulary_are_refused(model: Path) -> None:
    decoder = decoder_of(change=_readable)
    with (
        faked(model, "texts", decoder, strange=True) as address,
        pytest.raises(RequestError, match="parity needs one vocabulary"),
    ):
        measured(model, address)


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
