"""Neighbour lists in files: the same numbers, and nothing wrong in silence."""

import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time

import numpy as np
import pytest

from matattn.errors import WriteError
from matattn.structures import neighbor_store
from matattn.structures.image_rule import ImageRule
from matattn.structures.items import Geometries
from matattn.structures.neighbor_store import NeighborStore

RULE = ImageRule(5.0, symmetry=1e-3)
COUNT = 30
# JAX, if another test loaded it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*_at_fork:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch, tmp_path):
    monkeypatch.setattr(neighbor_store, "_ATOMS", 10)
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def structures():
    generator = np.random.default_rng(0)
    sites = generator.integers(1, 5, COUNT)
    places = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    cells = [generator.uniform(3, 5) * np.eye(3) for _ in sites]
    pos = [places[:n] @ cell for n, cell in zip(sites, cells, strict=True)]
    z = generator.integers(3, 30, sites.sum())
    pos, cells = np.concatenate(pos).astype(np.float32), np.array(cells, dtype=np.float32)
    return Geometries(sites, z, pos, cells)


def opened(structures, rule=RULE, wanted=range(COUNT), most=1):
    return NeighborStore.open(rule, structures, np.array(wanted), 1e5, most)


def assert_same(store, structures, rule=RULE):
    for row in range(len(structures)):
        expected, found = rule(*structures[row]), store[row]
        assert store.edges[row] == len(expected.source)
        for name, array in vars(expected).items():
            if array is None or (name == "image" and expected.multiplicity is not None):
                continue
            assert getattr(found, name).dtype == array.dtype, name
            assert getattr(found, name).tobytes() == array.tobytes(), name


@pytest.mark.parametrize("rule", [RULE, ImageRule(6.0)])
def test_lists_are_those_of_the_rule(structures, rule, capfd):
    assert_same(opened(structures, rule), structures, rule)
    assert "are made once and kept in" in capfd.readouterr().err
    again = opened(structures, rule)
    assert_same(again, structures, rule)
    assert capfd.readouterr().err == ""
    assert len(list(again.folder.iterdir())) > 5


def test_molecules_and_lonely_atoms(capfd):
    z, sites = np.array([8, 1, 1]), np.array([2, 1])
    pos = np.array([[0, 0, 0], [9.0, 0, 0], [0, 0, 0]], dtype=np.float32)
    molecules = Geometries(sites, z, pos, np.zeros((2, 3, 3), dtype=np.float32))
    for rule in (RULE, ImageRule(5.0)):
        store = opened(molecules, rule, [0, 1])
        assert_same(store, molecules, rule)
        assert store.alone.tolist() == [True, False]  # one atom has no other to see


def test_only_wanted_structures_are_made(structures):
    store = opened(structures, wanted=[0, 1])
    assert len(list(store.folder.iterdir())) == 1 and store.edges[-1] == 0
    assert_same(opened(structures), structures)


def test_a_killed_build_goes_on(structures, capfd):
    context = multiprocessing.get_context("fork")

    def slow():
        make = neighbor_store._make_shard
        neighbor_store._make_shard = lambda *given: (time.sleep(0.05), make(*given))
        opened(structures)

    process = context.Process(target=slow)
    process.start()
    folder = NeighborStore(RULE, structures).folder
    while len(list(folder.glob("[0-9]*"))) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("[0-9]*")}
    assert 2 <= len(kept) < 8
    partial = folder / ".000001.safetensors.1.partial"
    partial.write_bytes(b"half")
    os.utime(partial, (0, 0))
    assert_same(opened(structures), structures)
    assert not partial.exists()
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


def damages(content):
    yield "cut off", content[:-20]
    yield "longer", content + b"0"
    yield "empty", b""
    yield "not safetensors", b"\xff" * 100
    header = 8 + int.from_bytes(content[:8], "little")
    for name, place in (("header", 40), ("index", header + 10), ("list", len(content) - 100)):
        damaged = bytearray(content)
        damaged[place] ^= 4
        yield name, bytes(damaged)


def test_a_damaged_shard_is_made_again(structures, capfd):
    store = opened(structures)
    path = store._path(1)
    content = path.read_bytes()
    for name, damaged in damages(content):
        path.write_bytes(damaged)
        capfd.readouterr()
        again = opened(structures)
        assert_same(again, structures)
        told = capfd.readouterr().err
        if name == "list":  # found when it is read, not before
            assert told.count("is damaged or gone; its lists are made again") == 1
            assert not path.exists()
            again = opened(structures)
        assert path.read_bytes() == content, name


def test_every_changed_bit_of_a_list_is_found(structures, capfd):
    store = opened(structures)
    content = bytearray(store._path(1).read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    generator = np.random.default_rng(0)
    for place in generator.integers(start, len(content), 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(generator.integers(8))
        store._path(1).write_bytes(damaged)
        assert_same(opened(structures), structures)


def test_files_that_vanish_while_they_are_used(structures, capfd):
    store = opened(structures)
    shutil.rmtree(store.folder)
    assert_same(store, structures)
    assert "is damaged or gone" in capfd.readouterr().err


def test_another_rule_data_or_version_has_another_folder(structures, monkeypatch):
    folders = {NeighborStore(RULE, structures).folder}
    folders.add(NeighborStore(ImageRule(5.1, symmetry=1e-3), structures).folder)
    folders.add(NeighborStore(RULE, structures.part(0, COUNT - 1)).folder)
    monkeypatch.setattr(neighbor_store, "_FORMAT", 0)
    folders.add(NeighborStore(RULE, structures).folder)
    assert len(folders) == 4


def test_files_of_another_version_in_our_folder_are_not_used(structures, monkeypatch, capfd):
    store = opened(structures)
    monkeypatch.setattr(neighbor_store, "_FORMAT", 0)
    other = NeighborStore(RULE, structures)
    shutil.copytree(store.folder, other.folder)
    capfd.readouterr()
    assert_same(opened(structures), structures)
    assert "are made once" in capfd.readouterr().err


def test_several_builders_at_once(structures, capfd):
    context = multiprocessing.get_context("fork")

    def check():
        assert_same(opened(structures), structures)

    processes = [context.Process(target=check) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    assert_same(store := opened(structures), structures)
    assert not list(store.folder.glob(".*"))


def test_processes_make_the_same_files(structures, monkeypatch):
    store = opened(structures)
    alone = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    shutil.rmtree(store.folder)
    monkeypatch.setattr("matattn.parallel.cores", lambda: 2)
    opened(structures, most=2)
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == alone


def test_a_store_can_be_sent_to_a_process(structures):
    assert_same(pickle.loads(pickle.dumps(opened(structures))), structures)


def test_too_little_room_is_one_line(structures):
    with pytest.raises(WriteError, match="and .* GB are free; set MATATTN_CACHE"):
        NeighborStore.open(RULE, structures, np.arange(COUNT), 1e18, 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device")
@pytest.mark.parametrize("most", [1, 2])
def test_a_full_disk_is_one_line(structures, monkeypatch, most):
    def full(path, content):
        raise WriteError(f"{path}: cannot be written: No space left on device")

    monkeypatch.delitem(sys.modules, "jax", raising=False)  # whose processes are not forked
    monkeypatch.setattr(neighbor_store, "write_bytes", full)
    monkeypatch.setattr("matattn.parallel.cores", lambda: 2)
    with pytest.raises(WriteError, match="No space left on device; set MATATTN_CACHE to a folder"):
        opened(structures, most=most)
