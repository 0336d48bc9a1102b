"""Optimisers as the papers set them up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from matattn.training.schedules import Schedule


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two AdamW groups: biases are not decayed, everything else is."""
    biases: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.numel():
            (biases if name.endswith("bias") else others).append(parameter)
    return [
        {"params": others, "weight_decay": weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]


def adamw(
    module: nn.Module, lr: float, betas: Sequence[float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over ``parameter_groups``; learning rate ``lr`` per step."""
    groups = parameter_groups(module, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=True)


def per_step(
    optimizer: torch.optim.Optimizer, schedule: Schedule, total_steps: int, frozen_from: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """``schedule`` applied at every step, constant from step ``frozen_from`` on."""

    def factor(step: int) -> float:
        return schedule(min(step, frozen_from), total_steps)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
