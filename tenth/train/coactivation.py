"""Which neurons of a dense layer work together: importances, their moments, and a balanced split by them.

N tokens, D model width, F neurons, E clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tenth.kernels.reference import wide
from tenth.model.linear import Mlp

_CHUNK = 4096  # tokens whose importances are held at a time
_ROUNDS = 10  # of k-means; it hardly moves after them
_SWAPS = 60  # rounds of exchanges after it: they find 2 to 4 % more of the sum, most of it in the first thirty


def activations(x_ND: Tensor, mlp: Mlp) -> Tensor:
    """What enters the down projection (N, F): silu(gate) * up."""
    gate_FD, up_FD = (part.weight.dense() for part in (mlp.gate, mlp.up))
    return torch.nn.functional.silu(x_ND @ gate_FD.T) * (x_ND @ up_FD.T)


def moments(x_ND: Tensor, mlp: Mlp) -> tuple[Tensor, Tensor]:
    """Over the tokens: mean importance (F), and mean product of two neurons' importances (F, F), float32 or wider.

    A neuron's importance is the length of what it adds to the layer's output: |activation| * |down column|.
    """
    precise = wide(x_ND.dtype)
    length_F = mlp.down.weight.dense().to(precise).norm(dim=0)
    mean_F = torch.zeros_like(length_F)
    gram_FF = torch.zeros(len(length_F), len(length_F), dtype=precise, device=x_ND.device)
    for chunk_CD in torch.split(x_ND, _CHUNK):
        importance_CF = activations(chunk_CD, mlp).to(precise).abs_() * length_F
        mean_F += importance_CF.sum(0)
        gram_FF += importance_CF.T @ importance_CF
    return mean_F / len(x_ND), gram_FF / len(x_ND)


def expert_energies(x_ND: Tensor, mlp: Mlp, experts_EF: Tensor) -> Tensor:
    """Squared length of what each group of neurons adds to the layer's output (N, E), float32 or wider."""
    down_DF = mlp.down.weight.dense()
    energies = []
    for chunk_CD in torch.split(x_ND, _CHUNK):
        active_CF = activations(chunk_CD, mlp)
        outputs = (active_CF[:, group] @ down_DF[:, group].T for group in experts_EF)
        energies.append(torch.stack([out_CD.to(wide(out_CD.dtype)).square().sum(1) for out_CD in outputs], dim=1))
    return torch.cat(energies)


def by_coactivation(mean_F: Tensor, gram_FF: Tensor, shared: int, clusters: int, generator: torch.Generator) -> Tensor:
    """All neurons in the order of their experts (F): the `shared` most important ones, then equal clusters.

    Neurons of a cluster are important on the same tokens, so that leaving out whole clusters leaves out little.
    """
    ranked_F = mean_F.argsort(descending=True, stable=True).cpu()
    always_S, rest_R = ranked_F[:shared], ranked_F[shared:].sort().values
    label_R = balanced_clusters(gram_FF[rest_R][:, rest_R].cpu(), clusters, generator)
    return torch.cat((always_S.sort().values, rest_R[label_R.argsort(stable=True)]))


def balanced_clusters(gram_FF: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Labels (F) of equally large clusters in which products are large: k-means, then exchanges of two neurons.

    Both raise the sum of `gram` within clusters, which is to lower the squared distances to the clusters' means.
    """
    size = len(gram_FF) // clusters
    label_F = torch.empty(len(gram_FF), dtype=torch.int64)
    label_F[torch.randperm(len(gram_FF), generator=generator)] = torch.arange(len(gram_FF)) % clusters
    for _ in range(_ROUNDS):
        sums_FE = gram_FF @ _members(label_F, clusters).to(gram_FF)
        squares_E = (sums_FE * _members(label_F, clusters)).sum(0) / size**2
        label_F = _assigned(squares_E - 2 * sums_FE / size, size)
    for _ in range(_SWAPS):
        if not _exchange(gram_FF, label_F, clusters):
            break
    return label_F


def _members(label_F: Tensor, clusters: int) -> Tensor:
    return torch.nn.functional.one_hot(label_F, clusters)


def _assigned(cost_FE: Tensor, size: int) -> Tensor:
    """Labels of low cost, `size` neurons each: those that lose most by their second choice choose first."""
    best_F2 = cost_FE.topk(min(2, cost_FE.shape[1]), largest=False).values
    order = (best_F2[:, -1] - best_F2[:, 0]).argsort(descending=True, stable=True).tolist()
    preferred, room = cost_FE.argsort(dim=1, stable=True).tolist(), [size] * cost_FE.shape[1]
    label_F = torch.empty(len(cost_FE), dtype=torch.int64)
    for neuron in order:
        label_F[neuron] = cluster = next(cluster for cluster in preferred[neuron] if room[cluster])
        room[cluster] -= 1
    return label_F


def _exchange(gram_FF: Tensor, label_F: Tensor, clusters: int) -> int:
    """Exchange the best pairs of neurons, one pair for a cluster at most, in place; returns how many gained."""
    sums_FE = gram_FF @ _members(label_F, clusters).to(gram_FF)
    own_F, self_F = sums_FE.gather(1, label_F[:, None])[:, 0], gram_FF.diagonal()
    move_FF = sums_FE[:, label_F] - own_F[:, None]  # neuron i to the cluster of j
    gain_FF = move_FF + move_FF.T - 2 * gram_FF + self_F[:, None] + self_F
    gain_FF.masked_fill_(label_F[:, None] == label_F, 0.0)
    gain_F, partner_F = gain_FF.max(1)
    moved: set[int] = set()
    exchanges = 0
    for neuron in gain_F.topk(min(4 * clusters, len(gain_F))).indices.tolist():
        partner = int(partner_F[neuron])
        here, there = int(label_F[neuron]), int(label_F[partner])
        if gain_F[neuron] > 1e-6 * self_F.mean() and not {here, there} & moved:
            moved |= {here, there}
            label_F[neuron], label_F[partner] = there, here
            exchanges += 1
    return exchanges
