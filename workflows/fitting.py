"""One Lightning training in one run folder: the same for every task."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from matattn.config import build
from matattn.errors import TrainingError
from matattn.files import write_json
from matattn.training.run_log import RunLog

# Remarks of Lightning that tell a user nothing.
_LIGHTNING_REMARKS = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    ".*Checkpoint directory .* exists and is not empty.*",
)


def fit(
    config: dict[str, Any],
    folder: Path,
    module: L.LightningModule,
    loaders: dict[str, DataLoader],
    log: RunLog,
    callbacks: Sequence[L.Callback] = (),
) -> None:
    """Train ``module``, from its last checkpoint in ``folder`` if there is one.

    Leaves it with the weights that ``task.select`` asks for. Raises KeyboardInterrupt on SIGINT,
    and SystemExit with status 143 on SIGTERM.
    """
    watching: list[L.Callback] = [log, _checkpoint(folder, "last", None)]
    if "val" in loaders:
        watching.append(_checkpoint(folder, "best", "val/loss"))
    logger = build(config["logger"], "logger", save_dir=folder) if config["logger"] else False
    with warnings.catch_warnings():
        for message in _LIGHTNING_REMARKS:
            warnings.filterwarnings("ignore", message=message)
        trainer = build(
            config["trainer"],
            "trainer",
            callbacks=[*watching, *callbacks],
            logger=logger,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        _fit(trainer, module, loaders, folder / "checkpoints" / "last.ckpt")
    # From the file: averaged weights are there, and the last epoch may be that of an earlier call.
    chosen = "best" if config["task"]["select"] == "best" else "last"
    checkpoint = torch.load(folder / "checkpoints" / f"{chosen}.ckpt", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])


def stop_unless_finite(
    loss: torch.Tensor, module: L.LightningModule, folder: Path, ids: Sequence[str], what: str
) -> None:
    """Raise TrainingError when the loss of a batch is no number.

    The ``ids`` of the batch are written to ``nonfinite_batch.json``; ``what`` names them.
    """
    if torch.isfinite(loss):
        return
    place = folder / "nonfinite_batch.json"
    epoch, step = module.current_epoch, module.global_step
    write_json(place, {"epoch": epoch, "step": step, "ids": list(ids)})
    raise TrainingError(
        f"the loss is {loss.item()} at step {step} (epoch {epoch + 1}); its {what} are listed in "
        f"{place}; try a lower optimizer.lr"
    )


def _checkpoint(folder: Path, name: str, monitor: str | None) -> ModelCheckpoint:
    """Writes ``checkpoints/<name>.ckpt``: after every epoch, or when ``monitor`` is lowest."""
    return ModelCheckpoint(
        folder / "checkpoints",
        filename=name,
        monitor=monitor,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )


def _fit(
    trainer: L.Trainer, module: L.LightningModule, loaders: dict[str, DataLoader], last: Path
) -> None:
    try:
        trainer.fit(
            module,
            loaders["train"],
            loaders.get("val"),
            ckpt_path=last if last.exists() else None,
            weights_only=True,
        )
    except SIGTERMException:
        print("terminated; the same command resumes from the last epoch", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit:  # Lightning's answer to SIGINT
        raise KeyboardInterrupt from None
