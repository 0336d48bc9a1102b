"""Train a network to predict properties of crystals and molecules, or of their atoms or pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import DataLoader

from matattn import bundle
from matattn.config import RunConfig, Section, Target, at_least, build, one_of, setting
from matattn.errors import ConfigError
from matattn.structures import vacuum
from matattn.structures.batch import CrystalBatch
from matattn.structures.classification import check_classes
from matattn.structures.dataset import CALIBRATION, EVALUATED, PropertyDataset
from matattn.structures.ensemble import Ensemble
from matattn.structures.image_rule import LARGEST_SYMMETRY
from matattn.structures.items import Geometries
from matattn.structures.metrics import element_constants, evaluate
from matattn.structures.network import StructureNetwork
from matattn.training.averaging import LastEpochsAveraging
from matattn.training.data import Loaders
from matattn.training.losses import LOSSES, Loss
from matattn.training.processes import share_of_mean
from matattn.training.run_log import RunLog
from matattn.training.schedules import Schedule
from matattn.uncertainty import FEWEST_ROWS, SPREADS, Uncertainty
from matattn.units import PROBABILITY
from matattn.workflows.fitting import (
    GradientDescent,
    check_batches,
    fit,
    log_loss,
    optimization,
    stop_unless_finite,
)
from matattn.workflows.outputs import Outputs
from matattn.workflows.structures import report
from matattn.workflows.structures.batches import Batches
from matattn.workflows.structures.fine_tune import start_from
from matattn.workflows.structures.kinds import kind_scores, left_out
from matattn.workflows.structures.predict import Predictor, encode
from matattn.workflows.structures.training_rows import FILE, references, text_of

LONGEST_RANGE = 50  # Å: of neighbours in a crystal, some 30,000 of each atom

Normaliser = tuple[Tensor, Tensor]  # mean and standard deviation [T]


@dataclass(frozen=True)
class PropertySettings(Section):
    """Settings of a training on properties; ``conf/task/property.yaml`` explains each."""

    key: ClassVar[str] = "task"

    workflow: str = "property_prediction"
    batch_size: int = at_least(64, 1)
    loss: str = one_of("l1", tuple(LOSSES))
    tolerance: float = setting(3e-4, "between 0 and 1", lambda x: 0 < x < 1)
    symmetry: float = setting(
        1e-3, f"0 to {LARGEST_SYMMETRY} (Å)", lambda x: 0 <= x <= LARGEST_SYMMETRY
    )
    averaging_epochs: int = at_least(0, 0)
    select: str = one_of("final", ("final", "best"))
    calibration: float = setting(0.05, "a fraction below 0.5 (0: none)", lambda x: 0 <= x < 0.5)
    spread: str = one_of("latent_distance", tuple(SPREADS))
    members: int = setting(
        1, f"1 to {bundle.MOST_MEMBERS}", lambda n: 1 <= n <= bundle.MOST_MEMBERS
    )
    train_rows: int | None = setting(None, "at least 1, or null", lambda n: n is None or n >= 1)
    kinds: int = setting(0, "0 (none), or 2 to 20", lambda n: n == 0 or 2 <= n <= 20)
    kind_epochs: int | None = setting(None, "at least 1, or null", lambda n: n is None or n >= 1)

    def __post_init__(self) -> None:
        """Check what depends on several values, too."""
        super().__post_init__()
        if self.spread == "ensemble" and self.members < 2:
            raise ConfigError("task.spread=ensemble needs task.members of at least 2")
        if self.kinds and self.spread == "ensemble":
            raise ConfigError("task.kinds needs a task.spread of one network, not ensemble")


class PropertyPrediction(L.LightningModule):
    """Regression on normalised targets, or classification; labels that are NaN do not count.

    Args:
        network: batch -> [B, T], or a row for every atom or pair.
        mean, std: of the training labels [T], in physical units.
        targets: names of the T properties, for metrics.
        loss: what is minimised; where it classifies, mean and std are 0 and 1.
        optimizer, schedule: of AdamW.
        averaging_epochs: the learning rate stays frozen over that many last epochs.
        ids: of the structures, by row of the data set.
        folder: where the ids of a batch with a non-finite loss are written.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: StructureNetwork,
        mean: Tensor,
        std: Tensor,
        targets: tuple[str, ...],
        loss: Loss,
        optimizer: GradientDescent,
        schedule: Schedule,
        averaging_epochs: int,
        ids: Sequence[str],
        folder: Path,
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.targets, self.loss = targets, loss
        self.optimizer, self.schedule = optimizer, schedule
        self.averaging_epochs, self.ids, self.folder = averaging_epochs, ids, folder

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        known = ~batch.y.isnan()
        target = (batch.y.nan_to_num() - self.mean) / self.std
        losses = self.loss.values(self.network(batch), target)
        loss = losses[known].sum() / known.sum().clamp(min=1)
        stop_unless_finite(loss, self, self.folder, self.ids, batch.row, "structures")
        log_loss(self, loss, len(batch.y))
        return share_of_mean(loss, known.sum())

    def on_validation_epoch_start(self) -> None:
        """Forget the losses and errors of the epoch before."""
        self._loss = torch.zeros_like(self.mean)
        self._error = torch.zeros_like(self.mean)
        self._count = torch.zeros_like(self.mean)

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        """Add the losses and errors of a batch."""
        output, known = self.network(batch), ~batch.y.isnan()
        target = (batch.y.nan_to_num() - self.mean) / self.std
        self._loss += torch.where(known, self.loss.values(output, target), 0).sum(0)
        error = (output * self.std + self.mean - batch.y).abs()
        self._error += torch.where(known, error, 0).sum(0)
        self._count += known.sum(0)

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss, and of every target the mean error, or its log loss."""
        seen = self._count > 0
        loss, mae = self._loss / self._count, self._error / self._count
        self.log("val/loss", loss[seen].mean(), sync_dist=True)
        key, values = ("log_loss", loss) if self.loss.classifies else ("mae", mae)
        for name, value in zip(self.targets, values, strict=True):
            self.log(f"val/{key}/{name}", value, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser and its schedule."""
        return optimization(
            self, self.network, self.optimizer, self.schedule, self.averaging_epochs
        )


@dataclass(frozen=True)
class Trained:
    """What a training leaves in memory."""

    network: StructureNetwork
    logs: Sequence[RunLog]  # of every member
    device: torch.device


@dataclass(frozen=True)
class PropertyTask:
    """A training on properties, prepared: data, networks and what they learn."""

    settings: ClassVar[type[Section]] = PropertySettings
    optimizer: ClassVar[type[Section]] = GradientDescent
    results_table = staticmethod(report.results_table)

    config: RunConfig[PropertySettings, GradientDescent]
    dataset: PropertyDataset
    arguments: Mapping[str, Any]  # of every network, with what the data decide
    networks: Sequence[StructureNetwork]  # as many as members are trained
    normaliser: Normaliser  # of what they learn
    schedule: Schedule
    fingerprint: str  # of the data

    @classmethod
    def prepare(cls, config: RunConfig[PropertySettings, GradientDescent]) -> Self:
        """Read the data and build the networks; raises ConfigError or DataError for any mistake."""
        task = config.task
        check_batches(config)
        if task.averaging_epochs > config.epochs:
            raise ConfigError(
                f"task.averaging_epochs={task.averaging_epochs}: expected 0 to trainer.max_epochs "
                f"({config.epochs})"
            )
        dataset = _read_data(config)
        if task.kinds:
            _check_kinds(config, dataset)
        schedule = build(config.optimizer.schedule, "optimizer.schedule")
        arguments = network_arguments(config.model, dataset)
        networks = []
        for member in range(task.members):
            L.seed_everything(config.seed + member, workers=True, verbose=False)
            network = build(Target(config.model.target, arguments), "model")
            check_reads(network, dataset)
            check_range(network, dataset, task.tolerance)
            normaliser = normalise(network, dataset)
            if config.init_from:
                start_from(network, config.init_from.path, dataset.targets, normaliser)
            networks.append(network)
        fingerprint = dataset.fingerprint()
        return cls(config, dataset, arguments, networks, normaliser, schedule, fingerprint)

    def train(self, folder: Path) -> Trained:
        """Train every member, from its last checkpoint in ``folder`` if there is one."""
        batches, logs = self._batches(), []
        for member in range(len(self.networks)):
            place = folder / f"member{member}" if len(self.networks) > 1 else folder
            loaders = batches.loaders(self.config.seed + member)
            log, device = self._train_one(member, place, loaders)
            logs.append(log)
        whole = Ensemble(self.networks) if len(self.networks) > 1 else self.networks[0]
        return Trained(whole, logs, device)

    def on(self, dataset: PropertyDataset, network: StructureNetwork) -> Self:
        """Return the training of another network on another split of the data."""
        normaliser = normalise(network, dataset)
        task = replace(self.config.task, averaging_epochs=0, select="final")
        config = replace(self.config, task=task)
        return replace(
            self, config=config, dataset=dataset, networks=[network], normaliser=normaliser
        )

    def train_without(self, folder: Path, epochs: int | None) -> None:
        """Train the only network on what is left of the data, for ``epochs``, or as many as all."""
        loaders = self._batches().loaders(self.config.seed)
        self._train_one(0, folder, loaders, epochs)

    def module(self, folder: Path, member: int = 0) -> PropertyPrediction:
        """Return the training of a member; batches that cannot be used are told in ``folder``."""
        return PropertyPrediction(
            self.networks[member],
            *self.normaliser,
            targets=tuple(target.name for target in self.dataset.targets),
            loss=LOSSES[self.config.task.loss],
            optimizer=self.config.optimizer,
            schedule=self.schedule,
            averaging_epochs=self.config.task.averaging_epochs,
            ids=self.dataset.ids(),
            folder=folder,
        )

    def data(self) -> Loaders:
        """Return the batches of the first member for a Trainer of one's own."""
        return Loaders(lambda: self._batches().loaders(self.config.seed))

    def _batches(self) -> Batches:
        task = self.config.task
        images = self.networks[0].image_rule(float(task.tolerance), float(task.symmetry))
        return Batches.of(self.dataset, task.batch_size, images)

    def _train_one(
        self, member: int, folder: Path, loaders: dict[str, DataLoader], epochs: int | None = None
    ) -> tuple[RunLog, torch.device]:
        averaging_epochs, module = self.config.task.averaging_epochs, self.module(folder, member)
        shown = {"train/loss": "loss {:.4f}"}
        for target in self.dataset.targets:
            key, unit = ("log_loss", "log loss") if target.is_class else ("mae", target.unit)
            shown[f"val/{key}/{target.name}"] = f"val {{:.4f}} {unit}"
        log = RunLog(folder / "metrics.csv", shown)
        averaging = [LastEpochsAveraging(averaging_epochs)] if averaging_epochs else []
        return log, fit(self.config, folder, module, loaders, log, averaging, epochs)

    def evaluate(self, folder: Path, trained: Trained) -> Outputs:
        """Return predictions with intervals, errors beside baselines, figures and the model."""
        dataset, network = self.dataset, trained.network.cpu()
        mean, std = (values.tolist() for values in self.normaliser)
        description: dict[str, Any] = {
            "targets": [{"name": t.name, "unit": t.unit} for t in dataset.targets],
            "normaliser": {"mean": mean, "std": std},
            "loss": self.config.task.loss,
            "elements": dataset.elements(),
            "structures": "molecules" if dataset.has_molecules else "crystals",
        }
        if not dataset.has_molecules:
            structures = Geometries.of(dataset.items)
            some = vacuum.sample(dataset.rows("train"))
            description["vacuum"] = vacuum.normal_space([structures[row] for row in some])
        features = encode(network, dataset.items, trained.device)
        predictor = Predictor(network, description)
        predictor = replace(predictor, uncertainty=self._uncertainty(predictor, features, folder))
        predicted, intervals = predictor.values(features), predictor.intervals(features)
        metrics = evaluate(dataset, predicted, intervals)
        metrics["parameters"] = sum(p.numel() for p in network.parameters() if p.requires_grad)
        metrics["train_time_s"] = round(sum(log.seconds for log in trained.logs), 1)
        metrics["rows"] = {split: len(dataset.rows(split)) for split in EVALUATED}
        loss = LOSSES[self.config.task.loss]
        figures = {"loss.png": report.loss_plot([log.rows for log in trained.logs], dataset, loss)}
        if loss.classifies:
            figures["probabilities.png"] = report.probability_plot(dataset, predicted)
        else:
            figures["parity.png"] = report.parity_plot(dataset, predicted, metrics)
        distances: list[dict[str, Any]] = []
        if predictor.uncertainty is not None:
            distances = report.by_distance(dataset, predictor, features)
            figures["calibration.png"] = report.calibration_plot(
                dataset, predictor, features, distances
            )
        return Outputs(
            metrics=metrics,
            network=list(network) if isinstance(network, Ensemble) else network,
            arguments=self.arguments,
            description=description,
            data={"name": dataset.name, "fingerprint": self.fingerprint, "note": dataset.note},
            epochs=max(log.epochs for log in trained.logs),
            template="structures/report.md",
            report=report.values(self.config, dataset, metrics, distances),
            figures=figures,
            tables={"predictions.csv": list(prediction_rows(dataset, predicted, intervals))},
            uncertainty=predictor.uncertainty,
            bundle_files=self._training_rows() if predictor.uncertainty is not None else {},
        )

    def _training_rows(self) -> dict[str, str]:
        """Return the table of the rows that novelty is measured from, of whole structures."""
        if self.dataset.level != "structure":
            return {}
        names = [target.name for target in self.dataset.targets]
        rows = references(self.dataset.label_rows("train"))
        return {FILE: text_of(self.dataset, rows.tolist(), names)}

    def _uncertainty(
        self, predictor: Predictor, features: Tensor, folder: Path
    ) -> Uncertainty | None:
        """Return intervals fitted to the calibration rows; None if none were held out."""
        dataset = self.dataset
        if not len(dataset.rows(CALIBRATION)):
            return None
        errors = torch.from_numpy(np.abs(predictor.values(features) - dataset.labels())).float()
        train, held_out = map(dataset.label_rows, ("train", CALIBRATION))
        parts = ((features[rows], errors[rows]) for rows in (references(train), held_out))
        found = Uncertainty.fit(self.config.task.spread, predictor.network, *parts)
        if not self.config.task.kinds:
            return found
        return found.with_kinds(torch.cat(kind_scores(self, folder)))


def _read_data(config: RunConfig[PropertySettings, GradientDescent]) -> PropertyDataset:
    """Return the data with a calibration split; raises ConfigError when a split is missing."""
    task = config.task
    dataset: PropertyDataset = build(config.data, "data")
    if not isinstance(dataset, PropertyDataset):
        held = type(dataset).__name__
        raise ConfigError(f"data={config.source.name} holds a {held}, no structures")
    _check_loss(dataset, task.loss)
    if task.train_rows is not None:
        dataset = dataset.limit(task.train_rows, config.seed)
    if task.calibration and not LOSSES[task.loss].classifies:  # a probability has no interval
        dataset = _hold_out(dataset, task.calibration)
    if not len(dataset.rows("train")):
        raise ConfigError(f"{dataset.name}: no training rows")
    if task.select == "best" and not len(dataset.rows("val")):
        raise ConfigError(f"task.select=best needs validation rows, and {dataset.name} has none")
    return dataset


def _check_kinds(
    config: RunConfig[PropertySettings, GradientDescent], dataset: PropertyDataset
) -> None:
    """Raise ConfigError where no network could be trained without a kind of structures."""
    kinds = f"task.kinds={config.task.kinds}"
    if config.processes > 1:
        raise ConfigError(f"{kinds} needs trainer.devices=1")
    if not len(dataset.rows(CALIBRATION)):
        raise ConfigError(f"{kinds} needs calibration rows: raise task.calibration")
    if not left_out(dataset, config.task.kinds):
        raise ConfigError(f"{kinds}: the structures are too few or too alike for groups of kinds")


def _check_loss(dataset: PropertyDataset, name: str) -> None:
    """Raise ConfigError for a loss that does not fit the targets, DataError for their labels."""
    classifies = LOSSES[name].classifies
    for target in dataset.targets:
        if classifies and not target.is_class:
            raise ConfigError(
                f"task.loss={name} is for what is true or false, and {target.name} is in "
                f"{target.unit}; a column of your own: "
                f"'data.units={{{target.name}: {PROBABILITY}}}'"
            )
        if target.is_class and not classifies:
            raise ConfigError(f"{target.name} is true or false: give task.loss=cross_entropy")
    check_classes(dataset)


def _hold_out(dataset: PropertyDataset, fraction: float) -> PropertyDataset:
    """Return ``dataset`` with a calibration split; unchanged if that were too small to be used."""
    held = dataset.hold_out(fraction)
    labels = held.labels()[held.label_rows(CALIBRATION)]
    enough = (~np.isnan(labels)).sum(0) >= FEWEST_ROWS
    return held if enough.all() else dataset


def network_arguments(model: Target, dataset: PropertyDataset) -> dict[str, Any]:
    """Return a network's arguments: where it leaves elements or readout to the data, theirs."""
    arguments = {**model.arguments, "num_targets": len(dataset.targets)}
    if arguments.get("elements", ...) is None:
        arguments["elements"] = dataset.elements(None)
    if arguments.get("readout", ...) is None:
        whole = "sum" if dataset.extensive else "mean"
        arguments["readout"] = {"structure": whole, "atom": "atoms", "pair": "pairs"}[dataset.level]
    return arguments


def check_reads(network: StructureNetwork, dataset: PropertyDataset) -> None:
    """Raise ConfigError when a network cannot read the structures, or predict at their level."""
    name = type(network).__name__
    if dataset.has_molecules and not network.reads_molecules:
        raise ConfigError(f"{dataset.name} holds molecules, and {name} reads crystals only")
    if type(network).check is not StructureNetwork.check:
        for item in dataset.items:
            network.check(item.z, item.pos, item.cell, f"{dataset.name}: {item.id}")
    if network.level != dataset.level:
        raise ConfigError(
            f"{dataset.name} has a value for every {dataset.level}, and {name} gives one for every "
            f"{network.level}; model=coulgat has model.readout, which follows the data when it is "
            "null"
        )


def check_range(network: StructureNetwork, dataset: PropertyDataset, tolerance: float) -> None:
    """Raise ConfigError when lists of neighbours in a crystal would fill the memory."""
    reach = network.image_rule(float(tolerance)).cutoff
    if reach > LONGEST_RANGE and not dataset.has_molecules:
        raise ConfigError(
            f"the network looks at neighbours within {reach:.3g} Å, expected at most "
            f"{LONGEST_RANGE}: lower model.cutoff, or raise task.tolerance"
        )


def normalise(network: StructureNetwork, dataset: PropertyDataset) -> Normaliser:
    """Return mean and population standard deviation of the training labels [T].

    A network that has room for constants of the elements gets them, fitted to the training labels;
    mean and deviation are then those of the rest. Of what is true or false, they are 0 and 1: an
    output is the logit of a probability.
    """
    labels, rows = dataset.labels(), dataset.label_rows("train")
    classes = [target.is_class for target in dataset.targets]
    constants, room = None, network.element_constants
    if room is not None and not any(classes):
        constants, labels = element_constants(dataset)
    mean, std = np.nanmean(labels[rows], axis=0), np.nanstd(labels[rows], axis=0)
    std[std == 0] = 1.0
    mean[classes], std[classes] = 0.0, 1.0
    if room is not None and constants is not None:
        room.copy_(torch.from_numpy(constants / std))
    as_float = partial(torch.tensor, dtype=torch.float32)
    return as_float(mean), as_float(std)


def prediction_rows(
    dataset: PropertyDataset, predicted: np.ndarray, intervals: tuple[np.ndarray, np.ndarray]
) -> Iterator[dict[str, Any]]:
    """Yield a row for every label; of atoms and pairs, their numbers stand behind the id."""
    columns = {"true": dataset.labels(), "predicted": predicted}
    columns |= dict(zip(("lower", "upper"), intervals, strict=True))
    owners, ids = dataset.owners(), dataset.ids()
    first = np.searchsorted(owners, owners)  # the row where each one's structure begins
    for row, owner in enumerate(owners):
        name = ids[owner]
        if dataset.level == "atom":
            name = f"{name}:{row - first[row] + 1}"
        elif dataset.level == "pair":
            i, j = dataset.items[owner].pair_index[:, row - first[row]].tolist()
            name = f"{name}:{i + 1}-{j + 1}"
        for column, target in enumerate(dataset.targets):
            numbers = {key: float(table[row, column]) for key, table in columns.items()}
            end = {"unit": target.unit, "split": dataset.split[owner]}
            yield {"id": name, "target": target.name, **numbers, **end}
