"""The command behind ``python train.py``: from a configuration to a finished run folder."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from matattn import bundle, networks, pretrained
from matattn.citations import entries
from matattn.conf.schema import TrainConfig
from matattn.config import (
    Origin,
    Paths,
    RunConfig,
    Source,
    Target,
    check_finite,
    check_keys,
    check_targets,
    find_target,
    read_data,
)
from matattn.errors import ConfigError
from matattn.kinds import KINDS
from matattn.runtime import plain_torch, threads_as_before, tune_malloc
from matattn.tables import show
from matattn.training import launch
from matattn.workflows import outputs, run_folder
from matattn.workflows.fitting import check_trainer
from matattn.workflows.reporting import problems
from matattn.workflows.task import TASKS, Task, TaskEntry


@plain_torch()
def run(cfg: DictConfig) -> dict[str, Any]:
    """Run one configuration (``conf/train.yaml``) and return its metrics.

    A finished run is not repeated unless ``overwrite=true``; an unfinished one always resumes from
    its last epoch. Where torchrun or srun has started several processes, the first one owns the
    folder, and the others exit when they have trained. Raises ConfigError when the configuration is
    inconsistent, or when the folder holds a run of another configuration or of other data.
    """
    config, task_class = read(cfg)
    tune_malloc()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    uses_gpus = check_trainer(config)
    task = task_class.prepare(config)  # a mistake ends the run before anything is written
    number = launch.join(config.processes, config.nodes, uses_gpus)
    try:
        if number > 0:
            if launch.told():
                task.train(config.folder())
            raise SystemExit(0)
        for line in problems(getattr(task, "dataset", None), "more in report.md"):
            print(line, file=sys.stderr)
        with ExitStack() as held, threads_as_before():
            metrics = _run_in(config, task, held)
    finally:
        launch.leave()
    show(task_class.results_table(metrics))
    print(f"report: {config.folder() / 'report.md'}   model: {config.folder() / 'model'}")
    return metrics


def _run_in(config: RunConfig, task: Task, held: ExitStack) -> dict[str, Any]:
    """Return the metrics of the run in its folder, which is ours as long as ``held`` is open."""
    folder = config.folder()

    def begin() -> bool:
        held.enter_context(run_folder.working_on(folder))
        return _is_to_be_trained(config, task.fingerprint)

    if not launch.agreed(begin):
        print(f"{folder} holds this run, finished; overwrite=true trains again")
        try:
            return run_folder.metrics(folder)
        except ValueError as error:
            raise ConfigError(
                f"{folder / run_folder.FINISHED}: cannot be read: {error}; overwrite=true trains "
                "again"
            ) from None
    print(
        f"{config.model_name} on {config.source.name}, seed {config.seed} -> {folder}", flush=True
    )
    with run_folder.keeping_errors(folder):
        trained = task.train(folder)
        launch.leave()  # the first process evaluates alone
        results = task.evaluate(folder, trained)
        outputs.write(folder, config, results)
    return results.metrics


def _is_to_be_trained(config: RunConfig, fingerprint: str) -> bool:
    """Return whether the folder holds no finished run of this configuration, and prepare it."""
    folder = config.folder()
    earlier = run_folder.earlier_run(folder)
    run_folder.clear_partial(folder)
    finished = folder / run_folder.FINISHED
    if earlier:
        other = run_folder.why_another(folder, earlier, config, fingerprint)
        if other and not config.overwrite:
            raise ConfigError(other)
        if config.overwrite and (other or finished.exists()):  # else: requeued, it goes on
            outputs.clear(folder)
    if finished.exists():
        return False
    run_folder.record(folder, config, fingerprint)
    return True


def read(cfg: DictConfig) -> tuple[RunConfig, type[Task]]:
    """Return a composed configuration, typed and checked, and its task; raises ConfigError."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if missing := [item.name for item in fields(TrainConfig) if item.name not in plain]:
        raise ConfigError(f"{missing[0]}: cannot be left out")
    check_keys(plain, [item.name for item in fields(TrainConfig)])
    _check_hydra()
    check_finite(plain)
    model = dict(plain["model"])
    model_name = model.pop("name", "")
    source, data = read_data(plain["data"])
    entry = _entry(plain["task"])
    if source.kind != entry.kind:
        raise ConfigError(
            f"model={model_name} needs data of kind {entry.kind!r}, but data={source.name} gives "
            f"{source.kind!r} (task.workflow={plain['task']['workflow']})"
        )
    check_targets({**plain, "model": model, "data": data.plain()})
    origin = _origin(plain["init_from"])
    target = _adopted(origin, model, model_name) if origin else Target.read(model, "model")
    name = f"init_from={origin.path}" if origin else f"model={model_name}"
    _check_reads(target, name, entry, source)
    entries(source.citations)
    task_class = entry.load()
    seed = plain["seed"]
    if not 0 <= seed < 2**31:
        raise ConfigError(f"seed={seed!r}: expected a number from 0 to 2^31 - 1")
    config = RunConfig(
        model_name=model_name,
        model=target,
        source=source,
        data=data,
        task=task_class.settings.read(plain["task"]),
        optimizer=task_class.optimizer.read(plain["optimizer"]),
        trainer=_trainer(plain["trainer"], entry),
        loggers={n: Target.read(one, f"logger.{n}") for n, one in plain["logger"].items()},
        paths=Paths.read(plain["paths"]),
        init_from=origin,
        seed=seed,
        overwrite=plain["overwrite"],
    )
    return config, task_class


def _entry(task: dict[str, Any]) -> TaskEntry:
    name = task.get("workflow")
    if not isinstance(name, str) or name not in TASKS:
        raise ConfigError(f"task.workflow={name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]


def _check_reads(model: Target, name: str, entry: TaskEntry, source: Source) -> None:
    """Raise ConfigError for a network of another kind, or one of crystals for molecules."""
    network: Any = find_target(model.target)
    kind = getattr(network, "kind", "")
    if kind not in KINDS:
        raise ConfigError(f"model._target_: {model.target} is no network")
    if kind != entry.kind:
        raise ConfigError(
            f"{name} is a network of {kind}, and this task trains networks of {entry.kind}; "
            "model=... chooses its task itself"
        )
    if source.structures == "molecules" and not network.reads_molecules:
        raise ConfigError(
            f"{name} reads crystals only, and data={source.name} holds molecules; "
            "model=coulgat reads both"
        )


PRECISIONS = ("32-true", "bf16-mixed", "64-true")
_CHECKED = ("max_epochs", "devices", "precision")
_OWN = (
    "logger", "plugins", "default_root_dir", "enable_progress_bar", "enable_model_summary",
    "num_sanity_val_steps", "use_distributed_sampler",
)  # fmt: skip


def _trainer(trainer: dict[str, Any], entry: TaskEntry) -> Target:
    """Return the section of Lightning's trainer, whose common keys are checked here."""
    if missing := [key for key in _CHECKED if key not in trainer]:
        raise ConfigError(f"trainer.{missing[0]}: cannot be left out")
    if taken := [key for key in _OWN if key in trainer]:
        instead = " (logger=... chooses one)" if taken == ["logger"] else ""
        raise ConfigError(f"trainer.{taken[0]}: is set by matattn itself{instead}; leave it out")
    epochs, devices, precision = (trainer[key] for key in _CHECKED)
    if not _is_count(epochs):
        raise ConfigError(f"trainer.max_epochs={epochs!r}: expected at least 1")
    if precision not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision={precision!r}: expected one of {', '.join(PRECISIONS)}"
        )
    for key, value in (("devices", devices), ("num_nodes", trainer.get("num_nodes", 1))):
        if not _is_count(value):
            raise ConfigError(f"trainer.{key}={value!r}: expected at least 1")
        if value > 1 and not (
            isinstance(trainer.get("strategy"), Mapping) and entry.shares_batches
        ):
            raise ConfigError(
                f"trainer.{key}={value}: expected 1 (trainer=ddp shares the batches of "
                f"{_sharing()}; wave functions use all devices that jax sees)"
            )
    if entry.shares_batches and str(trainer.get("strategy")).startswith("ddp"):
        raise ConfigError(
            f"trainer.strategy={trainer['strategy']!r}: expected a section, as trainer=ddp has it"
        )
    return Target.read(trainer, "trainer")


def _sharing() -> str:
    return " and ".join(name for name, entry in TASKS.items() if entry.shares_batches)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _origin(model: str | None) -> Origin | None:
    """Return the model that the training starts from; raises BundleError if it cannot be read."""
    if not model:
        return None
    if changed := [item for item in _overrides() if item.lstrip("+~").startswith("model.")]:
        raise ConfigError(
            f"{changed[0]} cannot be combined with init_from: the network is that of {model}"
        )
    return Origin(str(model), bundle.fingerprint(pretrained.find(model)))


def _check_hydra() -> None:
    """Raise ConfigError for a key that ``+hydra.foo=1`` adds, and nothing reads."""
    given = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    added = (re.match(r"\++hydra\.(\w+)", item) for item in given)
    known = [item.name for item in fields(HydraConf)]
    check_keys({key[1]: None for key in added if key}, known)


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _adopted(origin: Origin, model: dict[str, Any], model_name: str) -> Target:
    """Return the network of the model that a training starts from.

    Raises ConfigError when ``model=...`` asks for a network of another class.
    """
    description = bundle.describe(pretrained.find(origin.path))
    name = description["network"]
    asked = any(item.startswith("model=") for item in _overrides())
    if asked and not str(model.get("_target_", "")).endswith(f".{name}"):
        raise ConfigError(
            f"init_from={origin.path} is a {name}, and model={model_name} is another network; "
            "leave out model=..."
        )
    arguments = {k: v for k, v in description["arguments"].items() if k != "num_targets"}
    return Target(f"{networks.known()[name]}.{name}", arguments)
