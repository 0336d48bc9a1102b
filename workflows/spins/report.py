"""What a finished ground-state search shows to people: table, plots, values of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from matattn.models.factored_attention import TransformerWaveFunction
from matattn.runtime import processor
from matattn.spins import PAULI, SpinSystem
from matattn.workflows import reporting
from matattn.workflows.spins.observables import Observables

_HEADER = ("energy per site", "S.S", "error", "in Pauli units", "relative error", "V-score",
           "tau", "R-hat", "samples")  # fmt: skip
Rows = Sequence[Mapping[str, float]]


def results_table(metrics: Mapping[str, Any]) -> Table:
    """Return the final table: every energy with all its diagnostics, and the reference."""
    title = "Ground-state energy, S.S per site with J1 = 1"
    return reporting.text_table(title, _HEADER, _result_rows(metrics), left=_HEADER[:1])


def _result_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, e in metrics["energies"].items():
        rows.append([
            name, f"{e['mean']:.6f}", f"{e['error']:.6f}", f"{e['pauli']:.5f}",
            _percent(e.get("relative_error")), f"{e['v_score']:.4f}", f"{e['tau']:.2f}",
            f"{e['r_hat']:.3f}", str(e["samples"]),
        ])  # fmt: skip
    for name, e in metrics["exact_sum"].items():
        first, second = e["overlaps"]
        rows.append([
            f"{name} (overlaps {first:.4f}, {second:.4f})", f"{e['energy']:.6f}", "0",
            f"{PAULI * e['energy']:.5f}", _percent(e.get("relative_error")), "", "", "", "all",
        ])  # fmt: skip
    if reference := metrics["reference"]:
        value = reference["energy"]
        rows.append([f"reference: {reference['source']}", f"{value:.6f}", "",
                     f"{PAULI * value:.5f}", "", "", "", "", ""])  # fmt: skip
    return rows


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.3%}"


def energy_plot(rows: Rows, metrics: Mapping[str, Any], system: SpinSystem) -> Figure:
    """Draw the energy over the steps with its error band, and its distance from the reference."""
    reference = metrics["reference"]
    figure = Figure(figsize=(6, 6 if reference else 3.6), layout="constrained")
    axes = figure.add_subplot(2 if reference else 1, 1, 1)
    epoch = np.array([row["epoch"] for row in rows])
    mean, error = (np.array([row[f"train/{key}"] for row in rows]) for key in ("energy", "error"))
    axes.plot(epoch, mean, label="weighted samples, mean of an epoch")
    axes.fill_between(epoch, mean - error, mean + error, alpha=0.3, label="error of one step")
    if reference:
        axes.axhline(reference["energy"], color="black", linewidth=0.8, label="reference")
    axes.set(ylabel="energy per site / J1 (S.S)", title=system.name)
    axes.legend(fontsize=8)
    if reference:
        lower = figure.add_subplot(2, 1, 2, sharex=axes)
        scale = abs(reference["energy"])
        lower.semilogy(epoch, np.abs(mean - reference["energy"]) / scale, label="training")
        for name, found in metrics["energies"].items():
            lower.axhline(
                max(abs(found["relative_error"]), 1e-12), linestyle="--", linewidth=0.8,
                color="tab:red" if name == "symmetrized" else "tab:green", label=name,
            )  # fmt: skip
        lower.set(ylabel="|relative error|")
        lower.legend(fontsize=8)
    figure.axes[-1].set_xlabel("epoch")
    return figure


def structure_factor_plot(system: SpinSystem, measured: Observables) -> Figure:
    """Draw S(q) on the wave vectors of the finite lattice, and correlations over the distance."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    values = measured.structure_factor
    if len(system.extent) == 1:
        momenta = 2 * np.arange(values.size) / values.size
        left.errorbar(momenta, values, measured.structure_factor_error, fmt="o-", markersize=3)
        left.set(xlabel="q / pi", ylabel="S(q)")
    else:
        shifted = np.roll(values, [n // 2 for n in system.extent], axis=(0, 1))
        drawn = left.imshow(shifted.T, origin="lower", cmap="viridis")
        for axis, size in zip((left.xaxis, left.yaxis), system.extent, strict=True):
            axis.set_ticks(range(size))
            axis.set_ticklabels([f"{2 * (k - size // 2) / size:.2g}" for k in range(size)])
        names = "x-direction", "y-direction"
        left.set(xlabel=f"q / pi, {names[0]}", ylabel=f"q / pi, {names[1]}", title="S(q)")
        figure.colorbar(drawn, ax=left)
    distance = _distances(system)
    order = distance.argsort()[1:]
    right.errorbar(
        distance[order], measured.correlations[order], measured.correlations_error[order], fmt="o",
        markersize=3,
    )  # fmt: skip
    right.axhline(0, color="0.7", linewidth=0.8)
    right.set(xlabel="distance / nearest neighbours", ylabel=r"$\langle S_0 \cdot S_r \rangle$")
    return figure


def _distances(system: SpinSystem) -> np.ndarray:
    """Return the length of every displacement to its nearest image [N], in neighbour distances."""
    reach = [(-1, 0) if closed else (0,) for closed in system.periodic]
    images = np.stack(np.meshgrid(*reach, indexing="ij"), -1).reshape(-1, len(system.extent))
    cells = system.cells[None] + (images * np.array(system.extent))[:, None]
    return np.linalg.norm(cells @ system.basis, axis=-1).min(0)


def extrapolation(rows: Rows) -> dict[str, float] | None:
    """Return the energy per site at zero variance: a line through two thirds of the epochs.

    These are the last ones. Returns None when there are fewer than 6 of them, or the variance does
    not vary.
    """
    x, y = _variances_and_energies(rows)
    if len(x) < 6 or np.ptp(x) < 1e-12 * max(abs(x).max(), 1e-300):
        return None
    (slope, start), covariance = np.polyfit(x, y, 1, cov=True)
    return {"energy": float(start), "error": float(covariance[1, 1] ** 0.5), "slope": float(slope)}


def _variances_and_energies(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return those of the last two thirds of the epochs."""
    kept = rows[len(rows) // 3 :]
    x, y = (np.array([row[f"train/{key}"] for row in kept]) for key in ("variance", "energy"))
    return x, y


def extrapolation_plot(rows: Rows, metrics: Mapping[str, Any]) -> Figure:
    """Draw energy against variance over the training, with the line to zero variance."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    x, y = _variances_and_energies(rows)
    drawn = axes.scatter(x, y, c=[row["epoch"] for row in rows[-len(x) :]], s=12)
    figure.colorbar(drawn, ax=axes, label="epoch")
    if line := metrics["extrapolation"]:
        ends = np.array([0, x.max()])
        axes.plot(ends, line["energy"] + line["slope"] * ends, color="tab:red", linewidth=0.8,
                  label=f"to zero variance: {line['energy']:.5f}({line['error']:.5f})")  # fmt: skip
    if reference := metrics["reference"]:
        axes.axhline(reference["energy"], color="black", linewidth=0.8, label="reference")
    axes.set(xlabel="variance of the energy per site", ylabel="energy per site / J1 (S.S)")
    axes.legend(fontsize=8)
    return figure


def plain(system: SpinSystem, measured: Observables, energies: Mapping[str, Any]) -> dict[str, Any]:
    """Return what observables.json holds: energies and correlations with errors and units."""
    pairs = {"staggered magnetisation squared": measured.staggered, "Marshall sign": measured.sign}
    neighbours, kinds = system.bonds[0], system.bond_kinds
    number = system.displacement(neighbours)
    bonds = {
        f"S.S, neighbours {1 + kind}": [
            float(measured.correlations[number[kinds == kind]].mean()),
            float(measured.correlations_error[number[kinds == kind]].mean()),
        ]
        for kind in (0, 1)
    }
    return {
        "units": "S.S for spins 1/2, J1 = 1; NetKet's Pauli units are 4 times as large",
        "energies": dict(energies),
        "scalars": {
            **bonds,
            **{name: list(value) for name, value in pairs.items() if value is not None},
            "total spin squared": [measured.total_spin, None],
        },
        "structure_factor": measured.structure_factor.tolist(),
        "structure_factor_error": measured.structure_factor_error.tolist(),
        "correlations": measured.correlations.tolist(),
        "correlations_error": measured.correlations_error.tolist(),
        "displacements": system.cells.tolist(),
        "samples": measured.samples,
    }


_WEINSTEIN = "an exact energy per site is within (Weinstein)"
# Observables that a report shows in its table of energies already.
_OF_THE_ENERGY = (
    "energy per site (S.S)", "energy per site (Pauli units)", "variance of the energy per site",
    "V-score", _WEINSTEIN, "autocorrelation time / samples", "R-hat",
)  # fmt: skip


def scalars(observed: Mapping[str, Any]) -> list[tuple[str, tuple[float, float | None]]]:
    """Return name, value and standard error of what observables.json says in single numbers."""
    factor = np.array(observed["structure_factor"])
    place = np.unravel_index(factor.argmax(), factor.shape)
    where = ", ".join(f"{2 * k / n:.3g} pi" for k, n in zip(place, factor.shape, strict=True))
    error = np.array(observed["structure_factor_error"])[place]
    found = observed["energies"]["fresh samples"]
    return [
        ("energy per site (S.S)", (found["mean"], found["error"])),
        ("energy per site (Pauli units)", (PAULI * found["mean"], PAULI * found["error"])),
        ("variance of the energy per site", (found["variance"], None)),
        ("V-score", (found["v_score"], None)),
        (_WEINSTEIN, (found["variance"] ** 0.5, None)),
        ("autocorrelation time / samples", (found["tau"], None)),
        ("R-hat", (found["r_hat"], None)),
        *((name, (value, error)) for name, (value, error) in observed["scalars"].items()),
        (f"largest S(q), at q = ({where})", (float(factor[place]), float(error))),
    ]


def values(
    system: SpinSystem,
    model: TransformerWaveFunction,
    seed: int,
    metrics: Mapping[str, Any],
    observed: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the report says: energies beside references, observables, settings."""
    return {
        "title": f"{model.attention} attention on {system.name}, seed {seed}",
        "system": system,
        "header": _HEADER,
        "rows": _result_rows(metrics),
        "observables": [row for row in scalars(observed) if row[0] not in _OF_THE_ENERGY],
        "samples": observed["samples"],
        "attention": _attention_rows(metrics.get("attention")),
        "machine": f"{processor()}; jax {jax.__version__} on {jax.device_count()} "
        f"{jax.default_backend()} device(s)",
    }


def _attention_rows(attention: Mapping[str, Any] | None) -> list[list[str]]:
    """Return a row for each layer and head: mean |weight|, spread over samples, their ratio."""
    if attention is None:
        return []
    names = ("mean", "std", "ratio")
    return [
        [str(layer + 1), str(head + 1), *(f"{attention[name][layer][head]:.4f}" for name in names)]
        for layer, heads in enumerate(attention["mean"])
        for head in range(len(heads))
    ]
