"""What a finished ground-state search shows to people: table, plots, report, model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

import matattn
from matattn.models.factored_attention import TransformerWaveFunction
from matattn.runtime import processor
from matattn.spins import PAULI, SpinSystem
from matattn.workflows.reporting import save_figure
from matattn.workflows.reporting import without_pictures as card_text
from matattn.workflows.spins.observables import Observables

__all__ = ["card_text", "energy_plot", "extrapolation", "extrapolation_plot", "plain",
           "report_text", "results_table", "scalars", "structure_factor_plot"]  # fmt: skip

_HEADER = ("energy per site", "S.S", "error", "in Pauli units", "relative error", "V-score",
           "tau", "R-hat", "samples")  # fmt: skip
Rows = Sequence[Mapping[str, float]]


def results_table(metrics: dict[str, Any]) -> Table:
    """The final table: every energy with all its diagnostics, and the reference."""
    table = Table(title="Ground-state energy, S.S per site with J1 = 1")
    for column in _HEADER:
        table.add_column(column, justify="left" if column == _HEADER[0] else "right")
    for row in _result_rows(metrics):
        table.add_row(*row)
    return table


def _result_rows(metrics: dict[str, Any]) -> list[list[str]]:
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


def energy_plot(path: Path, rows: Rows, metrics: Mapping[str, Any], system: SpinSystem) -> None:
    """Energy over the steps with its error band, the reference, and the distance from it."""
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
    save_figure(figure, path)


def structure_factor_plot(path: Path, system: SpinSystem, found: Observables) -> None:
    """S(q) on the wave vectors of the finite lattice, and correlations over the distance."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    values = found.structure_factor
    if len(system.extent) == 1:
        momenta = 2 * np.arange(values.size) / values.size
        left.errorbar(momenta, values, found.structure_factor_error, fmt="o-", markersize=3)
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
        distance[order], found.correlations[order], found.correlations_error[order], fmt="o",
        markersize=3,
    )  # fmt: skip
    right.axhline(0, color="0.7", linewidth=0.8)
    right.set(xlabel="distance / nearest neighbours", ylabel=r"$\langle S_0 \cdot S_r \rangle$")
    save_figure(figure, path)


def _distances(system: SpinSystem) -> np.ndarray:
    """Length of every displacement to its nearest image [N], in nearest-neighbour distances."""
    reach = [(-1, 0) if closed else (0,) for closed in system.periodic]
    images = np.stack(np.meshgrid(*reach, indexing="ij"), -1).reshape(-1, len(system.extent))
    cells = system.cells[None] + (images * np.array(system.extent))[:, None]
    return np.linalg.norm(cells @ system.basis, axis=-1).min(0)


def extrapolation(rows: Rows) -> dict[str, float] | None:
    """Energy per site at zero variance: a line through the last two thirds of the epochs.

    None when there are fewer than 6 such epochs, or the variance does not vary.
    """
    x, y = _variances_and_energies(rows)
    if len(x) < 6 or np.ptp(x) < 1e-12 * max(abs(x).max(), 1e-300):
        return None
    (slope, start), covariance = np.polyfit(x, y, 1, cov=True)
    return {"energy": float(start), "error": float(covariance[1, 1] ** 0.5), "slope": float(slope)}


def _variances_and_energies(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Of the last two thirds of the epochs."""
    kept = rows[len(rows) // 3 :]
    x, y = (np.array([row[f"train/{key}"] for row in kept]) for key in ("variance", "energy"))
    return x, y


def extrapolation_plot(path: Path, rows: Rows, metrics: Mapping[str, Any]) -> None:
    """Energy against variance over the training, with the line to zero variance."""
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
    save_figure(figure, path)


def plain(system: SpinSystem, found: Observables, energies: Mapping[str, Any]) -> dict[str, Any]:
    """observables.json: energies and correlations with errors, units and conventions."""
    pairs = {"staggered magnetisation squared": found.staggered, "Marshall sign": found.sign}
    neighbours, kinds = system.bonds[0], system.bond_kinds
    number = system.displacement(neighbours)
    bonds = {
        f"S.S, neighbours {1 + kind}": [
            float(found.correlations[number[kinds == kind]].mean()),
            float(found.correlations_error[number[kinds == kind]].mean()),
        ]
        for kind in (0, 1)
    }
    return {
        "units": "S.S for spins 1/2, J1 = 1; NetKet's Pauli units are 4 times as large",
        "energies": dict(energies),
        "scalars": {
            **bonds,
            **{name: list(value) for name, value in pairs.items() if value is not None},
            "total spin squared": [found.total_spin, None],
        },
        "structure_factor": found.structure_factor.tolist(),
        "structure_factor_error": found.structure_factor_error.tolist(),
        "correlations": found.correlations.tolist(),
        "correlations_error": found.correlations_error.tolist(),
        "displacements": system.cells.tolist(),
        "samples": found.samples,
    }


def scalars(observed: Mapping[str, Any]) -> list[tuple[str, tuple[float, float | None]]]:
    """Name, value and standard error of what observables.json says in single numbers."""
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
        ("autocorrelation time / samples", (found["tau"], None)),
        ("R-hat", (found["r_hat"], None)),
        *((name, (value, error)) for name, (value, error) in observed["scalars"].items()),
        (f"largest S(q), at q = ({where})", (float(factor[place]), float(error))),
    ]


def report_text(
    config: dict[str, Any],
    system: SpinSystem,
    model: TransformerWaveFunction,
    metrics: dict[str, Any],
    observed: Mapping[str, Any],
    place: str,
) -> str:
    """report.md: energies beside references, observables, settings, how to use the model."""
    task, optimizer = config["task"], config["optimizer"]
    line = metrics["extrapolation"]
    lines = [
        f"# {model.attention} attention on {system.name}, seed {config['seed']}",
        "",
        f"{system.sites} spins 1/2, J1 = 1, J2 = {system.j2:g}, total Sz = {system.total_sz:g}"
        + (", in the basis rotated by Marshall's rule." if system.marshall else "."),
        "",
        "| " + " | ".join(_HEADER) + " |",
        "|" + "---|" * len(_HEADER),
        *("| " + " | ".join(row) + " |" for row in _result_rows(metrics)),
        "",
        "A variational energy lies above the exact one, but for its statistical error. V-score: "
        "N Var(E) / E^2, 0 for an eigenstate. tau and R-hat: autocorrelation in samples and "
        "agreement of the chains.",
        *(
            ["Overlaps are those with the exact ground state and the first excited state."]
            if metrics["exact_sum"] else []
        ),
        *(
            [f"Extrapolated to zero variance from the training: {line['energy']:.5f} +- "
             f"{line['error']:.5f} (error of the fit alone; no bound)."] if line else []
        ),
        "One seed: differences to another network need at least three.",
        "",
        "![energy](energy.png)",
        "![structure factor and correlations](structure_factor.png)",
        "![extrapolation](extrapolation.png)",
        "",
        "| observable | value | error |",
        "|---|---|---|",
        *(
            f"| {name} | {value:.5f} | {'' if error is None else format(error, '.5f')} |"
            for name, (value, error) in scalars(observed)[6:]
        ),
        "",
        f"Correlations from {observed['samples']} samples; all of them: observables.json.",
        *_attention_lines(metrics),
        "",
        "## Run",
        "",
        f"- {metrics['parameters']:,} real parameters; "
        f"{config['trainer']['max_epochs'] * task['steps_per_epoch']} steps of {task['samples']} "
        f"samples ({task['chains']} chains, blur {task['blur']:g}), "
        f"{metrics['train_time_s']:.0f} s, {metrics['step_time_s']:.3f} s a step; "
        f"rollbacks: {metrics['rollbacks']}",
        f"- learning rate {optimizer['lr']:g}, diagonal shift {optimizer['diag_shift']}, momentum "
        f"{optimizer['momentum']:g}",
        f"- machine: {processor()}; jax {jax.__version__} on {jax.device_count()} "
        f"{jax.default_backend()} device(s)",
        f"- matattn {matattn.__version__}; configuration: config.yaml; trace: metrics.csv; "
        "observables: observables.json",
        "",
        "## Use",
        "",
        "```",
        f"matattn predict {place}",
        "```",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _attention_lines(metrics: Mapping[str, Any]) -> list[str]:
    found = metrics.get("attention")
    if not found:
        return []
    lines = ["![attention](attention.png)", "", "## Attention weights", "",
             f"Over {found['samples']} samples, mean |weight|, its spread over samples, and their "
             "ratio, by layer and head:", "", "| layer | head | mean | spread | ratio |",
             "|---|---|---|---|---|"]  # fmt: skip
    for layer, rows in enumerate(zip(found["mean"], found["std"], found["ratio"], strict=True)):
        for head, (mean, std, ratio) in enumerate(zip(*rows, strict=True)):
            lines.append(f"| {layer + 1} | {head + 1} | {mean:.4f} | {std:.4f} | {ratio:.4f} |")
    if frozen := found.get("frozen_energy"):
        lines += ["", f"With every map frozen to its mean the energy is {frozen['mean']:.6f} "
                  f"+- {frozen['error']:.6f} (S.S per site), and the fidelity with the network is "
                  f"{found['fidelity']:.4f}."]  # fmt: skip
    return lines
