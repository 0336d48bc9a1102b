"""Several networks as one."""

import torch
from torch import nn

from matattn.structures.ensemble import Ensemble


def test_ensemble_is_the_mean_of_its_members():
    members = [nn.Linear(3, 2) for _ in range(3)]
    for member in members:
        member.features, member.readout = (lambda batch: batch), member.forward
    ensemble, batch = Ensemble(members), torch.randn(5, 3)
    expected = torch.stack([member(batch) for member in members])
    assert torch.allclose(ensemble(batch), expected.mean(0))
    assert torch.equal(ensemble.member_outputs(ensemble.features(batch)), expected)
