"""The runs below a folder in one table: state, what differs between them, and result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure
from rich.table import Table

from matattn.errors import DataError
from matattn.tables import write_table
from matattn.workflows import reporting, run_folder
from matattn.workflows.run_folder import OF_THE_DATA
from matattn.workflows.task import TASKS

_HIDDEN = ("seed", "paths", "logger", "overwrite", "data_fingerprint")


@dataclass(frozen=True)
class Run:
    """One run folder."""

    folder: Path
    seed: int
    state: str  # finished, running, stopped or failed
    settings: dict[str, Any]  # flat: "optimizer.lr" -> 0.002
    objective: float | None
    what: str  # the objective's name
    message: str

    @property
    def name(self) -> str:
        """Return network and data."""
        return f"{self.settings['model']} on {self.settings['data']}"


def find_runs(folder: Path) -> list[Run]:
    """Return all runs below ``folder``, sorted by path; raises DataError when there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    folders = sorted(path.parent for path in folder.rglob(run_folder.RECORD))
    runs = [run for path in folders if (run := _read(path)) is not None]
    if not runs:
        raise DataError(f"{folder}: no run in this folder; give one such as outputs")
    return runs


def _read(folder: Path) -> Run | None:
    """Return the run in a folder; None for a folder of something else."""
    try:
        config = yaml.safe_load((folder / run_folder.RECORD).read_text(encoding="utf-8"))
        task, seed = str(config["task"]["workflow"]), config["seed"]
        settings = {key: value for key, value in _flat(config).items()
                    if key.split(".")[0] not in _HIDDEN}  # fmt: skip
        settings["model"] = str(config["model"].get("_target_", "")).rsplit(".", 1)[-1]
        settings["data"] = str(config["data"].get("name", ""))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return None
    state, message = run_folder.state(folder)
    value, what = None, ""
    if state == "finished" and task not in TASKS:
        message = f"this matattn knows no task {task!r}, so it has no number to compare runs by"
    elif state == "finished":
        try:
            what, value = TASKS[task].objective(run_folder.metrics(folder))
        except (OSError, ValueError, LookupError, TypeError) as error:
            state, message = "failed", f"metrics.json cannot be read: {error}"
    return Run(folder, seed, state, settings, value, what, message)


def _flat(config: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{key}{name}.")
        else:
            flat[f"{key}{name}"] = value
    return flat


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the settings in which runs differ, in their order; network and data first."""
    keys = dict.fromkeys(["model", "data", *(key for run in runs for key in run.settings)])
    alike = len({run.name for run in runs}) == 1
    return [
        key
        for key in keys
        if len({repr(run.settings.get(key)) for run in runs}) > 1
        # runs of earlier versions recorded what the data had decided
        and not (key in OF_THE_DATA and any(run.settings.get(key) is None for run in runs))
        # arguments that only one of several networks or data sets has say nothing
        and (key in ("model", "data") or alike or all(key in r.settings for r in runs))
        and not key.endswith(("_target_", ".name"))
    ]


def frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row for each run: folder, differing settings, seed, state, result, message."""
    keys = differing(runs)
    return pd.DataFrame(
        {
            "run": str(run.folder),
            **{key: str(run.settings.get(key, "")) for key in keys},
            "seed": run.seed,
            "state": run.state,
            "result": run.objective,
            "what": run.what,
            "message": run.message,
        }
        for run in runs
    )


def means(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row for finished runs that differ in their seed only, best first.

    Columns: what, the differing settings, and count, mean and std of the results.
    """
    table = frame(runs).dropna(subset="result")
    grouped = table.groupby(["what", *differing(runs)], sort=False)["result"]
    summed = grouped.agg(["count", "mean", "std"]).reset_index()
    return summed.sort_values(["what", "mean"], ignore_index=True)


def tables(runs: Sequence[Run]) -> list[Table]:
    """Return a table of all runs, and one of the means over seeds."""
    keys = differing(runs)
    rows = [
        [
            run.folder.name, *(str(run.settings.get(key, "")) for key in keys), str(run.seed),
            run.state, "" if run.objective is None else f"{run.objective:.5g}", run.what,
            run.message,
        ]
        for run in runs
    ]  # fmt: skip
    header = ["run", *keys, "seed", "state", "result", "", "message"]
    every = reporting.text_table(f"{len(runs)} runs", header, rows, left=header)
    best = [
        [
            *(row[key] for key in keys), str(row["count"]), f"{row['mean']:.5g}",
            "" if pd.isna(row["std"]) else f"{row['std']:.2g}", row["what"],
        ]
        for row in means(runs).to_dict("records")
    ]  # fmt: skip
    header = [*keys, "seeds", "mean", "deviation", ""]
    title = "Means over seeds, best first (less is better)"
    return [every, reporting.text_table(title, header, best, left=header)]


def write(path: Path, runs: Sequence[Run]) -> None:
    """Write the table of all runs in the format of the suffix, and a plot of every result."""
    write_table(
        path, [{str(k): v for k, v in row.items()} for row in frame(runs).to_dict("records")]
    )
    summed, every, keys = means(runs), frame(runs), differing(runs)
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(summed)), layout="constrained")
    axes = figure.add_subplot()
    labels = []
    for row, group in enumerate(summed.to_dict("records")):
        alike = (every[["what", *keys]] == [group[key] for key in ("what", *keys)]).all(axis=1)
        values = every.loc[alike, "result"].dropna()
        axes.plot(values, [row] * len(values), "o", color="C0", alpha=0.6)
        axes.plot([group["mean"]], [row], "|", color="black", markersize=16)
        labels.append(", ".join(group[key] for key in keys) or runs[0].name)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel=" / ".join(sorted(set(summed["what"]))))
    axes.invert_yaxis()
    reporting.save_figure(figure, path.with_suffix(".png"))
