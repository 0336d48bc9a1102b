"""Parameter groups of AdamW, and the rate at every step."""

import pytest
import torch
from torch import nn

from matattn.training.optimizers import adamw, parameter_groups, per_step
from matattn.training.schedules import InverseSquareRoot


def test_which_parameters_are_decayed():
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    network.register_parameter("latent_q", nn.Parameter(torch.zeros(3, 5)))

    def decayed(decay_norms):
        groups = parameter_groups(network, 1e-3, 0.1, decay_norms)
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        return {tuple(p.shape) for p in groups[0]["params"]}

    assert decayed(True) == {(3, 3), (3, 5), (3,)}
    assert decayed(False) == {(3, 3), (3, 5)}


def test_adamw_takes_the_groups():
    optimizer = adamw(nn.LayerNorm(3), 1e-3, [0.9, 0.99], 0.1, decay_norms=False)
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2]


class Law(nn.Linear):
    LAW_LR = 5.0

    def law_parameters(self):
        return [self.weight]


def test_constants_of_a_law_are_not_decayed_and_learn_faster():
    decayed, undecayed, constants = parameter_groups(Law(3, 2), 1e-3, 0.1)
    assert decayed["params"] == [] and [p.ndim for p in undecayed["params"]] == [1]
    assert [p.ndim for p in constants["params"]] == [2]
    assert constants["lr"] == 5e-3 and constants["weight_decay"] == 0


def test_frozen_and_empty_parameters_are_left_out():
    network = nn.Sequential(nn.Linear(2, 2), nn.Module())
    network[1].register_parameter("empty", nn.Parameter(torch.zeros(0, 2)))
    network[0].weight.requires_grad_(False)
    groups = parameter_groups(network, 1e-3, 0.1)
    assert [len(group["params"]) for group in groups] == [0, 1]


def test_the_rate_is_frozen_from_a_step_on():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = per_step(optimizer, InverseSquareRoot(1), 10, frozen_from=3)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1, 2**-0.5, 3**-0.5, 0.5, 0.5, 0.5])
