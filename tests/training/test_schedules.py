"""Learning rates at every step."""

import pytest
import torch
from torch import nn

from matattn.training.optimizers import per_step
from matattn.training.schedules import OneCycleWithMomentum


@pytest.mark.parametrize("total, warmup", [(50, 0.1), (317, 0.3), (1000, 0.05)])
def test_one_cycle_is_that_of_torch(total, warmup):
    ours, theirs = (torch.optim.AdamW([nn.Parameter(torch.zeros(2, 2))], 1e-3) for _ in range(2))
    schedule = per_step(ours, OneCycleWithMomentum(warmup), total)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 1e-3, total, pct_start=warmup, div_factor=1e4, final_div_factor=1e4
    )
    for step in range(total):
        one, other = ours.param_groups[0], theirs.param_groups[0]
        assert one["lr"] == pytest.approx(other["lr"], rel=1e-9), step
        assert one["betas"] == pytest.approx(other["betas"], rel=1e-9), step
        ours.step()
        theirs.step()
        if step < total - 1:
            schedule.step()
            reference.step()


def test_a_resumed_schedule_goes_on():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2, 2))], 1e-3)
    schedule = per_step(optimizer, OneCycleWithMomentum(), 40)
    for _ in range(15):
        optimizer.step()
        schedule.step()
    state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    again = torch.optim.AdamW([nn.Parameter(torch.zeros(2, 2))], 1e-3)
    resumed = per_step(again, OneCycleWithMomentum(), 40)
    again.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["schedule"])
    for one, other in ((optimizer, schedule), (again, resumed)):
        one.step()
        other.step()
    assert optimizer.param_groups[0]["lr"] == again.param_groups[0]["lr"]
    assert optimizer.param_groups[0]["betas"] == again.param_groups[0]["betas"]
