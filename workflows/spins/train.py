"""Find the ground state of a spin system with a transformer wave function.

``run(config, folder, prepared)`` optimises, evaluates (with fresh samples, and exactly where it
fits) and writes the run folder: energies with all diagnostics, observables, plots, report, bundle.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from matattn import bundle, pretrained
from matattn.config import TRAINED, build, require
from matattn.errors import BundleError, ConfigError
from matattn.files import write_json, write_text
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
from matattn.workflows.spins import report
from matattn.workflows.spins.attention_maps import examine
from matattn.workflows.spins.engine import Settings, VMCEngine
from matattn.workflows.spins.observables import (
    LEAST_CHAIN,
    LONG_CHAIN,
    Energy,
    draw,
    energy,
    exact_sum,
    observables,
    symmetrized,
)
from matattn.workflows.spins.report import results_table

__all__ = ["VariationalMonteCarlo", "prepare", "results_table", "run"]


class EngineStep(torch.optim.Optimizer):
    """One step of the engine as an optimiser's, so that Lightning counts and saves it."""

    def __init__(self, engine: VMCEngine) -> None:
        super().__init__([nn.Parameter(torch.zeros(()))], {})
        self.engine = engine

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
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
        return torch.frombuffer(bytearray(self.engine.to_bytes()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.engine.from_bytes(state.numpy().tobytes())

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.optimizers().step()  # type: ignore[union-attr]
        stats = asdict(self.engine.last)  # type: ignore[arg-type]
        stats["rollbacks"] = self.engine.rollbacks
        for name, value in stats.items():
            self.log(f"train/{name}", float(value), on_step=False, on_epoch=True, batch_size=1)

    def configure_optimizers(self) -> EngineStep:
        return EngineStep(self.engine)


@dataclass(frozen=True)
class Prepared:
    """What a configuration describes, built and checked."""

    system: SpinSystem
    model: TransformerWaveFunction
    settings: Settings
    start: dict[str, np.ndarray] | None  # weights of init_from
    fingerprint: str  # of the system


def prepare(config: dict[str, Any]) -> Prepared:
    """Build the system and the network; raises ConfigError, DataError or BundleError."""
    task = config["task"]
    _check(config)
    system: SpinSystem = build(config["data"], "data")
    target = config["model"]["_target_"]
    if not target.endswith(".TransformerWaveFunction"):
        raise ConfigError(f"{target.rsplit('.', 1)[-1]} is no wave function")
    model = build({"_target_": target, **_arguments(config["model"], system)}, "model")
    if (count := parameter_count(model)) * TRAINED * 8 > memory():
        raise ConfigError(f"model: {count:.3g} parameters do not fit into this machine's memory")
    # Of every sample: derivatives of a complex amplitude, or spins.
    spins = system.sites
    floats = {"samples": 2 * count, "final_samples": spins, "symmetrized_samples": spins}
    for key, number in floats.items():
        if (needed := task[key] * number * 8) > memory():
            raise ConfigError(
                f"task.{key}={task[key]}: these take at least {needed / 1e9:.0f} GB, more "
                "than this machine has"
            )
    if task["samples"] // task["chains"] < LEAST_CHAIN:
        warnings.warn(
            f"{task['samples'] // task['chains']} samples per chain: R-hat and the "
            f"autocorrelation time need {LEAST_CHAIN}; the final energies take more",
            stacklevel=2,
        )
    settings = _settings(config)
    start = _start(config["init_from"]["path"], model) if config["init_from"] else None
    return Prepared(system, model, settings, start, system.fingerprint())


def _check(config: Mapping[str, Any]) -> None:
    task, optimizer, trainer = config["task"], config["optimizer"], config["trainer"]
    number = (int, float)
    require("optimizer.lr", optimizer["lr"], number, lambda x: x > 0, "a number above 0")
    require("optimizer.warmup", optimizer["warmup"], int, lambda n: n >= 1, "at least 1")
    require("optimizer.momentum", optimizer["momentum"], number, lambda x: 0 <= x < 1,
            "a number from 0 to below 1")  # fmt: skip
    require("optimizer.diag_shift", optimizer["diag_shift"], list,
            lambda x: len(x) == 2 and min(x) > 0, "two numbers above 0")  # fmt: skip
    require("task.blur", task["blur"], number, lambda x: 0 <= x < 1, "a number from 0 to below 1")
    for key in ("samples", "chains", "chunk_size", "steps_per_epoch", "final_samples"):
        require(f"task.{key}", task[key], int, lambda n: n >= 1, "at least 1")
    require("task.symmetrized_samples", task["symmetrized_samples"], int, lambda n: n >= 0,
            "0 or more")  # fmt: skip
    if trainer.get("strategy", "auto") != "auto" or trainer.get("num_nodes", 1) != 1:
        raise ConfigError(
            "trainer.strategy, trainer.num_nodes: a wave function is trained by one process; jax "
            "spreads its chains over all devices that it sees"
        )


def _arguments(model: Mapping[str, Any], system: SpinSystem) -> dict[str, Any]:
    """Arguments of the network; ``patch: 2`` means 2 sites in every direction."""
    arguments = {key: value for key, value in model.items() if key != "_target_"}
    if isinstance(arguments["patch"], int):
        arguments["patch"] = [arguments["patch"]] * len(system.extent)
    return {**arguments, "extent": list(system.extent)}


def _settings(config: Mapping[str, Any]) -> Settings:
    task, optimizer = config["task"], config["optimizer"]
    first, last = optimizer["diag_shift"]
    return Settings(
        steps=config["trainer"]["max_epochs"] * task["steps_per_epoch"],
        samples=task["samples"],
        chains=task["chains"],
        blur=task["blur"],
        sampling=task["sampling"],
        chunk_size=task["chunk_size"],
        lr=optimizer["lr"],
        warmup=optimizer["warmup"],
        diag_shift=(first, last),
        momentum=optimizer["momentum"],
        seed=config["seed"],
    )


def _start(path: str, model: TransformerWaveFunction) -> dict[str, np.ndarray]:
    """The weights of an earlier run's bundle; they must fit."""
    _, _, arrays = bundle.load_arrays(pretrained.find(path))
    if not fits(model, arrays):
        raise BundleError(f"init_from={path}: a network for another lattice")
    return arrays


def run(config: dict[str, Any], folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Optimise (or resume in ``folder``), evaluate and write everything; returns the metrics."""
    system, model, task = prepared.system, prepared.model, config["task"]
    engine = VMCEngine(system, model, prepared.settings)
    if prepared.start is not None:
        engine.state.parameters = from_arrays(prepared.start)["params"]
    module = VariationalMonteCarlo(engine)
    show = {"train/energy": "E/N {:.5f}", "train/v_score": "V-score {:.4f}"}
    log = RunLog(folder / "metrics.csv", show)
    steps: Any = range(task["steps_per_epoch"])
    fit(config, folder, module, {"train": DataLoader(steps)}, log)
    metrics, found = _evaluate(config, prepared, engine)
    metrics["parameters"] = parameter_count(model)
    metrics["train_time_s"] = round(log.seconds, 1)
    metrics["step_time_s"] = round(log.seconds / prepared.settings.steps, 4)
    metrics["rollbacks"] = engine.rollbacks
    metrics["extrapolation"] = report.extrapolation(log.rows)
    report.energy_plot(folder / "energy.png", log.rows, metrics, system)
    report.structure_factor_plot(folder / "structure_factor.png", system, found)
    report.extrapolation_plot(folder / "extrapolation.png", log.rows, metrics)
    if task["attention_samples"]:
        metrics["attention"] = examine(
            system, model, engine.variables, task, config["seed"], folder / "attention.png"
        )
    observed = report.plain(system, found, metrics["energies"])
    write_json(folder / "observables.json", observed)
    description = {
        "kind": "spins",
        "system": asdict(system),
        "observables": observed,
        "metrics": metrics,
        "data": {"name": system.name, "fingerprint": prepared.fingerprint},
        "seed": config["seed"],
    }
    reported = config, system, model, metrics, observed
    card = report.card_text(report.report_text(*reported, "PATH/TO/THIS/FOLDER"))
    bundle.save_arrays(
        folder / "model",
        type(model).__name__,
        to_arrays(engine.variables),
        _arguments(config["model"], system),
        description,
        card,
    )
    text = report.report_text(*reported, os.path.relpath(folder / "model"))
    write_text(folder / "report.md", text)
    write_json(folder / "metrics.json", metrics)  # last: its presence says that the run is finished
    return metrics


def _evaluate(
    config: Mapping[str, Any], prepared: Prepared, engine: VMCEngine
) -> tuple[dict[str, Any], Any]:
    """Energies per site by fresh samples, symmetrised, and exact; the observables."""
    system, model, task = prepared.system, prepared.model, config["task"]
    chunk, seed = task["chunk_size"], 10_000 + config["seed"]
    count = task["final_samples"]
    fresh = draw(system, model, engine.variables, count, LONG_CHAIN, chunk, seed)
    energies = {"fresh samples": energy(system, model, engine.variables, fresh, chunk)}
    wrapped, variables = symmetrized(system, model, engine.variables)
    if count := task["symmetrized_samples"]:
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


def _described(found: Energy) -> dict[str, Any]:
    return {**asdict(found), "pauli": found.pauli, "pauli_error": PAULI * found.error}


def _reference(system: SpinSystem, exact: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ground-state energy to compare with: by Lanczos here, else published."""
    for row in exact.values():
        return {"energy": row["ground"], "source": "exact diagonalisation (Lanczos), this run"}
    if system.reference is None:
        return None
    return {"energy": system.reference.energy_per_site, "source": system.reference.source}
