"""Errors on kinds of structures that a network was not trained on, for intervals of new kinds.

Leave-one-cluster-out tests: Meredig et al., Mol. Syst. Des. Eng. 3, 819 (2018). Training structures
are clustered by composition, the clusters are dealt into groups, and for each group a network is
trained from scratch without it. Its errors on the group tell how wrong a network is where it has
seen nothing of the kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq
from torch import Tensor

from matattn.config import Target, build
from matattn.models.element_features import element_features
from matattn.structures.dataset import CALIBRATION, PropertyDataset
from matattn.uncertainty import Uncertainty
from matattn.workflows.structures.predict import Predictor, encode
from matattn.workflows.structures.training_rows import references

if TYPE_CHECKING:
    from matattn.workflows.structures.train import PropertyTask

CLUSTERS = 6  # in every group
_LEFT_OUT = "kind"  # the split of the group


def groups_of(
    numbers: Sequence[np.ndarray], groups: int, others: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return the group [n] of every structure, from its atomic numbers; the same in every run.

    Clusters are those of k-means on mean and standard deviation of the properties of its elements.
    They are dealt out by size, so that groups are about as large as each other. ``others`` take the
    group of the nearest cluster.
    """
    descriptors, rest = _descriptors(numbers), _descriptors(others)
    middle, spread = descriptors.mean(0), descriptors.std(0)
    descriptors, rest = (
        (part - middle)[:, spread > 0] / spread[spread > 0] for part in (descriptors, rest)
    )
    wanted = min(CLUSTERS * groups, len(np.unique(descriptors, axis=0)))
    if wanted == 1:
        return np.zeros(len(numbers), dtype=np.int64), np.zeros(len(others), dtype=np.int64)
    centres, cluster = kmeans2(descriptors, wanted, minit="++", rng=np.random.default_rng(0))
    sizes = np.bincount(cluster, minlength=wanted)
    load, group = np.zeros(groups), np.zeros(wanted, dtype=np.int64)
    for number in np.argsort(-sizes, kind="stable"):
        group[number] = load.argmin()
        load[group[number]] += sizes[number]
    nearest = vq(rest, centres)[0] if len(rest) else np.zeros(0, dtype=np.int64)
    return group[cluster], group[nearest]


def _descriptors(numbers: Sequence[np.ndarray]) -> np.ndarray:
    """Return mean and standard deviation of the elements' properties [n, 2 P]."""
    table = element_features("properties").double().numpy()
    parts = [table[np.minimum(z, len(table)) - 1] for z in numbers]
    found = [np.concatenate([part.mean(0), part.std(0)]) for part in parts]
    return np.stack(found) if found else np.zeros((0, 2 * table.shape[1]))


def left_out(dataset: PropertyDataset, groups: int) -> list[PropertyDataset]:
    """Return the data once for each group: without it in the training rows, and as a split.

    Calibration rows of its kinds are left out, too. A group without which a target has no training
    or calibration label is not tried.
    """
    train, calibration = dataset.rows("train"), dataset.rows(CALIBRATION)
    numbers = dataset.numbers()
    group, other = groups_of(
        [numbers[row] for row in train], groups, [numbers[row] for row in calibration]
    )
    labels, owners = dataset.labels(), dataset.owners()
    found = []
    for number in range(groups):
        split = dataset.split.astype("<U11")
        split[split == "val"] = ""  # chooses nothing here
        split[train[group == number]] = _LEFT_OUT
        split[calibration[other == number]] = ""
        known = [np.isfinite(labels[split[owners] == name]).any(0).all()
                 for name in ("train", CALIBRATION, _LEFT_OUT)]  # fmt: skip
        if all(known):
            found.append(replace(dataset, split=split))
    return found


def kind_scores(task: PropertyTask, folder: Path) -> list[Tensor]:
    """Train a network without each group; return for each the scores [m, T] of what it left out.

    Trainings resume from their checkpoints in ``folder``, as the others.
    """
    settings = task.config.task
    scores = []
    for number, dataset in enumerate(left_out(task.dataset, settings.kinds)):
        L.seed_everything(task.config.seed + number, workers=True, verbose=False)
        network = build(Target(task.config.model.target, task.arguments), "model")
        part = task.on(dataset, network)
        part.train_without(folder / f"without_kind{number}", settings.kind_epochs)
        scores.append(_scores(part, settings.spread))
    return scores


def _scores(part: PropertyTask, method: str) -> Tensor:
    """Return the scores [m, T] of the group that a network was trained without."""
    dataset, network = part.dataset, part.networks[0].cpu()
    used = np.flatnonzero(np.isin(dataset.split, ("train", CALIBRATION, _LEFT_OUT)))
    items = [dataset.items[row] for row in used.tolist()]
    features = encode(network, items)
    mean, std = (values.tolist() for values in part.normaliser)
    description = {
        "targets": [{"name": t.name, "unit": t.unit} for t in dataset.targets],
        "normaliser": {"mean": mean, "std": std},
        "loss": part.config.task.loss,
    }
    owners = dataset.owners()
    labels = dataset.labels()[np.isin(owners, used)]
    split = dataset.split[owners[np.isin(owners, used)]]
    predictor = Predictor(network, description)
    errors = torch.from_numpy(np.abs(predictor.values(features) - labels)).float()
    rows = {name: np.flatnonzero(split == name) for name in ("train", CALIBRATION, _LEFT_OUT)}
    rows["train"] = references(rows["train"])
    fitted = Uncertainty.fit(
        method,
        network,
        *((features[rows[key]], errors[rows[key]]) for key in ("train", CALIBRATION)),
    )
    held = rows[_LEFT_OUT]
    return fitted.kind_errors(network, features[held], errors[held])
