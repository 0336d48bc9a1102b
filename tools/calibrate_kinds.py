"""Give the shipped models of Materials Project intervals for new kinds of crystals.

    MATATTN_DATA=... python tools/calibrate_kinds.py [--epochs 10] [--work build/kinds] [MODEL ...]

One network of distances for all four properties is trained without each of four groups of kinds
(``matattn.workflows.structures.kinds``), from scratch, on the official training rows. Its errors on
what it has not seen become scores of the models, whose weights stay as they are. Before a bundle is
written, the scores of its own calibration rows are made again and compared with those it has.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch

from matattn import bundle, pretrained
from matattn.conf.schema import register
from matattn.config import RunConfig
from matattn.runtime import tune_malloc
from matattn.structures.dataset import CALIBRATION
from matattn.structures.ensemble import Ensemble
from matattn.uncertainty import LEVEL, Uncertainty, conformal_quantile
from matattn.workflows import run
from matattn.workflows.structures.kinds import kind_scores
from matattn.workflows.structures.predict import Predictor, encode
from matattn.workflows.structures.train import PropertyTask
from matattn.workflows.structures.training_rows import FILE, text_of

MATCH = 0.1  # deviations that half precision moves a reference
MODELS = ("mp-formation-energy", "mp-band-gap", "mp-bulk-modulus", "mp-shear-modulus")


def compose(epochs: int) -> RunConfig[Any, Any]:
    """Return the configuration of the training of four properties, with kinds left out."""
    register()
    with hydra.initialize_config_module("matattn.conf", version_base="1.3"):
        overrides = ["experiment=pretrain_mp", "task.kinds=4", f"task.kind_epochs={epochs}"]
        overrides += ["task.tolerance=1e-3", "optimizer.weight_decay=0.01"]
        config, _ = run.read(hydra.compose("train", overrides))
    return config


def held(task: PropertyTask, groups: Sequence[torch.Tensor]) -> None:
    """Print which share of each group's labels the intervals from the other groups hold."""
    for number, scores in enumerate(groups):
        others = torch.cat([group for other, group in enumerate(groups) if other != number])
        shares = []
        for column, target in enumerate(task.dataset.targets):
            known, mine = (part[:, column][~part[:, column].isnan()] for part in (others, scores))
            inside = mine <= conformal_quantile(known, LEVEL)
            shares.append(f"{target.name} {float(inside.double().mean()):.1%} of {len(mine)}")
        print(f"group {number}: intervals from the others hold {', '.join(shares)}")


def recalibrated(name: str, task: PropertyTask, scores: torch.Tensor) -> None:
    """Write the bundle of a model again, with its intervals for new kinds."""
    folder = pretrained.find(name)
    predictor = Predictor.load(folder)
    old = predictor.uncertainty
    assert old is not None
    (target,) = (target["name"] for target in predictor.targets)
    column = [one.name for one in task.dataset.targets].index(target)
    labels = task.dataset.labels()[:, column]
    rows = [row for row in task.dataset.rows(CALIBRATION).tolist() if np.isfinite(labels[row])]
    features = encode(predictor.network, [task.dataset.items[row] for row in rows])
    errors = torch.from_numpy(abs(predictor.values(features)[:, 0] - labels[rows])).float()
    spread = old.spread(predictor.network, features)
    again = (errors[:, None] / spread).sort(0).values
    torch.testing.assert_close(again, old.scores.sort(0).values, rtol=2e-2, atol=2e-2)
    distances, usual = old.distance(features), spread.median(0).values
    known = scores[:, column : column + 1]
    known = known[~known.isnan()[:, 0]]
    new = replace(old, distances=distances, usual=usual).with_kinds(known)
    files = {FILE: text_of(task.dataset, referred(predictor, task), [target])}
    _write(folder, predictor, new, files)
    halves = (new.half_widths(predictor.network, features, new=n).median() for n in (True, False))
    wide, narrow = map(float, halves)
    print(f"{name}: {len(known)} scores; new kinds +- {wide:.3g}, known kinds +- {narrow:.3g}")


def referred(predictor: Predictor, task: PropertyTask) -> list[int]:
    """Return the training row of each reference of a model, found by its features."""
    assert predictor.uncertainty is not None
    distance = predictor.uncertainty.distance
    column = [one.name for one in task.dataset.targets].index(predictor.targets[0]["name"])
    rows = task.dataset.rows("train")
    rows = rows[np.isfinite(task.dataset.labels()[rows, column])]
    points = distance.points(encode(predictor.network, [task.dataset.items[row] for row in rows]))
    far, nearest = zip(
        *(torch.cdist(part, points).min(1) for part in distance.references.float().split(256)),
        strict=True,
    )
    assert torch.cat(far).max() < MATCH, f"a reference is no training row: {torch.cat(far).max()}"
    return rows[torch.cat(nearest).numpy()].tolist()


def _write(
    folder: Path, predictor: Predictor, uncertainty: Uncertainty, files: Mapping[str, str]
) -> None:
    config = bundle.describe(folder)
    left_out = ("format", "network", "arguments", "members", "uncertainty")
    described = {key: value for key, value in config.items() if key not in left_out}
    network = predictor.network
    bundle.save(
        folder, list(network) if isinstance(network, Ensemble) else network, config["arguments"],
        described, (folder / "card.md").read_text(encoding="utf-8"), uncertainty, files,
    )  # fmt: skip


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--work", type=Path, default=Path("build/kinds"))
    arguments = parser.parse_args()
    tune_malloc()
    torch.set_num_threads(1)
    task = PropertyTask.prepare(compose(arguments.epochs))
    groups = kind_scores(task, arguments.work)
    held(task, groups)
    for name in arguments.models:
        recalibrated(name, task, torch.cat(groups))


if __name__ == "__main__":
    main()
