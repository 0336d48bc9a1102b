"""Structures of a model: their dynamics have the temperature that was asked for."""

import numpy as np
import pytest
import torch

from matattn.errors import DataError
from matattn.potentials import sampling
from matattn.potentials.dataset import Labeller
from matattn.potentials.sampling import Atoms

SPRING = 2.0  # eV/Å^2
GRID = 3.0 * np.indices((3, 3, 3)).reshape(3, -1).T
CRYSTAL = Atoms(np.full(27, 14), GRID, 9.0 * np.eye(3))


def springs(batch):
    """Every atom on a spring of its own, also in strained cells."""
    places = torch.from_numpy(GRID / 9.0).repeat(batch.num_graphs, 1)
    away = batch.pos - torch.einsum("na,nab->nb", places, batch.cell[batch.batch])
    squares = away.square().sum(1)
    return SPRING / 2 * squares.new_zeros(batch.num_graphs).index_add(0, batch.batch, squares)


MODEL = Labeller("springs", springs, 3.5)


def test_dynamics_have_their_temperatures():
    temperatures, frames = (300.0, 1200.0), 60
    generator = np.random.default_rng(0)
    along = sampling.dynamics(MODEL, [CRYSTAL] * 2, temperatures, frames, 200, generator)
    assert len(along) == 2 * frames
    for place, temperature in enumerate(temperatures):  # frames of the trajectories alternate
        squares = np.mean([(atoms.pos - GRID) ** 2 for atoms in along[place::2]])
        assert SPRING * squares == pytest.approx(sampling.BOLTZMANN * temperature, rel=0.1)


def test_labels_are_those_of_the_model():
    moved = sampling.rattled(CRYSTAL, 0.3, np.random.default_rng(1))
    (frame,) = sampling.labelled(MODEL, [moved], "hot", "val")
    np.testing.assert_allclose(frame.forces, -SPRING * (moved.pos - GRID), atol=1e-12)
    assert frame.energy == pytest.approx(SPRING / 2 * ((moved.pos - GRID) ** 2).sum())
    assert frame.id == "val-hot-1" and frame.group == "hot"


def test_strained_crystals_keep_their_fractions():
    bent = sampling.strained(CRYSTAL, 0.1, np.random.default_rng(2))
    np.testing.assert_allclose(bent.pos @ np.linalg.inv(bent.cell), GRID / 9.0, atol=1e-12)
    assert 0 < np.abs(bent.cell - CRYSTAL.cell).max() < 0.91


def test_data_sets_are_made_by_split():
    def frames(size, generator, split):
        crystals = [sampling.rattled(CRYSTAL, 0.1, generator) for _ in range(size)]
        return sampling.labelled(MODEL, crystals, "hot", split)

    data = sampling.made("springs", MODEL, [3, 1, 2], 0, "springs 1", frames, "a note")
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [3, 1, 2]
    assert [frame.id for frame in data.frames][3:] == ["val-hot-1", "test-hot-1", "test-hot-2"]
    assert data.labeller is MODEL and data.note == "a note"
    with pytest.raises(DataError, match="expected numbers of train, val and test"):
        sampling.made("springs", MODEL, [3, 1], 0, "springs 1", frames, "")
