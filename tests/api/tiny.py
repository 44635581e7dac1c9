"""A whole model small enough for any test: random weights, a tokenizer of the 256 bytes, a chat template."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from tenth.api import Model
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.weights.generation import GenerationDefaults
from tenth.weights.tokenizer import Tokenizer

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 256, 257, 258; the model's go up to 511
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """Byte-level BPE without merges: a byte's id is its place in the alphabet of `ByteLevel`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>"} | ({} if template is None else {"chat_template": template})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def tiny_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Tokenizer:
    write_tokenizer(folder, template)
    return Tokenizer.from_folder(folder)


def tiny_decoder(seed: int = 0, *, context: int = 512) -> Decoder:
    """Weights wide enough that its greedy texts do not fall into repeating one token."""
    config = replace(preset("tiny-moe"), context_length=context)
    return initialise(Decoder(config), seed, std=0.2).requires_grad_(False)


def tiny_model(folder: Path, *, seed: int = 0, context: int = 512, template: str | None = TEMPLATE) -> Model:
    """A model whose texts only end at their length, or at an end token that it draws by chance."""
    decoder = tiny_decoder(seed, context=context)
    generation = GenerationDefaults(temperature=0.0)
    return Model(decoder, tiny_tokenizer(folder, template), generation=generation)
