"""The top level of every configuration: a key that is not here is an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


def register() -> None:
    """Make the schema known to Hydra, as ``schema``, and ``${when:CONDITION,YES,NO}``."""
    OmegaConf.register_new_resolver("when", lambda given, yes, no: yes if given else no, replace=True)
    ConfigStore.instance().store(name="schema", node=TrainConfig)
