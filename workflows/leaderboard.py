"""Matbench's folds: the runs of one recipe beside every published submission, row by row.

Dunn et al., npj Computational Materials 6, 138 (2020). The score of a task is the mean over five
folds of the mean absolute error on the rows that the fold tests.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from rich.table import Table

from matattn import __version__
from matattn.citations import entries
from matattn.datasets import matbench
from matattn.errors import DataError
from matattn.files import write_bytes
from matattn.tables import Row
from matattn.units import PROBABILITY
from matattn.workflows import reporting, sweeps
from matattn.workflows.structures.evaluate import groups_of

LOADER = "matattn.datasets.matbench.load"
FOLDS = 5
RESAMPLES = 2000  # of the bootstrap
LEVEL = 0.95
CITED = ("crystalformer", "matbench")
_OF_A_FOLD = ("data.fold", "seed")
_FORMAT = "0.6"  # of the package matbench, whose files leaderboards read


@dataclass(frozen=True)
class Scores:
    """Predictions for the rows that the folds of one task test.

    ``table`` has the columns id, fold, true and one for every submission; ours is ``name``.
    """

    task: str
    name: str
    table: pd.DataFrame
    seeds: int  # whose mean our prediction is
    recipe: Mapping[str, Any]
    incomplete: tuple[str, ...] = ()  # submissions that lack rows, and are left out

    @property
    def unit(self) -> str:
        """Return the unit of the target."""
        return matbench.TASKS[self.task].unit

    @property
    def submissions(self) -> list[str]:
        """Return the names of all submissions, the lowest error first."""
        names = [name for name in self.table.columns if name not in ("id", "fold", "true")]
        return sorted(names, key=lambda name: self.by_fold(name).mean())

    @property
    def why_not_official(self) -> str:
        """Return why our number is no score of Matbench, or nothing."""
        if origin := self.recipe.get("init_from.path"):
            return f"{self.name} starts from {origin}, which may have seen test rows"
        if (here := len(self.table)) != (rows := matbench.TASKS[self.task].rows):
            return f"a score is of all rows of five folds, and {here} of {rows} are here"
        return ""

    @property
    def official(self) -> bool:
        """Return whether our number is a score of Matbench."""
        return not self.why_not_official

    def errors(self, name: str) -> pd.Series:
        """Return the absolute errors of a submission, row by row."""
        return (self.table[name] - self.table["true"]).abs()

    def by_fold(self, name: str) -> pd.Series:
        """Return the mean absolute error of a submission on every fold."""
        return self.errors(name).groupby(self.table["fold"]).mean()


def read(folders: Sequence[Path], published: Path | None, name: str = "ours") -> Scores:
    """Read the finished runs below some folders, and the published predictions.

    The runs must be one recipe on folds of one task, with the same seeds on every fold; those of
    several seeds are averaged. Raises DataError for others, for a classification, for files that
    are none of Matbench, and when no fold is finished.
    """
    runs = [run for folder in folders for run in sweeps.find_runs(folder)]
    mine = [run for run in runs if run.settings.get("data._target_") == LOADER]
    mine = [run for run in mine if not run.settings.get("data.inner")]  # a search has no test rows
    finished = [run for run in mine if run.state == "finished"]
    if not finished:
        raise DataError(f"{folders[0]}: no finished run with data=matbench in it")
    differing = [key for key in sweeps.differing(finished) if key not in _OF_A_FOLD]
    if differing:
        raise DataError(
            f"{folders[0]}: the runs differ in {', '.join(differing)}; give the folds of one recipe"
        )
    task = str(finished[0].settings["data.task"])
    if matbench.TASKS[task].unit == PROBABILITY:
        raise DataError(f"{folders[0]}: {task} is scored by the AUROC, which is not done here")
    target = matbench.TASKS[task].target
    parts: list[pd.DataFrame] = []
    seeds: dict[int, set[int]] = {}
    for run in finished:
        rows = pd.read_csv(run.folder / "predictions.csv")
        rows = rows[(rows["split"] == "test") & (rows["target"] == target)]
        parts.append(rows[["id", "true", "predicted"]].assign(fold=run.settings["data.fold"]))
        seeds.setdefault(run.settings["data.fold"], set()).add(run.seed)
    first = min(seeds)
    for fold, found in seeds.items():
        if found != seeds[first]:
            raise DataError(
                f"{folders[0]}: fold {fold} has seeds {_listed(found)}, and fold {first} has "
                f"{_listed(seeds[first])}; train all folds with the same seeds"
            )
    joined = pd.concat(parts).groupby(["id", "fold"], as_index=False)[["true", "predicted"]].mean()
    table = joined.rename(columns={"predicted": name}).sort_values("id", ignore_index=True)
    published = published or _published(task)
    incomplete: tuple[str, ...] = ()
    if published is not None:
        table = _with_published(table, published)
        incomplete = tuple(table.columns[table.isna().any()].difference([name]))
        table = table.drop(columns=list(incomplete))
    return Scores(task, name, table, len(seeds[first]), finished[0].settings, incomplete)


def _listed(seeds: set[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def _with_published(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Add the columns of a file with id, fold and the predictions of every submission."""
    try:
        others = pd.read_csv(path)
        merged = table.merge(others.rename(columns={"fold": "_fold"}), on="id", how="left")
        same = merged["fold"] == merged.pop("_fold")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: expected a CSV file with id, fold and a column of predictions for every "
            f"submission: {error}"
        ) from error
    if not same.all():
        raise DataError(
            f"{path}: {table['id'][int((~same).to_numpy().argmax())]} is not in it with the fold "
            "that tests it; are these predictions for this task?"
        )
    return merged


def difference(scores: Scores, other: str, seed: int = 0) -> tuple[float, float, float]:
    """Return our score minus that of another submission, and the bounds of its interval.

    Paired bootstrap: rows are drawn within each fold, the same for both, and the means over folds
    are taken of the mean differences.
    """
    generator = np.random.default_rng(seed)
    gap = (scores.errors(scores.name) - scores.errors(other)).to_numpy()
    folds = [gap[scores.table["fold"] == fold] for fold in scores.table["fold"].unique()]
    drawn = np.zeros(RESAMPLES)
    for values in folds:
        for number in range(RESAMPLES):
            drawn[number] += values[generator.integers(len(values), size=len(values))].mean()
    drawn /= len(folds)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(np.mean([values.mean() for values in folds])), float(low), float(high)


def rows(scores: Scores) -> list[Row]:
    """Return a row for every submission, the lowest error first."""
    listed = []
    for name in scores.submissions:
        by_fold = scores.by_fold(name)
        row: Row = {"task": scores.task, "submission": name, "mae": by_fold.mean()}
        row |= {"std_over_folds": by_fold.std(ddof=0), "unit": scores.unit}
        row |= {f"fold_{fold}": by_fold.get(fold) for fold in range(FOLDS)}
        row |= dict.fromkeys(("ours_minus_this", "low", "high", "ours_closer"))
        if name != scores.name:
            middle, low, high = difference(scores, name)
            closer = (scores.errors(scores.name) < scores.errors(name)).mean()
            row |= {"ours_minus_this": middle, "low": low, "high": high, "ours_closer": closer}
        listed.append(row)
    return listed


def table(scores: Scores, listed: Sequence[Row]) -> Table:
    """Return the leaderboard for the terminal."""
    cells = []
    for row in listed:
        folds = ["" if row[f"fold_{f}"] is None else f"{row[f'fold_{f}']:.4g}"
                 for f in range(FOLDS)]  # fmt: skip
        paired = ["", ""]
        if row["low"] is not None:
            paired = [f"{row['ours_minus_this']:+.4g} ({row['low']:+.3g} to {row['high']:+.3g})",
                      f"{row['ours_closer']:.0%}"]  # fmt: skip
        cells.append([
            row["submission"], f"{row['mae']:.4f}", f"{row['std_over_folds']:.4f}", *folds, *paired,
        ])  # fmt: skip
    header = ["submission", f"MAE, {scores.unit}", "std"]
    header += [*(f"fold {fold}" for fold in range(FOLDS)), "ours - this (95 %)", "ours closer"]
    folds = scores.table["fold"].nunique()
    what = "the official score" if scores.official else "no official score"
    title = f"matbench_{scores.task}: mean over {folds} folds, {len(scores.table)} rows, {what}"
    return reporting.text_table(title, header, cells, left=("submission",))


def remarks(scores: Scores) -> list[str]:
    """Return what a reader has to know of the numbers."""
    found = []
    if scores.seeds > 1:
        found.append(f"{scores.name}: mean of the predictions of {scores.seeds} seeds")
    if not scores.official:
        found.append(f"no official score: {scores.why_not_official}")
    if scores.incomplete:
        found.append(f"left out, rows are missing: {', '.join(scores.incomplete)}")
    if len(scores.submissions) == 1:
        found.append("no published predictions: give --published FILE, or set MATATTN_DATA")
    return found


def groups(scores: Scores) -> list[Row]:
    """Return the errors on rows of one size, and of one chemistry, of every submission.

    They are left out where the structures are no longer where the runs read them.
    """
    path = Path(str(scores.recipe["data.path"]))
    if not path.is_file():
        return []
    dataset = matbench.load("matbench", str(path), scores.task, fold=0)
    place = {identifier: row for row, identifier in enumerate(scores.table["id"])}
    known = np.array([place.get(item.id, -1) for item in dataset.items])
    errors = {name: scores.errors(name).to_numpy() for name in scores.submissions}
    listed = []
    for name, members in groups_of(dataset, np.flatnonzero(known >= 0)):
        if len(members):
            chosen = known[members]
            row: Row = {"group": name, "rows": len(members)}
            row |= {submission: of_rows[chosen].mean() for submission, of_rows in errors.items()}
            listed.append(row)
    return listed


def groups_table(scores: Scores, listed: Sequence[Row], most: int = 5) -> Table:
    """Return ``groups`` for the terminal: our errors and those of the best others."""
    shown = [scores.name, *(s for s in scores.submissions if s != scores.name)][:most]
    cells = [[r["group"], str(r["rows"]), *(f"{r[s]:.4f}" for s in shown)] for r in listed]
    title = f"Mean absolute errors of groups, {scores.unit}"
    return reporting.text_table(title, ["group", "rows", *shown], cells, left=("group",))


def plot(scores: Scores) -> Figure:
    """Return a figure of all submissions: every fold a point, the mean a bar."""
    names = scores.submissions[::-1]
    figure = Figure(figsize=(7, 1.4 + 0.32 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        by_fold, color = scores.by_fold(name), "C1" if name == scores.name else "C0"
        axes.plot(by_fold, [place] * len(by_fold), "o", color=color, alpha=0.5, markersize=4)
        axes.plot([by_fold.mean()], [place], "|", color=color, markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=f"mean absolute error, {scores.unit}", xscale="log",
             title=f"matbench_{scores.task}")  # fmt: skip
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(StrMethodFormatter("{x:.3g}"))
    axes.grid(axis="x", which="both", alpha=0.3)
    return figure


def submission(scores: Scores, now: datetime | None = None) -> dict[str, Any]:
    """Return the content of ``results.json.gz`` as Matbench's leaderboard takes it.

    Raises DataError when our number is no score of Matbench.
    """
    if not scores.official:
        raise DataError(f"matbench_{scores.task}: no submission: {scores.why_not_official}")
    results = {}
    for fold, part in scores.table.groupby("fold"):
        true, predicted = part["true"].to_numpy(), part[scores.name].to_numpy()
        error = np.abs(predicted - true)
        large = np.abs(true) > 1e-5  # as Matbench leaves out the others
        results[f"fold_{fold}"] = {
            "data": dict(zip(part["id"], predicted.tolist(), strict=True)),
            "parameters": {
                k: v for k, v in scores.recipe.items() if isinstance(v, str | int | float)
            },
            "scores": {
                "mae": float(error.mean()),
                "rmse": float(np.sqrt(np.square(error).mean())),
                "mape": float((error[large] / np.abs(true[large])).mean()),
                "max_error": float(error.max()),
            },
            "uncertainty": None,
        }
    name = f"matbench_{scores.task}"
    content = {
        "@module": "matbench.bench",
        "@class": "MatbenchBenchmark",
        "version": _FORMAT,
        "tasks": {name: {
            "@module": "matbench.task", "@class": "MatbenchTask",
            "benchmark_name": "matbench_v0.1", "dataset_name": name, "results": results,
        }},
        "user_metadata": {"algorithm": scores.name, "references": entries(CITED)},
        "benchmark_name": "matbench_v0.1",
        "datestamp": (now or datetime.now(UTC)).strftime("%Y.%m.%d %H:%M.%S"),
    }  # fmt: skip
    content = _sorted(content)
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return {**content, "hash": digest}


def _sorted(content: Mapping[str, Any]) -> dict[str, Any]:
    """Sort the keys of nested dictionaries, as the file's checksum wants them."""
    return {
        key: _sorted(value) if isinstance(value, Mapping) else value
        for key, value in sorted(content.items())
    }


def write_submission(path: Path, content: Mapping[str, Any]) -> None:
    """Write a submission, atomically."""
    write_bytes(path, gzip.compress(json.dumps(content).encode(), mtime=0))


def information(scores: Scores) -> dict[str, Any]:
    """Return the content of ``info.json``, which Matbench asks for beside the results."""
    return {
        "authors": "",
        "algorithm": scores.name,
        "algorithm_long": json.dumps(dict(scores.recipe), default=str),
        "bibtex_refs": entries(CITED),
        "notes": "",
        "requirements": {"python": [f"matattn=={__version__}"]},
    }


def _published(task: str) -> Path | None:
    """Return the file of published predictions in MATATTN_DATA, if it is there."""
    path = Path(os.environ.get("MATATTN_DATA", "")) / "matbench" / f"published_{task}.csv.gz"
    return path if path.is_file() else None
