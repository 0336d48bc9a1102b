"""Schedules, parameter groups and averages of the weights."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from matattn.training.averaging import ExponentialAverage
from matattn.training.optimizers import adamw, parameter_groups, per_step
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


def test_which_parameters_are_decayed():
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    network.register_parameter("latent_q", nn.Parameter(torch.zeros(3, 5)))

    def decayed(decay_norms):
        groups = parameter_groups(network, 1e-3, 0.1, decay_norms)
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        return {tuple(p.shape) for p in groups[0]["params"]}

    assert decayed(True) == {(3, 3), (3, 5), (3,)}
    assert decayed(False) == {(3, 3), (3, 5)}


class Doubling(L.LightningModule):
    """A parameter that is 1 at first and doubles at every step."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.network.weight)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def training_step(self, batch, batch_idx):
        return -self.network.weight.square().sum() / 2


def test_exponential_average(tmp_path):
    def average(epochs, checkpoint=None):
        callback = ExponentialAverage(0.75)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=epochs, callbacks=[callback], logger=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
            enable_checkpointing=False,
        )  # fmt: skip
        module = Doubling()
        trainer.fit(module, DataLoader(range(2)), ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return callback.weights["weight"].item(), module.network.weight.item()

    expected = 1.0
    for weight in (2, 4, 8, 16):
        expected = 0.75 * expected + 0.25 * weight
    with pytest.warns() as remarks:
        assert average(2) == (expected, 16)
        average(1)
        assert average(2, tmp_path / "1.ckpt") == (expected, 16)
    assert remarks


def test_a_resumed_average_is_on_the_device_of_its_module():
    callback, module = ExponentialAverage(0.75), Doubling().to("meta")
    callback.load_state_dict({"weights": {"weight": torch.ones(1, 1)}})
    callback.on_fit_start(None, module)
    assert callback.weights["weight"].device == module.device


def test_adamw_takes_the_groups():
    optimizer = adamw(nn.LayerNorm(3), 1e-3, [0.9, 0.99], 0.1, decay_norms=False)
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 2]
