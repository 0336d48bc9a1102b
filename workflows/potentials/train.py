"""Train an interatomic potential on energies, forces and stresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from matattn.config import RunConfig, Section, Target, at_least, build, one_of, setting
from matattn.errors import ConfigError
from matattn.models.crystalformer_potential import CrystalformerPotential
from matattn.potentials.dataset import (
    Frame,
    PotentialBatch,
    PotentialDataset,
    collate,
    graph,
)
from matattn.structures.batch import CrystalBatch, CrystalGraph
from matattn.structures.dataset import SPLITS
from matattn.structures.derivatives import energy_forces_stress, loss_gradient
from matattn.structures.image_rule import ImageRule
from matattn.training.data import Loaders
from matattn.training.processes import number_and_count, summed
from matattn.training.run_log import RunLog
from matattn.training.schedules import Schedule
from matattn.workflows.fitting import (
    GradientDescent,
    check_batches,
    fit,
    log_loss,
    make_loaders,
    optimization,
    stop_unless_finite,
)
from matattn.workflows.outputs import Outputs
from matattn.workflows.potentials import report
from matattn.workflows.potentials.errors import GPA, UNITS, constants_of, errors_of, labels_of
from matattn.workflows.potentials.fine_tune import start_from
from matattn.workflows.potentials.intervals import coverage, fitted
from matattn.workflows.potentials.physics import Physics, physics_of
from matattn.workflows.potentials.predict import Potential

MEASURED = 32  # training structures from which the sizes of sums are
# Errors count as squares below these, and as absolute values above.
SCALES = {"energy_per_atom": 0.01, "forces": 0.1, "stress": 0.3 / GPA}  # eV, eV/Å, eV/Å^3


@dataclass(frozen=True)
class PotentialSettings(Section):
    """Settings of a training on forces; ``conf/task/potential.yaml`` explains each."""

    key: ClassVar[str] = "task"

    workflow: str = "interatomic_potential"
    batch_size: int = at_least(4, 1)
    energy_weight: float = setting(1.0, "0 or more", lambda x: x >= 0)
    forces_weight: float = setting(1.0, "0 or more", lambda x: x >= 0)
    stress_weight: float = setting(1.0, "0 or more", lambda x: x >= 0)
    shift: float = setting(0.01, "above 0 to 0.1 (Å)", lambda x: 0 < x <= 0.1)
    select: str = one_of("final", ("final", "best"))
    physics: bool = True

    def __post_init__(self) -> None:
        """Check what depends on several values, too."""
        super().__post_init__()
        if not self.energy_weight + self.forces_weight + self.stress_weight:
            raise ConfigError("task: one of energy_weight, forces_weight, stress_weight above 0")


class PotentialTraining(L.LightningModule):
    """Regression on energies, forces and stresses; labels that are NaN do not count.

    The gradient of the loss comes from ``loss_gradient``: no second derivatives.

    Args:
        network: batch of structures -> energies [B], eV.
        settings: weights of the errors.
        optimizer, schedule: of AdamW.
        ids: of the frames, by row of the data set.
        folder: where the ids of a batch with a non-finite loss are written.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: PotentialSettings,
        optimizer: GradientDescent,
        schedule: Schedule,
        ids: Sequence[str],
        folder: Path,
    ) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        self.optimizer, self.schedule, self.ids, self.folder = optimizer, schedule, ids, folder

    def training_step(self, batch: PotentialBatch, batch_idx: int) -> Tensor:
        """Return a number with the gradient of the loss."""
        structures = batch.structures
        with torch.enable_grad():
            found = energy_forces_stress(self.network, structures)
            given = [
                t.detach().requires_grad_() for t in (found.energy, found.forces, found.stress)
            ]
            loss = self.loss(batch, *given)
            by_energy, by_forces, by_stress = torch.autograd.grad(loss, given)
        stop_unless_finite(loss, self, self.folder, self.ids, structures.row, "structures")
        log_loss(self, loss.detach(), structures.num_graphs)
        return loss_gradient(
            self.network, structures, by_energy, by_forces, by_stress, self.settings.shift
        )

    def loss(self, batch: PotentialBatch, energy: Tensor, forces: Tensor, stress: Tensor) -> Tensor:
        """Return the weighted mean errors, in units of ``SCALES``.

        Of several processes, so that their mean has the gradient of the mean over all labels.
        """
        processes = number_and_count()[1]
        atoms = torch.bincount(batch.structures.batch, minlength=len(energy))
        errors = {
            "energy_per_atom": (self.settings.energy_weight, (energy - batch.energy) / atoms),
            "forces": (self.settings.forces_weight, forces - batch.forces),
            "stress": (self.settings.stress_weight, stress - batch.stress),
        }
        total = energy.new_zeros(())
        for name, (weight, error) in errors.items():
            known = ~error.isnan()
            scaled = torch.where(known, error, 0.0) / SCALES[name]
            size = nn.functional.smooth_l1_loss(scaled, torch.zeros_like(scaled), reduction="sum")
            total = total + weight * processes * size / summed(known.sum()).clamp(min=1)
        return total

    def on_validation_epoch_start(self) -> None:
        """Forget the errors of the epoch before."""
        self._sums = torch.zeros(4, 2, dtype=torch.float64)

    def validation_step(self, batch: PotentialBatch, batch_idx: int) -> None:
        """Add the errors of a batch."""
        found = energy_forces_stress(self.network, batch.structures)
        count = batch.structures.num_graphs
        loss = self.loss(batch, found.energy, found.forces, found.stress)
        self._sums[0] += torch.tensor([float(loss) * count, count])
        atoms = torch.bincount(batch.structures.batch, minlength=count)
        for row, error in enumerate(
            ((found.energy - batch.energy) / atoms, found.forces - batch.forces,
             found.stress - batch.stress), start=1
        ):  # fmt: skip
            known = ~error.isnan()
            self._sums[row] += torch.tensor([float(error[known].abs().sum()), float(known.sum())])

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss and the mean errors, those that have labels."""
        sums, counts = self._sums.T
        self.log("val/loss", sums[0] / counts[0], sync_dist=True)
        for row, (name, (factor, _)) in enumerate(UNITS.items(), start=1):
            self.log(f"val/mae/{name}", factor * sums[row] / counts[row], sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser and its schedule."""
        return optimization(self, self.network, self.optimizer, self.schedule)


@dataclass(frozen=True)
class Trained:
    """What a training leaves in memory."""

    network: CrystalformerPotential
    log: RunLog
    device: torch.device


@dataclass(frozen=True)
class PotentialTask:
    """A training on forces, prepared: data, network, and the constants of the elements."""

    settings: ClassVar[type[Section]] = PotentialSettings
    optimizer: ClassVar[type[Section]] = GradientDescent
    results_table = staticmethod(report.results_table)

    config: RunConfig[PotentialSettings, GradientDescent]
    dataset: PotentialDataset
    network: CrystalformerPotential
    schedule: Schedule
    fingerprint: str

    @classmethod
    def prepare(cls, config: RunConfig[PotentialSettings, GradientDescent]) -> Self:
        """Read the data and build the network; raises ConfigError or DataError for any mistake."""
        check_batches(config)
        if str(config.trainer.arguments.get("precision")).startswith("bf16"):
            raise ConfigError(
                "trainer.precision=bf16-mixed: differences of energies need the digits of 32-true"
            )
        dataset = build(config.data, "data")
        if not isinstance(dataset, PotentialDataset):
            raise ConfigError(f"data={config.source.name} holds no energies and forces")
        if not dataset.rows("train"):
            raise ConfigError(f"{dataset.name}: no training structures")
        if config.task.select == "best" and not dataset.rows("val"):
            raise ConfigError(
                f"task.select=best needs validation rows, and {dataset.name} has none"
            )
        schedule = build(config.optimizer.schedule, "optimizer.schedule")
        L.seed_everything(config.seed, workers=True, verbose=False)
        network = build(Target(config.model.target, dict(config.model.arguments)), "model")
        frames = [dataset.frames[row] for row in dataset.rows("train")]
        if config.init_from:
            start_from(network, config.init_from.path, frames)
        else:
            constants = constants_of(frames)
            network.constants.copy_(torch.from_numpy(constants.alone))
            network.binding.copy_(torch.from_numpy(constants.binding))
            network.scale.fill_(constants.scale)
            network.fit_sums(_some(dataset, network.image_rule()))
        return cls(config, dataset, network, schedule, dataset.fingerprint())

    def train(self, folder: Path) -> Trained:
        """Train, from the last checkpoint in ``folder`` if there is one."""
        module = self.module(folder)
        shown = {"train/loss": "loss {:.4f}"}
        labels = labels_of([self.dataset.frames[row] for row in self.dataset.rows("val")])
        shown |= {f"val/mae/{name}": f"val {{:.3g}} {UNITS[name][1]}" for name in labels}
        log = RunLog(folder / "metrics.csv", shown)
        device = fit(self.config, folder, module, self._loaders(), log)
        return Trained(self.network, log, device)

    def module(self, folder: Path = Path()) -> PotentialTraining:
        """Return the Lightning module, for a Trainer of one's own, too."""
        return PotentialTraining(
            self.network, self.config.task, self.config.optimizer, self.schedule,
            [frame.id for frame in self.dataset.frames], folder,
        )  # fmt: skip

    def data(self) -> Loaders:
        """Return the batches for a Trainer of one's own."""
        return Loaders(self._loaders)

    def _loaders(self) -> dict[str, Any]:
        rule = self.network.image_rule()
        splits = {s: self.dataset.rows(s) for s in ("train", "val") if self.dataset.rows(s)}
        graphs = graphs_of(self.dataset.frames, [r for rows in splits.values() for r in rows], rule)
        frames = self.dataset.frames
        make = partial(_batch, frames, graphs)
        size = {row: len(graphs[row].neighbors.source) for row in graphs}
        batch_size = self.config.task.batch_size
        return make_loaders(splits, batch_size, self.config.seed, make, size.__getitem__)

    def evaluate(self, folder: Path, trained: Trained) -> Outputs:
        """Return errors beside baselines by group, figures and the model."""
        dataset, network = self.dataset, trained.network.cpu().eval()
        errors = errors_of(network, dataset)
        metrics: dict[str, Any] = errors.metrics()
        metrics["parameters"] = sum(p.numel() for p in network.parameters() if p.requires_grad)
        metrics["train_time_s"] = round(trained.log.seconds, 1)
        metrics["rows"] = {split: len(dataset.rows(split)) for split in SPLITS}
        description: dict[str, Any] = {
            "elements": dataset.elements(),
            "groups": dataset.groups("train"),
        }
        uncertainty = None
        if self.config.task.select == "final":  # nothing was selected on validation rows
            uncertainty = fitted(network, dataset, errors)
        if uncertainty:
            metrics["intervals"] = coverage(network, uncertainty, dataset, errors)
        physics = self._physics(network, description) if self.config.task.physics else Physics()
        metrics["physics"] = physics.rows
        return Outputs(
            metrics=metrics,
            network=network,
            arguments=self.config.model.arguments,
            description=description,
            data={"name": dataset.name, "fingerprint": self.fingerprint, "note": dataset.note},
            epochs=trained.log.epochs,
            template="potentials/report.md",
            report=report.values(self.config, dataset, metrics, physics),
            figures={
                **physics.figures,
                "loss.png": report.loss_plot(trained.log.rows),
                "parity.png": report.parity_plot(errors),
            },
            tables={"predictions.csv": errors.rows()},
            uncertainty=uncertainty,
        )

    def _physics(self, network: CrystalformerPotential, config: dict[str, Any]) -> Physics:
        """Return what the potential says of the physics of its training structures."""
        double = Potential(network, config).double()
        return physics_of(double, Potential(network, config), self.dataset)


def _some(dataset: PotentialDataset, rule: ImageRule) -> CrystalBatch:
    """Return some training structures of all kinds, the same for every seed."""
    train = dataset.rows("train")
    rows = np.random.default_rng(0).permutation(train)[:MEASURED].tolist()
    return _batch(dataset.frames, graphs_of(dataset.frames, rows, rule), rows).structures


def graphs_of(
    frames: Sequence[Frame], rows: Sequence[int], rule: ImageRule
) -> dict[int, CrystalGraph]:
    """Return the frames of some rows with their neighbour lists."""
    return {row: graph(frames[row], rule, row, torch.float32) for row in rows}


def _batch(
    frames: Sequence[Frame], graphs: Mapping[int, CrystalGraph], rows: Sequence[int]
) -> PotentialBatch:
    return collate([frames[row] for row in rows], [graphs[row] for row in rows])
