"""Averages of the weights over a training."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from matattn.training.averaging import ExponentialAverage, LastEpochsAveraging


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


def fit(folder, callback, epochs, checkpoint=None):
    """The weight after two steps an epoch; the checkpoint of the end is ``<epochs>.ckpt``."""
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[callback], logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        enable_checkpointing=False,
    )  # fmt: skip
    module = Doubling()
    trainer.fit(module, DataLoader(range(2)), ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return module.network.weight.item()


def test_exponential_average(tmp_path):
    def average(epochs, checkpoint=None):
        callback = ExponentialAverage(0.75)
        weight = fit(tmp_path, callback, epochs, checkpoint)
        return callback.weights["weight"].item(), weight

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


@pytest.mark.filterwarnings("ignore")  # lightning's remarks on a trainer without loggers
@pytest.mark.parametrize("epochs, expected", [(0, 64), (1, 48), (2, 30), (3, 21)])
def test_mean_of_the_last_epochs(tmp_path, epochs, expected):
    """Weights 2, 4, 8, 16, 32, 64 after the steps of three epochs."""
    assert fit(tmp_path, LastEpochsAveraging(epochs), 3) == expected
