"""What a crystal's text tells of its properties: ``crystal_text`` beside networks of geometry.

    python train.py -m model=crystal_text trainer.max_epochs=20 seed=0,1,2 \\
        model.representation=composition,atom_sequences,crystal_text_llm,cif_p1
    python train.py -m model=crystalformer,coulgat seed=0,1,2
    ... and both with data=mp2018_subset data.max_sites=12, or data=geometry_probe data.share=0.0
    python benchmarks/text_against_geometry.py outputs [--output benchmarks/results]

All have the same rows, splits and baselines. Collects the finished runs below a folder: mean and
standard deviation over seeds of every error on test rows (on validation rows where there are no
test rows). Rows of the table for which the folder holds no run stay as they are.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from matattn.files import write_text
from matattn.workflows.reporting import save_figure
from matattn.workflows.sweeps import find_runs

KEYS = ("network", "data", "target", "unit", "split")
COLUMNS = (*KEYS, "rows", "seeds", "mae", "deviation", "linear_composition", "mean",
           "train_time_s", "parameters")  # fmt: skip
GEOMETRY = ("crystalformer", "coulgat")
FLOORS = {"linear_composition": "linear in composition", "mean": "mean of the labels"}
Table = dict[tuple[str, ...], dict[str, Any]]


def collect(folder: Path) -> Table:
    """A row for every network, data set and property."""
    found = defaultdict(list)
    for run in find_runs(folder):
        if run.state != "finished":
            continue
        metrics = json.loads((run.folder / "metrics.json").read_text())
        data = str(run.settings["data"])
        network = run.folder.parent.name.removesuffix(f"-{data}")
        split = "test" if "test" in metrics else "val"
        for target, result in metrics[split].items():
            key = (network, data, target, result["unit"], split)
            found[key].append((result, metrics))
    table = {}
    for key, runs in found.items():
        errors, (result, metrics) = [result["mae"] for result, _ in runs], runs[0]
        times = [metrics["train_time_s"] for _, metrics in runs]
        table[key] = dict(zip(KEYS, key, strict=True)) | {
            "rows": result["n"],
            "seeds": len(runs),
            "mae": f"{statistics.fmean(errors):.4f}",
            "deviation": f"{statistics.stdev(errors):.4f}" if len(errors) > 1 else "",
            **{name: f"{result['baselines'][name]:.4f}" for name in FLOORS},
            "train_time_s": f"{statistics.median(times):.0f}",
            "parameters": metrics["parameters"],
        }
    return table


def plot(path: Path, table: Table) -> None:
    """A panel for each data set and property: an error a network, and the floors."""
    panels = defaultdict(list)
    for row in table.values():
        panels[(row["data"], row["target"], row["unit"], row["split"])].append(row)
    panels = {key: rows for key, rows in panels.items() if len(rows) > 2}
    columns = 3
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.6 * lines), layout="constrained")
    for number, ((data, target, unit, split), rows) in enumerate(sorted(panels.items()), start=1):
        axes = figure.add_subplot(lines, columns, number)
        rows = sorted(rows, key=lambda row: -float(row["mae"]))
        for place, row in enumerate(rows):
            color = "C1" if row["network"] in GEOMETRY else "C0"
            axes.barh(place, float(row["mae"]), xerr=float(row["deviation"] or 0), color=color)
        names = [row["network"].removeprefix("crystal_text_") for row in rows]
        seeds = ["" if int(row["seeds"]) > 2 else f" ({row['seeds']} seed)" for row in rows]
        axes.set_yticks(range(len(rows)), map(str.__add__, names, seeds), fontsize=7)
        for (name, label), style in zip(FLOORS.items(), ("--", ":"), strict=True):
            axes.axvline(float(rows[0][name]), color="black", linestyle=style, label=label)
        axes.set_xlabel(f"MAE on {split} rows / {unit}", fontsize=8)
        axes.set_title(f"{target}, {data}", fontsize=8)
        axes.legend(fontsize=6)
    figure.suptitle("Text (blue) against geometry (orange)", fontsize=10)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    path = given.output / "text_against_geometry.csv"
    table: Table = {}
    if path.exists():
        with path.open(newline="") as file:
            table = {tuple(row[key] for key in KEYS): row for row in csv.DictReader(file)}
    table |= collect(given.runs)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table[key] for key in sorted(table))
    write_text(path, text.getvalue())
    plot(path.with_suffix(".png"), table)


if __name__ == "__main__":
    main()
