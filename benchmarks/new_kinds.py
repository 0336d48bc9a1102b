"""Intervals of the shipped models on crystals that they were not made for.

    MATATTN_DATA=... python benchmarks/new_kinds.py [--output benchmarks/results/new_kinds.csv]

Official validation rows of ``mp2018_subset``, and 1,500 hypothetical crystals of the embedded
structure types, whose formation energies are CHGNet's (docs/prototypes.md): its errors, about 0.04
eV/atom, are part of what is called the error here. Calls of 500 structures, as of ``matattn
predict``. AUROC: the chance that a hypothetical crystal has a larger ood_score than a validation
row.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from matattn.datasets import prototypes
from matattn.datasets.crystals import load
from matattn.structures.dataset import PropertyDataset
from matattn.tables import write_table
from matattn.workflows.structures.predict import Predictor, encode

MODELS = {
    "mp-formation-energy": "formation_energy_per_atom",
    "mp-band-gap": "band_gap",
    "mp-bulk-modulus": "log10_bulk_modulus",
    "mp-shear-modulus": "log10_shear_modulus",
}
CALL, HYPOTHETICAL = 500, 1500


def judged(model: Predictor, dataset: PropertyDataset, rows: np.ndarray) -> dict[str, Any]:
    """Return errors, ends of intervals by kinds, and novelty of the rows that have a label."""
    labels = dataset.labels()[:, 0]
    rows = rows[np.isfinite(labels[rows])]
    features = encode(model.network, [dataset.items[row] for row in rows.tolist()])
    values = model.values(features)[:, 0]
    found: dict[str, Any] = {"error": np.abs(values - labels[rows])}
    calls = features.split(CALL)
    for kinds in ("known", "auto", "new"):
        parts = [model.intervals(part, new=model.for_kinds(kinds).are_new(part)) for part in calls]
        lower, upper = (np.concatenate(ends)[:, 0] for ends in zip(*parts, strict=True))
        found[kinds] = (lower <= labels[rows]) & (labels[rows] <= upper), (upper - lower) / 2
    assert model.uncertainty is not None
    found["novelty"] = model.uncertainty.novelty(features).numpy()
    return found


def row(model: str, name: str, found: dict[str, Any], ordinary: np.ndarray) -> dict[str, Any]:
    """Return a row of the table."""
    seen = np.sort(ordinary)
    table: dict[str, Any] = {
        "model": model, "rows": name, "number": len(found["error"]),
        "mae": float(found["error"].mean()),
        "q90_of_error": float(np.quantile(found["error"], 0.9)),
    }  # fmt: skip
    for kinds in ("known", "auto", "new"):
        inside, half = found[kinds]
        table |= {f"held_{kinds}": float(inside.mean()), f"half_width_{kinds}": float(half.mean())}
    table["spearman_width_error"] = float(spearmanr(found["auto"][1], found["error"])[0])
    if found["novelty"] is not ordinary:
        table["auroc"] = float((np.searchsorted(seen, found["novelty"]) / len(seen)).mean())
    else:
        table["auroc"] = None
    return table | {"flagged": float((found["novelty"] > 1).mean())}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/new_kinds.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = str(Path(os.environ["MATATTN_DATA"]) / "crystals" / "mp2018.jsonl.gz")
    chosen = np.random.default_rng(0)
    rows = []
    for name, target in MODELS.items():
        model, dataset = Predictor.load(name), load("mp2018_subset", path, [target])
        ordinary = judged(model, dataset, dataset.rows("val"))
        rows.append(row(name, "validation", ordinary, ordinary["novelty"]))
        if target == "formation_energy_per_atom":
            made_up = prototypes.load("prototypes", [target])
            some = chosen.permutation(len(made_up.items))[:HYPOTHETICAL]
            found = judged(model, made_up, some)
            rows.append(row(name, "hypothetical", found, ordinary["novelty"]))
        print(rows[-1], flush=True)
    write_table(arguments.output, rows)


if __name__ == "__main__":
    main()
