"""Offline profiles: an independent slow count, the same sums however text is cut into passes, stops and goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tenth.errors import FileFormatError, RequestError
from tenth.model.batch import Batch, Want
from tenth.model.config import MoeConfig
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.model.version import version_of
from tenth.observe import profiling
from tenth.observe.corpora import TextIds, WatchedText
from tenth.observe.profiling import ProfileOptions, Profiler, profile_text, profiled_model
from tenth.routing.profile import RoutingProfile
from tenth.routing.profile_file import read_profile, read_unfinished
from tests.api.tiny import tiny_decoder, tiny_tokenizer
from tests.routing.test_profile import same

Profiled = Callable[..., RoutingProfile]
CONFIG = replace(preset("tiny-moe"), num_layers=3, sparse_layers=(0, 2), moe=MoeConfig(10, 3, 32))
TEXTS = {
    "code": ["def f(x):\n    return x\n", "import os\n" * 9],
    "prose": ["It was a dark night.", "Then it rained. " * 7],
}


def drawn() -> Decoder:
    return initialise(Decoder(CONFIG), seed=1, std=0.2).requires_grad_(False)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return drawn()


@pytest.fixture
def ids_of(tmp_path: Path) -> TextIds:
    (tmp_path / "tokenizer").mkdir()
    return TextIds(tiny_tokenizer(tmp_path / "tokenizer"), "model")


@pytest.fixture
def text(tmp_path: Path) -> WatchedText:
    for domain, texts in TEXTS.items():
        lines = "".join(json.dumps({"text": one}) + "\n" for one in texts)
        (tmp_path / f"{domain}.jsonl").write_text(lines)
    return WatchedText([f"{domain}={tmp_path / domain}.jsonl" for domain in TEXTS])


@pytest.fixture
def profiled(ids_of: TextIds) -> Profiled:
    def run(decoder: Decoder, text: WatchedText, out: Path, options: ProfileOptions | None = None) -> RoutingProfile:
        options = options or ProfileOptions()
        return profile_text(Profiler(decoder, "model", outputs=options.outputs), text, ids_of, out, options)

    return run


@torch.no_grad()
def test_a_slow_count(decoder: Decoder, text: WatchedText, tmp_path: Path, ids_of: TextIds, profiled: Profiled) -> None:
    """Document by document, expert by expert, from the layer's own parts."""
    found = profiled(decoder, text, tmp_path / "p")
    counts = np.zeros((2, 10), np.int64)
    saliency = np.zeros((2, 10))
    extremes = [0.0, 0.0]
    for one in (one for texts in TEXTS.values() for one in texts):
        batch = Batch.of([ids_of.text(one)])
        inputs: list[torch.Tensor] = []
        handles = [
            block.mlp.register_forward_pre_hook(lambda _, args, to=inputs: to.append(args[0]))
            for at, block in enumerate(decoder.blocks())
            if at in (0, 2)
        ]
        streams: list[torch.Tensor] = []
        handles += [
            block.register_forward_hook(lambda _, args, out, to=streams: to.append(out[0]))
            for at, block in enumerate(decoder.blocks())
            if at in (0, 2)
        ]
        routing = decoder(batch, want=Want(routing="full")).routing
        for handle in handles:
            handle.remove()
        for at, (layer, x_TD) in enumerate(zip((0, 2), inputs, strict=True)):
            extremes[at] = max(extremes[at], float(streams[at].abs().max()))
            record = routing.layers[layer]
            for t in range(len(batch)):
                for expert, gate in zip(record.experts_TK[t].tolist(), record.gates_TK[t].tolist(), strict=True):
                    w13, w2 = decoder.blocks()[layer].mlp.experts.expert(expert)  # type: ignore[union-attr]
                    g, u = (w13 @ x_TD[t]).chunk(2)
                    counts[at, expert] += 1
                    saliency[at, expert] += gate * float((w2 @ (torch.nn.functional.silu(g) * u)).norm())
    assert found.counts.counts_LE.tolist() == counts.tolist()
    assert found.outputs is not None
    np.testing.assert_allclose(found.outputs.saliency_LE, saliency, rtol=1e-4)
    np.testing.assert_allclose(found.extremes_L, extremes, rtol=1e-6)
    assert {name: block.tokens for name, block in found.by_domain().items()} == {
        name: sum(len(ids_of.text(one)) for one in texts) for name, texts in TEXTS.items()
    }


def test_however_it_is_cut_into_passes(decoder: Decoder, text: WatchedText, tmp_path: Path, profiled: Profiled) -> None:
    whole = profiled(decoder, text, tmp_path / "whole")
    same(read_profile(tmp_path / "whole"), whole)
    for batch in (1, 40, 130):
        parts = profiled(decoder, text, tmp_path / f"p{batch}", ProfileOptions(batch=batch))
        assert parts.counts.counts_LE.tolist() == whole.counts.counts_LE.tolist()
        np.testing.assert_allclose(parts.counts.gates_LE, whole.counts.gates_LE, rtol=1e-5)
        assert parts.blocks.keys() == whole.blocks.keys()
    assert profiled(decoder, text, tmp_path / "x", ProfileOptions(outputs=False)).outputs is None


def test_limits_of_tokens_and_windows(decoder: Decoder, text: WatchedText, tmp_path: Path, profiled: Profiled) -> None:
    short = profiled(decoder, text, tmp_path / "short", ProfileOptions(tokens=30, context=8))
    assert {name: block.tokens for name, block in short.by_domain().items()} == {"code": 30, "prose": 30}
    broken = tmp_path / "zz.jsonl"  # not read: nobody needs more
    broken.write_text("no JSON\n")
    again = WatchedText([*(f"{domain}={tmp_path / domain}.jsonl" for domain in TEXTS), f"prose={broken}"])
    assert profiled(decoder, again, tmp_path / "again", ProfileOptions(tokens=30)).counts.tokens == 60
    with pytest.raises(RequestError, match="tokens is 0, it must be at least 1"):
        ProfileOptions(tokens=0)


def test_it_goes_on_where_it_was_stopped(
    decoder: Decoder,
    text: WatchedText,
    tmp_path: Path,
    ids_of: TextIds,
    profiled: Profiled,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ProfileOptions(batch=20, context=16)
    whole = profiled(decoder, text, tmp_path / "whole", options)
    monkeypatch.setattr(profiling, "_SAVE_S", 0.0)
    shown = 0

    class Stopped(Profiler):
        def show(self, parts: object) -> None:
            nonlocal shown
            shown += 1
            if shown == 4:
                raise KeyboardInterrupt
            super().show(parts)  # type: ignore[arg-type]

    out, partial = tmp_path / "p", tmp_path / "p.partial"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            profile_text(Stopped(decoder, "model"), text, ids_of, out, options)
        assert not out.exists()
        shown = 2  # the second time it comes further
    assert 0 < read_unfinished(partial)[0].counts.tokens < whole.counts.tokens
    with pytest.raises(RequestError, match="begun with another model, text or option"):
        profiled(decoder, text, out, ProfileOptions(context=64))
    (other := tmp_path / "other").mkdir()
    chats = TextIds(tiny_tokenizer(other, template="{{ messages[0]['content'] }}"), "model")
    with pytest.raises(RequestError, match="begun with another model, text or option"):
        profile_text(Profiler(decoder, "model"), text, chats, out, options)
    assert profiled(decoder, text, out, options).counts.tokens == whole.counts.tokens
    same(read_profile(out), whole)
    assert not partial.exists()
    with pytest.raises(RequestError, match="exists"):
        profiled(decoder, text, out, options)


def test_text_that_is_none(decoder: Decoder, tmp_path: Path, profiled: Profiled) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.txt").write_text("a")
    (tmp_path / "bad.jsonl").write_text('{"content": "x"}\n')
    with pytest.raises(RequestError, match=r"empty.txt: has no text"):
        profiled(decoder, WatchedText([str(tmp_path / "empty.txt")]), tmp_path / "p")
    assert profiled(decoder, WatchedText([str(tmp_path / "one.txt")]), tmp_path / "p").counts.tokens == 1
    with pytest.raises(FileFormatError, match=r"bad.jsonl:1: needs a text 'text' or a list 'messages'"):
        profiled(decoder, WatchedText([str(tmp_path / "bad.jsonl")]), tmp_path / "q")
    with pytest.raises(RequestError, match="neither a file"):
        WatchedText(["code=nowhere/*.py"])
    with pytest.raises(RequestError, match="has no experts"):
        profiled_model(Decoder(replace(CONFIG, moe=None, sparse_layers=())), "dense")


@torch.no_grad()
def test_a_layer_of_no_numbers_is_told(text: WatchedText, tmp_path: Path, profiled: Profiled) -> None:
    broken = drawn()
    broken.blocks()[1].attention_norm.weight[3] = float("nan")
    found = profiled(broken, text, tmp_path / "p")
    tokens = found.counts.tokens
    assert found.counts.broken_L.tolist() == [0, tokens]
    assert found.counts.counts_LE.sum(1).tolist() == [3 * tokens, 0]
    assert np.isinf(found.extremes_L[1])
    same(read_profile(tmp_path / "p"), found)


def test_every_expert_is_in_the_version() -> None:
    decoder = tiny_decoder()
    before = version_of(decoder)
    stacked = [part for part in decoder.parameters() if part.dim() == 3]
    assert stacked
    for part in stacked:
        for expert in (0, len(part) - 1):
            with torch.no_grad():
                part[expert].neg_()
                assert version_of(decoder) != before
                part[expert].neg_()
    assert version_of(decoder) == before
