"""The optimiser: float32 masters of the weights that learn, averages beside them, and a copy that computes.

Gradients are summed in float32 where weights compute in bfloat16 (`Tensor.grad_dtype`), however many micro-batches
there are. All state is named tensors, so that a checkpoint can fill them in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from tenth.errors import MachineError
from tenth.kernels.reference import wide
from tenth.train.muon import muon_step
from tenth.train.recipe import OptimizerOptions

Group = Literal["matrices", "embeddings", "routers", "deltas", "vectors"]

# a parameter belongs to the group of the first pattern that its name matches
RULES: tuple[tuple[str, Group], ...] = (
    ("embedding.*", "embeddings"),
    ("head.*", "embeddings"),
    ("*.router.weight_ED", "routers"),
    ("*norm.weight", "vectors"),
    ("norm.weight", "vectors"),
    ("*.bias", "vectors"),
    ("*.shared_gate.weight.values_OI", "routers"),  # a single row: nothing to make orthogonal
    ("*.inner_RI", "deltas"),
    ("*.outer_OR", "deltas"),
    ("*_inner_ER?", "deltas"),
    ("*_outer_E*R", "deltas"),
    ("*.values_OI", "matrices"),
    ("*.w13_E2FD", "matrices"),
    ("*.w2_EDF", "matrices"),
)


@dataclass(frozen=True, slots=True)
class Learned:
    """A weight that learns: the parameter that computes, its master (the same tensor in float32), its averages."""

    name: str
    group: Group
    parameter: nn.Parameter
    master: Tensor
    averages: Mapping[str, Tensor]


class Optimizer:
    """AdamW, or Muon for matrices and AdamW for the rest."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        options: OptimizerOptions,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`parameters` that want gradients learn; `start` has values of narrow ones in full precision, by name:
        they become masters, not copies of them.

        MachineError where this torch cannot sum gradients of bfloat16 weights in float32.
        """
        self.options, self.steps = options, 0
        self.learned = tuple(
            self._learned(name, parameter, (start or {}).get(name))
            for name, parameter in parameters
            if parameter.requires_grad
        )

    def _learned(self, name: str, parameter: nn.Parameter, start: Tensor | None) -> Learned:
        group = group_of(name)
        own = wide(parameter.dtype)
        if parameter.dtype == own:
            master = parameter.data
        else:
            if not hasattr(parameter, "grad_dtype"):
                raise MachineError("training in bfloat16 needs torch 2.10 or later: upgrade it, or compute in float32")
            parameter.grad_dtype = own
            master = (parameter if start is None else start).detach().to(parameter.device, own)
            parameter.data.copy_(master)
        names = ("average",) if self._by_muon(group) else ("average", "square")
        return Learned(name, group, parameter, master, {kind: torch.zeros_like(master) for kind in names})

    def _by_muon(self, group: Group) -> bool:
        return self.options.kind == "muon" and group == "matrices"

    def coverage(self) -> dict[str, tuple[int, int]]:
        """Parameters and numbers in each group that has any."""
        table: dict[str, tuple[int, int]] = {}
        for part in self.learned:
            count, numbers = table.get(part.group, (0, 0))
            table[part.group] = count + 1, numbers + part.master.numel()
        return table

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name; `steps` comes on top."""
        masters = {f"master/{part.name}": part.master for part in self.learned}
        averages = {f"{kind}/{p.name}": tensor for p in self.learned for kind, tensor in p.averages.items()}
        return masters | averages

    def masters(self) -> dict[str, Tensor]:
        """The weights that learn, in full precision."""
        return {part.name: part.master for part in self.learned}

    @torch.no_grad()
    def publish(self) -> None:
        """Copy masters to the parameters that compute: after a step, and after a checkpoint was read."""
        for part in self.learned:
            if part.parameter.data_ptr() != part.master.data_ptr():
                part.parameter.copy_(part.master)

    def forget(self) -> None:
        """Drop all gradients."""
        for part in self.learned:
            part.parameter.grad = None

    @torch.no_grad()
    def norm(self) -> float:
        """The norm of all gradients together; not finite where one of them is not."""
        grads = [part.parameter.grad for part in self.learned if part.parameter.grad is not None]
        if not grads:
            return 0.0
        return float(torch.stack(torch._foreach_norm(grads)).double().norm())

    def rates(self, rate: float) -> dict[str, float]:
        """The learning rates of a step for the log: `lr`, and beside it those of Muon and of routers that differ."""
        options, groups = self.options, {part.group for part in self.learned}
        found = {"lr": options.lr * rate}
        if any(self._by_muon(group) for group in groups) and options.muon_lr not in (0, options.lr):
            found["lr_muon"] = options.muon_lr * rate
        if "routers" in groups and options.router_lr not in (0, options.lr):
            found["lr_router"] = options.router_lr * rate
        return found

    @torch.no_grad()
    def step(self, rate: float, norm: float) -> None:
        """Move all weights by their gradients, of which `norm` is the norm, and drop these.

        `rate` multiplies every learning rate. Gradients are divided where they are read, so that clipping costs no
        pass over them.
        """
        divisor = max(norm / self.options.clip, 1.0) if self.options.clip else 1.0
        self.steps += 1
        with_gradients = [part for part in self.learned if part.parameter.grad is not None]
        for decays in (True, False):
            chosen = [part for part in with_gradients if self._decays(part.group) == decays]
            routers = [part for part in chosen if part.group == "routers"]
            others = [part for part in chosen if part.group != "routers" and not self._by_muon(part.group)]
            self._adamw(others, self.options.lr * rate, divisor, decays)
            self._adamw(routers, (self.options.router_lr or self.options.lr) * rate, divisor, decays)
            self._muon([part for part in chosen if self._by_muon(part.group)], rate, divisor)
        self.publish()
        self.forget()

    def _decays(self, group: Group) -> bool:
        return group in ("matrices", "routers", "deltas") or (group == "embeddings" and self.options.decay_embeddings)

    def _adamw(self, parts: Sequence[Learned], lr: float, divisor: float, decays: bool) -> None:
        if not parts:
            return
        device, options = parts[0].master.device, self.options
        adamw(
            [part.master for part in parts],
            [_grad(part) for part in parts],
            [part.averages["average"] for part in parts],
            [part.averages["square"] for part in parts],
            [],
            [torch.tensor(float(self.steps - 1), device=device) for _ in parts],
            fused=True,
            grad_scale=torch.tensor(divisor, device=device) if divisor != 1 else None,
            amsgrad=False,
            beta1=options.betas[0],
            beta2=options.betas[1],
            lr=lr,
            weight_decay=options.weight_decay if decays else 0.0,
            eps=options.eps,
            maximize=False,
        )

    def _muon(self, parts: Sequence[Learned], rate: float, divisor: float) -> None:
        options = self.options
        for part in parts:
            muon_step(
                part.name,
                part.master,
                _grad(part).div_(divisor),
                part.averages["average"],
                lr=(options.muon_lr or options.lr) * rate,
                momentum=options.muon_momentum,
                decay=options.weight_decay,
                scale=options.muon_scale,
            )


def _grad(part: Learned) -> Tensor:
    grad = part.parameter.grad
    assert grad is not None, "those without were left out"
    return grad.to(part.master.dtype)


def group_of(name: str) -> Group:
    """The group of a parameter; every one has exactly one, so that nothing is left out silently."""
    for pattern, group in RULES:
        if fnmatchcase(name, pattern):
            return group
    raise AssertionError(f"no rule for the parameter {name!r}")
