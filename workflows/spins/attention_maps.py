"""Do the attention weights of a wave function depend on the spins? The claim of arXiv 2405.18874.

Weights of networks with queries and keys are collected over samples: their mean map, their spread
over samples, and what happens when each map is frozen to its mean.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.figure import Figure

from matattn.models.factored_attention import (
    BLIND,
    TransformerWaveFunction,
    arguments,
    from_arrays,
    to_arrays,
)
from matattn.models.factored_attention_torch import TorchWaveFunction
from matattn.spins import SpinSystem, displacements
from matattn.workflows.spins.observables import LEAST_CHAIN, LONG_CHAIN, draw, energy


class Samples(Protocol):
    """How many configurations are drawn: settings of the task."""

    @property
    def attention_samples(self) -> int:
        """Return the number of configurations whose maps are compared."""

    @property
    def final_samples(self) -> int:
        """Return the number of configurations of an energy."""

    @property
    def chunk_size(self) -> int:
        """Return the number of configurations that the network sees at once."""


def examine(
    system: SpinSystem,
    model: TransformerWaveFunction,
    variables: Any,
    task: Samples,
    seed: int,
) -> tuple[dict[str, Any], Figure]:
    """Return what attention maps over fresh samples say, and their plot by displacement.

    For each layer and head ``mean`` |a|, ``std`` over samples and their ``ratio``; and for weights
    that see the spins the energy and the fidelity of the network whose maps are frozen to their
    mean.
    """
    count, chunk = task.attention_samples, task.chunk_size
    spins = draw(system, model, variables, count, LEAST_CHAIN, chunk, 20_000 + seed)
    maps = attention_maps(model, variables, spins.reshape(-1, system.sites))
    mean, std = maps.mean(1), maps.std(1)  # [layers, heads, n, n]
    size = np.abs(mean).mean((2, 3))
    spread = std.mean((2, 3))
    result: dict[str, Any] = {
        "mean": size.tolist(),
        "std": spread.tolist(),
        "ratio": (spread / size).tolist(),
        "samples": int(maps.shape[1]),
    }
    if model.attention not in BLIND:
        result |= freeze_test(system, model, variables, mean, spins, task, seed)
    return result, plot(model, mean, std)


def attention_maps(model: TransformerWaveFunction, variables: Any, spins: np.ndarray) -> np.ndarray:
    """Return weights [layers, M, heads, n, n] for configurations [M, N]."""
    twin = TorchWaveFunction(**arguments(model))
    twin.load_arrays(to_arrays(variables))
    with torch.no_grad():
        return twin.attention_maps(torch.from_numpy(spins.astype(float))).numpy()


def freeze_test(
    system: SpinSystem,
    model: TransformerWaveFunction,
    variables: Any,
    mean: np.ndarray,
    spins: np.ndarray,
    task: Samples,
    seed: int,
) -> dict[str, Any]:
    """Return energy and fidelity of the network with ``mean`` maps in place of queries and keys.

    The fidelity |<frozen|psi>|^2 / (<frozen|frozen> <psi|psi>) is estimated on ``spins`` of
    |psi|^2.
    """
    frozen, weights = freeze(model, variables, mean)
    chunk, count = task.chunk_size, task.final_samples
    drawn = draw(system, frozen, weights, count, LONG_CHAIN, chunk, 30_000 + seed)
    frozen_energy = energy(system, frozen, weights, drawn, chunk)
    flat = spins.reshape(-1, system.sites)
    ratio = np.asarray(frozen.apply(weights, flat)) - np.asarray(model.apply(variables, flat))
    ratio = np.exp(ratio - ratio.real.max())
    fidelity = abs(ratio.mean()) ** 2 / (abs(ratio) ** 2).mean()
    return {"frozen_energy": asdict(frozen_energy), "fidelity": float(fidelity)}


def freeze(
    model: TransformerWaveFunction, variables: Any, mean: np.ndarray
) -> tuple[TransformerWaveFunction, Any]:
    """Return the network with fixed attention weights ``mean`` [layers, heads, n, n]."""
    frozen = model.clone(attention="factored", translation_invariant=False)
    arrays = {
        name: array
        for name, array in to_arrays(variables).items()
        if not any(part in name for part in ("/query/", "/key/", "/alpha"))
    }
    arrays |= {f"blocks_{k}/attention/alpha": layer for k, layer in enumerate(mean)}
    return frozen, from_arrays(arrays)


def folded(model: TransformerWaveFunction, maps: np.ndarray) -> np.ndarray:
    """Return the mean [..., n] of maps [..., n, n] over pairs of the same displacement."""
    number = displacements(model.grid)
    return np.stack([maps[..., number == k].mean(-1) for k in range(len(number))], axis=-1)


def plot(model: TransformerWaveFunction, mean: np.ndarray, std: np.ndarray) -> Figure:
    """Draw the mean weight of each displacement, with its spread over samples as bars."""
    layers, heads = mean.shape[:2]
    figure = Figure(figsize=(6, 2.4 * layers + 0.6), layout="constrained")
    displacement = np.arange(mean.shape[-1])
    for layer in range(layers):
        axes = figure.add_subplot(layers, 1, layer + 1)
        for head in range(heads):
            values, bars = (folded(model, part[layer, head]) for part in (mean, std))
            shifted = displacement + 0.15 * (head - (heads - 1) / 2)
            axes.errorbar(shifted, values, bars, fmt="o", markersize=3, label=f"head {head + 1}")
        axes.set(ylabel=f"layer {layer + 1}: weight", xticks=displacement)
        axes.set_xticklabels(
            ["".join(map(str, np.unravel_index(k, model.grid))) for k in displacement], fontsize=7
        )
        axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set_xlabel("displacement in patches (bars: spread over samples)")
    figure.axes[0].legend(fontsize=7, ncols=heads)
    return figure
