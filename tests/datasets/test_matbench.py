"""Matbench's files and folds, on small files in its format."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matattn.datasets import matbench
from matattn.errors import DataError


def write(path, count=23, column="last phdos peak", change=lambda data: None):
    data = []
    for number in range(count):
        crystal = Structure(Lattice.cubic(4 + 0.1 * number), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
        data.append([crystal.as_dict(), 100.0 + number])
    change(data)
    content = {"index": list(range(count)), "columns": ["structure", column], "data": data}
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    return str(path)


@pytest.fixture
def small(monkeypatch):
    for name, task in matbench.TASKS.items():
        monkeypatch.setitem(matbench.TASKS, name, dataclasses.replace(task, rows=23))


def test_official_format(tmp_path, small):
    path = write(tmp_path / "a.json.gz")
    tests = [matbench.load("toy", path, "phonons", fold) for fold in range(5)]
    assert [len(data.rows("test")) for data in tests] == [5, 5, 5, 4, 4]
    assert sorted(np.concatenate([data.rows("test") for data in tests])) == list(range(23))
    data = tests[0]
    assert data.items[9].id == "mb-phonons-10" and data.items[9].y.item() == 109
    assert (data.targets[0].name, data.targets[0].unit) == ("last_phdos_peak", "1/cm")
    assert set(data.split) == {"train", "test"}


def test_a_search_sees_no_row_that_the_fold_tests(tmp_path, small):
    path = write(tmp_path / "a.json.gz")
    data = matbench.load("toy", path, "phonons", 2)
    inner = matbench.load("toy", path, "phonons", 2, inner=True)
    assert (inner.split[data.rows("test")] == "").all()
    assert not len(inner.rows("test"))
    train, val = inner.rows("train"), inner.rows("val")
    assert sorted([*train, *val]) == data.rows("train").tolist()
    assert 2 <= len(val) <= 5


@pytest.mark.parametrize("task", [name for name in matbench.TASKS if name != "mp_is_metal"])
def test_units(tmp_path, small, task):
    path = write(tmp_path / "a.json.gz", column=matbench.TASKS[task].column)
    data = matbench.load("toy", path, task, 0)
    assert data.targets[0].unit == matbench.TASKS[task].unit
    assert data.labels()[3, 0] == 103


def test_a_bad_row_moves_no_other_row_to_another_fold(tmp_path, small):
    def change(data):
        data[2][0]["sites"][1]["species"][0]["occu"] = 0.5
        data[5][0] = None

    whole = matbench.load("toy", write(tmp_path / "a.json.gz"), "phonons", 1)
    data = matbench.load("toy", write(tmp_path / "b.json.gz", change=change), "phonons", 1)
    assert "row 3 (mb-phonons-03): site 2 has partial occupancy" in data.skipped[0]
    assert "row 6 (mb-phonons-06): bad or missing value" in data.skipped[1]
    places = dict(zip([item.id for item in whole.items], whole.split, strict=True))
    assert [places[item.id] for item in data.items] == data.split.tolist()


@pytest.mark.parametrize("count", [10, 23, 636, 1265])
def test_folds_are_those_of_scikit_learn(count):
    from sklearn import model_selection as selection

    folds = matbench.folds(count)
    official = selection.KFold(5, shuffle=True, random_state=18012019).split(np.empty(count))
    for number, (train, test) in enumerate(official):
        assert np.flatnonzero(folds == number).tolist() == test.tolist()
        assert np.flatnonzero(folds != number).tolist() == train.tolist()


@pytest.mark.parametrize("count", [23, 24, 636, 1265])
def test_stratified_folds_are_those_of_scikit_learn(count):
    from sklearn import model_selection as selection

    labels = (np.random.default_rng(count).random(count) < 0.4).astype(int)
    folds = matbench.stratified_folds(labels)
    scheme = selection.StratifiedKFold(5, shuffle=True, random_state=18012019)
    for number, (_, test) in enumerate(scheme.split(np.empty(count), labels)):
        assert np.flatnonzero(folds == number).tolist() == test.tolist()


def test_metals_are_true_or_false_and_folds_are_stratified(tmp_path, small):
    def classes(data):
        for number, cells in enumerate(data):
            cells[1] = number % 4 == 1

    path = write(tmp_path / "a.json.gz", column="is_metal", change=classes)
    data = matbench.load("toy", path, "mp_is_metal", 0)
    assert data.targets[0].is_class and data.labels()[:4, 0].tolist() == [0, 1, 0, 0]
    expected = matbench.stratified_folds((np.arange(23) % 4 == 1).astype(int))
    assert data.rows("test").tolist() == np.flatnonzero(expected == 0).tolist()

    def broken(data):
        classes(data)
        data[5][0] = None

    path = write(tmp_path / "b.json.gz", column="is_metal", change=broken)
    with pytest.raises(DataError, match="from the labels of all rows, and 1 could not be read"):
        matbench.load("toy", path, "mp_is_metal", 0)


def test_mistakes(tmp_path, small):
    path = write(tmp_path / "a.json.gz")
    with pytest.raises(DataError, match="data.task='phonon': choose dielectric, jdft2d, "):
        matbench.load("toy", path, "phonon", 0)
    with pytest.raises(DataError, match="expt_is_metal: its rows are compositions without"):
        matbench.load("toy", path, "expt_is_metal", 0)
    with pytest.raises(DataError, match="data.fold=5: choose 0 to 4"):
        matbench.load("toy", path, "phonons", 5)
    with pytest.raises(DataError, match="has 22 rows, matbench_phonons has 23"):
        matbench.load("toy", write(tmp_path / "b.json.gz", 22), "phonons", 0)
    with pytest.raises(DataError, match="no column for target 'last_phdos_peak'.* file: e_form"):
        matbench.load("toy", write(tmp_path / "c.json.gz", column="e_form"), "phonons", 0)
    for content in (b"{}", gzip.compress(b"[]"), gzip.compress(b'{"columns": []}')):
        (tmp_path / "d.json.gz").write_bytes(content)
        with pytest.raises(DataError, match="d.json.gz: not a Matbench file"):
            matbench.load("toy", str(tmp_path / "d.json.gz"), "phonons", 0)


def test_phonons(data_dir):
    path = str(data_dir / "crystals" / "matbench_phonons.jsonl.gz")
    sizes = []
    for fold in range(5):
        data = matbench.load("matbench_phonons", path, "phonons", fold)
        sizes.append(len(data.rows("test")))
    assert sizes == [253] * 5 and data.skipped == []
    mean = data.labels().mean()
    # mean absolute deviation that Matbench publishes for the task
    assert np.abs(data.labels() - mean).mean() == pytest.approx(323.787, abs=0.01)
