"""The side-by-side benchmark, on a few random crystals."""

import importlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from matattn.structures.structure import tensors_from_arrays, to_data


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("peers")


def crystals(number: int) -> list:
    generator = np.random.default_rng(0)
    items = []
    for atoms in generator.integers(1, 5, number):
        cell = 4 * np.eye(3) + 0.3 * generator.standard_normal((3, 3))
        z, frac = generator.integers(1, 90, atoms), generator.random((atoms, 3))
        items.append(to_data(tensors_from_arrays(z, frac, cell), [generator.standard_normal()]))
    return items


@pytest.mark.parametrize("name", ["Crystalformer", "Crystalformer, angular", "CGCNN", "SchNet"])
def test_networks_train_and_predict_alike_alone_and_in_batches(peers, name):
    if name == "CGCNN" and find_spec("jarvis") is None:
        pytest.skip("its element features come with jarvis-tools")
    contender, items = peers.CONTENDERS[name](), crystals(8)
    torch.manual_seed(0)
    network = contender.network()
    before = [parameter.clone() for parameter in network.parameters()]
    graphs = [contender.training_graph(item) for item in items]
    labels = torch.cat([item.y for item in items])
    assert peers.train(contender, network, graphs, labels, steps=2, seed=0) > 0
    moved = zip(before, network.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in moved)
    batched = peers.outputs(contender, network, [contender.graph(item) for item in items])
    alone = peers.outputs(contender, network, graphs, size=1)
    assert batched.shape == (8, 1) and batched.isfinite().all()
    torch.testing.assert_close(alone, batched, rtol=1e-2, atol=1e-3)


def test_the_table_ranks_networks_by_their_mean_error(peers):
    rows = [
        {"network": "a", "seed": "0", "val_mae": "0.3", "parameters": "1000"},
        {"network": "b", "seed": "0", "val_mae": "0.1", "parameters": "2000"},
        {"network": "b", "seed": "1", "val_mae": "0.3", "parameters": "2000"},
    ]
    lines = peers.markdown(rows, "mp2018").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| b", "| a"]
    assert "| b | 2,000 |" in lines[2] and "0.2000 ± 0.1414" in lines[2]
