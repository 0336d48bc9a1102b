"""The empirical standard model of CoulGAT: what a network's attention says of pairs of species.

The paper (arXiv 1912.08409) reads node-node and node-feature interactions from the learned
parameters. Here they are tables per layer and head, for the species that occur in the explained
structures: the constants of the law, its effective weights, and what each species' query answers to
the values of every other. A constant is read as physics only if it moved, by Student's
t over networks of at least three seeds. It is "not identified" otherwise.

Any two networks over the same structures are compared by their heads' attention and by linear CKA
(Kornblith et al., arXiv 1905.00414) of their features.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from pymatgen.core import Element
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student_t
from torch import Tensor, nn

from matattn.models.coulgat import CoulGAT
from matattn.models.coulomb_attention import CoulombGATConv, ScreenedCoulomb
from matattn.workflows.explain.subjects import blocks_of
from matattn.workflows.structures.explained import ExplainedBatch

CONSTANTS = {"c": "", "p": "", "range": "Å", "self term": ""}
FEWEST_SEEDS = 3
LEVEL = 0.05  # share of constants that never moved, and are called identified


def effective_attention(subjects: Sequence[ExplainedBatch]) -> tuple[list[str], np.ndarray]:
    """Return species, and mean attention [L, H, S, S] of an atom of one to all atoms of another.

    Rows (targets) sum to one. Pairs that do not occur are zero.
    """
    species, targets = _species(subjects)
    parts = []
    for subject in subjects:
        index = torch.searchsorted(torch.tensor(species), subject.batch.z)
        source, target = index[subject.batch.edge_index]
        pair = target * len(species) + source
        weights = torch.stack([layer.seen.T for layer in subject.observe()]).double()
        zero = weights.new_zeros(*weights.shape[:2], len(species) ** 2)
        parts.append(zero.index_add(2, pair, weights))
    total = torch.stack(parts).sum(0).unflatten(2, (len(species), len(species))).numpy()
    return _symbols(species), total / targets[:, None]


def _species(subjects: Sequence[ExplainedBatch]) -> tuple[list[int], np.ndarray]:
    """Return the atomic numbers that occur, and the number of atoms of each."""
    z, count = torch.cat([subject.batch.z for subject in subjects]).unique(return_counts=True)
    return z.tolist(), count.numpy()


def _symbols(species: Sequence[int]) -> list[str]:
    """Return the symbols of atomic numbers."""
    return [Element.from_Z(z).symbol for z in species]


def law(network: CoulGAT, species: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the constants of the law: c, p and range [L, H, S, S], self term [L, H, S].

    The range is in Å, the other constants have no unit. Rows are the targets.
    """
    index = network.species_of[torch.tensor(species)]
    tables: dict[str, list[np.ndarray]] = {name: [] for name in CONSTANTS}
    for module in network.modules():
        if isinstance(module, ScreenedCoulomb):
            with torch.no_grad():
                for name, table in zip(CONSTANTS, module.tables(), strict=True):
                    chosen = table[index] if table.dim() == 2 else table[index][:, index]
                    tables[name].append(chosen.movedim(-1, 0).double().numpy())
    return {name: np.stack(layers) for name, layers in tables.items()}


def initial_law(network: CoulGAT, species: Sequence[int]) -> dict[str, np.ndarray]:
    """Return ``law`` of the network before training: it starts from physics, without chance."""
    fresh = copy.deepcopy(network)
    for module in fresh.modules():
        if isinstance(module, ScreenedCoulomb):
            module.reset_parameters()
    return law(fresh, species)


def law_table(
    networks: Sequence[nn.Module],
    subjects: Sequence[ExplainedBatch],
    matches: Sequence[np.ndarray],
) -> list[dict[str, Any]]:
    """Return a row per constant of the first network; none unless all networks have a law.

    A row says where the constant began, where it is, and whether to read it. ``matches`` are for
    every further network its heads [L, H] in the order of the first one's.
    """
    coulgats = [network for network in networks if isinstance(network, CoulGAT)]
    if len(coulgats) < len(networks):
        return []
    species, _ = _species(subjects)
    symbols = _symbols(species)
    first = initial_law(coulgats[0], species)
    laws = [law(network, species) for network in coulgats]
    for tables, match in zip(laws[1:], matches, strict=True):
        for name, table in tables.items():
            tables[name] = np.stack([t[m] for t, m in zip(table, match, strict=True)])
    rows = []
    for name, unit in CONSTANTS.items():
        values = np.stack([tables[name] for tables in laws])
        for index in np.ndindex(*values.shape[1:]):
            layer, head, *pair = index
            of_networks, initial = values[(slice(None), *index)], float(first[name][index])
            rows.append(
                {
                    "constant": name,
                    "unit": unit,
                    "layer": layer,
                    "head": head,
                    "species": [symbols[s] for s in pair],
                    "initial": initial,
                    "value": float(of_networks[0]),
                    **_verdict(of_networks, initial),
                }
            )
    return rows


def _verdict(values: np.ndarray, initial: float) -> dict[str, Any]:
    """Return mean and spread of a constant over networks, and whether it moved for certain."""
    if len(values) < FEWEST_SEEDS:
        return {"mean": None, "spread": None, "verdict": "unknown: fewer than three networks"}
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    needed = student_t.ppf(1 - LEVEL / 2, len(values) - 1) * spread / len(values) ** 0.5
    moved = abs(mean - initial) > needed
    return {"mean": mean, "spread": spread, "verdict": "identified" if moved else "not identified"}


def node_features(subjects: Sequence[ExplainedBatch]) -> dict[str, Any] | None:
    """Return what every species' query answers to the values of every species, in each layer.

    The table [L, H, S, S] holds a_Z . v, with v the mean value of the atoms of a species, before
    the LeakyReLU. In the first layer all atoms of a species have the same value, so the table is
    the network's own. Returns None for a network without such queries.
    """
    network = subjects[0].network
    if not isinstance(network, CoulGAT):
        return None
    species, count = _species(subjects)
    convs = [m for m in network.modules() if isinstance(m, CoulombGATConv)]
    total: list[Tensor] = [torch.zeros(())] * len(convs)
    for subject in subjects:
        index = torch.searchsorted(torch.tensor(species), subject.batch.z)
        outputs = _outputs(subject, [conv.lin for conv in convs])
        for number, (conv, output) in enumerate(zip(convs, outputs, strict=True)):
            value = output.unflatten(1, (conv.heads, -1))
            sums = value.new_zeros(len(species), *value.shape[1:]).index_add(0, index, value)
            total[number] = total[number] + sums
    tables = []
    for conv, summed in zip(convs, total, strict=True):
        mean = summed / torch.from_numpy(count)[:, None, None]
        if conv.bias is not None:
            mean = mean + conv.bias.detach()
        query = conv.att.detach()
        if conv.species_features is not None:
            query = torch.einsum("sk,khc->shc", conv.species_features, query)
        chosen = query[network.species_of[torch.tensor(species)]]
        tables.append(torch.einsum("thc,shc->hts", chosen, mean).numpy())
    return {"species": _symbols(species), "table": np.stack(tables).tolist()}


def _outputs(subject: ExplainedBatch, modules: Sequence[nn.Module]) -> list[Tensor]:
    """Return what every module gives in an ordinary pass, in the order in which they run."""
    outputs: list[Tensor] = []
    with ExitStack() as stack, torch.no_grad():
        for module in modules:
            hook = module.register_forward_hook(lambda _, inputs, out: outputs.append(out))
            stack.callback(hook.remove)
        subject.values()
    return outputs


def match_heads(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the second network's heads [L, H] that fit the first one's best, and their cosines.

    They are matched by effective attention [L, H, S, S], layer by layer (Hungarian method). The
    numbers of layers and heads must agree.
    """
    orders, cosines = [], []
    for a, b in zip(one, two, strict=True):
        a, b = (x.reshape(len(x), -1) for x in (a, b))
        cosine = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
        rows, columns = linear_sum_assignment(-cosine)
        orders.append(columns)
        cosines.append(cosine[rows, columns])
    return np.stack(orders), np.stack(cosines)


def hidden_states(subjects: Sequence[ExplainedBatch]) -> list[np.ndarray]:
    """Return features [N, C] of all atoms after every block."""
    states = [_outputs(subject, blocks_of(subject.network)) for subject in subjects]
    return [torch.cat(layer).double().numpy() for layer in zip(*states, strict=True)]


def linear_cka(one: np.ndarray, two: np.ndarray) -> float:
    """Return the similarity of two feature matrices [N, C] of the same atoms, 0 to 1."""
    x, y = (features - features.mean(0) for features in (one, two))
    cross = np.linalg.norm(y.T @ x) ** 2
    return float(cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def compare(one: Sequence[ExplainedBatch], two: Sequence[ExplainedBatch]) -> dict[str, Any]:
    """Return matched heads of two networks (None where numbers differ), and CKA of all layers."""
    (_, first), (_, second) = effective_attention(one), effective_attention(two)
    result: dict[str, Any] = {"matched_heads": None, "cosine": None}
    if first.shape == second.shape:
        order, cosine = match_heads(first, second)
        result = {"matched_heads": order.tolist(), "cosine": cosine.tolist()}
    states_one, states_two = hidden_states(one), hidden_states(two)
    result["cka"] = [[linear_cka(a, b) for b in states_two] for a in states_one]
    return result
