"""The runs below a folder in one table: state, what differs between them, and result."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from rich.table import Table

from matattn.errors import DataError
from matattn.tables import write_table
from matattn.workflows.reporting import save_figure
from matattn.workflows.run_folder import state

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
        """Network and data."""
        return f"{self.settings['model']} on {self.settings['data']}"


def find_runs(folder: Path) -> list[Run]:
    """All runs below ``folder``, sorted by their place; raises DataError when there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    places = sorted(path.parent for path in folder.rglob("config.yaml"))
    runs = [run for place in places if (run := _read(place)) is not None]
    if not runs:
        raise DataError(f"{folder}: no run in this folder; give one such as outputs")
    return runs


def _read(folder: Path) -> Run | None:
    """The run in a folder; None for a folder of something else."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        task, seed = config["task"]["workflow"], config["seed"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None
    found, message = state(folder)
    value, what = None, ""
    if found == "finished":
        try:
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            what, value = objective(task, metrics)
        except (OSError, ValueError, LookupError, TypeError) as error:
            found, message = "failed", f"metrics.json cannot be read: {error}"
    settings = {key: value for key, value in _flat(config).items()
                if key.split(".")[0] not in _HIDDEN}  # fmt: skip
    settings["model"] = str(config["model"].get("_target_", "")).rsplit(".", 1)[-1]
    settings["data"] = str(config["data"].get("name", ""))
    return Run(folder, seed, found, settings, value, what, message)


def objective(workflow: str, metrics: Mapping[str, Any]) -> tuple[str, float]:
    """The number by which runs of a workflow are compared: its name, and its value; less is better.

    That of the validation rows where there are any, else of test or training rows. Errors of
    several targets are averaged in units of the mean predictor's.
    """
    split = next((name for name in ("val", "test") if name in metrics), "train")
    found: Any = metrics.get(split, {})
    if workflow == "property_prediction":
        results = list(found.values())
        if len(results) == 1:
            return f"{split} MAE, {results[0]['unit']}", results[0]["mae"]
        shares = [
            result["mae"] / result["baselines"]["mean"] if result["baselines"]["mean"] else math.inf
            for result in results
        ]
        return f"{split} MAE over the mean predictor's", statistics.fmean(shares)
    if workflow == "field_surrogate":
        errors = [result["relative_l2"] for result in found.values()]
        return f"{split} relative L2", statistics.fmean(errors)
    if workflow == "variational_monte_carlo":
        return "energy per site", metrics["energies"]["fresh samples"]["mean"]
    if workflow == "tokenization":
        return f"{split} 1 - span F1", 1 - found["detector"]["span_f1"]
    return f"{split} 1 - span F1", 1 - found["all types"]["span_f1"]


def _flat(config: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{place}{key}.")
        else:
            flat[f"{place}{key}"] = value
    return flat


def differing(runs: Sequence[Run]) -> list[str]:
    """Settings in which the runs differ, in their order; the network and the data first."""
    keys = dict.fromkeys(["model", "data", *(key for run in runs for key in run.settings)])
    same = {run.name for run in runs}
    return [
        key
        for key in keys
        if len({repr(run.settings.get(key)) for run in runs}) > 1
        # arguments that only one of several networks or data sets has say nothing
        and (key in ("model", "data") or len(same) == 1 or all(key in r.settings for r in runs))
        and not key.endswith(("_target_", ".name"))
    ]


def groups(runs: Sequence[Run]) -> list[tuple[list[Run], float, float]]:
    """Finished runs that differ in their seed only: the runs, mean and deviation; best first."""
    keys, found = differing(runs), defaultdict(list)
    for run in runs:
        if run.objective is not None:
            found[(run.what, *(repr(run.settings.get(key)) for key in keys))].append(run)
    result = []
    for alike in found.values():
        values = [run.objective for run in alike if run.objective is not None]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        result.append((alike, statistics.fmean(values), spread))
    return sorted(result, key=lambda group: (group[0][0].what, group[1]))


def tables(runs: Sequence[Run]) -> list[Table]:
    """A table of all runs, and one of the means over seeds."""
    keys = differing(runs)
    every = Table(title=f"{len(runs)} runs")
    for column in ("run", *keys, "seed", "state", "result", "", "message"):
        every.add_column(column, justify="right" if column in ("seed", "result") else "left",
                         overflow="fold")  # fmt: skip
    for run in runs:
        shown = (str(run.settings.get(key, "")) for key in keys)
        value = "" if run.objective is None else f"{run.objective:.5g}"
        every.add_row(run.folder.name, *shown, str(run.seed), run.state, value, run.what,
                      run.message)  # fmt: skip
    means = Table(title="Means over seeds, best first (less is better)")
    for column in (*keys, "seeds", "mean", "deviation", ""):
        means.add_column(column, overflow="fold")
    for alike, mean, spread in groups(runs):
        shown = (str(alike[0].settings.get(key, "")) for key in keys)
        deviation = f"{spread:.2g}" if len(alike) > 1 else ""
        means.add_row(*shown, str(len(alike)), f"{mean:.5g}", deviation, alike[0].what)
    return [every, means]


def write(path: Path, runs: Sequence[Run]) -> None:
    """The table of all runs as CSV, and a plot of every result beside it."""
    keys = differing(runs)
    rows = [
        {
            "run": str(run.folder),
            **{key: run.settings.get(key, "") for key in keys},
            "seed": run.seed,
            "state": run.state,
            "result": "" if run.objective is None else run.objective,
            "what": run.what,
            "message": run.message,
        }
        for run in runs
    ]
    write_table(path, rows)
    named = groups(runs)
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(named)), layout="constrained")
    axes = figure.add_subplot()
    for row, (alike, mean, _) in enumerate(named):
        values = [run.objective for run in alike if run.objective is not None]
        axes.plot(values, [row] * len(values), "o", color="C0", alpha=0.6)
        axes.plot([mean], [row], "|", color="black", markersize=16)
    labels = [
        ", ".join(str(alike[0].settings.get(key, "")) for key in keys) or alike[0].name
        for alike, _, _ in named
    ]
    axes.set_yticks(range(len(named)), labels)
    axes.set(xlabel=" / ".join(sorted({alike[0].what for alike, _, _ in named})))
    axes.invert_yaxis()
    save_figure(figure, path.with_suffix(".png"))
