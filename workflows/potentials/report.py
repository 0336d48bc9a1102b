"""What a finished training of a potential shows to people: table, plots, values of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pymatgen.core import Element
from rich.table import Table

from matattn.config import RunConfig
from matattn.potentials.dataset import PotentialDataset
from matattn.runtime import machine
from matattn.structures.dataset import SPLITS
from matattn.workflows import reporting
from matattn.workflows.potentials.errors import UNITS, Errors
from matattn.workflows.potentials.physics import Physics

_HEADER = ("split", "quantity", "MAE", "RMSE", "without a network", "unit", "values")
_COLORS = {"train": "0.7", "val": "tab:blue", "test": "tab:red"}
_TITLES = {"energy_per_atom": "energy per atom", "forces": "forces", "stress": "stress"}


def results_table(metrics: Mapping[str, Any]) -> Table:
    """Return the final table: errors of every split beside those of constants and zeros."""
    title = "Errors of the potential"
    return reporting.text_table(
        title, _HEADER, rows_of(metrics), left=("split", "quantity", "unit")
    )


def rows_of(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table, of test rows first."""
    return [
        [split, _TITLES[name], *_numbers(result), result["unit"], str(result["n"])]
        for split in reversed(SPLITS)
        for name, result in metrics.get(split, {}).items()
    ]


def group_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return the same for every group."""
    return [
        [f"{split}, {group}", _TITLES[name], *_numbers(result), result["unit"], str(result["n"])]
        for split in reversed(SPLITS)
        for group, results in metrics.get("groups", {}).get(split, {}).items()
        for name, result in results.items()
    ]


INTERVAL_HEADER = ("rows", "forces inside", "half width, eV/Å", "energies inside",
                   "half width, meV/atom", "flagged atoms")  # fmt: skip


def interval_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return how often the 90 % intervals hold, and how wide they are."""
    rows = []
    for one in metrics.get("intervals", ()):
        cells = [", ".join(filter(None, (one["split"], one["group"])))]
        for name, factor in (("forces", 1), ("energy_per_atom", 1000)):
            found = one.get(name)
            cells += (
                [f"{found['coverage']:.1%}", f"{factor * found['half_width']:.3g}"]
                if found
                else ["", ""]
            )
        rows.append([*cells, f"{one['flagged']:.1%}"])
    return rows


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _numbers(result: Mapping[str, Any]) -> list[str]:
    return [f"{v:.3g}" for v in (result["mae"], result["rmse"], result["baselines"]["none"])]


def loss_plot(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Draw training loss and validation errors over the epochs."""
    labels = {"train/loss": "training loss"}
    labels |= {f"val/mae/{n}": f"validation, {_TITLES[n]} / {u}" for n, (_, u) in UNITS.items()}
    return reporting.loss_plot([list(rows)], labels)


def parity_plot(errors: Errors) -> Figure:
    """Draw predicted against true energies, forces and stresses."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    for column, (name, (_, unit)) in enumerate(UNITS.items(), start=1):
        axes = figure.add_subplot(1, 3, column)
        for split in SPLITS:
            rows = errors.dataset.rows(split)
            if not rows:
                continue
            true, predicted = (
                np.concatenate([values[name][row].ravel() for row in rows])
                for values in (errors.true, errors.predicted)
            )
            axes.scatter(true, predicted, s=3, color=_COLORS[split], label=split, rasterized=True)
        known = np.concatenate([one.ravel() for one in errors.true[name]])
        known = known[~np.isnan(known)]
        if len(known):
            ends = [known.min(), known.max()]
            axes.plot(ends, ends, color="black", linewidth=0.8)
        axes.set(xlabel=f"true {_TITLES[name]} / {unit}", ylabel=f"predicted / {unit}")
        axes.legend(fontsize=8, markerscale=2)
    return figure


def values(
    config: RunConfig, dataset: PotentialDataset, metrics: Mapping[str, Any], physics: Physics
) -> dict[str, Any]:
    """Return what the report says: errors by group, comparability, data, settings."""
    return {
        "title": f"{config.model.name} on {dataset.name}, seed {config.seed}",
        "header": _HEADER,
        "rows": rows_of(metrics),
        "group_rows": group_rows(metrics),
        "dataset": dataset,
        "interval_header": INTERVAL_HEADER,
        "interval_rows": interval_rows(metrics),
        "physics": physics,
        "physics_header": ("", "potential", physics.truth, "unit"),
        "physics_rows": [
            [row["quantity"], _shown(row["potential"]), _shown(row["truth"]), row["unit"]]
            for row in physics.rows
        ],
        "machine": machine(config.accelerator),
        "elements": [Element.from_Z(z).symbol for z in dataset.elements()],
        "groups": dataset.groups("train"),
    }
