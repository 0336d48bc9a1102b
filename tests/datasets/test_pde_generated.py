"""Generated data sets: what is kept, how it is split, what happens to samples without solution."""

import numpy as np
import pytest

from matattn import cache
from matattn.datasets.pde.generated import NotSolvedError, generate
from matattn.errors import DataError
from matattn.meshes.fields import MeshSample


def make(seed, run):
    """Two samples a run, of sizes of their own; every run with a remainder of 3 by 5 fails."""
    if run % 5 == 3:
        raise NotSolvedError(f"residual {run}")
    rng = np.random.default_rng([seed, run])
    nodes = [3 + run, 4 + run]
    return [
        MeshSample(
            f"{run}.{part}",
            rng.random((n, 2), dtype=np.float32),
            np.empty((n, 0), np.float32),
            rng.random((n, 1), dtype=np.float32),
            {"line": np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)},
        )
        for part, n in enumerate(nodes)
    ]


def make_none(seed, run):
    raise NotSolvedError("singular")


def count_threads(seed, run):
    """The largest number of threads of a library, as its only value."""
    from threadpoolctl import threadpool_info

    threads = np.full((1, 1), max(library["num_threads"] for library in threadpool_info()))
    return [MeshSample(str(run), np.zeros((1, 2)), np.zeros((1, 0)), threads)]


def assert_equal(one, other):
    assert one.id == other.id
    for part in ("pos", "x", "y"):
        a, b = getattr(one, part), getattr(other, part)
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b)
    assert one.cells.keys() == other.cells.keys()
    for kind in one.cells:
        np.testing.assert_array_equal(one.cells[kind], other.cells[kind])


def test_samples_return_from_arrays_as_they_were():
    items, split, skipped = generate("lines", "test 1", make, (6, 2, 3), seed=4)
    solved = [run for run in range(11) if run % 5 != 3]
    expected = [sample for run in solved for sample in make(4, run)]
    assert len(items) == len(expected) == len(split)
    for one, other in zip(items, expected, strict=True):
        assert_equal(one, other)
    assert skipped == ["lines, run 3: residual 3", "lines, run 8: residual 8"]


def test_test_and_validation_runs_come_first_and_whole():
    items, split, _ = generate("lines", "test 2", make, (6, 2, 3), seed=4)
    of_run = {}
    for sample, name in zip(items, split, strict=True):
        of_run.setdefault(int(sample.id.split(".")[0]), set()).add(str(name))
    assert of_run == {r: {"test"} for r in (0, 1, 2)} | {4: {"val"}} | {
        r: {"train"} for r in (5, 6, 7, 9, 10)
    }
    more, _, _ = generate("lines", "test 2", make, (20, 2, 3), seed=4)
    for one, other in zip(items, more, strict=False):
        assert_equal(one, other)


def test_kept_samples_are_equal_and_the_key_has_all_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0.0)
    made, _, _ = generate("lines", "test 3", make, (4, 0, 0), seed=0)
    assert len(list(tmp_path.iterdir())) == 1
    kept, _, skipped = generate("lines", "test 3", make_none, (4, 0, 0), seed=0)
    for one, other in zip(made, kept, strict=True):
        assert_equal(one, other)
    assert skipped == ["lines, run 3: residual 3"]
    for recipe, sizes, seed in (
        ("test 3b", (4, 0, 0), 0),
        ("test 3", (5, 0, 0), 0),
        ("test 3", (4, 0, 0), 1),
    ):
        generate("lines", recipe, make, sizes, seed)
    assert len(list(tmp_path.iterdir())) == 4


def test_no_solution_at_all_gives_reasons():
    items, split, skipped = generate("lines", "test 4", make_none, (2, 0, 0), seed=0)
    assert items == [] and len(split) == 0
    assert skipped == ["lines, run 0: singular", "lines, run 1: singular"]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 1), (2, -1, 1), (1.5, 0, 0)])
def test_sizes_that_make_no_data_set(sizes):
    with pytest.raises(DataError, match=r"lines: data\.sizes=.*expected"):
        generate("lines", "test 5", make, sizes, seed=0)


@pytest.mark.parametrize("seed", [-1, 0.5, "zero"])
def test_seed_is_a_whole_number(seed):
    with pytest.raises(DataError, match=r"lines: data\.seed=.*expected"):
        generate("lines", "test 6", make, (1, 0, 0), seed)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"scikit-fem: pip install 'matattn\[mesh\]'"):
        generate("lines", "test 7", make, (1, 0, 0), seed=0)


def test_processes_have_one_thread(monkeypatch):
    from threadpoolctl import threadpool_limits

    monkeypatch.setattr("matattn.parallel.cores", lambda: 2)
    with threadpool_limits(2):
        assert count_threads(0, 0)[0].y.item() == 2
        items, _, _ = generate("threads", "test 8", count_threads, (8, 0, 0), seed=0)
    assert [sample.y.item() for sample in items] == [1] * 8
