"""Chats that a model holds with itself, as text to heal its carved form on: no data set of instructions is needed.

A chat model given nothing but the beginning of a user's turn writes what users write (arXiv 2406.08464); its answers
follow, then the next turn. All chats of a batch run in step; those that begin alike are left out. MODEL is fastest
packed (`tenth pack default-dense dense-packed`). OUT is a token file of the domain `chat`.

usage: python bench/self_chats.py MODEL OUT.tokens [--chats 256] [--length 512] [--batch 64] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import tenth
from tenth.data.token_writer import TokenWriter
from tenth.observe.sequences import Sequences

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # as its template has it
BEGINNING = 40  # tokens, system prompt included, by which chats are told apart
SHAPES = {"user": (1.0, 0.95), "assistant": (0.8, 0.95)}  # temperature and top-p of each side


def draw(logits_BV: Tensor, temperature_B: Tensor, top_p: float, generator: torch.Generator) -> Tensor:
    """One token a row from the likeliest ones that make up `top_p`, of the best 64."""
    best_BK, ids_BK = torch.topk(logits_BV.float(), 64, dim=-1)
    p_BK = torch.softmax(best_BK / temperature_B[:, None], -1)
    p_BK = p_BK.masked_fill(p_BK.cumsum(-1) - p_BK > top_p, 0.0)
    return ids_BK.gather(1, torch.multinomial(p_BK, 1, generator=generator))[:, 0]


class Chats:
    """One batch of chats of equal length in tokens."""

    def __init__(self, model: tenth.Model, batch: int, length: int, seed: int) -> None:
        self._model, self._length = model, length
        self._generator = torch.Generator().manual_seed(seed)
        self._turn = {role: self._encode(f"<|im_start|>{role}\n") for role in SHAPES}
        self._between = self._encode("<|im_end|>\n")
        begin = self._encode(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n") + self._turn["user"]
        self.ids = [list(begin) for _ in range(batch)]
        self._roles = ["user"] * batch
        self._forced: list[list[int]] = [[] for _ in range(batch)]

    def _encode(self, text: str) -> list[int]:
        return self._model.tokenizer.encode(text, specials=True)

    def run(self) -> list[list[int]]:
        """Talk until every chat has its length."""
        sequences = Sequences(self._model.decoder, len(self.ids), self._length)
        start, tokens_BT = 0, torch.tensor(self.ids)
        while True:
            logits_BV = sequences.show(tokens_BT, start).logits_NV
            start += tokens_BT.shape[1]
            if start >= self._length:
                return self.ids
            assert logits_BV is not None
            heat_B = torch.tensor([SHAPES[role][0] for role in self._roles])
            drawn = draw(logits_BV, heat_B, 0.95, self._generator).tolist()
            for chat, token in enumerate(drawn):
                self._take(chat, token)
            tokens_BT = torch.tensor([[ids[-1]] for ids in self.ids])

    def _take(self, chat: int, token: int) -> None:
        """Append what was drawn, or what the format says comes next."""
        if self._forced[chat]:
            token = self._forced[chat].pop(0)
        elif token in self._model.tokenizer.end_ids:
            self._roles[chat] = "assistant" if self._roles[chat] == "user" else "user"
            token, *self._forced[chat] = self._between + self._turn[self._roles[chat]]
        self.ids[chat].append(token)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--chats", type=int, default=256)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = tenth.load(options.model)
    tokenizer = model.tokenizer
    seen: set[tuple[int, ...]] = set()
    began = time.perf_counter()
    with TokenWriter(options.out, tokenizer.vocabulary, tokenizer=tokenizer.fingerprint) as writer:
        for number in range(-(-options.chats // options.batch)):
            for ids in Chats(model, options.batch, options.length, options.seed + number).run():
                if (beginning := tuple(ids[:BEGINNING])) not in seen:
                    seen.add(beginning)
                    writer.add(ids, "chat")
            print(f"{writer.documents} chats after {time.perf_counter() - began:.0f} s", file=sys.stderr)
        writer.finish()


if __name__ == "__main__":
    main()
