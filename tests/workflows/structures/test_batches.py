"""Batches from neighbour lists in files: the same weights as from memory."""

import multiprocessing

import numpy as np
import pytest
import torch

from matattn.datasets import crystals
from matattn.errors import ConfigError
from matattn.structures import neighbor_store
from matattn.structures.image_rule import ImageRule
from matattn.workflows import run
from matattn.workflows.structures import batches
from matattn.workflows.structures.batches import Batches


@pytest.fixture
def in_files(monkeypatch, tmp_path):
    """Lists of several crystals a file, also of small sets."""
    monkeypatch.setattr(batches, "MOST_IN_MEMORY", 0)
    monkeypatch.setattr(neighbor_store, "_ATOMS", 16)
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_training_from_files_has_the_same_weights(
    config, assert_same_bits, finished, table, tmp_path, in_files
):
    run.run(config(table, tmp_path / "run"))
    assert_same_bits(finished[0], tmp_path / "run")
    assert (tmp_path / "run/predictions.csv").read_text() == (
        finished[0] / "predictions.csv"
    ).read_text()
    (folder,) = in_files.glob("neighbors-*")
    assert len(list(folder.iterdir())) > 3


def test_a_resumed_training_from_files_has_the_same_weights(
    config, assert_same_bits, finished, table, tmp_path, in_files, monkeypatch
):
    made, load, lists = batches._stored, batches.NeighborStore._load, []

    def interrupted(dataset, store, rows):
        lists.append(len(rows))
        if len(lists) == 12:
            raise KeyboardInterrupt
        return made(dataset, store, rows)

    with monkeypatch.context() as context:
        context.setattr(batches, "_stored", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.run(config(table, tmp_path / "run"))
    assert not (tmp_path / "run/metrics.json").exists()
    (folder,) = in_files.glob("neighbors-*")
    (folder / "000001.safetensors").unlink()
    monkeypatch.setattr(batches.NeighborStore, "_load", load)
    run.run(config(table, tmp_path / "run"))
    assert_same_bits(finished[0], tmp_path / "run")


def test_splits_share_the_files(table, in_files):
    rule = ImageRule(8.0, symmetry=1e-3)
    for split in (None, "random"):
        data = crystals.load("toy", str(table), ["e_form"], split=split)
        Batches.of(data, 4, rule)
    assert len(list(in_files.glob("neighbors-*"))) == 1


def batch_of(made, results):
    results.put({k: v.numpy() for k, v in vars(made([0, 5, 2])).items() if v is not None})


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX, if another test loaded it
@pytest.mark.filterwarnings("ignore:.*_at_fork:pytest.PytestUnraisableExceptionWarning")
def test_forked_processes_read_the_same(table, in_files):
    data = crystals.load("toy", str(table), ["e_form"])
    one = Batches.of(data, 4, ImageRule(8.0)).make
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=batch_of, args=(one, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    for name, array in vars(one([0, 5, 2])).items():
        for result in found:
            assert array is None or np.array_equal(result[name], array.numpy(), equal_nan=True)


def test_sizes_are_numbers_of_neighbours(table, in_files, monkeypatch):
    data = crystals.load("toy", str(table), ["e_form"])
    stored = Batches.of(data, 4, ImageRule(8.0))
    monkeypatch.setattr(batches, "MOST_IN_MEMORY", 2**30)
    kept = Batches.of(data, 4, ImageRule(8.0))
    rows = [row for split in kept.splits.values() for row in split]
    assert stored.splits == kept.splits
    assert [*map(stored.size, rows)] == [*map(kept.size, rows)]
    expected = vars(kept.make(rows))
    for name, found in vars(stored.make(rows)).items():
        if found is not None:
            assert torch.equal(found.nan_to_num(), expected[name].nan_to_num()), name


@pytest.mark.parametrize("most", [0, 2**30])
def test_atoms_that_see_no_other_are_refused(table, in_files, monkeypatch, most):
    monkeypatch.setattr(batches, "MOST_IN_MEMORY", most)
    data = crystals.load("toy", str(table), ["e_form"])
    with pytest.raises(ConfigError, match="no atom has another one within .* 0.5 Å"):
        Batches.of(data, 4, ImageRule(0.5))
