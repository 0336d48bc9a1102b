"""What a finished run shows to people: table, plots, report, model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pymatgen.core import Element
from rich.table import Table
from torch import Tensor

import matattn
from matattn.citations import LICENCES
from matattn.runtime import machine
from matattn.structures.dataset import EVALUATED, PropertyDataset
from matattn.uncertainty import LEVEL
from matattn.workflows.reporting import save_figure
from matattn.workflows.structures.predict import Predictor

_BASELINES = {"linear_composition": "linear in composition", "mean": "mean of training labels"}
_FLOORS = {  # that only some data have
    "increments": "increments of the bonds",
    "baseline": "cheap calculation",
    "type_of_coupling": "mean of the type",
}
_COLORS = {"train": "0.7", "calibration": "tab:orange", "val": "tab:blue", "test": "tab:red"}


def results_table(metrics: dict[str, Any]) -> Table:
    """The final table: error of every split and target beside its baselines."""
    table = Table(title="Mean absolute errors")
    for column in _header(metrics):
        table.add_column(
            column, justify="left" if column in ("split", "target", "unit") else "right"
        )
    for row in _result_rows(metrics):
        table.add_row(*row)
    return table


def _shown(metrics: dict[str, Any]) -> dict[str, str]:
    """Names and titles of the baselines that stand in the metrics."""
    results = (r for split in EVALUATED for r in metrics.get(split, {}).values())
    found = {name for result in results for name in result["baselines"]}
    return {name: title for name, title in (_BASELINES | _FLOORS).items() if name in found}


def _header(metrics: dict[str, Any]) -> tuple[str, ...]:
    titles = _shown(metrics).values()
    return ("split", "target", "MAE", "RMSE", *titles, "unit", "rows", "in interval")


def _result_rows(metrics: dict[str, Any]) -> list[list[str]]:
    rows, floors = [], list(_shown(metrics))
    for split in reversed(EVALUATED):
        for target, result in metrics.get(split, {}).items():
            rows.append(_result_row(split, target, result["unit"], result, floors))
            new = result.get("new_formulas")
            if new and new["n"] < result["n"]:
                name = f"{split}, new formulas"
                rows.append(_result_row(name, target, result["unit"], new, floors))
    return rows


def _result_row(
    split: str, target: str, unit: str, result: dict[str, Any], floors: Sequence[str]
) -> list[str]:
    errors = [result["mae"], result.get("rmse"), *(result["baselines"][n] for n in floors)]
    texts = ["" if error is None else f"{error:.4f}" for error in errors]
    inside = f"{result['interval']['coverage']:.1%}" if "interval" in result else ""
    return [split, target, *texts, unit, str(result["n"]), inside]


def parity_plot(
    path: Path, dataset: PropertyDataset, predicted: np.ndarray, metrics: dict[str, Any]
) -> None:
    """Predicted against true values of every target, training rows behind the held-out ones."""
    labels, count = dataset.labels(), len(dataset.targets)
    figure = Figure(figsize=(5 * count, 4.6), layout="constrained")
    for column, target in enumerate(dataset.targets):
        axes = figure.add_subplot(1, count, column + 1)
        known = labels[~np.isnan(labels[:, column]), column]
        low, high = float(known.min()), float(known.max())
        axes.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=3)
        for split in EVALUATED:
            result = metrics.get(split, {}).get(target.name)
            if result:
                rows = dataset.label_rows(split)
                label = f"{split}: MAE {result['mae']:.3f} ({result['n']} rows)"
                axes.scatter(
                    labels[rows, column], predicted[rows, column], s=4,
                    color=_COLORS[split], label=label, rasterized=True,
                )  # fmt: skip
        name = target.name.replace("_", " ")
        axes.set(xlabel=f"true {name} / {target.unit}", ylabel=f"predicted / {target.unit}")
        axes.legend(loc="upper left", fontsize=8, markerscale=2)
    save_figure(figure, path)


def loss_plot(
    path: Path, members: Sequence[list[dict[str, float]]], dataset: PropertyDataset
) -> None:
    """Training loss and validation errors over the epochs, one line for each member."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    named = {"train/loss": "training L1 (units of the labels' spread)"}
    named |= {f"val/mae/{t.name}": f"validation MAE, {t.name} / {t.unit}" for t in dataset.targets}
    for color, (key, label) in enumerate(named.items()):
        for member, rows in enumerate(members):
            values = [row.get(key, np.nan) for row in rows]
            if not np.isnan(values).all():
                epochs = [row["epoch"] for row in rows]
                shown = None if member else label
                axes.plot(epochs, values, f"C{color}.-", markersize=3, label=shown)
    axes.set(xlabel="epoch", yscale="log")
    axes.legend(fontsize=8)
    save_figure(figure, path)


def calibration_plot(
    path: Path, dataset: PropertyDataset, predictor: Predictor, features: Tensor
) -> None:
    """Share of true values inside their interval against the level that the interval promises."""
    labels, levels = dataset.labels(), np.linspace(0.05, 0.95, 19)
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    for split, style in (("val", "-"), ("test", "--")):
        if not len(rows := dataset.label_rows(split)):
            continue
        true = labels[rows]
        ends = (predictor.intervals(features[rows], float(level)) for level in levels)
        inside = np.stack([(lower <= true) & (true <= upper) for lower, upper in ends])
        for column, target in enumerate(dataset.targets):
            if (known := ~np.isnan(true[:, column])).any():
                label = f"{target.name}, {split} ({known.sum()} rows)"
                shares = inside[:, known, column].mean(1)
                axes.plot(levels, shares, style, color=f"C{column}", label=label)
    axes.set(xlabel="level of the interval", ylabel="share of true values inside")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    save_figure(figure, path)


def report_text(
    config: dict[str, Any], dataset: PropertyDataset, metrics: dict[str, Any], model: str
) -> str:
    """report.md: errors beside baselines, comparability, data, settings, how to use ``model``."""
    network = config["model"]["_target_"].rsplit(".", 1)[-1]
    kind, files = ("molecules", "*.xyz") if dataset.has_molecules else ("crystals", "*.cif")
    lines = [
        f"# {network} on {dataset.name}, seed {config['seed']}",
        "",
        "Errors beside those of baselines that see the composition only, fitted on the same"
        " training rows (columns 5 and 6, mean absolute errors), and of what cheap methods the data"
        " bring:",
        "",
        "| " + " | ".join(_header(metrics)) + " |",
        "|" + "---|" * len(_header(metrics)),
        *("| " + " | ".join(row) + " |" for row in _result_rows(metrics)),
        "",
        f"Comparability: {dataset.note or 'the data set says nothing about comparability.'}",
    ]
    if config["task"]["select"] == "best":
        lines.append(
            "The checkpoint was selected on the validation rows: their error is optimistic."
        )
    else:
        lines.append("Nothing was selected on the validation rows: this is the last epoch.")
    if metrics["rows"]["calibration"]:
        lines.append(
            f"Intervals promise {LEVEL:.0%} for {kind} like the calibration rows: training "
            "formulas that were kept apart from the training (docs/uncertainty.md)."
        )
    else:
        lines.append("No rows were kept apart for calibration: predictions have no interval.")
    if "test" not in metrics:
        lines.append("This data set has no test rows.")
    lines += [
        "One seed: differences to another model need at least three.",
        "",
        "![predicted against true](parity.png)",
        "![loss](loss.png)",
        *(["![intervals](calibration.png)"] if metrics["rows"]["calibration"] else []),
        "",
        "## Run",
        "",
        f"- {metrics['parameters']:,} trainable parameters, "
        f"{metrics['train_time_s']:.0f} s of training, {config['trainer']['max_epochs']} epochs, "
        f"batches of {config['task']['batch_size']} {kind}",
        f"- learning rate {config['optimizer']['lr']:g}",
        *_origin(config),
        f"- machine: {machine(config['trainer']['accelerator'])}",
        f"- rows: {', '.join(f'{split} {count}' for split, count in metrics['rows'].items())}; "
        f"left out of the source: {len(dataset.skipped)}",
        *(f"  - {message}" for message in dataset.skipped[:10]),
        f"- elements in the training rows: {_symbols(dataset.elements())}",
        f"- licence of the data: {LICENCES.get(dataset.name, 'see their source')}",
        f"- matattn {matattn.__version__}; configuration: config.yaml; "
        "every prediction: predictions.csv",
        "",
        "## Use",
        "",
        "```",
        f"matattn predict {model} {files}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _origin(config: dict[str, Any]) -> list[str]:
    origin = config["init_from"]
    if not origin:
        return []
    return [f"- started from {origin['path']} (SHA256SUMS: {origin['sha256'][:12]}...)"]


def _symbols(elements: Sequence[int]) -> str:
    return " ".join(Element.from_Z(z).symbol for z in elements)
