"""Files that are whole or absent."""

import errno
import os

import numpy as np
import pytest

from matattn.errors import WriteError
from matattn.files import (
    atomic_path,
    encodable,
    is_partial,
    read_sealed,
    sha256,
    write_bytes,
    write_json,
    write_sealed,
    write_text,
)


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as partial:
        partial.write_text("half")
        assert is_partial(partial) and not is_partial(path) and not path.exists()
    assert path.read_text() == "half" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), atomic_path(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise error
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_full_disk_is_told_with_the_name(tmp_path):
    with pytest.raises(WriteError, match=r"a.txt: cannot be written: No space left"):
        with atomic_path(tmp_path / "a.txt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file/a.txt: cannot be written"):
        write_bytes(tmp_path / "file" / "a.txt", b"x")


def test_every_wrong_bit_of_a_sealed_file_is_noticed(tmp_path):
    path = tmp_path / "a.npz"
    write_sealed(path, b"content")
    whole = path.read_bytes()
    assert read_sealed(path) == b"content"
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(ValueError, match="its checksum is wrong or missing"):
            read_sealed(path)
        path.write_bytes(whole[:position])
        with pytest.raises(ValueError, match="its checksum is wrong or missing"):
            read_sealed(path)


def test_a_sealed_archive_is_one_for_others(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.arange(3))
    write_sealed(tmp_path / "b.npz", (tmp_path / "a.npz").read_bytes())
    with np.load(tmp_path / "b.npz") as arrays:
        assert arrays["a"].tolist() == [0, 1, 2]


def test_texts_that_utf8_cannot_hold(tmp_path):
    assert encodable("Å\n\udcff\r") == "Å\n\\udcff\\r"
    assert encodable("\udcc3\udca4.cif\ud83d") == "\\udcc3\\udca4.cif\\ud83d"
    assert encodable("N\udcc3\udca4cl.cif") == "Näcl.cif"  # the name in an ASCII locale
    write_text(tmp_path / "a.txt", "Å \udcff")
    assert (tmp_path / "a.txt").read_bytes() == "Å \\udcff".encode()
    write_json(tmp_path / "a.json", {"unit": "Å"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "unit": "Å"\n}\n'


def test_sha256_of_the_standard(tmp_path):
    write_bytes(tmp_path / "abc", b"abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
