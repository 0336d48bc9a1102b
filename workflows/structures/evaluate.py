"""Errors of a model on labelled crystals: by split, on new formulas, by size, by chemistry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from pymatgen.core import Element, Molecule, Structure
from rich.table import Table

from matattn.composition import composed
from matattn.config import build, check_finite, check_keys, read_data
from matattn.errors import ConfigError
from matattn.structures import metrics
from matattn.structures.classification import check_classes
from matattn.structures.dataset import SPLITS, PropertyDataset
from matattn.structures.metrics import baselines, errors
from matattn.workflows import reporting
from matattn.workflows.structures.predict import Predictor

SIZES = ((1, 4), (5, 8), (9, 12), (13, 20), (21, 40), (41, 10**9))  # sites of a cell

_METALS = frozenset(z for z in range(1, 99) if Element.from_Z(z).is_metal)
_F_ELEMENTS = frozenset([*range(57, 72), *range(89, 99)])
# A crystal belongs to the first class that its elements fit.
CHEMISTRY: dict[str, Callable[[set[int]], bool]] = {
    "elements": lambda z: len(z) == 1,
    "oxides (O)": lambda z: 8 in z,
    "halides (F Cl Br I)": lambda z: bool(z & {9, 17, 35, 53}),
    "chalcogenides (S Se Te)": lambda z: bool(z & {16, 34, 52}),
    "pnictides (N P As Sb)": lambda z: bool(z & {7, 15, 33, 51}),
    "intermetallics (metals only)": lambda z: z <= _METALS,
    "others": lambda z: True,
}


def load_data(data: str, predictor: Predictor, overrides: Sequence[str]) -> PropertyDataset:
    """Return the data set of a name in ``conf/data``, or of a file, with ``overrides``.

    Its targets are the model's unless the overrides say otherwise. If the model was trained on
    these data, the rows that were kept apart for its intervals are the split "calibration". Raises
    DataError or ConfigError, so for a name or a key that is not there.
    """
    is_file = Path(data).suffix != "" or Path(data).exists()
    chosen = f"data={'table' if is_file else data}"
    with composed("evaluate", [chosen, *overrides]) as config:
        if is_file:
            config.data.path, config.data.name = data, Path(data).name
        if not any(override.startswith("data.targets=") for override in overrides):
            config.data.targets = [target["name"] for target in predictor.targets]
        plain: Any = OmegaConf.to_container(config, resolve=True)
    check_keys(plain, ("paths", "data", "calibration"))
    check_finite(plain)
    source, target = read_data(plain["data"])
    if source.kind != "structures":
        raise ConfigError(f"data={data} holds {source.kind}; this model needs structures")
    dataset: PropertyDataset = build(target, "data")
    if dataset.level != "structure":
        raise ConfigError(f"{dataset.name} has a value for every {dataset.level}, not structure")
    share = plain["calibration"]
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 0.5:
        raise ConfigError(f"calibration={share!r}: expected a fraction below 0.5 (0: none)")
    check_classes(dataset)
    held_out = dataset.hold_out(share) if share else dataset
    trained_on = predictor.config.get("data", {}).get("fingerprint")
    return held_out if held_out.fingerprint() == trained_on else dataset


def evaluate(
    predictor: Predictor,
    dataset: PropertyDataset,
    advance: Callable[[int], Any] = lambda crystals: None,
) -> dict[str, Any]:
    """Compare what ``Predictor.predict`` says of every crystal with its labels.

    Returns ``splits`` (``metrics.evaluate``), ``held_out`` ({group: ``metrics.errors``}, of
    validation and test rows), ``data``, ``remarks``, and ``noted`` and ``failed`` ({id: message}).
    Baselines are fitted on the training rows of the data.

    Raises ConfigError when the model does not predict the targets of the data.
    """
    known = {target["name"]: target["unit"] for target in predictor.targets}
    for target in dataset.targets:
        if known.get(target.name) != target.unit:
            raise ConfigError(
                f"the model predicts {', '.join(f'{n} ({u})' for n, u in known.items())}, not "
                f"{target.name} ({target.unit}); give 'data.targets=[...]' of what it predicts"
            )
    structures = (
        Structure(item.cell[0].numpy(), item.z.numpy(), item.pos.numpy(), coords_are_cartesian=True)
        if item.cell.any()
        else Molecule(item.z.numpy(), item.pos.numpy())
        for item in dataset.items
    )
    ids = dataset.ids()
    rows = predictor.predict(structures, ids, advance)
    usable = np.array([row["status"] == "ok" for row in rows])
    scored = replace(dataset, split=np.where(usable, dataset.split, ""))
    predicted = _columns(rows, dataset, "{}")
    intervals = _columns(rows, dataset, "{}_lower"), _columns(rows, dataset, "{}_upper")
    floors, fingerprint = baselines(scored), dataset.fingerprint()
    groups = {
        name: errors(scored, predicted, floors, chosen, intervals)
        for name, chosen in held_out_groups(scored)
    }
    return {
        "splits": metrics.evaluate(scored, predicted, intervals),
        "held_out": {name: result for name, result in groups.items() if result},
        "data": {
            "name": dataset.name,
            "fingerprint": fingerprint,
            "note": dataset.note,
            "left_out": dataset.skipped,
            "in_doubt": dataset.doubts,
        },
        "remarks": [
            *_remarks(predictor.config.get("data", {}), dataset.name, fingerprint),
            *_doubtful(rows),
        ],
        "noted": {
            name: row["message"] for name, row in zip(ids, rows, strict=True)
            if row["status"] == "ok" and row.get("message")
        },
        "failed": {
            name: row["message"] for name, row in zip(ids, rows, strict=True)
            if row["status"] != "ok"
        },
    }  # fmt: skip


def _columns(rows: Sequence[dict[str, Any]], dataset: PropertyDataset, name: str) -> np.ndarray:
    """Numbers [n, T] of the columns that are called ``name`` after each target; NaN = none."""
    keys = [name.format(target.name) for target in dataset.targets]
    return np.array([[row.get(key) for key in keys] for row in rows], dtype=np.float64)


def held_out_groups(dataset: PropertyDataset) -> Iterator[tuple[str, np.ndarray]]:
    """Names and rows of groups of the validation and test crystals.

    Training rows stand in none of them: the baselines were fitted on them.
    """
    yield from groups_of(dataset, np.concatenate([dataset.rows(split) for split in SPLITS[1:]]))


def groups_of(dataset: PropertyDataset, chosen: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Names and rows of groups of the ``chosen`` rows, by size and by chemistry."""
    sizes = dataset.sites()
    elements = [set(z.tolist()) for z in dataset.numbers()]
    classes = [next(name for name, fits in CHEMISTRY.items() if fits(z)) for z in elements]
    for low, high in SIZES:
        name = f"{low} to {high} sites" if high < SIZES[-1][1] else f"{low} sites and more"
        yield name, chosen[(low <= sizes[chosen]) & (sizes[chosen] <= high)]
    for name in CHEMISTRY:
        yield name, np.array([row for row in chosen if classes[row] == name], dtype=int)
    with_f = [row for row in chosen if elements[row] & _F_ELEMENTS]
    yield "with lanthanides or actinides", np.array(with_f, dtype=int)


def _remarks(trained_on: dict[str, Any], name: str, fingerprint: str) -> list[str]:
    if trained_on.get("fingerprint") == fingerprint:
        return [
            "The model was trained on the train rows of these data: their error shows the fit, "
            "not what to expect of other crystals."
        ]
    if trained_on.get("name") == name:
        return [
            f"The model was trained on another selection or version of {name}: it may have seen "
            "any of these rows."
        ]
    known = trained_on.get("name", "data that its config does not name")
    return [f"The model was trained on {known}: rows of these that stand here are not held out."]


def _doubtful(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line on the predictions that have a message, if there are some."""
    told = [row for row in rows if row["status"] == "ok" and row.get("message")]
    if not told:
        return []
    flagged = sum(bool(row["ood_flag"]) for row in told)
    return [
        f"{len(told)} of {len(rows)} rows have a remark, and {flagged} of them are flagged: not to "
        f"be trusted. One of them: {max(told, key=lambda row: bool(row['ood_flag']))['message']}"
    ]


def groups_table(groups: Mapping[str, Any]) -> Table:
    """Return a table of the errors of held-out groups, beside their baselines."""
    rows = []
    classifies = any("log_loss" in r for targets in groups.values() for r in targets.values())
    for group, targets in groups.items():
        for target, result in targets.items():
            floors, interval = result["baselines"], result.get("interval")
            numbers = (result, floors["linear_composition"], floors["mean"])
            if classifies:
                numbers = tuple(one["log_loss"] for one in numbers)
            else:
                numbers = (result["mae"], *numbers[1:])
            rows.append([
                group, target, *(f"{number:.4f}" for number in numbers), result["unit"],
                str(result["n"]), f"{interval['coverage']:.1%}" if interval else "",
                f"{interval['mean_width']:.3f}" if interval else "",
            ])  # fmt: skip
    error, model = ("log loss", "logistic") if classifies else ("MAE", "linear")
    header = [
        "group", "target", error, f"{model} in composition", "mean of training labels", "unit",
        "rows", "in interval", "mean width",
    ]  # fmt: skip
    errors = "Log losses" if classifies else "Mean absolute errors"
    title = f"{errors} of groups of the validation and test rows"
    return reporting.text_table(title, header, rows, left=("group", "target", "unit"))
