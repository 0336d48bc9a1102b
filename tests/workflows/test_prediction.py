"""Prediction when memory is short."""

import pytest
import torch
from pymatgen.core import Lattice, Structure

from matattn.models.crystalformer import Crystalformer
from matattn.structures.structure import to_tensors
from matattn.workflows.structures.predict import Predictor, encode

ARGUMENTS = {"num_targets": 1, "dim": 8, "num_heads": 1, "num_blocks": 1, "ffn_dim": 8}


@pytest.fixture
def network():
    """Trained enough to have widths of its own: else every batch makes its own."""
    torch.manual_seed(0)
    network = Crystalformer(**ARGUMENTS).eval()
    for block in network.blocks:
        block.attention.sigma_fitted.fill_(True)
    return network


def crystals(*sizes):
    return [
        Structure(Lattice.from_parameters(4 * n, 4, 4, 90, 90, 90), ["Li"] * n,
                  [[k / n, 0, 0] for k in range(n)])
        for n in sizes
    ]  # fmt: skip


def limited(monkeypatch, atoms, error):
    """A memory that holds batches of so many atoms; returns the sizes that were tried."""
    original, tried = Crystalformer.features, []

    def features(self, batch):
        tried.append(len(batch.z))
        if len(batch.z) > atoms:
            raise error
        return original(self, batch)

    monkeypatch.setattr(Crystalformer, "features", features)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried ..."),
        MemoryError(),
    ],
)
def test_batches_are_halved_until_they_fit(network, monkeypatch, error):
    items = [to_tensors(structure) for structure in crystals(3, 1, 2, 3, 2, 1, 8)]
    expected = encode(network, items)
    tried, done = limited(monkeypatch, 4, error), []
    result = encode(network, items, advance=done.append)
    assert tried[0] == 20 and sum(done) == len(items)
    assert result[6].isnan().all()  # does not fit alone
    assert torch.allclose(result[:6], expected[:6], atol=1e-6)


def test_other_errors_are_not_mistaken(network, monkeypatch):
    limited(monkeypatch, 0, RuntimeError("shapes disagree"))
    with pytest.raises(RuntimeError, match="shapes disagree"):
        encode(network, [to_tensors(crystals(1)[0])])


def test_a_structure_that_does_not_fit_is_a_row(network, monkeypatch):
    limited(monkeypatch, 4, MemoryError())
    config = {
        "targets": [{"name": "band_gap", "unit": "eV"}],
        "normaliser": {"mean": [0.0], "std": [1.0]},
        "elements": [3],
    }
    small, large = Predictor(network, config).predict(crystals(2, 8))
    assert small["status"] == "ok"
    assert large["status"] == "PredictionError" and "memory for 8 atoms" in large["message"]
    (alone,) = Predictor(network, config).predict(crystals(8))
    assert alone == large
