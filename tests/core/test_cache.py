"""Kept results: by key, whole, and by several processes at once."""

import subprocess
import sys
import time

import numpy as np
import pytest

from matattn import cache


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0.0)
    return tmp_path


def test_built_once_for_each_key(kept):
    calls = []

    def build():
        calls.append(None)
        return {"a": np.arange(3), "text": np.frombuffer(b"xyz", np.uint8)}

    for key in ("one", "one", "two", "two"):
        found = cache.cached(key, build)
        assert found["a"].tolist() == [0, 1, 2] and found["text"].tobytes() == b"xyz"
    assert len(calls) == 2


def test_objects_are_not_unpickled(kept):
    cache.cached("key", lambda: {"a": np.zeros(2)})
    (path,) = kept.iterdir()
    with open(path, "wb") as file:
        np.savez(file, a=np.array([{}], dtype=object), allow_pickle=True)
    assert cache.cached("key", lambda: {"a": np.ones(2)})["a"].tolist() == [1, 1]


def test_a_failure_leaves_nothing(kept):
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.cached("key", fail)
    assert not list(kept.iterdir())


def test_processes_at_once(kept):
    program = """
import numpy as np
from matattn import cache
cache.WORTH_KEEPING = 0.0
for key in range(20):
    assert cache.cached(str(key), lambda: {"a": np.full(100_000, key)})["a"].sum() == 100_000 * key
"""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(list(kept.iterdir())) == 20  # no partial file stays


def test_a_wrong_bit_is_noticed(kept):
    generator = np.random.default_rng(0)
    content = {"a": generator.random(1000)}
    for trial in range(20):
        cache.cached(str(trial), lambda: content)
        (path,) = kept.iterdir()
        damaged = bytearray(path.read_bytes())
        damaged[int(generator.integers(200, 8000))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        assert np.array_equal(cache.cached(str(trial), lambda: content)["a"], content["a"])
        path.unlink()


def test_no_place_for_it(tmp_path, monkeypatch):
    """A cache that cannot be written costs time only."""
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0.0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path / "file"))
    assert cache.cached("key", lambda: {"a": np.ones(2)})["a"].tolist() == [1, 1]


WRITER = """
import resource, signal, sys
import numpy as np
from matattn import cache
cache.WORTH_KEEPING = 0.0
if "full" in sys.argv:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
for key in range(10**6 if "forever" in sys.argv else 3):
    assert cache.cached(str(key % 3), lambda: {"a": np.full(10**6, key % 3)})["a"][0] == key % 3
    if "forever" in sys.argv:
        for path in cache.folder().glob("*.npz"):
            path.unlink(missing_ok=True)
    if not key:
        print("begun", flush=True)
"""


def test_full_disk(kept):
    subprocess.run([sys.executable, "-c", WRITER, "full"], check=True, timeout=60)
    assert not list(kept.iterdir())


def test_killed_while_it_builds(kept):
    """kill -9 of one of two processes, ten times: what stays is whole, and the other goes on."""
    generator = np.random.default_rng(0)
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, "forever"], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(float(generator.uniform(0, 0.05)))
        process.kill()
        process.communicate()
        for key in range(3):
            found = cache.cached(str(key), lambda key=key: {"a": np.full(10**6, key)})["a"]
            assert len(found) == 10**6 and (found == key).all()
