"""`tenth run`: continue a text."""

from __future__ import annotations

from typing import Annotated

import typer

from tenth.commands import options as o
from tenth.commands.drafting import Draft, drafter


def command(
    model: o.ModelName,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The text to continue; - reads standard input.")],
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    presence_penalty: o.PresencePenalty = None,
    frequency_penalty: o.FrequencyPenalty = None,
    seed: o.Seed = None,
    max_tokens: o.MaxTokens = None,
    stop: o.Stop = None,
    expert_mass: o.ExpertMass = None,
    max_experts: o.MaxExperts = None,
    draft: Draft = "off",
    experts: o.Experts = False,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    backend: o.Backend = "auto",
    threads: o.Threads = None,
    kv: o.KV = "bf16",
    memory: o.Memory = None,
    expert_counts: o.ExpertCounts = None,
    json: o.Json = False,
) -> None:
    """Continue a text, without a chat template."""
    from tenth.api import load
    from tenth.commands.answer import answer_once, print_notes
    from tenth.commands.files import read_prompt
    from tenth.commands.progress import progress_bars

    text = read_prompt(prompt)
    chosen = o.given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
        expert_mass=expert_mass,
        max_experts=max_experts,
    )
    with progress_bars(quiet=json) as report:
        loaded = load(
            model,
            dtype=dtype,
            device=device,
            backend=backend,
            threads=threads,
            kv=kv,
            memory=memory,
            expert_counts=expert_counts,
            report=report,
            to_run=True,
        )
        guessing = drafter(draft, backend=backend, threads=threads, report=report)
    print_notes(loaded)
    try:
        answer_once(loaded, loaded.stream(text, draft=guessing, routing="full", **chosen), experts=experts, json=json)
    finally:
        if expert_counts is not None:
            loaded.add_expert_counts(expert_counts)
