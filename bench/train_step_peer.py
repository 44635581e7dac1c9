"""One training run of `transformers` on a step's model and batch: the peer of `train_step.py`, which starts it.

The peer has what makes it fast and keeps it sound: stacked experts, sdpa attention, torch's AdamW in one fused pass,
the whole batch at once. `keep` says where float32 lives: `same` trains the weights in the type they compute in,
`master` computes in bfloat16 weights and updates float32 copies of them, `autocast` casts float32 weights on every use.

usage: python bench/train_step_peer.py FOLDER --dtype bfloat16 --experts grouped_mm --keep master --steps 5
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen3MoeForCausalLM

Step = Callable[[], float]
"""Does one optimiser's step; the mean cross-entropy before it."""


def balance(logits_TE: Tensor, top_k: int) -> Tensor:
    """E * sum f_i P_i of one layer in float32 (Switch), as our side has it; the library's own joins layers first."""
    p_TE = logits_TE.float().softmax(-1)
    experts_TK = p_TE.topk(top_k, -1).indices
    share_E = torch.bincount(experts_TK.flatten(), minlength=p_TE.shape[1]) / experts_TK.numel()
    return p_TE.shape[1] * (share_E * p_TE.mean(0)).sum()


def decays(name: str) -> bool:
    """Whether weight decay takes a parameter: matrices but embeddings and head, as on our side."""
    return "norm" not in name and "embed_tokens" not in name and "lm_head" not in name


class Peer:
    """A model of `transformers`, its optimiser and the batch."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.keep, self.weight, self.clip = options.keep, options.balance, options.clip
        dtype = torch.bfloat16 if options.dtype == "bfloat16" and options.keep != "autocast" else torch.float32
        self.model = Qwen3MoeForCausalLM.from_pretrained(
            options.folder / "model",
            dtype=dtype,
            attn_implementation="sdpa",
            experts_implementation=options.experts,
        )
        self.model.train()
        self.tokens_BT = load_file(options.folder / "batch.safetensors")["tokens_BT"]
        learned = dict(self.model.named_parameters())
        if options.keep == "master":
            # as loaded, not as rounded: the other side starts from float32 too
            exact = Qwen3MoeForCausalLM.from_pretrained(options.folder / "model", dtype=torch.float32)
            learned = {name: nn.Parameter(p.detach()) for name, p in exact.named_parameters()}
        self.learned = list(learned.values())
        groups = [
            {"params": [p for name, p in learned.items() if decays(name) == chosen], "weight_decay": decay}
            for chosen, decay in ((True, options.decay), (False, 0.0))
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def loss(self) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy, and the balance losses' sum over layers."""
        out = self.model.model(input_ids=self.tokens_BT, use_cache=False, output_router_logits=True)
        logits_BTV = self.model.lm_head(out.last_hidden_state)
        entropy = self.model.loss_function(logits_BTV, self.tokens_BT, self.model.config.vocab_size)
        if not self.weight:
            return entropy, torch.zeros(())
        top_k = self.model.config.num_experts_per_tok
        return entropy, torch.stack([balance(logits_TE, top_k) for logits_TE in out.router_logits]).sum()

    def step(self) -> float:
        """Forward, backward, clipping, update."""
        around: AbstractContextManager[object] = (
            torch.autocast("cpu", torch.bfloat16) if self.keep == "autocast" else nullcontext()
        )
        with around:
            entropy, uneven = self.loss()
        (entropy + self.weight * uneven).backward()
        if self.keep == "master":
            for exact, used in zip(self.learned, self.model.parameters(), strict=True):
                exact.grad, used.grad = None if used.grad is None else used.grad.float(), None
        nn.utils.clip_grad_norm_(self.learned, self.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.keep == "master":
            with torch.no_grad():
                torch._foreach_copy_(list(self.model.parameters()), self.learned)
        return float(entropy.detach())


def timed(step: Step, steps: int) -> dict[str, list[float]]:
    """Seconds of each step, of all its threads together too, and its loss."""
    found: dict[str, list[float]] = {"seconds": [], "processor_seconds": [], "losses": []}
    for _ in range(steps):
        start, used = time.perf_counter(), time.process_time()
        found["losses"].append(step())
        found["seconds"].append(time.perf_counter() - start)
        found["processor_seconds"].append(time.process_time() - used)
    return found


def profiled(step: Step, lines: int) -> str:
    """Where the time of one step goes, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    return str(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=lines))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with model/ and batch.safetensors")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--experts", default="grouped_mm", help="the library's experts_implementation")
    parser.add_argument("--keep", choices=("same", "master", "autocast"), default="same")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--balance", type=float, default=1e-3, help="weight of the balance loss")
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--profile", type=int, default=0, help="print so many lines of a profile too")
    return parser.parse_args()


def main() -> None:
    """Train and print a line of JSON."""
    options = parsed()
    torch.set_num_threads(options.threads)
    peer = Peer(options)
    print(json.dumps(timed(peer.step, options.steps) | {"tokens": peer.tokens_BT.numel()}))
    if options.profile:
        print(profiled(peer.step, options.profile))


if __name__ == "__main__":
    main()
