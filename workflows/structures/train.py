"""Train a network to predict properties of crystals and molecules, or of their atoms or pairs.

``run(config, folder)`` reads the data, trains, and writes the run folder: metrics, predictions,
plots, report and the model bundle.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from matattn import bundle
from matattn.citations import LICENCES
from matattn.config import build, require
from matattn.errors import ConfigError
from matattn.files import write_json, write_text
from matattn.parallel import parallel_map
from matattn.structures.batch import CrystalBatch, CrystalGraph, collate, geometry, join, to_graph
from matattn.structures.dataset import CALIBRATION, EVALUATED, PropertyDataset
from matattn.structures.ensemble import Ensemble
from matattn.structures.image_rule import LARGEST_SYMMETRY, ImageRule
from matattn.structures.metrics import element_constants, evaluate
from matattn.structures.neighbors import SELF
from matattn.structures.network import StructureNetwork
from matattn.training.averaging import LastEpochsAveraging
from matattn.training.processes import share_of_mean
from matattn.training.run_log import RunLog
from matattn.training.schedules import Schedule
from matattn.uncertainty import FEWEST_ROWS, SPREADS, Uncertainty
from matattn.workflows.fitting import (
    check_settings,
    fit,
    log_loss,
    make_loaders,
    optimization,
    stop_unless_finite,
)
from matattn.workflows.reporting import without_pictures
from matattn.workflows.structures import report
from matattn.workflows.structures.fine_tune import start_from
from matattn.workflows.structures.predict import Predictor, encode
from matattn.workflows.structures.report import results_table

__all__ = ["PropertyPrediction", "prepare", "results_table", "run"]

MOST_REFERENCES = 20_000  # training rows that novelty is measured from
LONGEST_RANGE = 50  # Å: of neighbours in a crystal, some 30,000 of each atom
WORTH_A_PROCESS = 500  # crystals whose neighbour lists take as long as to start a process


class PropertyPrediction(L.LightningModule):
    """L1 regression on normalised targets; labels that are NaN do not count.

    Args:
        network: batch -> [B, T], or a row for every atom or pair.
        mean, std: of the training labels [T], in physical units.
        targets: names of the T properties, for metrics.
        optimizer: lr, betas, weight_decay, and ``schedule`` (a ``matattn.training.schedules``).
        averaging_epochs: the learning rate stays frozen over that many last epochs.
        ids: of the structures, by row of the data set.
        folder: where the ids of a batch with a non-finite loss are written.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Tensor,
        std: Tensor,
        targets: tuple[str, ...],
        optimizer: Mapping[str, Any],
        averaging_epochs: int,
        ids: Sequence[str],
        folder: Path,
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.targets, self.settings = targets, dict(optimizer)
        self.averaging_epochs, self.ids, self.folder = averaging_epochs, ids, folder

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor:
        known = ~batch.y.isnan()
        target = (batch.y.nan_to_num() - self.mean) / self.std
        error = (self.network(batch) - target).abs()
        loss = error[known].sum() / known.sum().clamp(min=1)
        stop_unless_finite(loss, self, self.folder, self.ids, batch.row, "structures")
        log_loss(self, loss, len(batch.y))
        return share_of_mean(loss, known.sum())

    def on_validation_epoch_start(self) -> None:
        self._error = torch.zeros_like(self.mean)
        self._count = torch.zeros_like(self.mean)

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        predicted = self.network(batch) * self.std + self.mean
        known = ~batch.y.isnan()
        self._error += torch.where(known, (predicted - batch.y).abs(), 0).sum(0)
        self._count += known.sum(0)

    def on_validation_epoch_end(self) -> None:
        mae = self._error / self._count
        seen = self._count > 0
        self.log("val/loss", (mae / self.std)[seen].mean(), sync_dist=True)
        for name, value in zip(self.targets, mae, strict=True):
            self.log(f"val/mae/{name}", value, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return optimization(self, self.network, self.settings, self.averaging_epochs)


@dataclass(frozen=True)
class Prepared:
    """What a configuration describes, built and checked."""

    dataset: PropertyDataset
    networks: list[StructureNetwork]  # as many as members are trained
    normaliser: tuple[Tensor, Tensor]  # mean and standard deviation of what they learn [T]
    schedule: Schedule
    fingerprint: str  # of the data


def prepare(config: dict[str, Any]) -> Prepared:
    """Read the data and build the network; raises ConfigError or DataError for any mistake."""
    task, optimizer = config["task"], config["optimizer"]
    epochs = config["trainer"]["max_epochs"]
    number = (int, float)
    check_settings(config)
    require("task.tolerance", task["tolerance"], number, lambda x: 0 < x < 1, "between 0 and 1")
    symmetry = f"0 to {LARGEST_SYMMETRY} (Å)"
    require(
        "task.symmetry", task["symmetry"], number, lambda x: 0 <= x <= LARGEST_SYMMETRY, symmetry
    )
    averaging = f"0 to trainer.max_epochs ({epochs})"
    require("task.averaging_epochs", task["averaging_epochs"], int, range(epochs + 1).__contains__,
            averaging)  # fmt: skip
    fraction = "a fraction below 0.5 (0: none)"
    require("task.calibration", task["calibration"], number, lambda x: 0 <= x < 0.5, fraction)
    members = f"1 to {bundle.MOST_MEMBERS}"
    require("task.members", task["members"], int, lambda n: 1 <= n <= bundle.MOST_MEMBERS, members)
    spread = task["spread"]
    require("task.spread", spread, str, SPREADS.__contains__, f"one of {', '.join(SPREADS)}")
    if spread == "ensemble" and task["members"] < 2:
        raise ConfigError("task.spread=ensemble needs task.members of at least 2")
    dataset: PropertyDataset = build(config["data"], "data")
    if task["train_rows"] is not None:
        require("task.train_rows", task["train_rows"], int, lambda n: n >= 1, "at least 1, or null")
        dataset = dataset.limit(task["train_rows"], config["seed"])
    if task["calibration"]:
        dataset = _hold_out(dataset, task["calibration"])
    if not len(dataset.rows("train")):
        raise ConfigError(f"{dataset.name}: no training rows")
    if task["select"] == "best" and not len(dataset.rows("val")):
        raise ConfigError(f"task.select=best needs validation rows, and {dataset.name} has none")
    schedule = build(optimizer["schedule"], "optimizer.schedule")
    _fit_to_data(config["model"], dataset)
    networks = []
    for member in range(task["members"]):
        L.seed_everything(config["seed"] + member, workers=True, verbose=False)
        network = build(config["model"], "model", num_targets=len(dataset.targets))
        _check_reads(network, dataset)
        _check_range(network, dataset, task["tolerance"])
        normaliser = _normalise(network, dataset)
        if config["init_from"]:
            path = config["init_from"]["path"]
            start_from(network, path, dataset.targets, normaliser)
        networks.append(network)
    return Prepared(dataset, networks, normaliser, schedule, dataset.fingerprint())


def _fit_to_data(model: dict[str, Any], dataset: PropertyDataset) -> None:
    """Fill in what a network (its configuration) leaves to the data: null in these two keys."""
    if "elements" in model and model["elements"] is None:
        model["elements"] = dataset.elements(None)
    if "readout" in model and model["readout"] is None:
        whole = "sum" if dataset.extensive else "mean"
        model["readout"] = {"structure": whole, "atom": "atoms", "pair": "pairs"}[dataset.level]


def _check_reads(network: StructureNetwork, dataset: PropertyDataset) -> None:
    """Raise ConfigError when a network cannot read the structures, or predict at their level."""
    name = type(network).__name__
    if dataset.has_molecules and not network.reads_molecules:
        raise ConfigError(f"{dataset.name} holds molecules, and {name} reads crystals only")
    for item in dataset.items:
        network.check(item.z, item.pos, item.cell, f"{dataset.name}: {item.id}")
    if (given := network.level) != dataset.level:
        raise ConfigError(
            f"{dataset.name} has a value for every {dataset.level}, and {name} gives one for every "
            f"{given}; model=coulgat has model.readout, which follows the data when it is null"
        )


def _check_range(network: StructureNetwork, dataset: PropertyDataset, tolerance: float) -> None:
    """Raise ConfigError when lists of neighbours in a crystal would fill the memory."""
    reach = network.image_rule(float(tolerance)).cutoff
    if reach > LONGEST_RANGE and not dataset.has_molecules:
        raise ConfigError(
            f"the network looks at neighbours within {reach:.3g} Å, expected at most "
            f"{LONGEST_RANGE}: lower model.cutoff, or raise task.tolerance"
        )


def _normalise(network: StructureNetwork, dataset: PropertyDataset) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of the training labels [T].

    A network that has room for constants of the elements gets them, fitted to the training labels;
    mean and deviation are then those of the rest.
    """
    labels, rows = dataset.labels(), dataset.label_rows("train")
    constants = None
    if network.element_constants is not None:
        constants, labels = element_constants(dataset)
    mean, std = np.nanmean(labels[rows], axis=0), np.nanstd(labels[rows], axis=0)
    std[std == 0] = 1.0
    if constants is not None and network.element_constants is not None:
        network.element_constants.copy_(torch.from_numpy(constants / std))
    as_float = partial(torch.tensor, dtype=torch.float32)
    return as_float(mean), as_float(std)


def _hold_out(dataset: PropertyDataset, fraction: float) -> PropertyDataset:
    """``dataset`` with a calibration split; unchanged if that were too small to be of use."""
    held = dataset.hold_out(fraction)
    labels = held.labels()[held.label_rows(CALIBRATION)]
    enough = (~np.isnan(labels)).sum(0) >= FEWEST_ROWS
    return held if enough.all() else dataset


def run(config: dict[str, Any], folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Train as configured and fill the run folder; returns the content of ``metrics.json``."""
    networks, task, normaliser = prepared.networks, config["task"], prepared.normaliser
    loaders = _loaders(prepared.dataset, networks[0], task)
    logs: list[RunLog] = []
    for member, network in enumerate(networks):
        place = folder / f"member{member}" if len(networks) > 1 else folder
        seed = config["seed"] + member
        log, device = _train(config, place, prepared, network, normaliser, loaders(seed))
        logs.append(log)
    network = Ensemble(networks) if len(networks) > 1 else networks[0]
    return _write_results(config, folder, prepared, network, normaliser, logs, device)


def _train(
    config: dict[str, Any],
    folder: Path,
    prepared: Prepared,
    network: StructureNetwork,
    normaliser: tuple[Tensor, Tensor],
    loaders: dict[str, DataLoader],
) -> tuple[RunLog, torch.device]:
    """Train one network, from its last checkpoint in ``folder`` if there is one: where, too."""
    task, dataset = config["task"], prepared.dataset
    targets = tuple(target.name for target in dataset.targets)
    optimizer = {**config["optimizer"], "schedule": prepared.schedule}
    averaging_epochs = task["averaging_epochs"]
    ids = [item.id for item in dataset.items]
    module = PropertyPrediction(
        network, *normaliser, targets, optimizer, averaging_epochs, ids, folder
    )
    shown = {"train/loss": "loss {:.4f}"}
    for target in dataset.targets:
        shown[f"val/mae/{target.name}"] = f"val {{:.4f}} {target.unit}"
    log = RunLog(folder / "metrics.csv", shown)
    averaging = [LastEpochsAveraging(averaging_epochs)] if averaging_epochs else []
    return log, fit(config, folder, module, loaders, log, averaging)


def _loaders(
    dataset: PropertyDataset, network: StructureNetwork, task: Mapping[str, Any]
) -> Callable[[int], dict[str, DataLoader]]:
    """seed -> loaders of the training and, if there are any, validation rows."""
    for row, item in enumerate(dataset.items):
        item.row = row
    images = network.image_rule(float(task["tolerance"]), float(task["symmetry"]))
    crystals: dict[str, list[Any]] = {}
    for split in ("train", "val"):
        if items := [dataset.items[row] for row in dataset.rows(split)]:
            # The lists of boxes are quick to make, and too long to keep: 125 images of every pair.
            crystals[split] = items if images.box else _graphs(items, images, split)
    make: Callable[[Any], CrystalBatch] = partial(collate, images=images) if images.box else join

    return lambda seed: make_loaders(crystals, task["batch_size"], seed, make, _size)


def _size(item: Data | CrystalGraph) -> int:
    """What the time for a structure grows with: its neighbours, or atoms."""
    return len(item.neighbors.source) if isinstance(item, CrystalGraph) else len(item.z)


def _graphs(items: list[Data], images: ImageRule, split: str) -> list[CrystalGraph]:
    """All structures of a split with their neighbour lists, made once for all epochs."""
    lists = parallel_map(
        partial(_list, images),
        [geometry(item) for item in items],
        f"neighbour lists ({split})",
        worth_a_process=WORTH_A_PROCESS,
        chunk=64,
        most=torch.get_num_threads(),
    )
    graphs = []
    for item, found in zip(items, lists, strict=True):
        if images.cutoff > SELF and len(item.z) > 1 and (found.distance < SELF).all():
            raise ConfigError(
                f"{item.id}: no atom has another one within the network's range of "
                f"{images.cutoff:g} Å; raise model.cutoff"
            )
        graphs.append(to_graph(item, found))
    return graphs


def _list(images: ImageRule, arrays: tuple[np.ndarray, ...]) -> Any:
    return images(*arrays)


def _write_results(
    config: dict[str, Any],
    folder: Path,
    prepared: Prepared,
    network: StructureNetwork,
    normaliser: tuple[Tensor, Tensor],
    logs: list[RunLog],
    device: torch.device,
) -> dict[str, Any]:
    dataset, network = prepared.dataset, network.cpu()
    mean, std = (values.tolist() for values in normaliser)
    description = {
        "targets": [{"name": t.name, "unit": t.unit} for t in dataset.targets],
        "normaliser": {"mean": mean, "std": std},
        "elements": dataset.elements(),
        "structures": "molecules" if dataset.has_molecules else "crystals",
        "data": {"name": dataset.name, "fingerprint": prepared.fingerprint, "note": dataset.note},
        "seed": config["seed"],
        "licence": LICENCES.get(dataset.name, ""),
    }
    features = encode(network, dataset.items, device)
    predictor = Predictor(network, description)
    if len(dataset.rows(CALIBRATION)):
        errors = torch.from_numpy(np.abs(predictor.values(features) - dataset.labels())).float()
        known, held_out = map(dataset.label_rows, ("train", CALIBRATION))
        known = known[:: -(-len(known) // MOST_REFERENCES)]
        train, held = ((features[rows], errors[rows]) for rows in (known, held_out))
        uncertainty = Uncertainty.fit(config["task"]["spread"], network, train, held)
        predictor = replace(predictor, uncertainty=uncertainty)
    predicted, intervals = predictor.values(features), predictor.intervals(features)
    metrics = evaluate(dataset, predicted, intervals)
    metrics["parameters"] = sum(p.numel() for p in network.parameters() if p.requires_grad)
    metrics["train_time_s"] = round(sum(log.seconds for log in logs), 1)
    metrics["rows"] = {split: len(dataset.rows(split)) for split in EVALUATED}
    description["metrics"] = metrics
    _write_predictions(folder / "predictions.csv", dataset, predicted, intervals)
    report.parity_plot(folder / "parity.png", dataset, predicted, metrics)
    report.loss_plot(folder / "loss.png", [log.rows for log in logs], dataset)
    if predictor.uncertainty is not None:
        report.calibration_plot(folder / "calibration.png", dataset, predictor, features)
    arguments = {key: value for key, value in config["model"].items() if key != "_target_"}
    arguments["num_targets"] = len(dataset.targets)
    card = report.report_text(config, dataset, metrics, "PATH/TO/THIS/FOLDER")
    saved = prepared.networks if len(logs) > 1 else network
    bundle.save(
        folder / "model", saved, arguments, description, without_pictures(card),
        predictor.uncertainty,
    )  # fmt: skip
    text = report.report_text(config, dataset, metrics, os.path.relpath(folder / "model"))
    write_text(folder / "report.md", text)
    write_json(folder / "metrics.json", metrics)  # last: its presence says that the run is finished
    return metrics


def _write_predictions(
    path: Path,
    dataset: PropertyDataset,
    predicted: np.ndarray,
    intervals: tuple[np.ndarray, np.ndarray],
) -> None:
    columns = (dataset.labels(), predicted, *intervals)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "target", "true", "predicted", "lower", "upper", "unit", "split"])
    owners = dataset.owners()
    first = np.searchsorted(owners, owners)  # the row where each one's structure begins
    for row, owner in enumerate(owners):
        item = dataset.items[owner]
        name = item.id
        if dataset.level == "atom":
            name = f"{item.id}:{row - first[row] + 1}"
        elif dataset.level == "pair":
            i, j = item.pair_index[:, row - first[row]].tolist()
            name = f"{item.id}:{i + 1}-{j + 1}"
        for column, target in enumerate(dataset.targets):
            values = [table[row, column] for table in columns]
            shown = ["" if np.isnan(value) else f"{value:.6g}" for value in values]
            writer.writerow([name, target.name, *shown, target.unit, dataset.split[owner]])
    write_text(path, text.getvalue())
