"""The made-up energy: its two parts, and that one does not give the other away."""

import numpy as np
import pytest

from matattn.datasets.geometry_probe import load, morse
from matattn.errors import ConfigError
from matattn.structures.metrics import baselines


def test_dimer_in_a_large_cell():
    pos = np.array([[0.0, 0, 0], [2.5, 0, 0]])
    assert morse(pos, 40 * np.eye(3)) == pytest.approx(-1)  # two atoms, each with one bond
    assert morse(pos + 7, 40 * np.eye(3)) == pytest.approx(-1)


def test_parts_have_their_shares():
    composition, geometry, both = (load("probe", share) for share in (1.0, 0.0, 0.5))
    labels = [data.labels()[:, 0] for data in (composition, geometry, both)]
    assert np.allclose(labels[2], (labels[0] + labels[1]) / 2, atol=1e-5)
    train = both.rows("train")
    for values in labels[:2]:
        assert values[train].mean() == pytest.approx(0, abs=1e-5)
        assert values[train].std() == pytest.approx(1, abs=1e-5)
    test = both.rows("test")
    for data, left in ((composition, 0.05), (geometry, 0.95)):
        error = {
            name: np.abs(predicted - data.labels())[test].mean()
            for name, predicted in baselines(data).items()
        }
        share = error["linear_composition"] / error["mean"]
        assert share < left if data is composition else share > left


def test_wrong_values_are_named():
    with pytest.raises(ConfigError, match="expected a number from 0 to 1"):
        load("probe", 1.2)
