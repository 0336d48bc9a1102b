"""Intervals of fields, on samples like those of the training and on other ones.

    python train.py model=flare task.export=0 paths.output_dir=outputs/plates
    python train.py model=flare data=darcy task.export=0 paths.output_dir=outputs/darcy
    python benchmarks/field_intervals.py outputs/plates/model outputs/darcy/model

Plates: new holes of the same kind; holes whose outline varies three times as much; and a pull on
the right half of the upper edge only, which the network cannot see. Darcy flow: new media of the
same kind; permeabilities of 3 and 24 instead of 3 and 12; and a source in the right half only,
which it cannot see. Writes ``benchmarks/results/field_intervals.csv``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matattn.datasets.pde import darcy, plate_with_hole
from matattn.datasets.pde.generated import random_mesh
from matattn.datasets.pde.plate_with_hole import EDGE, TRACTION, OGrid
from matattn.meshes.baselines import relative_l2
from matattn.meshes.fields import MeshSample
from matattn.meshes.uncertainty import SUMMARIES, summary
from matattn.tables import write_table
from matattn.workflows.meshes.predict import FieldPredictor

SAMPLES, SEED = 200, 1  # the data sets have seed 0


def plate(number: int, rougher: float = 1.0, half: bool = False) -> MeshSample:
    """Make a plate with another outline of the hole, or another load."""
    grid = OGrid(sides=(14, 13), rings=18)
    hole = rougher * plate_with_hole.random_hole(np.random.default_rng([SEED, number]))
    points, body = grid.points(hole), plate_with_hole.elastic_body(grid)
    line = grid.upper_edge
    pulled = line[points[line, 0] >= 0.5] if half else line
    displacement = body.solve(points, TRACTION * body.pull(points, pulled))
    stress = body.von_mises(points, displacement)[:, None].astype(np.float32)
    pos = (EDGE * points).astype(np.float32)
    return MeshSample(f"plate-{number}", pos, pos[:, :0], stress, {"quad": grid.quads})


def flow(number: int, high: float = darcy.HIGH, half: bool = False) -> MeshSample:
    """Make a flow through a medium of other permeabilities, or with another source."""
    generator = np.random.default_rng([SEED, number])
    medium = darcy.random_permeability(generator)
    points, triangles = random_mesh(generator, *generator.integers(30, 37, 2).tolist())

    def permeability(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(medium(x, y) == darcy.HIGH, high, darcy.LOW)

    def source(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(half & (x < 0.5), 0.0, 1.0)

    pressure = darcy.solve(points, triangles, permeability, source)
    pos, x, y = (
        values.astype(np.float32)
        for values in (points, permeability(*points.T)[:, None], pressure[:, None])
    )
    return MeshSample(f"flow-{number}", pos, x, y, {"triangle": triangles})


FAMILIES: dict[str, dict[str, Callable[[int], MeshSample]]] = {
    "von_mises_stress": {
        "same": plate,
        "rougher holes": lambda n: plate(n, rougher=3.0),
        "half of the edge pulled (unseen)": lambda n: plate(n, half=True),
    },
    "pressure": {
        "same": flow,
        "permeability 24": lambda n: flow(n, high=24.0),
        "source in one half (unseen)": lambda n: flow(n, half=True),
    },
}


def judged(model: FieldPredictor, samples: list[MeshSample]) -> dict[str, Any]:
    """Return errors, shares in intervals, widths and novelty of samples."""
    known = model.uncertainty
    assert known is not None
    found: dict[str, list[float]] = {}
    for sample, (fields, features) in zip(samples, model.with_features(samples), strict=True):
        error, nodes = np.abs(fields - sample.y), known.half_widths(fields)
        values = {
            "relative_l2": float(relative_l2(sample.y, fields).mean()),
            "nodes": float((error <= nodes).mean()),
            "whole": float((error <= known.whole_half_widths(fields)).all()),
            "half_width": float(nodes.mean()),
        }
        for name in SUMMARIES:
            miss = np.abs(summary(name, fields) - summary(name, sample.y))
            values[name] = float((miss <= known.summary_half_widths(name, fields)).all())
        if features is not None and (novelty := known.novelty(features[None])) is not None:
            values["flagged"] = float(novelty > 1)
        for key, value in values.items():
            found.setdefault(key, []).append(value)
    return {key: float(np.mean(values)) for key, values in found.items()}


def main() -> None:
    """Write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--output", type=Path, default="benchmarks/results/field_intervals.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for folder in arguments.models:
        model = FieldPredictor.load(folder)
        (target,) = model.fields("targets")
        for family, make in FAMILIES[target.name].items():
            row = {"field": target.name, "unit": target.unit, "samples": family}
            rows.append(row | judged(model, [make(n) for n in range(arguments.samples)]))
            print(rows[-1], flush=True)
    write_table(arguments.output, rows)


if __name__ == "__main__":
    main()
