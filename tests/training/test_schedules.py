"""Learning rates at every step."""

import pytest
import torch
from torch import nn

from matattn.training.optimizers import per_step
from matattn.training.schedules import InverseSquareRoot, OneCycle, OneCycleWithMomentum


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


def test_inverse_square_root_by_hand():
    assert [InverseSquareRoot(4000)(step, 1) for step in (0, 12_000)] == [1, 0.5]
    with pytest.raises(ValueError, match="timescale=0: expected at least 1 step"):
        InverseSquareRoot(0)


def test_one_cycle_by_hand():
    factors = [OneCycle(0.1)(step, 100) for step in (0, 4, 9, 10, 55, 100, 120)]
    assert factors == pytest.approx([0.1, 0.5, 1, 1, 0.5, 0, 0])
    assert OneCycle(0)(0, 100) == OneCycle(1)(99, 100) == 1


@pytest.mark.parametrize("schedule", [OneCycle, OneCycleWithMomentum])
@pytest.mark.parametrize("warmup", [-0.1, 1.1, float("nan")])
def test_warmup_is_a_fraction(schedule, warmup):
    with pytest.raises(ValueError, match="expected a fraction of all steps, 0 to 1"):
        schedule(warmup)


def test_factors_of_a_cycle_are_above_zero():
    with pytest.raises(ValueError, match="must be above 0; got 0, 10000"):
        OneCycleWithMomentum(div_factor=0)
