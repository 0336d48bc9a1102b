"""A contribution to the JARVIS leaderboard: the predictions of runs in its files.

Choudhary et al., npj Computational Materials 10, 93 (2024). A benchmark is a JSON file with the ids
and labels of its training, validation and test rows; a contribution has a prediction for every test
row. The package ``jarvis_leaderboard`` has the files in ``benchmarks/AI/SinglePropertyPrediction``.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from matattn import __version__
from matattn.errors import DataError
from matattn.files import write_bytes, write_json, write_text
from matattn.workflows import sweeps

# Data sets of the leaderboard with structures; the rest of a file's name is the property.
DATASETS = ("dft_3d", "megnet", "qm9_std_jctc", "hmof", "qmof", "snumat", "qe_tb")
SAME = 1e-3  # of the deviation of the labels: their digits


@dataclass(frozen=True)
class Contribution:
    """Predictions for the test rows of a benchmark, with the columns id, actual, prediction."""

    dataset: str
    target: str  # as the leaderboard calls it
    table: pd.DataFrame
    seeds: int  # whose mean the prediction is
    seconds: float  # of training

    @property
    def mae(self) -> float:
        """Return the mean absolute error, the benchmark's score."""
        return float((self.table["prediction"] - self.table["actual"]).abs().mean())

    @property
    def mean_absolute_deviation(self) -> float:
        """Return the error of the mean of the test labels, which the leaderboard shows beside."""
        actual = self.table["actual"]
        return float((actual - actual.mean()).abs().mean())

    @property
    def file_name(self) -> str:
        """Return the name that says what the predictions are for."""
        return f"AI-SinglePropertyPrediction-{self.target}-{self.dataset}-test-mae.csv"


def read(folders: Sequence[Path], benchmark: Path) -> Contribution:
    """Read the finished runs of one recipe, one for each seed, and the benchmark's file.

    Raises DataError when the file is none of JARVIS's, when a test row has no prediction or was a
    training row, and when labels differ: another property, unit or snapshot of the database.
    """
    dataset, target, labels = _benchmark(benchmark)
    runs = [run for folder in folders for run in sweeps.find_runs(folder)]
    runs = [run for run in runs if run.state == "finished"]
    if not runs:
        raise DataError(f"{folders[0]}: no finished run in it")
    if differing := [key for key in sweeps.differing(runs) if key != "seed"]:
        raise DataError(
            f"{folders[0]}: the runs differ in {', '.join(differing)}; give one recipe's seeds"
        )
    found = [_of_run(run.folder, labels, benchmark) for run in runs]
    table = labels.assign(prediction=np.mean(found, axis=0)).reset_index()
    seconds = sum(
        json.loads((run.folder / "metrics.json").read_text())["train_time_s"] for run in runs
    )
    return Contribution(dataset, target, table, len(runs), seconds)


def write(folder: Path, contribution: Contribution, name: str) -> None:
    """Write a contribution's files: predictions, metadata.json to be completed, run.sh."""
    packed = io.BytesIO()
    csv = contribution.table[["id", "prediction"]].to_csv(index=False)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(contribution.file_name), csv)
    write_bytes(folder / f"{contribution.file_name}.zip", packed.getvalue())
    metadata = {
        "model_name": name, "project_url": "", "git_url": [""], "team_name": "",
        "author_email": "", "date_submitted": "", "database_version": contribution.dataset,
        "software_used": f"matattn {__version__}", "hardware_used": "",
        "time_taken_seconds": {f"{contribution.file_name}.zip": f"{contribution.seconds:.0f}"},
    }  # fmt: skip
    write_json(folder / "metadata.json", metadata)
    write_text(
        folder / "run.sh", f"pip install matattn=={__version__}\n# add: python train.py ...\n"
    )


def _benchmark(path: Path) -> tuple[str, str, pd.DataFrame]:
    """Return data set, property and the labels of the test rows, by id."""
    stem = path.name.removesuffix(".zip").removesuffix(".json")
    dataset = next((name for name in DATASETS if stem.startswith(f"{name}_")), None)
    if dataset is None:
        raise DataError(
            f"{path}: expected a benchmark's file, as dft_3d_bulk_modulus_kv.json.zip, of one of "
            f"the data sets {', '.join(DATASETS)}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            test = json.loads(archive.read(f"{stem}.json"))["test"]
        labels = pd.DataFrame(
            {"id": list(map(str, test)), "actual": list(map(float, test.values()))}
        )
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: no benchmark of JARVIS: {error!r}") from error
    return dataset, stem.removeprefix(f"{dataset}_"), labels.set_index("id")


def _of_run(folder: Path, labels: pd.DataFrame, benchmark: Path) -> np.ndarray:
    """Return the predictions of a run for the test rows, in their order."""
    rows = pd.read_csv(folder / "predictions.csv", dtype={"id": str})
    if rows["target"].nunique() > 1:
        raise DataError(f"{folder}: has several targets; a contribution has one")
    mine = rows.set_index("id")
    seen = mine.index[mine["split"] != "test"].intersection(labels.index)
    if len(seen):
        raise DataError(
            f"{folder}: {len(seen)} test rows of {benchmark.name} are no test rows of this run, "
            f"the first: {seen[0]}"
        )
    missing = labels.index.difference(mine.index)
    if len(missing):
        raise DataError(
            f"{folder}: {len(missing)} of {len(labels)} test rows of {benchmark.name} have no "
            f"prediction, the first: {missing[0]}"
        )
    mine = mine.loc[labels.index]
    apart = (mine["true"] - labels["actual"]).abs() > SAME * labels["actual"].std()
    if apart.any():
        first = apart.idxmax()
        raise DataError(
            f"{folder}: {first} has the label {mine.loc[first, 'true']:.6g} here and "
            f"{labels.loc[first, 'actual']:.6g} in {benchmark.name}: another property, unit or "
            "snapshot of the database"
        )
    return mine["predicted"].to_numpy()
