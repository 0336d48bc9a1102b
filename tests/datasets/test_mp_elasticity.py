"""The converter of the official pickles: what it reads, and what it refuses."""

import collections
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from matattn.datasets import mp_elasticity
from matattn.errors import DataError


def entry(number, value, modulus="bulk"):
    atoms = {
        "lattice_mat": ((4 + 0.1 * number) * np.eye(3)).tolist(),
        "coords": [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]],
        "elements": ["Na", "Cl"],
        "cartesian": False,
    }
    return {"id": f"mp-{number}", f"{modulus} modulus": value, "atoms": atoms}


def write(folder, parts, modulus="bulk", protocol=4):
    (folder / "mp_elasticity").mkdir(exist_ok=True)
    files = []
    for split, content in zip(("train", "val", "test"), parts, strict=True):
        file = folder / "mp_elasticity" / f"{modulus}_megnet_{split}.pkl"
        file.write_bytes(pickle.dumps(content, protocol=protocol))
        files.append(file)
    return files


def parts(values, modulus="bulk"):
    entries = [entry(number, value, modulus) for number, value in enumerate(values)]
    return entries[:-2], entries[-2:-1], entries[-1:]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", [float, np.float64, np.array])
def test_logarithms_are_taken_as_they_are(tmp_path, kind, protocol):
    files = write(tmp_path, parts([kind(x) for x in (1.5, 2.0, 2.5, 1.0)]), protocol=protocol)
    output = tmp_path / "a.jsonl.gz"
    assert mp_elasticity.convert("bulk", files, output) == []
    data = mp_elasticity.load("toy", str(output), ["log10_bulk_modulus"], [2, 1, 1])
    assert data.labels()[:, 0].tolist() == [1.5, 2.0, 2.5, 1.0]
    assert data.split.tolist() == ["train", "train", "val", "test"]
    assert data.items[3].id == "mp-3" and data.items[3].z.tolist() == [11, 17]
    assert data.items[3].cell[0, 1, 1] == pytest.approx(4.3)


def test_gigapascals_are_recognised(tmp_path):
    files = write(tmp_path, parts([100.0, -3.0, 10.0, 400.0, 50.0], "shear"), "shear")
    output = tmp_path / "a.jsonl.gz"
    remarks = mp_elasticity.convert("shear", files, output)
    assert "their logarithms were taken" in remarks[0]
    assert "shear_megnet_train.pkl, entry 1: left out, its modulus is -3 GPa" in remarks[1]
    data = mp_elasticity.load("toy", str(output), ["log10_shear_modulus"], [2, 1, 1])
    assert data.labels()[:, 0] == pytest.approx(np.log10([100, 10, 400, 50]))


@pytest.mark.parametrize(
    "values, message",
    [
        ([3.0, 4.0, 5.0, 6.0], "median of 4.5 and a maximum of 6 are neither in GPa nor in log10"),
        ([1.0, float("nan"), 2.0], "some that are not finite"),
        ([1.0, "high", 2.0], "train.pkl, entry 0|val.pkl, entry 0: has no number 'bulk modulus'"),
    ],
)
def test_other_values_are_refused(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        mp_elasticity.convert("bulk", write(tmp_path, parts(values)), tmp_path / "a.jsonl.gz")
    assert not (tmp_path / "a.jsonl.gz").exists()


def test_a_bad_entry_is_left_out(tmp_path):
    train, val, test = parts([1.0, 2.0, 2.1, 1.1])
    train[0]["atoms"]["elements"] = ["Na", "Xx"]
    del train[1]["atoms"]["coords"]
    remarks = mp_elasticity.convert("bulk", write(tmp_path, (train, val, test)), tmp_path / "a.gz")
    assert ["entry 0" in remarks[0], "entry 1" in remarks[1], len(remarks)] == [True, True, 2]


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda mark: Hostile(os.system, f"touch {mark}"), "posix.system"),
        (lambda mark: Hostile(eval, f"open({str(mark)!r}, 'w')"), "builtins.eval"),
        (lambda mark: Hostile(getattr, "text", "upper"), "builtins.getattr"),
        (lambda mark: Hostile(np.load, str(mark)), "numpy.load"),
        (lambda mark: collections.OrderedDict(a=1), "collections.OrderedDict"),
        (
            lambda mark: np.array([Hostile(os.system, f"touch {mark}")], dtype=object),
            "posix.system",
        ),
    ],
)
def test_hostile_pickles_are_refused_by_name(tmp_path, make, name):
    mark = tmp_path / "mark"
    train, val, test = parts([1.0, 2.0, 2.1])
    train.append({"id": make(mark)})
    files = write(tmp_path, (train, val, test))
    with pytest.raises(DataError, match=f"train.pkl: asks for {name}, which is neither .*refused"):
        mp_elasticity.convert("bulk", files, tmp_path / "a.jsonl.gz")
    assert not mark.exists() and not (tmp_path / "a.jsonl.gz").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        pickle.dumps([1])[:-3],
        b"c__main__\n__dict__\n.",
        b"cos\nsystem\n(S'x'\ntR.",
    ],
)
def test_damaged_pickles(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(DataError, match="a.pkl: (cannot be read as a pickle|asks for)"):
        mp_elasticity.unpickle(tmp_path / "a.pkl")


def test_dotted_names_reach_nothing(tmp_path):
    """Protocol 4 allows ``dtype.__init__.__globals__``; only whole known names count."""
    content = b"\x80\x04\x8c\x05numpy\x8c\x10dtype.__reduce__\x93."
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(DataError, match="asks for numpy.dtype.__reduce__"):
        mp_elasticity.unpickle(tmp_path / "a.pkl")


def test_command(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "matattn.datasets.mp_elasticity", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert "figshare" in run("--help").stdout
    absent = run("bulk", str(tmp_path))
    assert absent.returncode == 2 and absent.stderr.count("\n") == 1
    assert "bulk_megnet_train.pkl: no such file; to download it: python -m" in absent.stderr
    write(tmp_path, parts([1.5, 2.0, 2.5, 1.0]))
    done = run("bulk", str(tmp_path))
    output = tmp_path / "crystals" / "mp2018_bulk_modulus.jsonl.gz"
    assert done.returncode == 0 and done.stdout == f"wrote {output}\n"
    assert output.is_file()


def test_the_loader_names_the_command(tmp_path):
    with pytest.raises(DataError, match="python -m matattn.datasets.mp_elasticity shear --down"):
        mp_elasticity.load("mp_shear_modulus", str(tmp_path / "a"), ["log10_shear_modulus"])
