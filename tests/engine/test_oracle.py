"""The naive generate, the cached one, and `transformers`: the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.generate import cached_generate, naive_generate
from tenth.engine.sampler import Sampler, Sampling
from tenth.engine.sequence import CachedSequence
from tenth.errors import RequestError
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.routing.record import Routing
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tests.model.configs import ours, theirs
from tests.weights.models import raw_config

CONFIG = preset("tiny-moe")
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    return initialise(Decoder(CONFIG), seed=1, std=0.2).requires_grad_(False)


def _sampler(prompt: list[int], options: Sampling, decoder: Decoder) -> Sampler:
    return Sampler(options, prompt, decoder.config.vocab_size)


def _compare(decoder: Decoder, prompt: list[int], options: Sampling, count: int) -> tuple[int, int]:
    """Tokens compared, and differences excused: two best logits closer than the noise of two orders of summation.

    The noise is measured: the largest gap between the two ways' logits on this very text.
    """
    naive = naive_generate(decoder, prompt, _sampler(prompt, options, decoder), max_tokens=count)
    sequence = CachedSequence(decoder)
    cached = cached_generate(sequence, prompt, _sampler(prompt, options, decoder), max_tokens=count)
    noise, compared = 0.0, 0
    for one, other in zip(naive, cached, strict=True):
        compared += 1
        noise = max(noise, float((one.logits_V - other.logits_V).abs().max()))
        assert noise < 1e-3
        if one.token != other.token:
            first, second = one.logits_V.topk(2).values.tolist()
            assert options.temperature == 0
            assert first - second <= 2 * noise, "a difference that the noise of summation does not explain"
            return compared, 1
    return compared, 0


@given(prompt=st.lists(st.integers(0, 511), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_cached_equals_naive(tiny: Decoder, prompt: list[int]) -> None:
    assert _compare(tiny, prompt, GREEDY, 12) == (12, 0)


@pytest.mark.parametrize("seed", range(8))
def test_cached_equals_naive_when_drawn_at_random(tiny: Decoder, seed: int) -> None:
    prompt = torch.randint(0, 512, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
    assert _compare(tiny, prompt, Sampling(temperature=1.0, top_p=0.9, seed=seed), 12) == (12, 0)


def test_cached_equals_naive_on_the_real_model(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_checkpoint(smollm2) as checkpoint:
        decoder, tokenizer = load_decoder(checkpoint, dtype=torch.float32), checkpoint.tokenizer()
    texts = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a land of 1,000 lakes,"]
    results = [_compare(decoder, tokenizer.encode(text), GREEDY, 16) for text in texts]
    with capsys.disabled():
        print(f"\ncached against naive: {sum(n for n, _ in results)} tokens, {sum(e for _, e in results)} excused")
    assert sum(n for n, _ in results) >= 40


def test_greedy_equals_transformers() -> None:
    raw = raw_config("qwen3_moe")
    model = theirs(raw)
    decoder = ours(raw, model)
    prompt = [5, 17, 250, 3]
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None)[0, 4:]
    steps = cached_generate(CachedSequence(decoder), prompt, _sampler(prompt, GREEDY, decoder), max_tokens=20)
    assert [step.token for step in steps] == expected.tolist()


def test_a_sequence_keeps_what_two_prompts_share(tiny: Decoder) -> None:
    sequence = CachedSequence(tiny)
    first, second = [1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 8]
    for prompt, fresh in ((first, first), (second, [9, 8]), (second, [8])):
        assert sequence.restart(prompt) == fresh
        logits, _ = sequence.extend(fresh)
        whole, _ = CachedSequence(tiny).extend(prompt)
        torch.testing.assert_close(logits, whole, atol=1e-5, rtol=0)


def test_prompts_longer_than_a_chunk(smollm2: Path) -> None:
    """Chunks and a cache that grows: the logits behind 1,300 tokens are those of one forward pass."""
    long = initialise(Decoder(preset("smollm2-135m")), 0).requires_grad_(False)
    del long.layers[2:]
    tokens = [(7 * i) % 49152 for i in range(1300)]
    logits, _ = CachedSequence(long).extend(tokens)
    step = next(naive_generate(long, tokens, _sampler(tokens, GREEDY, long), max_tokens=1))
    torch.testing.assert_close(logits, step.logits_V, atol=1e-4, rtol=0)


def test_a_sequence_belongs_to_one_generation(tiny: Decoder) -> None:
    sequence, prompt = CachedSequence(tiny), [1, 2, 3]
    first = cached_generate(sequence, prompt, _sampler(prompt, GREEDY, tiny), max_tokens=9)
    expected = [s.token for s in naive_generate(tiny, prompt, _sampler(prompt, GREEDY, tiny), max_tokens=9)]
    never_begun = cached_generate(sequence, [9], _sampler([9], GREEDY, tiny), max_tokens=9)
    assert [next(first).token, next(first).token] == expected[:2]
    next(never_begun)
    with pytest.raises(RequestError, match="another generation"):
        next(first)
    with pytest.raises(RequestError, match="no token"):
        sequence.extend([])


def test_ends(tiny: Decoder) -> None:
    prompt = [1, 2, 3]
    tokens = [s.token for s in naive_generate(tiny, prompt, _sampler(prompt, GREEDY, tiny), max_tokens=9)]
    assert len(tokens) == 9
    end = tokens[4]
    ended = naive_generate(tiny, prompt, _sampler(prompt, GREEDY, tiny), max_tokens=9, end_ids={end})
    assert [s.token for s in ended] == tokens[: tokens.index(end) + 1]


def test_context_bounds(tiny: Decoder) -> None:
    full = [1] * (CONFIG.context_length - 3)
    steps = naive_generate(tiny, full, _sampler(full, GREEDY, tiny), max_tokens=100)
    assert len(list(steps)) == 3
    for prompt, count, message in (([1] * 512, 5, "context is 512"), ([], 5, "empty"), ([1], 0, "max_tokens")):
        with pytest.raises(RequestError, match=message):
            naive_generate(tiny, prompt, _sampler([1], GREEDY, tiny), max_tokens=count)


def test_the_record_covers_every_token_shown(tiny: Decoder) -> None:
    prompt = [3, 1, 4, 1, 5]
    records = []
    for steps in (
        naive_generate(tiny, prompt, _sampler(prompt, GREEDY, tiny), max_tokens=6, record="full"),
        cached_generate(CachedSequence(tiny), prompt, _sampler(prompt, GREEDY, tiny), max_tokens=6, record="full"),
    ):
        records.append(Routing.join([step.routing for step in steps if step.routing is not None]))
    for index in CONFIG.sparse_layers:
        one, other = (record.layers[index] for record in records)
        assert one.experts_TK.shape == (5 + 5, 2)
        assert torch.equal(one.experts_TK, other.experts_TK)
        torch.testing.assert_close(one.logits_TE, other.logits_TE, atol=1e-5, rtol=0)
