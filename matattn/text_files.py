"""Text files as users have them: compressed, in several encodings, with numbers of several kinds.

Errors are ValueErrors without the name of the file, which the caller knows.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

MOST_BYTES = 2**30  # of a text that is read as a whole: a compressed bomb ends here
LONGEST_LINE = 2**26  # bytes: a structure with a million atoms has about as many
_TIGHTEST = 500  # bytes of text in one that is compressed; a bomb has 1000 ...
_MUCH = 2**24  # ... and this many bytes

_OPENERS: Mapping[str, Callable[..., object]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open
}  # fmt: skip
_LFS = b"version https://git-lfs.github.com/spec/"
_LETTERS = bytes([9, 10, 13, *range(32, 127)])  # with which a text without a mark begins
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What word processors and typesetters write for a minus sign, and marks that nobody sees.
_SIGNS = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe58\ufe63\uff0d", "-")
    | dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", "")
)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def without_compression(name: str) -> str:
    """Return the name of a file without .gz, .bz2 or .xz."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and f".{ending.lower()}" in _OPENERS else name


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, compressed or not, for reading its bytes.

    Raises ValueError for a pointer of Git LFS, which stands for the file itself.
    """
    with open(path, "rb") as raw:
        _check_pointer(raw)
    return cast(BinaryIO, _OPENERS.get(path.suffix.lower(), open)(path, "rb"))


def _unpacked(raw: BinaryIO, path: Path) -> BinaryIO:
    """Return an open file as ``open_bytes`` does."""
    _check_pointer(raw)
    raw.seek(0)
    opener = _OPENERS.get(path.suffix.lower())
    return cast(BinaryIO, opener(raw, "rb")) if opener else raw


def _check_pointer(raw: BinaryIO) -> None:
    if raw.read(len(_LFS)) == _LFS:
        raise ValueError("is a pointer of Git LFS, and the file itself is missing: git lfs pull")


def read_text(path: Path) -> str:
    """Return the text of a file, compressed or not, with Unix ends of lines.

    Raises ValueError when it holds more than ``MOST_BYTES``, was packed more tightly than any data
    are, or is a pointer of Git LFS; OSError, EOFError or lzma.LZMAError when it cannot be read.
    """
    most = MOST_BYTES
    if path.suffix.lower() in _OPENERS:
        most = min(most, max(_MUCH, _TIGHTEST * path.stat().st_size))
    with open_bytes(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"holds more than {most / 2**20:.0f} MiB of text")
    return decode(content)


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file as ``read_text``, without their ends, holding one at a time.

    Raises ValueError at a line of more than ``LONGEST_LINE`` bytes, and when much text was packed
    more tightly than any data are.
    """
    total = 0
    with open(path, "rb") as raw, _unpacked(raw, path) as file:
        line = file.readline(LONGEST_LINE)
        if encoding_of(line[:4]) not in ("utf-8", "utf-8-sig"):  # a line may hold the byte \n
            yield from read_text(path).split("\n")
            return
        while line:
            total += len(line)
            if len(line) == LONGEST_LINE:
                raise ValueError(f"a line has more than {LONGEST_LINE} bytes")
            if total > _MUCH and total > _TIGHTEST * raw.tell():
                raise ValueError(f"unpacks to more than {_TIGHTEST} times its size")
            yield from decode(line).removesuffix("\n").split("\n")
            line = file.readline(LONGEST_LINE)


def encoding_of(start: bytes) -> str:
    """Return the encoding of a text from its first bytes: UTF-8 if no mark tells another."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    for first, encoding in ((0, "utf-16-le"), (1, "utf-16-be")):
        letters, zeros = start[first:4:2], start[1 - first : 4 : 2]
        if letters and zeros and not zeros.strip(b"\0") and not letters.strip(_LETTERS):
            return encoding
    return "utf-8"


def decode(content: bytes) -> str:
    """Return a text from UTF-8, UTF-16 or UTF-32, else from Windows-1252, else from Latin-1."""
    for encoding in (encoding_of(content[:4]), "cp1252", "latin-1"):
        try:
            text = content.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_number(text: str) -> float | None:
    """Return the number that a text is, with a point and no other mark; else None.

    Minus signs may be those of ``with_plain_signs``. Unlike ``float``, "1_5", "nan" and "inf" are
    no numbers.
    """
    text = with_plain_signs(text)
    return float(text) if _NUMBER.fullmatch(text) else None


def with_plain_signs(text: str) -> str:
    """Return a text with hyphens for all dashes, as U+2212, and without invisible marks."""
    return text.translate(_SIGNS).strip()
