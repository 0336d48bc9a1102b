"""Trainings of a potential that start from another one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import matattn
from matattn.errors import ConfigError
from matattn.structures.derivatives import energy_forces_stress
from matattn.workflows.potentials.errors import errors_of
from matattn.workflows.potentials.fine_tune import start_from
from matattn.workflows.potentials.predict import Potential
from matattn.workflows.potentials.train import PotentialTask
from matattn.workflows.run import read, run

ALSO = ["data.sizes=[12,2,2]", "task.batch_size=4", "task.physics=false",
        "trainer.accelerator=cpu", "trainer.max_epochs=1"]  # fmt: skip


@pytest.fixture
def start(trained):
    return f"init_from={trained[0] / 'model'}"


def prepared(compose, *overrides):
    config, task = read(compose("model=potential", *ALSO, *overrides))
    assert task is PotentialTask
    return task.prepare(config)


def test_it_begins_where_the_potential_ended(compose, start, trained):
    task = prepared(compose, start)
    before = errors_of(matattn.load(trained[0] / "model").network, task.dataset).metrics()
    after = errors_of(task.network, task.dataset).metrics()
    for name in ("forces", "stress"):
        assert after["train"][name]["mae"] == pytest.approx(before["train"][name]["mae"], rel=1e-5)
    assert after["train"]["energy_per_atom"]["rmse"] <= before["train"]["energy_per_atom"]["rmse"]


def test_another_zero_of_energy_is_found(compose, start, trained):
    frames = [prepared(compose).dataset.frames[row] for row in range(12)]
    shifted = [replace(frame, energy=frame.energy + 7.5 * len(frame.z)) for frame in frames]
    source = matattn.load(trained[0] / "model").network
    networks = [prepared(compose, start).network for _ in range(2)]
    for network, given in zip(networks, (frames, shifted), strict=True):
        start_from(network, trained[0] / "model", given)
    batch = Potential(source, {}).batch(
        [{"z": frame.z, "pos": frame.pos, "cell": frame.cell} for frame in frames]
    )
    plain, moved = (energy_forces_stress(network, batch) for network in networks)
    sizes = torch.tensor([len(frame.z) for frame in frames])
    assert (moved.energy - plain.energy) / sizes == pytest.approx(7.5 * np.ones(12), abs=1e-4)
    assert torch.equal(moved.forces, plain.forces)


def test_a_run_says_where_it_began(compose, start, tmp_path):
    run(compose("model=potential", *ALSO, start, f"paths.output_dir={tmp_path}"))
    assert "started from " in (tmp_path / "report.md").read_text()


def test_a_network_of_properties_is_refused(compose, tmp_path):
    with pytest.raises(ConfigError, match="mp-band-gap is a network of structures"):
        run(compose("model=potential", "init_from=mp-band-gap", f"paths.output_dir={tmp_path}"))


def test_elements_that_the_potential_does_not_know_are_refused(compose, trained):
    task = prepared(compose)
    frames = [replace(frame, z=np.full_like(frame.z, 32)) for frame in task.dataset.frames[:3]]
    with pytest.raises(ConfigError, match="knows Si, and the training structures have Ge"):
        start_from(task.network, trained[0] / "model", frames)
