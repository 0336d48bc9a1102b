"""The top level of every configuration: a key that is not here is an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf


@dataclass
class TrainConfig:
    """One run. Each dictionary is a folder of ``conf/``, whose YAML files list its keys."""

    model: dict[str, Any] = MISSING
    data: dict[str, Any] = MISSING
    task: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    trainer: dict[str, Any] = MISSING
    paths: dict[str, Any] = MISSING
    logger: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None  # a model to start from: a shipped one's name, or a model/ folder
    seed: int = 0
    overwrite: bool = False  # train again where a finished run stands


def _when(given: Any, yes: Any, no: Any) -> Any:
    return yes if given else no


def _settings_hash(*, _root_: Any) -> str:
    """Of what the trials of a search have in common, so that another search is another study."""
    from matattn.config import config_hash, what_matters

    config = cast(dict[str, Any], OmegaConf.to_container(_root_, resolve=False))
    config.pop("hydra", None)
    config["data"] = {k: v for k, v in config["data"].items() if k not in ("licence", "citations")}
    return config_hash(what_matters(config))


def register() -> None:
    """Make ``schema``, ``${when:CONDITION,YES,NO}`` and ``${settings_hash:}`` known to Hydra."""
    OmegaConf.register_new_resolver("settings_hash", _settings_hash, replace=True)
    OmegaConf.register_new_resolver("when", _when, replace=True)
    ConfigStore.instance().store(name="schema", node=TrainConfig)
