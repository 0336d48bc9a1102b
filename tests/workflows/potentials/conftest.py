"""A small potential, trained once, and the exact model behind its data."""

import pytest
import torch

from matattn.datasets import stillinger_weber
from matattn.workflows.potentials.energy_model import Exact
from matattn.workflows.run import run

SMALL = ["model=potential", "data.sizes=[24,4,6]", "model.dim=16", "model.hidden=16",
         "model.channels=8", "model.num_radial=10", "task.batch_size=4",
         "task.physics=false", "trainer.accelerator=cpu"]  # fmt: skip


@pytest.fixture(scope="session")
def small():
    """The overrides of a small training."""
    return SMALL


@pytest.fixture(autouse=True)
def one_thread():
    """Its number decides about the last bits, and is chosen by measurement."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained(compose, tmp_path_factory):
    """A finished run: its folder and metrics."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run(compose(*SMALL, "trainer.max_epochs=12", f"paths.output_dir={folder}"))


@pytest.fixture
def exact():
    """The Stillinger-Weber model."""
    return Exact(stillinger_weber.LABELLER)
