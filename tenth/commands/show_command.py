"""`tenth show`: what a model is, without loading it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenth.commands import options as o

if TYPE_CHECKING:
    from tenth.model.config import ModelConfig
    from tenth.weights.packed_index import PackedIndex


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model, a folder with a config.json, or a preset's name.")
    ],
    json: o.Json = False,
) -> None:
    """Print architecture, parameters, memory at 4, 8 and 16 bits, context and KV cost of a model or preset."""
    import json as json_module

    config, notes, backend, weights = _config_of(model)
    facts = describe(config) | weights
    if json:
        print(json_module.dumps(facts | {"backend": backend, "notes": notes}))
        return
    _print(model, config, facts, notes if backend is None else [f"backend {backend}", *notes])


def _config_of(model: str) -> tuple[ModelConfig, list[str], str | None, dict[str, Any]]:
    """The config, what there is to say of the files behind it, and the figures of packed weights."""
    from tenth.api import resolve
    from tenth.kernels.choice import choose_kernels
    from tenth.kernels.choice import describe as describe_kernels
    from tenth.model.preset import preset, preset_names
    from tenth.weights.checkpoint import open_checkpoint, read_config
    from tenth.weights.hub import existing
    from tenth.weights.packed_index import is_padding

    path = existing(model)
    if path is None and model in preset_names():
        return preset(model), [f"preset {model}, no weights"], None, {}
    if path is not None and (path / "config.json").exists() and not any(path.glob("*.safetensors")):
        config, ignored = read_config(path)
        notes = ["config.json only, no weights", *(f"config key {key!r} is ignored" for key in ignored)]
        return config, notes, None, {}
    with open_checkpoint(resolve(model)) as checkpoint:
        kinds: dict[str, int] = {}
        for info in checkpoint.source.tensors.values():
            kinds[info.kind] = kinds.get(info.kind, 0) + info.nbytes
        sizes = ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in sorted(kinds.items(), key=lambda k: -k[1]))
        count = sum(not is_padding(name) for name in checkpoint.source.tensors)
        notes = [f"{checkpoint.format} at {checkpoint.path}", f"{count} tensors: {sizes}"]
        notes += [f"config key {key!r} is ignored" for key in checkpoint.ignored_keys]
        notes += [f"tensor {name!r} is skipped: {reason}" for name, reason in checkpoint.skipped.items()]
        weights = {} if checkpoint.packed is None else packed_facts(checkpoint.packed.index, checkpoint.config)
        backend = describe_kernels(
            choose_kernels(packed=checkpoint.packed is not None, head_dim=checkpoint.config.head_dim)
        )
        return checkpoint.config, notes, backend, weights


def packed_facts(index: PackedIndex, config: ModelConfig) -> dict[str, Any]:
    """Bytes of packed weights, by format, and the bits that a parameter takes with its share of scales and norms."""
    bits = round(index.nbytes * 8 / config.parameters.total, 4)
    return {"weights_bytes": index.nbytes, "bits_per_weight": bits, "bytes_by_format": index.bytes_by_format()}


def describe(config: ModelConfig) -> dict[str, Any]:
    """All figures of a config, as plain data."""
    count, moe = config.parameters, config.moe
    parts = {
        "embedding": count.embedding,
        "head": count.head,
        "attention": count.attention,
        "mlp": count.mlp,
        "router": count.router,
        "norms": count.norms,
    }
    return {
        "model_type": config.model_type,
        "layers": config.num_layers,
        "sparse_layers": len(config.sparse_layers),
        "hidden_size": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "context": config.context_length,
        "experts": moe.num_experts if moe else 0,
        "experts_per_token": moe.top_k if moe else 0,
        "expert_size": moe.intermediate_size if moe else 0,
        "shared_expert_size": moe.shared_intermediate_size if moe else 0,
        "parameters_total": count.total,
        "parameters_active": count.active,
        "parameters_by_part": parts,
        "flops_per_token": config.flops_per_token(),
        "kv_bytes_per_token": config.kv_bytes_per_token(),
        "bytes_by_bits": {str(bits): count.total * bits // 8 for bits in (4, 8, 16)},
    }


def _print(model: str, config: ModelConfig, facts: dict[str, Any], notes: list[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(model)}[/bold]  {config.model_type}")
    sparse = f", {facts['sparse_layers']} of them sparse" if config.moe else ""
    console.print(
        f"  layers       {config.num_layers}{sparse}, width {config.hidden_size}, vocabulary {config.vocab_size:,}"
    )
    norm = ", q/k norm" if config.qk_norm else ""
    console.print(
        f"  attention    {config.num_heads} query / {config.num_kv_heads} key-value heads of {config.head_dim}{norm}"
    )
    if config.moe is not None:
        shared = f", one shared of {config.moe.shared_intermediate_size}" if config.moe.shared_intermediate_size else ""
        moe = config.moe
        console.print(f"  experts      {moe.num_experts} of width {moe.intermediate_size}, {moe.top_k} a token{shared}")
        groups = f", from {moe.top_groups} of {moe.num_groups} groups" if moe.num_groups > 1 else ""
        scale = f", gates times {moe.routed_scale:g}" if moe.routed_scale != 1 else ""
        console.print(f"  router       {moe.score}{', biases' if moe.expert_bias else ''}{groups}{scale}")
    rope = config.rope.kind if config.rope.kind == "default" else f"{config.rope.kind} x{config.rope.factor:g}"
    console.print(f"  context      {config.context_length:,} tokens (RoPE base {config.rope.theta:g}, {rope})")
    kv = config.kv_bytes_per_token()
    full = kv * config.context_length / 1e9
    console.print(f"  KV cache     {kv / 1024:.1f} KiB a token in bf16, {full:.2f} GB for the whole context")
    if "weights_bytes" in facts:
        sizes = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in facts["bytes_by_format"].items())
        size, bits = facts["weights_bytes"] / 1e9, facts["bits_per_weight"]
        console.print(f"  weights      {size:.2f} GB packed, {bits:.2f} bits a weight: {sizes}")
    console.print(f"  work         {facts['flops_per_token'] / 1e9:.2f} GFLOP a token")
    table = Table("part", "parameters", "4 bits", "8 bits", "16 bits", box=None, header_style="bold", padding=(0, 2))
    for column in table.columns[1:]:
        column.justify = "right"
    rows = [
        *facts["parameters_by_part"].items(),
        ("total", facts["parameters_total"]),
        ("active", facts["parameters_active"]),
    ]
    for name, count in rows:
        table.add_row(name, f"{count:,}", *(f"{count * bits / 8e9:.2f} GB" for bits in (4, 8, 16)))
    console.print(table)
    for note in notes:
        console.print(f"[dim]{escape(note)}[/dim]")
