"""Parameter groups of AdamW."""

import torch
from torch import nn

from matattn.training.optimizers import adamw, parameter_groups


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
