"""`tenth chat`: talk with a model in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from tenth.commands import options as o
from tenth.commands.drafting import Draft, drafter


def command(
    model: o.ModelName = "default",
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="One question, then leave; - reads standard input.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="Instructions ahead of the chat.")] = None,
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="Thinking mode, for models whose template has one.")
    ] = None,
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
    chat_template: o.Template = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    backend: o.Backend = "auto",
    threads: o.Threads = None,
    kv: o.KV = "bf16",
    memory: o.Memory = None,
    expert_counts: o.ExpertCounts = None,
    json: o.Json = False,
) -> None:
    """Talk with a model. In the chat: /help, /experts, /reset; Ctrl-C stops an answer, Ctrl-D leaves."""
    from tenth.api import load
    from tenth.commands.answer import print_notes
    from tenth.commands.chat_session import ChatSession
    from tenth.commands.files import read_prompt, read_text
    from tenth.commands.progress import progress_bars

    if json and prompt is None:
        raise typer.BadParameter("needs a question: give it with --prompt", param_hint="--json")
    question = None if prompt is None else read_prompt(prompt)
    source = None if chat_template is None else read_text(chat_template)
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
        template_arguments=None if think is None else {"enable_thinking": think},
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
            chat_template=source,
            report=report,
            to_run=True,
        )
        guessing = drafter(draft, backend=backend, threads=threads, report=report)
    print_notes(loaded)
    session = ChatSession(loaded, system, chosen | {"draft": guessing})
    try:
        if question is None:
            session.run()
        else:
            session.once(question, experts=experts, json=json)
    finally:
        if expert_counts is not None:
            loaded.add_expert_counts(expert_counts)
