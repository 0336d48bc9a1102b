"""The one epilogue of all trainings: what a finished run leaves, and how its folder is cleared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from matattn import __version__, bundle
from matattn.config import RunConfig
from matattn.files import write_json, write_text
from matattn.tables import write_table
from matattn.uncertainty import Calibrated
from matattn.workflows.reporting import (
    render,
    save_figure,
    without_folders,
    without_pictures,
)
from matattn.workflows.run_folder import FAILED, FINISHED, RECORD
from matattn.workflows.task import TASKS

# All that a run writes into its folder, whatever its task: what ``clear`` removes.
WRITTEN = (
    FINISHED, "checkpoints", "model", "report.md", "metrics.csv", "predictions.csv",
    "frequencies.csv", "observables.json", "nonfinite_batch.json", FAILED, "fields",
    "pretraining", "member*", "tensorboard", "wandb", "mlruns", "*.png",
)  # fmt: skip
_MODEL_PATH = "PATH/TO/THIS/FOLDER"  # of the bundle, in its card


@dataclass(frozen=True)
class Outputs:
    """What a training found, before anything of it is written.

    Args:
        metrics: content of metrics.json, but for what ``write`` adds.
        network: the trained network, the members of an ensemble, or for a network of another
            library its class name and arrays.
        arguments: constructor arguments of the network, with what the data decided.
        description: what config.json of the bundle says beyond what all bundles do.
        data: what is known of the data: name, fingerprint and perhaps a note.
        epochs: that the training took; fewer than asked for if a callback stopped it.
        template: of the report, ``workflows/<template>.jinja``.
        report: values of the template beside those that all reports have.
        figures: by file name.
        tables: rows of CSV files, by file name.
        documents: contents of JSON files, by file name.
        uncertainty: of the network, if it is calibrated.
        bundle_files: texts of further files of the bundle, by name.
    """

    metrics: dict[str, Any]
    network: nn.Module | list[nn.Module] | tuple[str, Mapping[str, np.ndarray]]
    arguments: Mapping[str, Any]
    description: Mapping[str, Any]
    data: Mapping[str, Any]
    epochs: int
    template: str
    report: Mapping[str, Any]
    figures: Mapping[str, Figure]
    tables: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)
    uncertainty: Calibrated | None = None
    bundle_files: Mapping[str, str] = field(default_factory=dict)


def write(folder: Path, config: RunConfig, outputs: Outputs) -> None:
    """Write all outputs of a run; metrics.json comes last, and says that the run is finished."""
    _check_names([*outputs.figures, *outputs.tables, *outputs.documents])
    for name, rows in outputs.tables.items():
        write_table(folder / name, rows)
    for name, figure in outputs.figures.items():
        save_figure(figure, folder / name)
    for name, content in outputs.documents.items():
        write_json(folder / name, content)
    text = render(
        outputs.template,
        config=config,
        metrics=outputs.metrics,
        epochs=outputs.epochs,
        model=_MODEL_PATH,
        version=__version__,
        **outputs.report,
    )
    description = {
        **outputs.description,
        "kind": TASKS[config.task.workflow].kind,
        "data": {**outputs.data, "citations": list(config.source.citations)},
        "seed": config.seed,
        "licence": config.source.licence,
        "metrics": outputs.metrics,
    }
    card = without_folders(without_pictures(text))
    _save_bundle(folder / "model", outputs, description, card)
    report = text.replace(_MODEL_PATH, os.path.relpath(folder / "model"))
    write_text(folder / "report.md", report)
    write_json(folder / FINISHED, outputs.metrics)


def _save_bundle(folder: Path, outputs: Outputs, description: dict[str, Any], card: str) -> None:
    network, arguments = outputs.network, dict(outputs.arguments)
    if isinstance(network, tuple):
        bundle.save_arrays(folder, *network, arguments, description, card)
    else:
        bundle.save(
            folder, network, arguments, description, card, outputs.uncertainty,
            outputs.bundle_files,
        )  # fmt: skip


def _check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a file that ``clear`` would leave: it belongs into ``WRITTEN``."""
    for name in names:
        if not any(fnmatch(name, pattern) for pattern in WRITTEN):
            raise ValueError(f"{name} is not among the files that a run writes (WRITTEN)")


def clear(folder: Path) -> None:
    """Remove what an earlier run wrote, so that nothing of it is mistaken for the new one.

    At any moment what is left is a run, and after the first removal no finished one. Files that
    no run writes stay.
    """
    for pattern in (*WRITTEN, RECORD):  # the record last: without it a folder is no run
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
