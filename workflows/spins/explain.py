"""Explain a wave function: where its heads look on the lattice, and how much each of them matters.

Measured over configurations drawn from |psi|^2. A head's importance is the derivative of log psi by
a gate on it, and a change the difference of log psi, both without their mean over configurations:
a constant factor of psi is no change. Without a head the fidelity with the whole state is given,
too. There are no baselines of distance here, since nothing is removed by position.
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
        """Layers of attention, from the input on."""
        return self.network.attention_layers()

    @property
    def count(self) -> int:
        """B."""
        return len(self.spins)

    def gates(self, gate: Tensor) -> list[LayerProbe]:
        """Probes with gates [L, H] of the heads, or [B, L, H] of each configuration's own."""
        if gate.dim() == 2:
            return [LayerProbe(head_gate=layer) for layer in gate.double()]
        return [LayerProbe(head_gate=g[:, None]) for g in gate.double().unbind(1)]

    def values(self, probes: Sequence[LayerProbe] | None = None) -> Tensor:
        """Return log psi [B], complex."""
        with probed(self.network, probes or [LayerProbe() for _ in self.layers]):
            return self.network(self.spins)

    def slopes(self, gate: Tensor) -> Tensor:
        """|d log psi / d xi| [B, L, H] without its mean over configurations."""
        gates = gate.expand(self.count, -1, -1).clone().requires_grad_()
        value = self.values(self.gates(gates))
        real, imag = (
            torch.autograd.grad(part.sum(), gates, retain_graph=True)[0]
            for part in (value.real, value.imag)
        )
        slope = torch.complex(real, imag)
        return (slope - slope.mean(0)).abs()

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """|difference of log psi| [B] without its mean, phases modulo 2 pi."""
        ratio = (after - before).detach()
        ratio = torch.complex(ratio.real - ratio.real.mean(), ratio.imag)
        middle = torch.exp(1j * ratio.imag).mean().angle()
        phase = torch.remainder(ratio.imag - middle + torch.pi, 2 * torch.pi) - torch.pi
        return torch.complex(ratio.real, phase).abs()

    def error(self, values: Tensor) -> Tensor:
        """There are no labels."""
        return torch.full((self.count,), torch.nan)


def fidelity(before: Tensor, after: Tensor) -> float:
    """|<after|before>|^2 / (<after|after> <before|before>), on configurations of |before|^2."""
    ratio = (after - before).detach()
    weight = torch.exp(ratio - ratio.real.max())
    return float(weight.mean().abs() ** 2 / (weight.abs() ** 2).mean())


def explain(
    state: WaveFunction, seed: int = 0, advance: Callable[[int], Any] = lambda steps: None
) -> dict[str, Any]:
    """Return what ``explanation.json`` holds of a wave function."""
    model = state.model
    drawn = draw(state.system, model, state.variables, CONFIGURATIONS, LONG_CHAIN, CHUNK_SIZE, seed)
    flat = torch.from_numpy(np.asarray(drawn).reshape(-1, state.system.sites).astype(float))
    network = TorchWaveFunction(**arguments(model))
    network.load_arrays(to_arrays(state.variables))
    subject = ExplainedConfigurations(network.eval(), flat)
    with torch.no_grad():
        maps = network.attention_maps(flat).numpy()  # [L, B, H, n, n]
        intact = subject.values()
    record = attention_record(model.grid, folded(model, maps.mean(1)))
    spread = folded(model, maps.std(1))
    kept = np.zeros(record.weight.shape[:2])
    for head in np.ndindex(kept.shape):
        gate = torch.ones(kept.shape)
        gate[head] = 0
        with torch.no_grad():
            kept[head] = fidelity(intact, subject.values(subject.gates(gate)))
    return {
        "network": type(model).__name__,
        "target": "log_psi",
        "unit": "",
        "system": state.system.name,
        "configurations": len(flat),
        "seed": seed,
        "attention": {
            "displacement_in_patches": grid_places(model.grid).tolist(),
            "distance_in_patches": record.length.tolist(),
            "weight": record.weight.tolist(),
            "spread_over_configurations": spread.tolist(),
        },
        "heads": heads.heads([subject], advance),
        "fidelity_without_head": kept.tolist(),
    }


def attention_record(grid: tuple[int, ...], weight: np.ndarray) -> AttentionRecord:
    """Weights [L, H, n] by displacement, as attention of the first patch to all patches."""
    places, sizes = grid_places(grid), np.array(grid)
    nearest = np.minimum(places, sizes - places)
    number = np.arange(len(places))
    length = np.linalg.norm(nearest, axis=1)
    return AttentionRecord(np.zeros_like(number), number, length, weight, "patches")


def sections(result: dict[str, Any]) -> list[Section]:
    """All sections of a report on a wave function."""
    found, kept = result["attention"], np.array(result["fidelity_without_head"])
    distance = np.array(found["distance_in_patches"])
    weight, spread = (np.array(found[k]) for k in ("weight", "spread_over_configurations"))
    layers, heads = weight.shape[:2]
    figure = Figure(figsize=(6, 2.3 * layers + 0.6), layout="constrained")
    for layer in range(layers):
        axes = figure.add_subplot(layers, 1, layer + 1)
        for head in range(heads):
            at = distance + 0.04 * (head - (heads - 1) / 2)
            axes.errorbar(at, weight[layer, head], spread[layer, head], fmt="o", markersize=3,
                          label=f"head {head + 1}")  # fmt: skip
        axes.axhline(0, color="0.7", linewidth=0.8)
        axes.set(ylabel=f"layer {layer + 1}: weight")
    axes.set_xlabel("distance in patches")
    figure.axes[0].legend(fontsize=7, ncols=heads)
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
        [f"layer {layer + 1}, head {head + 1}", f"{kept[layer, head]:.4f}"]
        for layer, head in np.ndindex(layers, heads)
    ]
    return [
        Section("Attention on the lattice", text, [(figure, "Weight by distance.")]),
        heads_section(result, "mean"),
        Section(
            "Fidelity without a head",
            "1: the state does not need the head. Estimated on the same configurations.",
            tables=[(["head removed", "fidelity"], rows)],
        ),
    ]
