"""Tests of matattn.text_files."""

import bz2
import gzip
import lzma

import pytest

from matattn.text_files import encoding_of, parse_number, read_lines, read_text, without_compression


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_every_encoding(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("data_x Müller\r\nnext\rlast".encode(encoding))
    assert read_text(path) == "data_x Müller\nnext\nlast"
    assert list(read_lines(path)) == ["data_x Müller", "next", "last"]


@pytest.mark.parametrize("module, ending", [(gzip, ".gz"), (bz2, ".bz2"), (lzma, ".xz")])
def test_every_compression(tmp_path, module, ending):
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(module.compress(b"text\n"))
    assert read_text(path) == "text\n"
    assert without_compression(path.name) == "a.txt"


def test_compression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("matattn.text_files.MOST_BYTES", 1000)
    (path := tmp_path / "a.gz").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(ValueError, match="holds more than"):
        read_text(path)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("matattn.text_files.LONGEST_LINE", 1000)
    (path := tmp_path / "a.gz").write_bytes(gzip.compress(b"short\n" + bytes(10**6)))
    lines = read_lines(path)
    assert next(lines) == "short"
    with pytest.raises(ValueError, match="a line has more than 1000 bytes"):
        next(lines)


def test_endless_lines_end(tmp_path, monkeypatch):
    monkeypatch.setattr("matattn.text_files._MUCH", 1_000_000)
    (path := tmp_path / "a.gz").write_bytes(gzip.compress(b"\n" * 10**7))
    with pytest.raises(ValueError, match="unpacks to more than 500 times its size"):
        list(read_lines(path))


def test_pointer_of_git_lfs_is_named(tmp_path):
    path = tmp_path / "a.vtu"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        read_text(path)


@pytest.mark.parametrize(
    "text, value",
    [
        ("-1.5", -1.5),
        *(
            (f"{sign}4.0168", -4.0168)
            for sign in "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"
        ),
        ("\u200e\u22122e\u20131\u200b", -0.2),
        (" .5 ", 0.5),
        ("1.", 1),
        ("2e-3", 0.002),
        *((text, None) for text in ("1_5", "nan", "inf", "1,5", "", ".", "1.0 eV", "٣", "0x10")),
        *((text, None) for text in ("1\u20132", "\u2013", "\xad1", "10\u2075")),
    ],
)
def test_parse_number(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "start, encoding",
    [
        (b"", "utf-8"), (b"a", "utf-8"), (b"\0", "utf-8"), (b"ab\0\0", "utf-8"),
        (b"{\0\n\0", "utf-16-le"), (b"\0{\0\n", "utf-16-be"),
        (b"\0\1\0\0", "utf-8"), (b"\0\0\0\0", "utf-8"),  # of a damaged row
    ],
)  # fmt: skip
def test_utf_16_without_a_mark_begins_with_letters(start, encoding):
    assert encoding_of(start) == encoding
