"""Explain a wave function: where its heads look on the lattice, and how much each of them matters.

All is measured over configurations drawn from |psi|^2. A head's importance is the derivative of
log psi by a gate on it, and a change is the difference of log psi. Both are without their mean over
configurations: a constant factor of psi is no change. The fidelity of the state without each head
with the whole state is measured, too. There are no baselines of distance, since nothing is removed
by position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from matattn.attention import AttentionLayer, AttentionRecord, LayerProbe, probed
from matattn.models.factored_attention import arguments, to_arrays
from matattn.models.factored_attention_torch import TorchWaveFunction
from matattn.spins import grid_places
from matattn.workflows.explain import heads
from matattn.workflows.explain.report import Section
from matattn.workflows.explain.sections import heads_section
from matattn.workflows.spins.attention_maps import folded
from matattn.workflows.spins.observables import LONG_CHAIN, draw
from matattn.workflows.spins.predict import CHUNK_SIZE, WaveFunction

CONFIGURATIONS = 1024


@dataclass(frozen=True)
class ExplainedConfigurations:
    """B configurations [B, N] of a state."""

    network: TorchWaveFunction
    spins: Tensor

    @property
    def layers(self) -> list[AttentionLayer]:
        """Return the layers of attention, from the input on."""
        return self.network.attention_layers()

    @property
    def count(self) -> int:
        """Return B."""
        return len(self.spins)

    def gates(self, gate: Tensor) -> list[LayerProbe]:
        """Return probes with gates [L, H] of the heads, or [B, L, H] of each configuration."""
        if gate.dim() == 2:
            return [LayerProbe(head_gate=layer) for layer in gate.double()]
        return [LayerProbe(head_gate=g[:, None]) for g in gate.double().unbind(1)]

    def values(self, probes: Sequence[LayerProbe] | None = None) -> Tensor:
        """Return log psi [B], complex."""
        with probed(self.network, probes or [LayerProbe() for _ in self.layers]):
            return self.network(self.spins)

    def slopes(self, gate: Tensor) -> Tensor:
        """Return |d log psi / d xi| [B, L, H] without its mean over configurations."""
        gates = gate.expand(self.count, -1, -1).clone().requires_grad_()
        value = self.values(self.gates(gates))
        real, imag = (
            torch.autograd.grad(part.sum(), gates, retain_graph=True)[0]
            for part in (value.real, value.imag)
        )
        slope = torch.complex(real, imag)
        return (slope - slope.mean(0)).abs()

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return |difference of log psi| [B] without its mean, phases modulo 2 pi."""
        ratio = (after - before).detach()
        ratio = torch.complex(ratio.real - ratio.real.mean(), ratio.imag)
        middle = torch.exp(1j * ratio.imag).mean().angle()
        phase = torch.remainder(ratio.imag - middle + torch.pi, 2 * torch.pi) - torch.pi
        return torch.complex(ratio.real, phase).abs()

    def error(self, values: Tensor) -> Tensor:
        """Return NaN [B]: there are no labels."""
        return torch.full((self.count,), torch.nan)


def fidelity(before: Tensor, after: Tensor) -> float:
    """Return |<after|before>|^2 / (<after|after> <before|before>) from samples of |before|^2."""
    ratio = (after - before).detach()
    weight = torch.exp(ratio - ratio.real.max())
    return float(weight.mean().abs() ** 2 / (weight.abs() ** 2).mean())


def explain(
    state: WaveFunction, seed: int = 0, advance: Callable[[int], Any] = lambda steps: None
) -> dict[str, Any]:
    """Return the content of ``explanation.json`` for a wave function."""
    model = state.model
    subject = prepare(state, seed)
    with torch.no_grad():
        maps = subject.network.attention_maps(subject.spins).numpy()  # [L, B, H, n, n]
    record = attention_record(model.grid, folded(model, maps.mean(1)))
    return {
        "network": type(model).__name__,
        "target": "log_psi",
        "unit": "",
        "system": state.system.name,
        "configurations": subject.count,
        "seed": seed,
        "attention": {
            "displacement_in_patches": grid_places(model.grid).tolist(),
            "distance_in_patches": record.length.tolist(),
            "weight": record.weight.tolist(),
            "spread_over_configurations": folded(model, maps.std(1)).tolist(),
        },
        "heads": heads.heads([subject], advance),
        "fidelity_without_head": fidelities(subject).tolist(),
    }


def prepare(state: WaveFunction, seed: int) -> ExplainedConfigurations:
    """Return ``CONFIGURATIONS`` drawn from the state, with its network in torch."""
    network = TorchWaveFunction(**arguments(state.model))
    network.load_arrays(to_arrays(state.variables))
    drawn = draw(
        state.system, state.model, state.variables, CONFIGURATIONS, LONG_CHAIN, CHUNK_SIZE, seed
    )
    flat = drawn.reshape(-1, state.system.sites).astype(float)
    return ExplainedConfigurations(network.eval(), torch.from_numpy(flat))


def fidelities(subject: ExplainedConfigurations) -> np.ndarray:
    """Return the fidelity [L, H] of the state without each head."""
    shape = heads.shape_of(subject.layers)
    kept = np.zeros(shape)
    with torch.no_grad():
        intact = subject.values()
        for head in np.ndindex(shape):
            gate = torch.ones(shape)
            gate[head] = 0
            kept[head] = fidelity(intact, subject.values(subject.gates(gate)))
    return kept


def attention_record(grid: tuple[int, ...], weight: np.ndarray) -> AttentionRecord:
    """Return weights [L, H, n] by displacement, as attention of the first patch to all patches."""
    displacement, sizes = grid_places(grid), np.array(grid)
    length = np.linalg.norm(np.minimum(displacement, sizes - displacement), axis=1)
    patch = np.arange(len(displacement))
    return AttentionRecord(np.zeros_like(patch), patch, length, weight, "patches")


def sections(result: dict[str, Any]) -> list[Section]:
    """Return all sections of a report on a wave function."""
    attention, kept = result["attention"], np.array(result["fidelity_without_head"])
    distance = np.array(attention["distance_in_patches"])
    weight, spread = (np.array(attention[k]) for k in ("weight", "spread_over_configurations"))
    blind = bool(spread.max() < 1e-9 * np.abs(weight).max())  # else rounding
    text = (
        f"{result['network']} of {result['system']}, over {result['configurations']} "
        "configurations drawn from |ψ|². "
        + (
            "Its weights depend on displacements only, not on the spins."
            if blind
            else "Bars: spread of the weights over configurations."
        )
        + " Weights need not be positive or sum to one."
    )
    rows = [
        [f"layer {layer + 1}, head {head + 1}", f"{value:.4f}"]
        for (layer, head), value in np.ndenumerate(kept)
    ]
    figure = _distance_figure(distance, weight, spread)
    return [
        Section("Attention on the lattice", text, [(figure, "Weight by distance.")]),
        heads_section(result, "mean"),
        Section(
            "Fidelity without a head",
            "1: the state does not need the head. Estimated on the same configurations.",
            tables=[(["head removed", "fidelity"], rows)],
        ),
    ]


def _distance_figure(distance: np.ndarray, weight: np.ndarray, spread: np.ndarray) -> Figure:
    """Return weights [L, H, n] with bars of their spread, against distances [n]."""
    layers, count = weight.shape[:2]
    figure = Figure(figsize=(6, 2.3 * layers + 0.6), layout="constrained")
    for layer in range(layers):
        axes = figure.add_subplot(layers, 1, layer + 1)
        for head in range(count):
            shifted = distance + 0.04 * (head - (count - 1) / 2)
            axes.errorbar(shifted, weight[layer, head], spread[layer, head], fmt="o", markersize=3,
                          label=f"head {head + 1}")  # fmt: skip
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.set(ylabel=f"layer {layer + 1}: weight")
    axes.set_xlabel("distance in patches")
    figure.axes[0].legend(fontsize=7, ncols=count)
    return figure
