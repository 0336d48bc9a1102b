"""Kept results: by key, whole, and by several processes at once."""

import subprocess
import sys

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
