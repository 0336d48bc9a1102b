"""Find the ground state of a spin system with a transformer wave function."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from matattn import bundle, pretrained
from matattn.config import (
    TRAINED,
    RunConfig,
    Section,
    Target,
    at_least,
    build,
    one_of,
    setting,
)
from matattn.errors import BundleError, ConfigError
from matattn.models.factored_attention import (
    TransformerWaveFunction,
    fits,
    from_arrays,
    parameter_count,
    to_arrays,
)
from matattn.runtime import memory
from matattn.spins import PAULI, SpinSystem
from matattn.training.run_log import RunLog
from matattn.workflows.fitting import fit
from matattn.workflows.outputs import Outputs
from matattn.workflows.spins import report
from matattn.workflows.spins.attention_maps import examine
from matattn.workflows.spins.engine import Settings, VMCEngine
from matattn.workflows.spins.observables import (
    LEAST_CHAIN,
    LONG_CHAIN,
    Energy,
    Observables,
    draw,
    energy,
    exact_sum,
    observables,
    symmetrized,
)


@dataclass(frozen=True)
class GroundStateSettings(Section):
    """Settings of a ground-state search; ``conf/task/ground_state.yaml`` explains each."""

    key: ClassVar[str] = "task"

    workflow: str = "variational_monte_carlo"
    samples: int = at_least(512, 1)
    chains: int = at_least(64, 1)
    blur: float = setting(0.5, "a number from 0 to below 1", lambda x: 0 <= x < 1)
    sampling: str = one_of("metropolis", ("metropolis", "exact"))
    chunk_size: int = at_least(512, 1)
    steps_per_epoch: int = at_least(10, 1)
    final_samples: int = at_least(8192, 1)
    symmetrized_samples: int = at_least(1024, 0)
    attention_samples: int = at_least(512, 0)
    select: str = one_of("final", ("final",))


@dataclass(frozen=True)
class NaturalGradient(Section):
    """Settings of stochastic reconfiguration; ``conf/optimizer/natural_gradient.yaml``."""

    key: ClassVar[str] = "optimizer"

    lr: float = setting(0.02, "a number above 0", lambda x: x > 0)
    warmup: int = at_least(30, 1)
    diag_shift: list[float] = setting(
        [1e-2, 1e-3], "two numbers above 0", lambda shifts: len(shifts) == 2 and min(shifts) > 0
    )
    momentum: float = setting(0.8, "a number from 0 to below 1", lambda x: 0 <= x < 1)


class EngineStep(torch.optim.Optimizer):
    """One step of the engine as an optimiser's, so that Lightning counts and saves it."""

    def __init__(self, engine: VMCEngine) -> None:
        super().__init__([nn.Parameter(torch.zeros(()))], {})
        self.engine = engine

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do one step of the engine."""
        self.engine.step()


class VariationalMonteCarlo(L.LightningModule):
    """A thin shell: Lightning counts, logs and saves, ``VMCEngine`` does the work.

    The engine's whole state (weights, chains, momentum, trend) travels in ``state_dict``.
    """

    def __init__(self, engine: VMCEngine) -> None:
        super().__init__()
        self.engine = engine
        self.automatic_optimization = False

    def get_extra_state(self) -> Tensor:
        """Return the state of the engine, as bytes."""
        return torch.frombuffer(bytearray(self.engine.to_bytes()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the state of the engine."""
        self.engine.from_bytes(state.numpy().tobytes())

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Do one step, and log what it saw."""
        self.optimizers().step()  # type: ignore[union-attr]
        stats = asdict(self.engine.last)  # type: ignore[arg-type]
        stats["rollbacks"] = self.engine.rollbacks
        for name, value in stats.items():
            self.log(f"train/{name}", float(value), on_step=False, on_epoch=True, batch_size=1)

    def configure_optimizers(self) -> EngineStep:
        """Return the engine's step as an optimiser."""
        return EngineStep(self.engine)


@dataclass(frozen=True)
class Trained:
    """What a search leaves in memory."""

    engine: VMCEngine
    log: RunLog


@dataclass(frozen=True)
class GroundStateTask:
    """A ground-state search, prepared: the system and the network."""

    settings: ClassVar[type[Section]] = GroundStateSettings
    optimizer: ClassVar[type[Section]] = NaturalGradient
    results_table = staticmethod(report.results_table)

    config: RunConfig[GroundStateSettings, NaturalGradient]
    system: SpinSystem
    arguments: Mapping[str, Any]  # of the network, with what the system decides
    model: TransformerWaveFunction
    steps: Settings  # of the engine
    start: Mapping[str, np.ndarray] | None  # weights of init_from
    fingerprint: str  # of the system

    @classmethod
    def prepare(cls, config: RunConfig[GroundStateSettings, NaturalGradient]) -> Self:
        """Build the system and the network; raises ConfigError, DataError or BundleError."""
        task, trainer = config.task, config.trainer.arguments
        if trainer.get("strategy", "auto") != "auto" or trainer.get("num_nodes", 1) != 1:
            raise ConfigError(
                "trainer.strategy, trainer.num_nodes: a wave function is trained by one process; "
                "jax spreads its chains over all devices that it sees"
            )
        if trainer.get("callbacks") or config.loggers or trainer["precision"] != "32-true":
            raise ConfigError(
                "trainer.callbacks, logger, trainer.precision: a wave function is trained by jax "
                "in its own precision, without Lightning; leave them out"
            )
        system: SpinSystem = build(config.data, "data")
        arguments = _arguments(config.model, system)
        model = build(Target(config.model.target, arguments), "model")
        _check_memory(task, parameter_count(model), system)
        if task.samples // task.chains < LEAST_CHAIN:
            warnings.warn(
                f"{task.samples // task.chains} samples per chain: R-hat and the "
                f"autocorrelation time need {LEAST_CHAIN}; the final energies take more",
                stacklevel=2,
            )
        steps = _engine_settings(config)
        start = _start(config.init_from.path, model) if config.init_from else None
        return cls(config, system, arguments, model, steps, start, system.fingerprint())

    def train(self, folder: Path) -> Trained:
        """Optimise, from the last checkpoint in ``folder`` if there is one."""
        engine = VMCEngine(self.system, self.model, self.steps)
        if self.start is not None:
            engine.state.parameters = from_arrays(dict(self.start))["params"]
        show = {"train/energy": "E/N {:.5f}", "train/v_score": "V-score {:.4f}"}
        log = RunLog(folder / "metrics.csv", show)
        steps: Any = range(self.config.task.steps_per_epoch)
        module = VariationalMonteCarlo(engine)
        fit(self.config, folder, module, {"train": DataLoader(steps)}, log)
        return Trained(engine, log)

    def evaluate(self, folder: Path, trained: Trained) -> Outputs:
        """Return energies with all diagnostics, observables, figures and the wave function."""
        engine, log, system = trained.engine, trained.log, self.system
        metrics, measured = self._energies(engine)
        metrics["parameters"] = parameter_count(self.model)
        metrics["train_time_s"] = round(log.seconds, 1)
        steps = log.epochs * self.config.task.steps_per_epoch
        metrics["step_time_s"] = round(log.seconds / steps, 4)
        metrics["rollbacks"] = engine.rollbacks
        metrics["extrapolation"] = report.extrapolation(log.rows)
        figures = {
            "energy.png": report.energy_plot(log.rows, metrics, system),
            "structure_factor.png": report.structure_factor_plot(system, measured),
            "extrapolation.png": report.extrapolation_plot(log.rows, metrics),
        }
        if self.config.task.attention_samples:
            metrics["attention"], figures["attention.png"] = examine(
                system, self.model, engine.variables, self.config.task, self.config.seed
            )
        observed = report.plain(system, measured, metrics["energies"])
        return Outputs(
            metrics=metrics,
            network=(type(self.model).__name__, to_arrays(engine.variables)),
            arguments=self.arguments,
            description={"system": asdict(system), "observables": observed},
            data={"name": system.name, "fingerprint": self.fingerprint},
            epochs=log.epochs,
            template="spins/report.md",
            report=report.values(system, self.model, self.config.seed, metrics, observed)
            | {"steps": steps},
            figures=figures,
            documents={"observables.json": observed},
        )

    def _energies(self, engine: VMCEngine) -> tuple[dict[str, Any], Observables]:
        """Return energies per site by fresh samples, symmetrised, and exact; the observables."""
        system, model, task = self.system, self.model, self.config.task
        chunk, seed = task.chunk_size, 10_000 + self.config.seed
        fresh = draw(system, model, engine.variables, task.final_samples, LONG_CHAIN, chunk, seed)
        energies = {"fresh samples": energy(system, model, engine.variables, fresh, chunk)}
        wrapped, variables = symmetrized(system, model, engine.variables)
        if count := task.symmetrized_samples:
            spins = draw(system, wrapped, variables, count, LEAST_CHAIN, chunk, seed)
            energies["symmetrized"] = energy(system, wrapped, variables, spins, chunk)
        metrics: dict[str, Any] = {"energies": {k: _described(e) for k, e in energies.items()}}
        metrics["exact_sum"] = {}
        for name, (network, weights) in {
            "all configurations": (model, engine.variables),
            "symmetrized, all configurations": (wrapped, variables),
        }.items():
            exact = exact_sum(system, network, weights, chunk)
            if exact is not None:
                metrics["exact_sum"][name] = {**asdict(exact), "overlaps": list(exact.overlaps)}
        reference = _reference(system, metrics["exact_sum"])
        metrics["reference"] = reference
        if reference:
            for row in (*metrics["energies"].values(), *metrics["exact_sum"].values()):
                value = row.get("mean", row.get("energy"))
                row["relative_error"] = (value - reference["energy"]) / abs(reference["energy"])
        return metrics, observables(system, model, engine.variables, fresh, chunk)


def _engine_settings(config: RunConfig[GroundStateSettings, NaturalGradient]) -> Settings:
    """Return how the engine samples and steps; raises ConfigError for what no run can have."""
    task, optimizer = config.task, config.optimizer
    first, last = optimizer.diag_shift
    return Settings(
        steps=config.epochs * task.steps_per_epoch,
        samples=task.samples,
        chains=task.chains,
        blur=task.blur,
        sampling=task.sampling,
        chunk_size=task.chunk_size,
        lr=optimizer.lr,
        warmup=optimizer.warmup,
        diag_shift=(first, last),
        momentum=optimizer.momentum,
        seed=config.seed,
    )


def _arguments(model: Target, system: SpinSystem) -> dict[str, Any]:
    """Return the network's arguments; ``patch: 2`` means 2 sites in every direction."""
    arguments = {**model.arguments, "extent": list(system.extent)}
    if isinstance(arguments.get("patch"), int):
        arguments["patch"] = [arguments["patch"]] * len(system.extent)
    return arguments


def _check_memory(task: GroundStateSettings, parameters: int, system: SpinSystem) -> None:
    """Raise ConfigError for a network or samples that this machine cannot hold."""
    if parameters * TRAINED * 8 > memory():
        raise ConfigError(
            f"model: {parameters:.3g} parameters do not fit into this machine's memory"
        )
    # Of every sample: derivatives of a complex amplitude, or spins.
    floats = {
        "samples": (task.samples, 2 * parameters),
        "final_samples": (task.final_samples, system.sites),
        "symmetrized_samples": (task.symmetrized_samples, system.sites),
    }
    for key, (count, size) in floats.items():
        if (needed := count * size * 8) > memory():
            raise ConfigError(
                f"task.{key}={count}: these take at least {needed / 1e9:.0f} GB, more than this "
                "machine has"
            )


def _start(path: str, model: TransformerWaveFunction) -> dict[str, np.ndarray]:
    """Return the weights of an earlier run's bundle; raises BundleError if they do not fit."""
    _, _, arrays = bundle.load_arrays(pretrained.find(path))
    if not fits(model, arrays):
        raise BundleError(f"init_from={path}: a network for another lattice")
    return arrays


def _described(measured: Energy) -> dict[str, Any]:
    return {**asdict(measured), "pauli": measured.pauli, "pauli_error": PAULI * measured.error}


def _reference(system: SpinSystem, exact: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the ground-state energy to compare with: by Lanczos here, else published."""
    for row in exact.values():
        return {"energy": row["ground"], "source": "exact diagonalisation (Lanczos), this run"}
    if system.reference is None:
        return None
    return {"energy": system.reference.energy_per_site, "source": system.reference.source}
