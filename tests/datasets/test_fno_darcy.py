"""FNO's Darcy files, on small ones in their format."""

import numpy as np
import pytest
from scipy.io import savemat

from matattn.datasets import fno_darcy
from matattn.errors import DataError


@pytest.fixture
def arrays(tmp_path):
    random = np.random.default_rng(0)
    found = {}
    for file in ("smooth1", "smooth2"):
        found[file] = {key: random.random((6, 11, 11)) for key in ("coeff", "sol")}
        unread = {"Kcoeff": np.zeros((6, 2))}
        savemat(tmp_path / f"piececonst_r421_N1024_{file}.mat", found[file] | unread)
    return found


def test_every_fifth_node(tmp_path, arrays):
    data = fno_darcy.load("d", str(tmp_path), 5, 11, (4, 1, 2))
    assert data.split.tolist() == ["train"] * 4 + ["val"] + ["test"] * 2
    assert data.grid == (3, 3) and data.aligned
    assert [item.id for item in data.items[4:6]] == ["smooth1-0004", "smooth2-0000"]
    sample, file = data.items[6], arrays["smooth2"]
    node = 1 * 3 + 2  # row 1, column 2
    np.testing.assert_allclose(sample.pos[node], [1, 0.5])  # x along the last axis
    np.testing.assert_allclose(sample.x[node], file["coeff"][1, 5, 10], rtol=1e-6)
    np.testing.assert_allclose(sample.y[node], file["sol"][1, 5, 10], rtol=1e-6)
    assert [f.scaling for f in (*data.coordinates, *data.inputs)] == ["none", "none", "standard"]
    assert fno_darcy.load("d", str(tmp_path), 1, 11, (4, 0, 2)).grid == (11, 11)


def test_mistakes(tmp_path, arrays):
    with pytest.raises(DataError, match="data.stride=3: must divide 10"):
        fno_darcy.load("d", str(tmp_path), 3, 11, (4, 0, 2))
    with pytest.raises(DataError, match=r"smooth1.mat: coeff: has the shape \(6, 11, 11\)"):
        fno_darcy.load("d", str(tmp_path))
    with pytest.raises(DataError, match=r"smooth2.mat: has 6 samples, the split \[7, 0, 0\]"):
        fno_darcy.load("d", str(tmp_path), 5, 11, (4, 0, 7))
    (tmp_path / "piececonst_r421_N1024_smooth2.mat").unlink()
    with pytest.raises(DataError, match=r"smooth2.mat: no such file .*FNO.tar.gz.*MATATTN_DATA"):
        fno_darcy.load("d", str(tmp_path), 5, 11, (4, 0, 2))
