"""Train a network to predict fields on meshes: a surrogate of a PDE solver."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import DataLoader

from matattn.config import RunConfig, Section, Target, at_least, build, one_of, setting
from matattn.errors import ConfigError
from matattn.meshes.baselines import baselines, relative_l2
from matattn.meshes.batch import InputScaling, MeshBatch, TrainingRange, collate_meshes
from matattn.meshes.fields import FieldDataset, MeshSample
from matattn.meshes.files import write_vtu
from matattn.meshes.network import MeshNetwork
from matattn.meshes.uncertainty import FieldUncertainty, summary
from matattn.training.averaging import ExponentialAverage
from matattn.training.data import Loaders
from matattn.training.processes import number_and_count, share_of_mean, summed
from matattn.training.run_log import RunLog
from matattn.training.schedules import Schedule
from matattn.uncertainty import FEWEST_ROWS
from matattn.workflows.fitting import (
    GradientDescent,
    check_batches,
    fit,
    log_loss,
    make_loaders,
    optimization,
    stop_unless_finite,
)
from matattn.workflows.meshes import report
from matattn.workflows.meshes.predict import FieldPredictor
from matattn.workflows.outputs import Outputs

SPLITS = ("train", "val", "test")
MOST_TRAIN = 200  # training samples whose errors are reported


@dataclass(frozen=True)
class FieldSettings(Section):
    """Settings of a training on fields; ``conf/task/field.yaml`` explains each."""

    key: ClassVar[str] = "task"

    workflow: str = "field_surrogate"
    batch_size: int = at_least(2, 1)
    select: str = one_of("final", ("final", "best"))
    ema: float = setting(0.999, "a number from 0 to below 1", lambda x: 0 <= x < 1)
    gradient_weight: float = at_least(0.0, 0)
    share_nodes: bool = False
    export: int = at_least(8, 0)


class FieldSurrogate(L.LightningModule):
    r"""Regression with the relative L2 error of fields in physical units.

    .. math::
        L = \frac{1}{B T} \sum_{b, t} \frac{|\hat y_{bt} - y_{bt}|}{|y_{bt}|} + w G

    with norms over the nodes of mesh b and, on structured grids, G the same of the two central
    differences of :math:`\hat y` and y (``GridGradient``).

    Args:
        network: batch -> [nodes, T], normalised.
        mean, std: of the training fields [T], in physical units.
        targets: names of the T fields, for metrics.
        optimizer, schedule: of AdamW.
        ids: of the samples, by row of the data set.
        folder: where the ids of a batch with a non-finite loss are written.
        gradient: the term G, or None.
        gradient_weight: w.
        share_nodes: processes share the nodes of every mesh, not the meshes of a batch.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: MeshNetwork,
        mean: Tensor,
        std: Tensor,
        targets: tuple[str, ...],
        optimizer: GradientDescent,
        schedule: Schedule,
        ids: Sequence[str],
        folder: Path,
        gradient: GridGradient | None = None,
        gradient_weight: float = 0.0,
        share_nodes: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.targets, self.optimizer, self.schedule = targets, optimizer, schedule
        self.ids, self.folder = ids, folder
        self.gradient, self.gradient_weight = gradient, gradient_weight
        self.share_nodes = share_nodes

    def on_fit_start(self) -> None:
        """Share the nodes of every mesh, where the task says so."""
        if self.share_nodes:
            self.network.share_nodes()

    def errors(self, batch: MeshBatch) -> tuple[Tensor, Tensor]:
        """Return relative L2 errors [B, T], and the predicted fields."""
        predicted = self.network(batch) * self.std + self.mean
        total = summed if self.share_nodes else None
        return relative_errors(predicted, batch.y, batch.ptr, total), predicted

    def training_step(self, batch: MeshBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        errors, predicted = self.errors(batch)
        loss = errors.mean()
        if self.gradient is not None:
            loss = loss + self.gradient_weight * self.gradient(predicted, batch.y)
        stop_unless_finite(loss, self, self.folder, self.ids, batch.row, "meshes")
        log_loss(self, loss, len(batch))
        if self.share_nodes:  # every process has the whole loss, and the gradient of its nodes
            return loss * number_and_count()[1]
        return share_of_mean(loss, torch.tensor(len(batch)))

    def validation_step(self, batch: MeshBatch, batch_idx: int) -> None:
        """Log the error of every field."""
        errors = self.errors(batch)[0].mean(0)
        self.log("val/loss", errors.mean(), batch_size=len(batch), sync_dist=True)
        for name, error in zip(self.targets, errors, strict=True):
            self.log(f"val/relative_l2/{name}", error, batch_size=len(batch), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser and its schedule."""
        return optimization(self, self.network, self.optimizer, self.schedule, decay_norms=False)


def relative_errors(
    predicted: Tensor,
    true: Tensor,
    ptr: Tensor,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return |predicted - true| / |true| of each mesh and field [B, T], norms over the nodes.

    ``total`` adds to the sums over nodes what other processes have.
    """
    sizes = ptr.diff().to(true.device)
    mesh = torch.repeat_interleave(sizes, output_size=len(true))
    zeros = true.new_zeros(len(sizes), true.shape[1])
    error, size = (zeros.index_add(0, mesh, x.square()) for x in (predicted - true, true))
    if total is not None:
        error, size = total(error), total(size)
    return ((error + 1e-30) / (size + 1e-30)).sqrt()


class GridGradient:
    """Sum of the relative L2 errors of both derivatives on a square grid, as published for Darcy.

    Central differences with zeros outside the grid and step 1 / n on n x n nodes; the prediction
    counts as zero on the boundary.
    """

    def __init__(self, grid: tuple[int, ...]) -> None:
        self.grid = grid
        self.inside = torch.zeros(*grid, 1)
        self.inside[1:-1, 1:-1] = 1

    def __call__(self, predicted: Tensor, true: Tensor) -> Tensor:
        """Return the error of the gradients of fields [nodes, T]."""
        true = true.unflatten(0, (-1, *self.grid))
        predicted = predicted.unflatten(0, (-1, *self.grid)) * self.inside.to(true.device)
        terms = []
        for axis in (1, 2):
            error, size = (
                self._difference(field, axis).flatten(1, 2).norm(dim=1)
                for field in (predicted - true, true)
            )
            terms.append((error / size).mean())
        return terms[0] + terms[1]

    def _difference(self, field: Tensor, axis: int) -> Tensor:
        after, before = field.roll(-1, axis), field.roll(1, axis)
        after.select(axis, -1).zero_()
        before.select(axis, 0).zero_()
        return (after - before) * self.grid[axis - 1] / 2


@dataclass(frozen=True)
class Trained:
    """What a training leaves in memory."""

    network: MeshNetwork
    log: RunLog
    average: ExponentialAverage | None
    device: torch.device


@dataclass(frozen=True)
class FieldTask:
    """A training on fields, prepared: data and network, and how both are scaled."""

    settings: ClassVar[type[Section]] = FieldSettings
    optimizer: ClassVar[type[Section]] = GradientDescent
    results_table = staticmethod(report.results_table)

    config: RunConfig[FieldSettings, GradientDescent]
    dataset: FieldDataset
    arguments: Mapping[str, Any]  # of the network, with what the data decide
    network: MeshNetwork
    schedule: Schedule
    scaling: InputScaling
    normaliser: tuple[Tensor, Tensor]  # mean and standard deviation of the fields [T]
    fingerprint: str  # of the data

    @classmethod
    def prepare(cls, config: RunConfig[FieldSettings, GradientDescent]) -> Self:
        """Read or make the data and build the network; raises ConfigError or DataError."""
        task = config.task
        check_batches(config)
        if config.init_from:
            raise ConfigError("init_from cannot start a training on meshes")
        dataset: FieldDataset = build(config.data, "data")
        if task.select == "best" and not len(dataset.rows("val")):
            raise ConfigError(
                f"task.select=best needs validation samples, and {dataset.name} has none"
            )
        if task.gradient_weight and (dataset.grid is None or len(dataset.grid) != 2):
            raise ConfigError(
                f"task.gradient_weight={task.gradient_weight} needs fields on a plane structured "
                f"grid, and {dataset.name} has none"
            )
        schedule = build(config.optimizer.schedule, "optimizer.schedule")
        L.seed_everything(config.seed, workers=True, verbose=False)
        arguments = {
            **config.model.arguments,
            "num_inputs": len(dataset.coordinates) + len(dataset.inputs),
            "num_targets": len(dataset.targets),
        }
        network: MeshNetwork = build(Target(config.model.target, arguments), "model")
        if task.share_nodes and (task.gradient_weight or not network.can_share_nodes):
            raise ConfigError(
                "task.share_nodes=true needs model=flare with model.queries=fixed and "
                "task.gradient_weight=0"
            )
        scaling, normaliser = InputScaling.fit(dataset), _normaliser(dataset)
        return cls(
            config, dataset, arguments, network, schedule, scaling, normaliser,
            dataset.fingerprint(),
        )  # fmt: skip

    def module(self, folder: Path) -> FieldSurrogate:
        """Return the training; batches that cannot be used are told in ``folder``."""
        task, dataset = self.config.task, self.dataset
        gradient = GridGradient(dataset.grid) if task.gradient_weight and dataset.grid else None
        return FieldSurrogate(
            self.network,
            *self.normaliser,
            targets=tuple(field.name for field in dataset.targets),
            optimizer=self.config.optimizer,
            schedule=self.schedule,
            ids=[item.id for item in dataset.items],
            folder=folder,
            gradient=gradient,
            gradient_weight=task.gradient_weight,
            share_nodes=task.share_nodes,
        )

    def data(self) -> Loaders:
        """Return the batches for a Trainer of one's own."""
        return Loaders(self._loaders)

    def train(self, folder: Path) -> Trained:
        """Train, from the last checkpoint in ``folder`` if there is one."""
        task, module = self.config.task, self.module(folder)
        shown = {"train/loss": "loss {:.4f}", "val/loss": "val {:.4f}"}
        log = RunLog(folder / "metrics.csv", shown)
        average = ExponentialAverage(task.ema) if task.ema else None
        device = fit(
            self.config, folder, module, self._loaders(), log, [average] if average else []
        )
        return Trained(self.network, log, average, device)

    def _loaders(self) -> dict[str, DataLoader]:
        task, dataset = self.config.task, self.dataset

        def collate(rows: list[int]) -> MeshBatch:
            share = number_and_count() if task.share_nodes else (0, 1)
            return collate_meshes([dataset.items[row] for row in rows], self.scaling, rows, share)

        rows = {split: dataset.rows(split).tolist() for split in ("train", "val")}
        rows = {split: numbers for split, numbers in rows.items() if numbers}
        size = None if task.share_nodes else lambda row: len(dataset.items[row].pos)
        return make_loaders(rows, task.batch_size, self.config.seed, collate, size)

    def evaluate(self, folder: Path, trained: Trained) -> Outputs:
        """Return errors beside baselines, figures and the model; write some samples as VTU."""
        dataset, network = self.dataset, trained.network.to(trained.device)
        description = self._description()
        predictor = FieldPredictor(network, description, trained.device)
        samples = {
            split: _evaluated(dataset, split) for split in SPLITS if len(dataset.rows(split))
        }
        found = {split: list(predictor.with_features(s)) for split, s in samples.items()}
        predicted = {split: [fields for fields, _ in of_split] for split, of_split in found.items()}
        errors = {split: _errors(s, predicted[split]) for split, s in samples.items()}
        metrics = _metrics(dataset, samples, errors)
        uncertainty = _uncertainty(samples, found)
        if uncertainty is not None:
            for split in set(samples) - {"val"}:  # whose samples made the intervals
                _add_coverage(metrics[split], uncertainty, samples[split], predicted[split])
        if trained.average:
            averaged = FieldPredictor(copy.deepcopy(network), description, trained.device)
            averaged.network.load_state_dict(trained.average.weights, strict=False)
            for split, of_split in samples.items():
                mean = _errors(of_split, list(averaged.predict(of_split))).mean(0)
                for field, value in zip(dataset.targets, mean, strict=True):
                    metrics[split][field.name]["relative_l2_ema"] = float(value)
        metrics["parameters"] = sum(p.numel() for p in network.parameters() if p.requires_grad)
        metrics["train_time_s"] = round(trained.log.seconds, 1)
        metrics["rows"] = {split: len(dataset.rows(split)) for split in SPLITS}
        shown = next(split for split in ("test", "val", "train") if split in samples)
        picked = report.typical(errors[shown])
        figures = report.field_plots(dataset, samples[shown], predicted[shown], picked)
        figures["loss.png"] = report.loss_plot(trained.log.rows)
        spectrum = report.spectrum_plot(network, samples[shown][picked[1]], self.scaling)
        if spectrum is not None:
            figures["spectrum.png"] = spectrum
        for number in range(min(self.config.task.export, len(samples[shown]))):
            _export(folder / "fields", dataset, samples[shown][number], predicted[shown][number])
        return Outputs(
            metrics=metrics,
            network=network,
            arguments=self.arguments,
            description=description,
            data={"name": dataset.name, "fingerprint": self.fingerprint, "note": dataset.note},
            epochs=trained.log.epochs,
            template="meshes/report.md",
            report=report.values(self.config, dataset, metrics, shown, figures),
            figures=figures,
            tables={"predictions.csv": list(_error_rows(dataset, samples, errors))},
            uncertainty=uncertainty,
        )

    def _description(self) -> dict[str, Any]:
        """Return what a bundle says of fields and their scaling."""
        mean, std = (values.tolist() for values in self.normaliser)
        fields = {
            key: [asdict(field) for field in getattr(self.dataset, key)]
            for key in ("coordinates", "inputs", "targets")
        }
        scaling = asdict(self.scaling)
        return {
            **fields,
            "input_scaling": scaling,
            "training_range": asdict(TrainingRange.of(self.dataset)),
            "normaliser": {"mean": mean, "std": std},
        }


def _normaliser(dataset: FieldDataset) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the training fields [T], over all their nodes."""
    fields = np.concatenate([sample.y for sample in dataset.samples("train")]).astype(np.float64)
    as_float = partial(torch.tensor, dtype=torch.float32)
    return as_float(fields.mean(0)), as_float(fields.std(0) + 1e-8)


def _evaluated(dataset: FieldDataset, split: str) -> list[MeshSample]:
    """Return the samples of a split; of many training samples every so many-th."""
    samples = dataset.samples(split)
    return samples[:: -(-len(samples) // MOST_TRAIN)] if split == "train" else samples


def _errors(samples: Sequence[MeshSample], predicted: Sequence[np.ndarray]) -> np.ndarray:
    """Return relative L2 errors [n, T]."""
    return np.stack([relative_l2(s.y, p) for s, p in zip(samples, predicted, strict=True)])


def _metrics(
    dataset: FieldDataset,
    samples: Mapping[str, list[MeshSample]],
    errors: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Return {split: {field: relative_l2, unit, n, baselines}}; training rows have no baselines."""
    metrics: dict[str, Any] = {}
    floors = baselines(dataset)
    for split, of_split in samples.items():
        known = {} if split == "train" else {
            name: _errors(of_split, list(map(predict, of_split))).mean(0)
            for name, predict in floors.items()
        }  # fmt: skip
        metrics[split] = {
            field.name: {
                "relative_l2": float(errors[split][:, column].mean()),
                "unit": field.unit,
                "n": len(of_split),
                "baselines": {name: float(values[column]) for name, values in known.items()},
            }
            for column, field in enumerate(dataset.targets)
        }
    return metrics


def _uncertainty(
    samples: Mapping[str, list[MeshSample]],
    found: Mapping[str, list[tuple[np.ndarray, Tensor | None]]],
) -> FieldUncertainty | None:
    """Return intervals fitted to the validation samples; None if these are too few.

    There is none either where the network's fields or features are no numbers.
    """
    if len(samples.get("val", ())) < FEWEST_ROWS:
        return None
    pairs, features = {}, {}
    for split in ("train", "val"):
        pairs[split] = [
            (fields, sample.y)
            for (fields, _), sample in zip(found[split], samples[split], strict=True)
        ]
        known = [of_mesh for _, of_mesh in found[split] if of_mesh is not None]
        features[split] = torch.stack(known) if known else None
        are_numbers = all(np.isfinite(fields).all() for fields, _ in pairs[split])
        if not are_numbers or not all(of_mesh.isfinite().all() for of_mesh in known):
            return None
    return FieldUncertainty.fit(pairs["train"], pairs["val"], features["train"], features["val"])


def _add_coverage(
    metrics: dict[str, Any],
    uncertainty: FieldUncertainty,
    samples: Sequence[MeshSample],
    predicted: Sequence[np.ndarray],
) -> None:
    """Add to the metrics of a split what share of nodes, fields and maxima is in its interval."""
    inside: dict[str, list[np.ndarray]] = {"in_interval": [], "field_in_band": [],
                                           "maximum_in_interval": []}  # fmt: skip
    for sample, fields in zip(samples, predicted, strict=True):
        error = np.abs(fields - sample.y)
        maximum = np.abs(summary("max", fields) - summary("max", sample.y))
        inside["in_interval"].append((error <= uncertainty.half_widths(fields)).mean(0))
        inside["field_in_band"].append((error <= uncertainty.whole_half_widths(fields)).all(0))
        inside["maximum_in_interval"].append(
            maximum <= uncertainty.summary_half_widths("max", fields)
        )
    for key, shares in inside.items():
        for result, share in zip(metrics.values(), np.mean(shares, axis=0), strict=True):
            result[key] = float(share)


def _error_rows(
    dataset: FieldDataset,
    samples: Mapping[str, list[MeshSample]],
    errors: Mapping[str, np.ndarray],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each sample and field: its relative L2 error."""
    for split, of_split in samples.items():
        for sample, values in zip(of_split, errors[split], strict=True):
            for field, value in zip(dataset.targets, values, strict=True):
                row = {"id": sample.id, "target": field.name, "nodes": len(sample.pos)}
                yield {**row, "relative_l2": float(value), "split": split}


def _export(folder: Path, dataset: FieldDataset, sample: MeshSample, predicted: np.ndarray) -> None:
    """Write a VTU file with inputs, true fields, predictions and errors."""
    fields = {field.name: sample.x[:, column] for column, field in enumerate(dataset.inputs)}
    for column, field in enumerate(dataset.targets):
        true, made = sample.y[:, column], predicted[:, column]
        fields |= {
            field.name: true,
            f"{field.name}_predicted": made,
            f"{field.name}_error": made - true,
        }
    write_vtu(folder / f"{sample.id}.vtu", sample, fields)
