"""Kept results: by key, whole, and by several processes at once."""

import io
import subprocess
import sys

import numpy as np
import pytest

from matattn import cache
from matattn.files import write_sealed


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
        arrays = cache.cached(key, build)
        assert arrays["a"].tolist() == [0, 1, 2] and arrays["text"].tobytes() == b"xyz"
    assert len(calls) == 2


def test_objects_are_not_unpickled(kept):
    cache.cached("key", lambda: {"a": np.zeros(2)})
    (path,) = kept.iterdir()
    content = io.BytesIO()
    np.savez(content, a=np.array([{}], dtype=object), allow_pickle=True)
    write_sealed(path, content.getvalue())
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
        damaged[int(generator.integers(len(damaged)))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        again = {"a": content["a"].copy()}
        assert cache.cached(str(trial), lambda again=again: again) is again  # built once more
        path.unlink()


def test_no_place_for_it(tmp_path, monkeypatch):
    """A cache that cannot be written costs time only."""
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0.0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path / "file"))
    assert cache.cached("key", lambda: {"a": np.ones(2)})["a"].tolist() == [1, 1]


WRITER = """
import resource, signal
import numpy as np
from matattn import cache
cache.WORTH_KEEPING = 0.0
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
for key in range(3):
    assert cache.cached(str(key), lambda: {"a": np.full(10**6, key)})["a"][0] == key
"""


def test_full_disk(kept):
    subprocess.run([sys.executable, "-c", WRITER], check=True, timeout=60)
    assert not list(kept.iterdir())
