"""The Stillinger-Weber model against its published numbers, and what is made with it."""

import numpy as np
import pytest
import torch

from matattn.datasets import stillinger_weber as model
from matattn.errors import DataError
from matattn.potentials.sampling import batch
from matattn.structures.derivatives import energy_forces_stress


def evaluate(pos, cell):
    return energy_forces_stress(model.energy, batch([model.silicon(pos, cell)], model.CUTOFF))


def triplets(pos, cell):
    """The energy as the paper writes it, with a loop over triplets."""
    images = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T @ cell
    total = 0.0
    for i in range(len(pos)):
        vectors = (pos[None] + images[:, None] - pos[i]).reshape(-1, 3)
        lengths = np.linalg.norm(vectors, axis=1)
        near = (lengths > 1e-6) & (lengths < model.CUTOFF)
        vectors, r = vectors[near], lengths[near]
        total += 0.5 * np.sum(model.EPSILON * model.A * (model.B * (model.SIGMA / r) ** 4 - 1)
                              * np.exp(model.SIGMA / (r - model.CUTOFF)))  # fmt: skip
        h = np.exp(model.GAMMA * model.SIGMA / (r - model.CUTOFF))
        for j in range(len(r)):
            for k in range(j):
                cosine = vectors[j] @ vectors[k] / r[j] / r[k]
                total += model.EPSILON * model.LAMBDA * h[j] * h[k] * (cosine + 1 / 3) ** 2
    return total


def test_energy_is_that_of_the_sums_over_triplets():
    pos, cell = model.crystal(2)
    pos = pos + np.random.default_rng(0).normal(scale=0.15, size=pos.shape)
    assert evaluate(pos, cell).energy.item() == pytest.approx(triplets(pos, cell), abs=1e-9)


def test_diamond_has_the_published_energy_and_elastic_constants():
    pos, cell = model.crystal(1)
    found = evaluate(pos, cell)
    assert found.energy.item() / 8 == pytest.approx(-4.3366, abs=2e-4)
    assert found.forces.abs().max() < 1e-12

    def stress(strain):
        deformed = np.eye(3) + strain
        return evaluate(pos @ deformed, cell @ deformed).stress[0].numpy() * 160.21766

    size, strain = 1e-4, np.zeros((3, 3))
    strain[0, 0] = size
    slope = (stress(strain) - stress(-strain)) / (2 * size)
    assert slope[0, 0] == pytest.approx(151.4, rel=0.01)  # Cowley, PRL 60, 2379 (1988)
    assert slope[1, 1] == pytest.approx(76.4, rel=0.01)


def test_frames_are_of_all_kinds_and_repeatable(monkeypatch, tmp_path):
    data = model.load("sw", [20, 4, 6], seed=3)
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [20, 4, 6]
    assert {frame.group for frame in data.frames} == {"MD", "vacancy", "surface", "strained"}
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path))  # not what the first call has kept
    assert data.fingerprint() == model.load("sw", [20, 4, 6], seed=3).fingerprint()
    assert data.fingerprint() != model.load("sw", [20, 4, 6], seed=4).fingerprint()
    warm = [frame for frame in data.frames if frame.group == "MD"]
    assert all(0.1 < np.sqrt(np.mean(frame.forces**2)) < 4 for frame in warm)
    assert not torch.is_grad_enabled() or not data.doubts
    with pytest.raises(DataError, match="expected numbers of train, val and test"):
        model.load("sw", [0, 1, 1])
