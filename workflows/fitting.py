"""One Lightning training in one run folder: the same for every task."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.utils.data import DataLoader, Dataset

from matattn.config import RunConfig, Section, Target, build, setting
from matattn.errors import ConfigError, TrainingError
from matattn.files import write_json
from matattn.training import checkpoint_files, launch
from matattn.training.checkpoint_files import AtomicCheckpoints
from matattn.training.forked import answering_for
from matattn.training.optimizers import adamw, per_step
from matattn.training.run_log import RunLog
from matattn.training.sampler import EpochShuffle, SharedBatches
from matattn.training.schedules import Schedule
from matattn.training.step_seed import StepSeed
from matattn.training.threads import ThreadChoice

# Remarks of Lightning that tell a user nothing.
_LIGHTNING_REMARKS = (
    ".*does not have many workers.*",
    ".*`srun` command is available.*",  # a run may need one process, on a cluster as elsewhere
    ".*is smaller than the logging interval.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    ".*you defined a `validation_step` but have no `val_dataloader`.*",  # data without such rows
    ".*Checkpoint directory .* exists and is not empty.*",
)
UNCHECKED = 50  # steps on a GPU whose losses are looked at together


@dataclass(frozen=True)
class GradientDescent(Section):
    """Settings of AdamW and its schedule; ``conf/optimizer`` has the published ones."""

    key: ClassVar[str] = "optimizer"

    lr: float = setting(2e-3, "a number above 0", lambda x: x > 0)
    betas: list[float] = setting(
        [0.9, 0.98],
        "two numbers from 0 to below 1",
        lambda betas: len(betas) == 2 and all(0 <= b < 1 for b in betas),
    )
    weight_decay: float = setting(1e-5, "0 or more", lambda x: x >= 0)
    schedule: Mapping[str, Any] = field(
        metadata={"check": ("a section with _target_ and its arguments", bool)},
        default_factory=lambda: {"_target_": "matattn.training.schedules.OneCycle"},
    )


def check_batches(config: RunConfig[Any, Any]) -> None:
    """Raise ConfigError when a batch cannot be shared by the processes."""
    if config.task.batch_size < config.processes:
        raise ConfigError(
            f"task.batch_size={config.task.batch_size}: expected at least 1, and trainer.devices "
            f"({config.processes})"
        )


def fit(
    config: RunConfig[Any, Any],
    folder: Path,
    module: L.LightningModule,
    loaders: Mapping[str, DataLoader],
    log: RunLog,
    callbacks: Sequence[L.Callback] = (),
    epochs: int | None = None,
) -> torch.device:
    """Train ``module``, from its last checkpoint in ``folder`` if there is one.

    Leaves it with the weights that ``task.select`` asks for, in float32, and returns the device on
    which it was trained, which is a good one for its evaluation. ``epochs`` stands for
    ``trainer.max_epochs``. Raises KeyboardInterrupt on SIGINT, and SystemExit with status 143 on
    SIGTERM.
    """
    finite = LambdaCallback(on_train_epoch_end=lambda _, module: check_losses(module))
    ours = [finite, log, StepSeed(config.seed), ThreadChoice(), *callbacks]
    if "val" in loaders:
        ours.append(_checkpoint(folder, "best", "val/loss"))
    # After the best one: what last.ckpt counts as done is on the disk, whenever the run is killed.
    ours.append(_checkpoint(folder, "last", None))
    with _without_remarks():
        trainer = make_trainer(config, folder, ours, epochs)
        _tell_of_slow_precision(config, trainer.strategy.root_device)
        last = folder / "checkpoints" / "last.ckpt"
        with answering_for(trainer) as forked:
            _fit(trainer, module, loaders, last)
    # From the file: averaged weights are there, and the last epoch may be that of an earlier call.
    checkpoint = checkpoint_files.read(last)
    if forked:  # it was other processes that trained
        for callback in (log, *callbacks):
            callback.load_state_dict(checkpoint["callbacks"].get(callback.state_key, {}))
    if config.task.select == "best":
        checkpoint = checkpoint_files.read(folder / "checkpoints" / "best.ckpt")
    module.load_state_dict(checkpoint["state_dict"])
    module.float()  # 64-true: models are stored, and evaluated, in float32
    return trainer.strategy.root_device


def check_trainer(config: RunConfig[Any, Any]) -> bool:
    """Return whether the trainer uses GPUs; raises ConfigError where there cannot be one."""
    with _without_remarks(), TemporaryDirectory() as folder:  # some loggers write at once
        device = make_trainer(config, Path(folder)).strategy.root_device
    return device.type == "cuda"


def _tell_of_slow_precision(config: RunConfig[Any, Any], device: torch.device) -> None:
    """Print a line where the processor has no instructions for the precision."""
    reduced = str(config.trainer.arguments.get("precision")).startswith("bf16")
    if reduced and device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        print(
            "trainer.precision=bf16-mixed: this processor has no instructions for bfloat16 "
            "(avx512_bf16): the training is right, and slower than with 32-true",
            file=sys.stderr,
        )


def make_trainer(
    config: RunConfig[Any, Any],
    folder: Path,
    callbacks: Sequence[L.Callback] = (),
    epochs: int | None = None,
) -> L.Trainer:
    """Return the trainer of a run in ``folder``, with its own ``callbacks`` beside those asked for.

    Raises ConfigError for devices that are not there, and for what Lightning refuses.
    """
    started_by, arguments = launch.environment(), dict(config.trainer.arguments)
    arguments.pop("callbacks", None)  # asked_callbacks makes them
    if isinstance(arguments.get("strategy"), Mapping) and not isinstance(
        started_by, LightningEnvironment
    ):
        arguments["strategy"] = {**arguments["strategy"], "start_method": "popen"}  # by whoever did
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs more packages
    loggers = [
        build(logger, f"logger.{name}", save_dir=folder / logger.arguments.get("save_dir", ""))
        for name, logger in config.loggers.items()
    ]
    bar = [RichProgressBar(console_kwargs={"stderr": True})] if sys.stderr.isatty() else []
    return build(
        Target(config.trainer.target, arguments),
        "trainer",
        max_epochs=epochs or config.epochs,
        callbacks=[*asked_callbacks(config.trainer), *bar, *callbacks],
        logger=loggers,
        plugins=[AtomicCheckpoints(), started_by],
        default_root_dir=folder,
        enable_progress_bar=bool(bar),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def asked_callbacks(trainer: Target) -> list[L.Callback]:
    """Return the callbacks that ``trainer.callbacks`` of the configuration describes.

    Raises ConfigError for what is no callback, and for one that writes checkpoints.
    """
    described = trainer.arguments.get("callbacks") or {}
    if isinstance(described, Sequence) and not isinstance(described, str):
        named = {f"trainer.callbacks[{number}]": one for number, one in enumerate(described)}
    elif isinstance(described, Mapping) and "_target_" not in described:
        named = {f"trainer.callbacks.{name}": one for name, one in described.items()}
    else:
        named = {"trainer.callbacks": described}
    built = {key: build(one, key) for key, one in named.items() if one is not None}
    for key, callback in built.items():
        if not isinstance(callback, L.Callback):
            raise ConfigError(
                f"{key}: a {type(callback).__name__} is no callback; give one of "
                "lightning.pytorch.callbacks"
            )
        if isinstance(callback, ModelCheckpoint):
            raise ConfigError(
                f"{key}: checkpoints are written by matattn itself: the last epoch, and with "
                "task.select=best the best one"
            )
    return list(built.values())


def make_loaders(
    splits: Mapping[str, Sequence[Any]],
    batch_size: int,
    seed: int,
    collate: Callable[[list[Any]], Any],
    size: Callable[[Any], int] | None = None,
) -> dict[str, DataLoader]:
    """Return loaders of the splits; training items come in the order of seed and epoch.

    Where several processes train, they share every training batch so that the sums of ``size`` of
    items are about the same; without it each gets whole batches. All see all validation items.
    """
    loaders = {}
    for split, items in splits.items():
        rows, most = cast(Dataset, items), min(batch_size, len(items))  # any sequence will do
        if split == "train":
            order, sizes = EpochShuffle(len(items), seed), [*map(size, items)] if size else None
            batches = SharedBatches(order, most, sizes)
            loaders[split] = DataLoader(rows, batch_sampler=batches, collate_fn=collate)
        else:
            loaders[split] = DataLoader(rows, batch_size=most, collate_fn=collate)
    return loaders


def optimization(
    module: L.LightningModule,
    network: nn.Module,
    settings: GradientDescent,
    schedule: Schedule,
    averaging_epochs: int = 0,
    decay_norms: bool = True,
) -> OptimizerLRSchedulerConfig:
    """Return AdamW and its schedule, a step at a time.

    The rate stays frozen over the last ``averaging_epochs`` epochs.
    """
    optimizer = adamw(network, settings.lr, settings.betas, settings.weight_decay, decay_norms)
    total = int(module.trainer.estimated_stepping_batches)
    epochs = module.trainer.max_epochs or 1
    frozen_from = total * (epochs - averaging_epochs) // epochs
    factors = per_step(optimizer, schedule, total, frozen_from)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factors, "interval": "step"}}


def log_loss(module: L.LightningModule, loss: torch.Tensor, rows: int) -> None:
    """Log the loss of a training batch of so many rows: its mean over epoch and processes."""
    module.log(
        "train/loss", loss, on_step=False, on_epoch=True, batch_size=rows, sync_dist=True,
        prog_bar=True,
    )  # fmt: skip


def stop_unless_finite(
    loss: torch.Tensor,
    module: L.LightningModule,
    folder: Path,
    ids: Sequence[str],
    rows: Iterable[int] | torch.Tensor,
    what: str,
) -> None:
    """Raise TrainingError when the loss of a batch, the ``rows`` of a data set, is no number.

    Their ``ids`` are written to ``nonfinite_batch.json``; ``what`` names them. On a GPU the losses
    of some steps are looked at together, so that no step waits for its result:
    ``check_losses`` looks at the last ones.
    """
    seen = _Loss(loss.detach(), folder, ids, rows, what, module.current_epoch, module.global_step)
    waiting: list[_Loss] = module.__dict__.setdefault("unchecked_losses", [])
    waiting.append(seen)
    if loss.device.type == "cpu" or len(waiting) == UNCHECKED:
        check_losses(module)


@dataclass(frozen=True)
class _Loss:
    """The loss of a batch, and what an error says of it."""

    value: torch.Tensor
    folder: Path
    ids: Sequence[str]
    rows: Iterable[int] | torch.Tensor
    what: str
    epoch: int
    step: int


def check_losses(module: L.LightningModule) -> None:
    """Raise TrainingError when a loss that ``stop_unless_finite`` has put off is no number."""
    waiting: list[_Loss] = module.__dict__.pop("unchecked_losses", [])
    if not waiting or torch.stack([loss.value for loss in waiting]).isfinite().all():
        return
    loss = next(loss for loss in waiting if not loss.value.isfinite())
    place, ids = loss.folder / "nonfinite_batch.json", [loss.ids[row] for row in loss.rows]
    write_json(place, {"epoch": loss.epoch, "step": loss.step, "ids": ids})
    raise TrainingError(
        f"the loss is {loss.value.item()} at step {loss.step} (epoch {loss.epoch + 1}); its "
        f"{loss.what} are listed in {place}; try a lower optimizer.lr"
    )


def _checkpoint(folder: Path, name: str, monitor: str | None) -> ModelCheckpoint:
    """Write ``checkpoints/<name>.ckpt``: after every epoch, or when ``monitor`` is lowest."""
    return ModelCheckpoint(
        folder / "checkpoints",
        filename=name,
        monitor=monitor,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )


@contextmanager
def _without_remarks() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in _LIGHTNING_REMARKS:
            warnings.filterwarnings("ignore", message=message)
        yield


def _fit(
    trainer: L.Trainer, module: L.LightningModule, loaders: Mapping[str, DataLoader], last: Path
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
    except RuntimeError as error:
        if "conditioned on metric" not in str(error):
            raise
        raise ConfigError(f"trainer.callbacks: {' '.join(str(error).split())}") from error
    except SystemExit as ended:
        if ended.code != 1:  # submitit's, which has put the job back into the queue
            raise
        raise KeyboardInterrupt from None  # Lightning's answer to SIGINT
