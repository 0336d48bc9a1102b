"""What a finished run on properties shows to people: table, plots, values of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pymatgen.core import Element
from rich.table import Table
from torch import Tensor

from matattn.config import RunConfig
from matattn.runtime import machine
from matattn.structures.classification import auroc, reliability, roc_curve
from matattn.structures.dataset import EVALUATED, PropertyDataset
from matattn.training.losses import Loss
from matattn.uncertainty import FEWEST_ROWS, LEVEL
from matattn.workflows import reporting
from matattn.workflows.structures.predict import Predictor

_BASELINES = {"linear_composition": "linear in composition", "mean": "mean of training labels"}
_FLOORS = {  # that only some data have
    "increments": "increments of the bonds",
    "baseline": "cheap calculation",
    "type_of_coupling": "mean of the type",
}
_COLORS = {"train": "0.7", "calibration": "tab:orange", "val": "tab:blue", "test": "tab:red"}


_SCORES = {  # of probabilities
    "log_loss": "log loss (less is better)",
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy at 0.5",
}


def results_table(metrics: Mapping[str, Any]) -> Table:
    """Return the final table: errors of every split and target beside their baselines."""
    title = "Scores of probabilities" if _classifies(metrics) else "Mean absolute errors"
    return reporting.text_table(
        title, _header(metrics), _result_rows(metrics), left=("split", "target", "unit", "score")
    )


def _results(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [r for split in EVALUATED for r in metrics.get(split, {}).values()]


def _classifies(metrics: Mapping[str, Any]) -> bool:
    return any("log_loss" in result for result in _results(metrics))


def _shown(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return names and titles of the baselines that stand in the metrics."""
    names = {name for result in _results(metrics) for name in result["baselines"]}
    titles = _BASELINES | _FLOORS
    if _classifies(metrics):
        titles["linear_composition"] = "logistic in composition"
    return {name: title for name, title in titles.items() if name in names}


def _header(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    titles = _shown(metrics).values()
    if _classifies(metrics):
        return ("split", "target", "score", "model", *titles, "rows")
    return ("split", "target", "MAE", "RMSE", *titles, "unit", "rows", "in interval")


def _result_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    rows, floors = [], list(_shown(metrics))
    for split in reversed(EVALUATED):
        for target, result in metrics.get(split, {}).items():
            rows += _rows_of(split, target, result["unit"], result, floors)
            new = result.get("new_formulas")
            if new and new["n"] < result["n"]:
                rows += _rows_of(f"{split}, new formulas", target, result["unit"], new, floors)
    return rows


def _rows_of(
    split: str, target: str, unit: str, result: Mapping[str, Any], floors: Sequence[str]
) -> list[list[str]]:
    """Return a row of errors, or one for each score of probabilities."""
    if "log_loss" not in result:
        errors = [result["mae"], result.get("rmse"), *(result["baselines"][n] for n in floors)]
        inside = f"{result['interval']['coverage']:.1%}" if "interval" in result else ""
        return [[split, target, *map(_number, errors), unit, str(result["n"]), inside]]
    rows = []
    for score, title in _SCORES.items():
        values = [result[score], *(result["baselines"][name][score] for name in floors)]
        rows.append([split, target, title, *map(_number, values), str(result["n"])])
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def probability_plot(dataset: PropertyDataset, predicted: np.ndarray) -> Figure:
    """Draw the ROC curve of every target, and the share of ones against the probability."""
    labels, count = dataset.labels(), len(dataset.targets)
    figure = Figure(figsize=(9, 4.4 * count), layout="constrained")
    for column, target in enumerate(dataset.targets):
        curves, shares = (figure.add_subplot(count, 2, 2 * column + n) for n in (1, 2))
        for split in EVALUATED:
            rows = dataset.label_rows(split)
            rows = rows[~np.isnan(labels[rows, column])]
            if not len(rows):
                continue
            true, probability = labels[rows, column], predicted[rows, column]
            area = auroc(true, probability)
            if area is not None:
                label = f"{split}: AUROC {area:.3f} ({len(rows)} rows)"
                curves.plot(*roc_curve(true, probability), color=_COLORS[split], label=label)
            shares.plot(*reliability(true, probability), ".-", color=_COLORS[split], label=split)
        for axes in (curves, shares):
            axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
            axes.legend(fontsize=8)
        name = target.name.replace("_", " ")
        curves.set(xlabel=f"false positive rate, {name}", ylabel="true positive rate")
        shares.set(xlabel="predicted probability", ylabel=f"share of {name}")
    return figure


def parity_plot(
    dataset: PropertyDataset, predicted: np.ndarray, metrics: Mapping[str, Any]
) -> Figure:
    """Draw predicted against true values of every target, training rows behind held-out ones."""
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
    return figure


def loss_plot(
    members: Sequence[list[dict[str, float]]], dataset: PropertyDataset, loss: Loss
) -> Figure:
    """Draw training loss and validation errors over the epochs, one line for each member."""
    labels = {"train/loss": f"training {loss.name}"}
    for target in dataset.targets:
        if loss.classifies:
            labels[f"val/log_loss/{target.name}"] = f"validation log loss, {target.name}"
        else:
            labels[f"val/mae/{target.name}"] = f"validation MAE, {target.name} / {target.unit}"
    return reporting.loss_plot(members, labels)


def calibration_plot(
    dataset: PropertyDataset,
    predictor: Predictor,
    features: Tensor,
    quarters: Sequence[Mapping[str, Any]],
) -> Figure:
    """Draw the share of true values in their interval: by the level it promises, and by distance.

    ``quarters`` are those of ``by_distance``.
    """
    labels, levels = dataset.labels(), np.linspace(0.05, 0.95, 19)
    figure = Figure(figsize=(9.2, 4.6), layout="constrained")
    axes, far = figure.subplots(1, 2)
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
    far.axhline(LEVEL, color="black", linewidth=0.8)
    for column, target in enumerate(dataset.targets):
        mine = [row for row in quarters if row["target"] == target.name]
        if mine:
            far.plot([row["median"] for row in mine], [row["inside"] for row in mine], "o-",
                     color=f"C{column}", label=target.name)  # fmt: skip
    split = quarters[0]["split"] if quarters else "test"
    far.set(xlabel=f"ood_score, medians of quarters of the {split} rows", ylim=(0, 1.02),
            ylabel=f"share of true values in their {LEVEL:.0%} interval")  # fmt: skip
    if quarters:
        far.legend(fontsize=8)
    else:
        far.set(title=f"not with less than {FEWEST_ROWS} labels")
    return figure


def by_distance(
    dataset: PropertyDataset, predictor: Predictor, features: Tensor
) -> list[dict[str, Any]]:
    """Return errors and coverage of the test rows, else the validation rows, by quarters.

    The quarters are of their novelty (``ood_score``), the nearest rows first; there are none for
    less than 20 labels.
    """
    assert predictor.uncertainty is not None
    split = "test" if len(dataset.label_rows("test")) else "val"
    labels, rows = dataset.labels(), dataset.label_rows(split)
    found: list[dict[str, Any]] = []
    if not len(rows):
        return found
    novelty = predictor.uncertainty.novelty(features[rows]).numpy()
    predicted = predictor.values(features[rows])
    lower, upper = predictor.intervals(features[rows])
    half = predictor.half_widths(features[rows])
    for column, target in enumerate(dataset.targets):
        true = labels[rows, column]
        known = np.flatnonzero(~np.isnan(true))
        if len(known) < FEWEST_ROWS:
            continue
        for quarter in np.array_split(known[np.argsort(novelty[known], kind="stable")], 4):
            inside = (lower[quarter, column] <= true[quarter]) & (
                true[quarter] <= upper[quarter, column]
            )
            found.append({
                "split": split, "target": target.name, "unit": target.unit,
                "most": float(novelty[quarter].max()), "median": float(np.median(novelty[quarter])),
                "rows": len(quarter), "inside": float(inside.mean()),
                "mae": float(np.abs(predicted[quarter, column] - true[quarter]).mean()),
                "half_width": float(half[quarter, column].mean()),
            })  # fmt: skip
    return found


_DISTANCE_HEADER = (
    "target",
    "ood_score up to",
    "MAE",
    "mean half width",
    "unit",
    "rows",
    "in interval",
)


def _distance_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [row["target"], f"{row['most']:.2f}", f"{row['mae']:.4f}", f"{row['half_width']:.4f}",
         row["unit"], str(row["rows"]), f"{row['inside']:.1%}"]
        for row in rows
    ]  # fmt: skip


def values(
    config: RunConfig,
    dataset: PropertyDataset,
    metrics: Mapping[str, Any],
    distances: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return what the report says: errors beside baselines, comparability, data, settings."""
    return {
        "title": f"{config.model.name} on {dataset.name}, seed {config.seed}",
        "kind": "molecules" if dataset.has_molecules else "crystals",
        "files": "*.xyz" if dataset.has_molecules else "*.cif",
        "header": _header(metrics),
        "rows": _result_rows(metrics),
        "dataset": dataset,
        "level": LEVEL,
        "distance_split": distances[0]["split"] if distances else "",
        "distance_header": _DISTANCE_HEADER,
        "distance_rows": _distance_rows(distances),
        "classifies": _classifies(metrics),
        "machine": machine(config.accelerator),
        "elements": [Element.from_Z(z).symbol for z in dataset.elements()],
    }
