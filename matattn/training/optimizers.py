"""Optimisers as the papers set them up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from matattn.training.schedules import Schedule


def parameter_groups(
    module: nn.Module, lr: float, weight_decay: float, decay_norms: bool = True
) -> list[dict]:
    """Return AdamW groups: biases, and vectors unless ``decay_norms``, are not decayed.

    Neither are the physical constants in ``module.law_parameters()``, if there are any. They start
    from physical values and learn ``module.LAW_LR`` times as fast as the rest.
    """
    constants: list[nn.Parameter] = getattr(module, "law_parameters", list)()
    constant_ids = {id(parameter) for parameter in constants}
    undecayed: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.numel() and id(parameter) not in constant_ids:
            spared = name.endswith("bias") or (parameter.ndim < 2 and not decay_norms)
            (undecayed if spared else decayed).append(parameter)
    groups: list[dict] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    if constants:
        factor = cast(float, module.LAW_LR)
        groups.append({"params": constants, "weight_decay": 0.0, "lr": factor * lr})
    return groups


def adamw(
    module: nn.Module,
    lr: float,
    betas: Sequence[float],
    weight_decay: float,
    decay_norms: bool = True,
) -> torch.optim.AdamW:
    """Return AdamW over ``parameter_groups``, with learning rate ``lr``."""
    groups = parameter_groups(module, lr, weight_decay, decay_norms)
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=True)
    # It could scale gradients by itself, so Lightning would not clip them with bf16-mixed.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def per_step(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    total_steps: int,
    frozen_from: int | None = None,
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return ``schedule``, applied at every step and constant from step ``frozen_from`` on.

    A schedule with a method ``beta1`` also sets Adam's first coefficient.
    """
    last = total_steps if frozen_from is None else frozen_from
    beta1 = getattr(schedule, "beta1", None)

    def factor(step: int) -> float:
        if beta1 is not None:
            for group in optimizer.param_groups:
                group["betas"] = (beta1(step, total_steps), group["betas"][1])
        return schedule(min(step, last), total_steps)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
