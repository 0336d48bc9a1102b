"""The one loop behind ``python train.py``: from a configuration to a finished run folder."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from matattn.config import check_targets, config_hash, import_extra, require, what_matters
from matattn.errors import ConfigError
from matattn.files import is_partial, write_text
from matattn.runtime import tune_malloc
from matattn.workflows.run_folder import keeping_errors, working_on
from matattn.workflows.structures.fine_tune import adopt

WORKFLOWS = {
    "property_prediction": "matattn.workflows.structures.train",
    "field_surrogate": "matattn.workflows.meshes.train",
    "variational_monte_carlo": "matattn.workflows.spins.train",
    "tokenization": "matattn.workflows.text.tokenization",
    "language_model": "matattn.workflows.text.language_model",
}
SHARED = ("property_prediction", "field_surrogate")  # whose batches processes can share


def run(cfg: DictConfig) -> dict[str, Any]:
    """Run one configuration (``conf/train.yaml``) and return its metrics.

    A finished run is not repeated unless ``overwrite=true``; an unfinished one always resumes from
    its last epoch. Raises ConfigError when the configuration is inconsistent, or when the folder
    holds a run of another configuration or of other data.
    """
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    config = {str(key): value for key, value in cast(dict[str, Any], plain).items()}
    names = {"model": config["model"].pop("name"), "data": config["data"]["name"]}
    _check(config, names)
    check_targets(config)
    if config["init_from"]:
        config = adopt(config)
    folder = run_folder(config, names)
    workflow = import_extra(WORKFLOWS[config["task"]["workflow"]])
    tune_malloc()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    prepared = workflow.prepare(config)  # a mistake ends the run before anything is written
    with working_on(folder):
        metrics = _run_in(folder, config, names, workflow, prepared)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(workflow.results_table(metrics))
    console.print(f"report: {folder / 'report.md'}   model: {folder / 'model'}", soft_wrap=True)
    return metrics


def _run_in(
    folder: Path, config: dict[str, Any], names: dict[str, str], workflow: Any, prepared: Any
) -> dict[str, Any]:
    """The metrics of the run in a folder that no other process uses."""
    earlier = _earlier_run(folder)
    _clear_partial(folder)
    finished = folder / "metrics.json"
    if earlier:
        other = _other_run(folder, earlier, config, prepared.fingerprint)
        if other and not config["overwrite"]:
            raise ConfigError(other)
        if config["overwrite"] and (other or finished.exists()):  # else: requeued, it goes on
            _clear(folder)
    if finished.exists():
        print(f"{folder} holds this run, finished; overwrite=true trains again")
        return json.loads(finished.read_text(encoding="utf-8"))
    record = {**config, "data_fingerprint": prepared.fingerprint}
    write_text(folder / "config.yaml", yaml.safe_dump(record, sort_keys=False))
    print(f"{names['model']} on {names['data']}, seed {config['seed']} -> {folder}", flush=True)
    with keeping_errors(folder):
        return workflow.run(config, folder, prepared)


def run_folder(config: dict[str, Any], names: dict[str, str]) -> Path:
    """Where a run lives: <root>/<model>-<data>/seed<seed>-<hash>, or ``paths.output_dir``."""
    if given := config["paths"]["output_dir"]:
        return Path(given)
    hashed = what_matters(config)
    del hashed["seed"]
    run_name = f"seed{config['seed']}-{config_hash(hashed)}"
    return Path(config["paths"]["output_root"]) / f"{names['model']}-{names['data']}" / run_name


def _check(config: dict[str, Any], names: dict[str, str]) -> None:
    given, wanted = config["data"].pop("kind"), config["task"].pop("data_kind")
    require("task.data_kind", wanted, list, bool, "a list of kinds of data")
    if given not in wanted:
        listed = " or ".join(map(repr, wanted))
        raise ConfigError(
            f"model={names['model']} needs data of kind {listed}, but data={names['data']} gives "
            f"{given!r}"
        )
    trainer = config["trainer"]
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    if config["init_from"] and (changed := [item for item in given if item.startswith("model.")]):
        raise ConfigError(
            f"{changed[0]} cannot be combined with init_from: the network is that of "
            f"{config['init_from']}"
        )
    seeds = "a number from 0 to 2^31 - 1"
    require("seed", config["seed"], int, lambda seed: 0 <= seed < 2**31, seeds)
    require("trainer.max_epochs", trainer["max_epochs"], int, lambda n: n >= 1, "at least 1")
    require("trainer.precision", trainer["precision"], str, lambda p: p == "32-true", "32-true")
    workflow = config["task"]["workflow"]
    require("task.workflow", workflow, str, WORKFLOWS.__contains__, f"one of {[*WORKFLOWS]}")
    if "strategy" in trainer and workflow in SHARED:
        require("trainer.devices", trainer["devices"], int, lambda n: n >= 1, "at least 1")
    else:
        require("trainer.devices", trainer["devices"], int, lambda n: n == 1,
                "1 (trainer=ddp_cpu shares the batches of property and field networks; wave "
                "functions use all devices that jax sees)")  # fmt: skip


def _earlier_run(folder: Path) -> dict[str, Any] | None:
    """The recorded configuration of a run in this folder; refuses a folder of something else."""
    if not folder.exists() or all(map(is_partial, folder.iterdir())):
        return None
    recorded = folder / "config.yaml"
    try:
        earlier = yaml.safe_load(recorded.read_text(encoding="utf-8"))
    except FileNotFoundError:
        earlier = None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{recorded}: cannot be read: {reason}") from None
    if not isinstance(earlier, dict) or "data_fingerprint" not in earlier:
        raise ConfigError(f"{folder} is not empty and holds no run; choose another folder")
    return earlier


def _other_run(
    folder: Path, earlier: dict[str, Any], config: dict[str, Any], fingerprint: str
) -> str:
    """Why what is there cannot be gone on with: another configuration, or other data; or ""."""
    if earlier["data_fingerprint"] != fingerprint:
        return f"{folder}: the data have changed since this run began; overwrite=true trains again"
    old, new = what_matters(earlier), what_matters(config)
    different = [place for key in new for place in _differences(old.get(key), new[key], key)]
    if not different:
        return ""
    return (
        f"{folder} holds a run of another configuration ({', '.join(different)} differ); choose "
        "another paths.output_dir, or overwrite=true"
    )


def _differences(old: Any, new: Any, place: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            d for key in keys for d in _differences(old.get(key), new.get(key), f"{place}.{key}")
        ]
    return [] if old == new else [place]


def _clear(folder: Path) -> None:
    """Remove what an earlier run wrote, so that nothing of it is mistaken for the new one.

    At any moment what is left is a run, and after the first no finished one.
    """
    (folder / "metrics.json").unlink(missing_ok=True)
    for name in ("checkpoints", "model", "fields", "pretraining"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for place in folder.glob("member*"):
        shutil.rmtree(place, ignore_errors=True)
    for name in (
        "error.txt", "metrics.csv", "predictions.csv", "report.md", "observables.json"
    ):  # fmt: skip
        (folder / name).unlink(missing_ok=True)
    for plot in folder.glob("*.png"):
        plot.unlink()
    (folder / "config.yaml").unlink(missing_ok=True)


def _clear_partial(folder: Path) -> None:
    """Remove what processes that were killed have left half written."""
    for place in [*filter(is_partial, folder.rglob(".*"))]:
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
