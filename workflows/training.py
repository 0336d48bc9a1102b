"""The one loop behind ``python train.py``: from a configuration to a finished run folder."""

from __future__ import annotations

import importlib
import json
import logging
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from matattn.config import check_targets, config_hash
from matattn.errors import ConfigError
from matattn.files import write_text
from matattn.runtime import tune_malloc

WORKFLOWS = {"property_prediction": "matattn.workflows.property_prediction"}
# What does not change a run's result does not change its folder either.
_NOT_HASHED = ("paths", "overwrite", "seed", "logger")


def run(cfg: DictConfig) -> dict[str, Any]:
    """Run one configuration (``conf/train.yaml``) and return its metrics.

    A finished run is not repeated unless ``overwrite=true``; an unfinished one resumes from its
    last checkpoint. Raises ConfigError when model and data do not fit together.
    """
    container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    config = {str(key): value for key, value in container.items()}
    check_targets(config)
    names = {"model": config["model"].pop("name"), "data": config["data"]["name"]}
    folder = run_folder(config, names)
    _check_pairing(config, names)
    workflow = importlib.import_module(WORKFLOWS[config["task"]["workflow"]])
    finished = folder / "metrics.json"
    if finished.exists() and not config["overwrite"]:
        print(f"{folder} holds a finished run; overwrite=true trains again")
        metrics = json.loads(finished.read_text())
    else:
        if config["overwrite"]:
            _clear(folder)
        tune_malloc()
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        print(f"{names['model']} on {names['data']}, seed {config['seed']} -> {folder}", flush=True)
        metrics = workflow.run(config, folder)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(workflow.results_table(metrics))
    console.print(f"report: {folder / 'report.md'}   model: {folder / 'model'}", soft_wrap=True)
    return metrics


def run_folder(config: dict[str, Any], names: dict[str, str]) -> Path:
    """Where a run lives: <root>/<model>-<data>/seed<seed>-<hash>, or ``paths.output_dir``."""
    if given := config["paths"]["output_dir"]:
        return Path(given)
    hashed = {key: value for key, value in config.items() if key not in _NOT_HASHED}
    run_name = f"seed{config['seed']}-{config_hash(hashed)}"
    return Path(config["paths"]["output_root"]) / f"{names['model']}-{names['data']}" / run_name


def _check_pairing(config: dict[str, Any], names: dict[str, str]) -> None:
    given, wanted = config["data"].pop("kind"), config["task"].pop("data_kind")
    if given != wanted:
        raise ConfigError(
            f"model={names['model']} needs data of kind {wanted!r}, but "
            f"data={names['data']} gives {given!r}"
        )


def _clear(folder: Path) -> None:
    """Forget an earlier run in this folder, so that nothing of it is mistaken for the new one."""
    (folder / "metrics.json").unlink(missing_ok=True)
    for checkpoint in (folder / "checkpoints").glob("*.ckpt"):
        checkpoint.unlink()
