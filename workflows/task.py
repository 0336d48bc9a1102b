"""What a task is, and the one table of tasks: from the name in a configuration to its code.

Imports nothing heavy, so that reports about runs need not load what trained them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from matattn.config import RunConfig, Section
from matattn.extras import import_extra

if TYPE_CHECKING:
    from rich.table import Table

    from matattn.workflows.outputs import Outputs

Metrics = Mapping[str, Any]
Objective = tuple[str, float]  # name and value, less is better


class Task(Protocol):
    """One training: prepared and checked, then trained and evaluated in a run folder."""

    settings: ClassVar[type[Section]]  # section task of the configuration
    optimizer: ClassVar[type[Section]]  # section optimizer

    @property
    def fingerprint(self) -> str:
        """Return what tells the data from other data."""

    @classmethod
    def prepare(cls, config: RunConfig) -> Self:
        """Read the data and build the network; raises MatattnError for any mistake."""

    def train(self, folder: Path) -> Any:
        """Train, from the last checkpoint in ``folder`` if there is one."""

    def evaluate(self, folder: Path, trained: Any) -> Outputs:
        """Return what the run leaves, from what ``train`` returned."""

    @staticmethod
    def results_table(metrics: Metrics) -> Table:
        """Return the final table for the terminal."""


@dataclass(frozen=True)
class TaskEntry:
    """Where a task is, and what others need to know of it.

    Args:
        kind: of the data that it takes, one of ``matattn.kinds.KINDS``.
        path: module and class, "matattn.workflows.structures.train.PropertyTask".
        objective: name and value of the number by which its runs are compared.
        shares_batches: whether several processes can share its batches (``trainer=ddp``).
    """

    kind: str
    path: str
    objective: Callable[[Metrics], Objective]
    shares_batches: bool = False

    def load(self) -> type[Task]:
        """Import the task; raises ConfigError when a package is missing."""
        module, name = self.path.rsplit(".", 1)
        return getattr(import_extra(module), name)


def _held_out(metrics: Metrics) -> tuple[str, Mapping[str, Any]]:
    """Return the validation results where there are any, else those of test or training rows."""
    split = next((name for name in ("val", "test") if name in metrics), "train")
    return split, metrics[split]


def _property_objective(metrics: Metrics) -> Objective:
    """Return the error, of several targets the mean in units of the mean predictor's.

    It is the log loss where probabilities are predicted.
    """
    split, results = _held_out(metrics)
    rows = list(results.values())
    key = "log_loss" if "log_loss" in rows[0] else "mae"
    name = "MAE" if key == "mae" else "log loss"
    if len(rows) == 1:
        unit = f", {rows[0]['unit']}" if key == "mae" else ""
        return f"{split} {name}{unit}", rows[0][key]
    floors = [row["baselines"]["mean"] for row in rows]
    if key == "log_loss":
        floors = [floor[key] for floor in floors]
    shares = [
        row[key] / floor if floor else float("inf") for row, floor in zip(rows, floors, strict=True)
    ]
    return f"{split} {name} over the mean predictor's", statistics.fmean(shares)


def _forces_objective(metrics: Metrics) -> Objective:
    """Return the error of the forces, or of the energies where there are none."""
    split, results = _held_out(metrics)
    name = "forces" if "forces" in results else next(iter(results))
    return f"{split} MAE of {name}, {results[name]['unit']}", results[name]["mae"]


def _field_objective(metrics: Metrics) -> Objective:
    split, results = _held_out(metrics)
    return f"{split} relative L2", statistics.fmean(r["relative_l2"] for r in results.values())


def _energy_objective(metrics: Metrics) -> Objective:
    return "energy per site", metrics["energies"]["fresh samples"]["mean"]


def _detector_objective(metrics: Metrics) -> Objective:
    split, results = _held_out(metrics)
    return f"{split} 1 - span F1", 1 - results["detector"]["span_f1"]


def _labels_objective(metrics: Metrics) -> Objective:
    split, results = _held_out(metrics)
    return f"{split} 1 - span F1", 1 - results["all types"]["span_f1"]


TASKS = {
    "property_prediction": TaskEntry(
        "structures", "matattn.workflows.structures.train.PropertyTask", _property_objective, True
    ),
    "interatomic_potential": TaskEntry(
        "potentials", "matattn.workflows.potentials.train.PotentialTask", _forces_objective, True
    ),
    "field_surrogate": TaskEntry(
        "meshes", "matattn.workflows.meshes.train.FieldTask", _field_objective, True
    ),
    "variational_monte_carlo": TaskEntry(
        "spins", "matattn.workflows.spins.train.GroundStateTask", _energy_objective
    ),
    "tokenization": TaskEntry(
        "text", "matattn.workflows.text.tokenization.TokenizationTask", _detector_objective
    ),
    "language_model": TaskEntry(
        "text", "matattn.workflows.text.language_model.LanguageTask", _labels_objective
    ),
}  # keyed by task.workflow of the configuration
