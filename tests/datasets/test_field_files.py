"""Arrays in the files of published data sets."""

import pickle
import sys

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from matattn.datasets.field_files import (
    check_shape,
    mat_arrays,
    published_split,
    quads,
    read_npy,
    read_npz,
    row_numbers,
    take,
)
from matattn.errors import DataError

ARRAY = np.arange(4 * 3 * 5, dtype=np.float64).reshape(4, 3, 5)


def save_v73(path, **arrays):
    """As MATLAB 7.3 does: HDF5 after a header of 512 bytes, axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, array in arrays.items():
            file[key] = array.T
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def save_hdf5(path, **arrays):
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array.T


def save_v5(path, **arrays):
    savemat(path, arrays)


WRITERS = [save_v5, save_v73, save_hdf5]


@pytest.mark.parametrize("save", WRITERS)
def test_matlab_files_of_all_versions(tmp_path, save):
    save(tmp_path / "a.mat", coeff=ARRAY, other=ARRAY)
    with mat_arrays(tmp_path / "a.mat", {"coeff": (None, 3, 5)}, "somewhere") as arrays:
        assert arrays["coeff"].shape == (4, 3, 5)
        pieces = slice(0, 1), slice(2, 4)
        np.testing.assert_array_equal(take(arrays["coeff"], pieces), ARRAY[[0, 2, 3]])
        some = take(arrays["coeff"], pieces, slice(None, None, 2), slice(1, 3))
        np.testing.assert_array_equal(some, ARRAY[[0, 2, 3], ::2, 1:3])
        assert some.dtype == np.float32


@pytest.mark.parametrize("save", WRITERS)
def test_matlab_files_that_cannot_be_used(tmp_path, save):
    path = tmp_path / "a.mat"

    def refused(message, **shapes):
        with pytest.raises(DataError, match=message):
            with mat_arrays(path, shapes, "https://somewhere"):
                pytest.fail("should not be opened")

    refused(
        "a.mat: no such file or folder; get it from https://somewhere and .* MATATTN_DATA", a=()
    )
    save(path, coeff=ARRAY)
    refused("a.mat: has no array 'sol'", sol=(None,))
    refused(
        r"a.mat: coeff: has the shape \(4, 3, 5\), the published one is \(any, 4\)", coeff=(None, 4)
    )
    refused(r"is \(4, 3, 6\); is this another version", coeff=(4, 3, 6))
    path.write_bytes(path.read_bytes()[:-100])
    if save is save_v5:
        refused("a.mat: cannot be read as a MATLAB file", coeff=(None, None, None))
    path.write_bytes(b"no MATLAB file")
    refused("a.mat: cannot be read as a MATLAB file", coeff=(None,))


def test_without_h5py(tmp_path, monkeypatch):
    save_v73(tmp_path / "a.mat", coeff=ARRAY)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"a.mat: needs h5py: pip install 'matattn\[mesh\]'"):
        with mat_arrays(tmp_path / "a.mat", {"coeff": (4, 3, 5)}, ""):
            pass


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_numpy_files(tmp_path):
    np.save(tmp_path / "a.npy", ARRAY)
    array = read_npy(tmp_path / "a.npy", (None, 3, 5), "somewhere")
    assert isinstance(array, np.memmap)
    np.testing.assert_array_equal(array, ARRAY)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    np.save(tmp_path / "c.npy", np.array([Bomb()], dtype=object))
    (tmp_path / "d.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
    for name in "bcd":
        with pytest.raises(DataError, match=f"{name}.npy: cannot be read as a NumPy array"):
            read_npy(tmp_path / f"{name}.npy", (1,), "somewhere")
    with pytest.raises(DataError, match="e.npy: no such file or folder; get it from somewhere"):
        read_npy(tmp_path / "e.npy", (1,), "somewhere")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.mat"])
def test_a_pointer_of_git_lfs(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match=f"{name}: is a pointer of Git LFS, .*: git lfs pull"):
        match path.suffix:
            case ".npy":
                read_npy(path, (1,), "")
            case ".npz":
                read_npz(path, {"pos": (1,)}, "")
            case _:
                with mat_arrays(path, {"pos": (1,)}, ""):
                    pass


def test_npz_files_are_read_in_part(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, pos=ARRAY, _metadata=np.array([Bomb()], dtype=object))
    np.testing.assert_array_equal(read_npz(path, {"pos": (4, 3, 5)}, "")["pos"], ARRAY)
    with pytest.raises(DataError, match="a.npz: disp .*; expected disp, pos"):
        read_npz(path, {"disp": (None,), "pos": (None,)}, "")
    with pytest.raises(DataError, match="a.npz: cannot be read as a .npz file: Object arrays"):
        read_npz(path, {"_metadata": (1,)}, "")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="a.npz: cannot be read as a .npz file"):
        read_npz(path, {"pos": (4, 3, 5)}, "")


def test_splits(tmp_path):
    pieces, split = published_split(tmp_path, 20, (5, 1, 3))
    assert row_numbers(pieces) == list(range(9))
    assert split.tolist() == ["train"] * 5 + ["val"] + ["test"] * 3
    pieces, split = published_split(tmp_path, 20, (5, 0, 3), test_last=True)
    assert row_numbers(pieces) == [0, 1, 2, 3, 4, 17, 18, 19]
    assert split.tolist() == ["train"] * 5 + ["test"] * 3
    with pytest.raises(DataError, match=r"has 20 samples, the split \[18, 0, 3\] needs 21"):
        published_split(tmp_path, 20, (18, 0, 3))


def test_quads_go_around():
    cells = quads((3, 4))
    assert cells.shape == (6, 4)
    place = np.stack(np.meshgrid(np.arange(3), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    corner = place[cells]
    side = np.roll(corner, -1, axis=1) - corner
    assert (np.abs(side).sum(-1) == 1).all()  # no diagonal
    area = (side[:, 0, 0] * side[:, 1, 1] - side[:, 0, 1] * side[:, 1, 0]).tolist()
    assert area == [1] * 6
    assert len({tuple(sorted(c)) for c in cells.tolist()}) == 6


def test_shapes():
    check_shape("a", (2, 3), (None, 3))
    for wanted in ((2,), (2, 3, None), (2, 4)):
        with pytest.raises(DataError, match=r"a: has the shape \(2, 3\)"):
            check_shape("a", (2, 3), wanted)
