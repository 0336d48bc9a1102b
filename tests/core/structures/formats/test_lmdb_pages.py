"""LMDB's pages, against its own library; and damaged in every way."""

import numpy as np
import pytest

from matattn.structures.formats.lmdb_pages import read_entries

lmdb = pytest.importorskip("lmdb")


def write(path, entries, delete=(), **options):
    with lmdb.open(str(path), subdir=False, map_size=2**28, lock=False, **options) as database:
        with database.begin(write=True) as change:
            for key, value in entries.items():
                change.put(key, value)
        with database.begin(write=True) as change:
            for key in delete:
                change.delete(key)
    return path


def some_entries(count):
    generator = np.random.default_rng(0)
    sizes = generator.choice([0, 1, 50, 500, 2500, 5000, 40_000], count)
    return {f"{n}".encode(): generator.bytes(int(size)) for n, size in enumerate(sizes)}


@pytest.mark.parametrize("count", [0, 1, 40, 3000])
def test_entries_are_those_of_the_library(tmp_path, count):
    entries = some_entries(count)
    delete = [f"{n}".encode() for n in range(1, count, 7)]
    path = write(tmp_path / "a.lmdb", entries, delete)
    expected = {key: value for key, value in entries.items() if key not in delete}
    assert list(read_entries(path)) == sorted(expected.items())
    write(path, {b"5": b"changed"})  # the other description is the newer one now
    assert dict(read_entries(path)) == expected | {b"5": b"changed"}


def test_a_cut_file_keeps_what_is_there(tmp_path):
    entries = some_entries(300)
    path = write(tmp_path / "a.lmdb", entries)
    content = path.read_bytes()
    for share in (0.9, 0.5, 0.1):
        path.write_bytes(content[: int(share * len(content))])
        found = list(read_entries(path))
        assert any(isinstance(value, ValueError) for _, value in found)
        for key, value in found:
            assert isinstance(value, ValueError) or entries[key] == value


def test_damaged_pages_never_harm(tmp_path):
    entries = {f"{n}".encode(): bytes(200) for n in range(200)}
    path = write(tmp_path / "a.lmdb", entries)
    content, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 20):
            damaged[place] = int(generator.choice([0, 1, 255, generator.integers(256)]))
        path.write_bytes(damaged)
        try:
            assert len(list(read_entries(path))) < 5000
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not an LMDB file"),
        (b"SQLite format 3\0" * 500, "is not an LMDB file"),
        (bytes(8192), "is not an LMDB file"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "a.lmdb").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_entries(tmp_path / "a.lmdb"))


def test_a_circle_of_pages_ends(tmp_path):
    path = write(tmp_path / "a.lmdb", {f"{n:04}".encode(): bytes(300) for n in range(500)})
    content = bytearray(path.read_bytes())
    size = 4096
    branch = next(n for n in range(2, len(content) // size)
                  if content[n * size + 10] & 3 == 1)  # fmt: skip
    node = branch * size + int.from_bytes(content[branch * size + 16 :][:2], "little")
    content[node : node + 2] = branch.to_bytes(2, "little")  # its first child is itself
    path.write_bytes(content)
    found = list(read_entries(path))
    assert any("is damaged" in str(value) for _, value in found if isinstance(value, ValueError))
    assert sum(not isinstance(value, ValueError) for _, value in found) > 300
