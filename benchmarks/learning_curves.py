"""Learning curves: a shipped model fine-tuned on few rows, beside the same network from scratch.

    MATATTN_DATA=... python benchmarks/learning_curves.py [--output benchmarks/results]

Formation energies of ``jarvis_dft3d_subset`` (another functional and other settings than the
model's own data) and highest phonon frequencies of ``matbench_phonons`` (a property that the model
never saw), three seeds, each with its own training rows. Errors are on rows that no training saw:
the official validation and test rows, or the test fold 0. The size, the number of steps and all
else are equal; only the start and the learning rate differ.

Finished runs are kept under ``outputs/learning_curves`` and not repeated.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from matattn.conf.schema import register
from matattn.files import atomic_path, write_text
from matattn.workflows.run import run as train

MODEL = "mp-formation-energy"
SEEDS = (0, 1, 2)
# data -> (what is predicted, label of its error, numbers of training rows)
CURVES = {
    "jarvis_dft3d_subset": ("formation_energy_per_atom", "eV/atom", (100, 300, 500)),
    "matbench_phonons": ("last_phdos_peak", "1/cm", (100, 300, 1000)),
}
# The network of the shipped model, for the runs that do not start from it.
SCRATCH = ["model=crystalformer_published", "model.element_features=properties"]
STARTS = {
    "from scratch": [*SCRATCH, "optimizer.lr=1e-3"],
    "fine-tuned": ["model=crystalformer_published", f"init_from={MODEL}"],
}
STEPS = 1000
BATCH = 32


def run(data: str, start: str, rows: int, seed: int, root: Path) -> dict[str, Any]:
    """Metrics of one training."""
    folder = root / data / f"{start.replace(' ', '_')}-{rows}-seed{seed}"
    epochs = STEPS // (rows // BATCH)
    with initialize_config_module("matattn.conf", version_base="1.3"):
        config = compose(
            "train",
            [
                *STARTS[start],
                f"data={data}",
                f"seed={seed}",
                f"task.train_rows={rows}",
                f"task.batch_size={BATCH}",
                "task.calibration=0",
                f"trainer.max_epochs={epochs}",
                "+trainer.limit_val_batches=0",  # nothing is chosen by them, and it takes longer
                f"paths.output_dir={folder}",
            ],
        )
    return train(config)


def held_out(metrics: dict[str, Any], target: str) -> dict[str, float]:
    """Mean absolute errors over all rows that were not trained on."""
    parts = [metrics[split][target] for split in ("val", "test") if split in metrics]
    count = sum(part["n"] for part in parts)
    mae = sum(part["n"] * part["mae"] for part in parts) / count
    linear = sum(part["n"] * part["baselines"]["linear_composition"] for part in parts) / count
    return {"mae": mae, "linear_composition": linear, "rows_tested": count}


def plot(path: Path, table: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    for number, (data, (target, unit, sizes)) in enumerate(CURVES.items(), start=1):
        axes = figure.add_subplot(1, 2, number)
        for start in STARTS:
            errors = [
                [r["mae"] for r in table if (r["data"], r["start"], r["rows"]) == (data, start, n)]
                for n in sizes
            ]
            axes.errorbar(
                sizes, np.mean(errors, 1), yerr=np.std(errors, 1, ddof=1), marker="o", label=start
            )
        axes.set(xscale="log", yscale="log", xlabel="training rows", title=data)
        axes.set_ylabel(f"MAE of {target.replace('_', ' ')} / {unit}")
        axes.legend()
    FigureCanvasAgg(figure)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def markdown(table: list[dict[str, Any]]) -> str:
    lines = [
        "| data | training rows | linear in composition | from scratch | fine-tuned | unit |",
        "|---|---|---|---|---|---|",
    ]
    for data, (_, unit, sizes) in CURVES.items():
        for rows in sizes:
            found = [r for r in table if r["data"] == data and r["rows"] == rows]
            cells = [f"{np.mean([r['linear_composition'] for r in found]):.3g}"]
            for start in STARTS:
                errors = [r["mae"] for r in found if r["start"] == start]
                cells.append(f"{np.mean(errors):.3g} ± {np.std(errors, ddof=1):.2g}")
            lines.append(f"| {data} | {rows} | {' | '.join(cells)} | {unit} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--runs", type=Path, default=Path("outputs/learning_curves"))
    given = parser.parse_args()
    register()
    table = []
    for data, (target, unit, sizes) in CURVES.items():
        for rows in sizes:
            for seed in SEEDS:
                for start in STARTS:
                    metrics = run(data, start, rows, seed, given.runs)
                    row = {"data": data, "start": start, "rows": rows, "seed": seed, "unit": unit}
                    table.append(row | held_out(metrics, target))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(given.output / "learning_curves.csv", text.getvalue())
    plot(given.output / "learning_curves.png", table)
    print(markdown(table))


if __name__ == "__main__":
    main()
