"""The processes of one training that torchrun or Slurm's srun has started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from matattn.errors import ConfigError
from matattn.training.processes import number_and_count

T = TypeVar("T")


def environment() -> ClusterEnvironment:
    """Return who has started this process: torchrun, srun with several tasks, or nobody.

    A job of a single task is nobody's: matattn may start processes itself, and submitit, not
    Lightning, puts it back into the queue.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


def join(processes: int, nodes: int, uses_gpus: bool) -> int:
    """Join the other processes of the run, which are to be so many, and return the own number.

    Raises ConfigError when torchrun or srun has started another number, or nobody has started those
    of several nodes.
    """
    started_by = environment()
    alone = isinstance(started_by, LightningEnvironment)
    number, count = (0, 1) if alone else (started_by.global_rank(), started_by.world_size())
    if count == 1 and nodes == 1:
        return 0
    if count != processes:
        raise ConfigError(
            f"{count} process{'es were' * (count > 1) or ' was'} started, and trainer.devices x "
            f"trainer.num_nodes is {processes}: start one for each device with torchrun or srun "
            "(docs/clusters.md)"
        )
    os.environ["MASTER_ADDR"] = started_by.main_address
    os.environ["MASTER_PORT"] = str(started_by.main_port)
    if uses_gpus:
        torch.cuda.set_device(started_by.local_rank())
    backend = "cpu:gloo,cuda:nccl" if uses_gpus else "gloo"
    dist.init_process_group(backend, rank=number, world_size=count)
    return number


def leave() -> None:
    """Go on alone."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def agreed(decide: Callable[[], T]) -> T:
    """Return what the first process decides; where it fails, the others exit with status 2."""
    if number_and_count()[1] == 1:
        return decide()
    answer: list[Any] = [None]  # nothing was decided
    try:
        answer = [(decide(),)]
    finally:
        dist.broadcast_object_list(answer, device=torch.device("cpu"))
    return answer[0][0]


def told() -> Any:
    """Return what the first process has ``agreed`` on; exits with status 2 where it failed."""
    answer: list[Any] = [None]
    dist.broadcast_object_list(answer, device=torch.device("cpu"))
    if answer[0] is None:
        sys.exit(2)
    return answer[0][0]
