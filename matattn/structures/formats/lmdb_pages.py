"""The entries of an LMDB file, by plain reads of its pages.

LMDB's own library maps the file and trusts it: one that is cut off ends the process with a signal.
Here every number of a page is checked before it is used. The layout is that of ``mdb.c``
of LMDB 0.9, on a little-endian machine with 64 bits.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_HEAD = struct.Struct("<QHHHH")  # of a page: number, -, flags, ends of its pointers and of its room
_META = struct.Struct(
    "<II16xI44xIHHQQQQQQQ"
)  # magic, version; the main database; last page, number
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_ELSEWHERE = 1  # flag of a node: its value is on pages of its own
_EMPTY = 2**64 - 1
_DEEPEST = 32  # LMDB's own limit
LONGEST_VALUE = 2**26  # bytes

Entry = tuple[bytes, bytes | ValueError]


class _Tree(NamedTuple):
    page_size: int
    depth: int
    root: int
    entries: int


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield key and value of every entry of the main database, in the order of the keys.

    In place of a value stands a ValueError if it cannot be read; of a page that is damaged, one
    with an empty key stands for all its entries. Raises ValueError when this is no LMDB file, and
    OSError when it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        tree = _read_meta(file)
        pages = _Pages(file, size, tree.page_size)
        if tree.root != _EMPTY:
            yield from pages.entries(tree.root, min(tree.depth, _DEEPEST))


def _read_meta(file: BinaryIO) -> _Tree:
    """Return the newer of two descriptions of the main database."""
    found = []
    start = file.read(_HEAD.size + _META.size)
    for _ in range(2):
        if len(start) < _HEAD.size + _META.size:
            break
        magic, version, page_size, *rest = _META.unpack_from(start, _HEAD.size)
        _, flags, depth, _, _, _, entries, root, _, number = rest
        if magic != _MAGIC:
            break
        if version != _VERSION:
            raise ValueError(f"has version {version} of LMDB's format; expected {_VERSION}")
        if page_size not in (2**n for n in range(9, 17)):
            raise ValueError("is damaged: its pages have no size")
        if flags:
            raise ValueError("holds several values for a key; expected a plain database")
        found.append((number, _Tree(page_size, depth, root, entries)))
        file.seek(page_size)
        start = file.read(_HEAD.size + _META.size)
    if not found:
        raise ValueError("is not an LMDB file")
    return max(found)[1]


class _Pages:
    def __init__(self, file: BinaryIO, size: int, page_size: int) -> None:
        self.file, self.size, self.page_size = file, size, page_size
        self.left = size // page_size + 1  # that may be visited: a circle ends here

    def entries(self, number: int, depth: int) -> Iterator[Entry]:
        """Yield the entries of a page and of those below it."""
        try:
            page, nodes, leaf = self._read(number, depth)
        except ValueError as error:
            yield b"", ValueError(f"page {number} is damaged: {error}")
            return
        for node in nodes:
            try:
                low, high, flags, length = struct.unpack_from("<HHHH", page, node)
                key = page[node + 8 : node + 8 + length]
                if node + 8 + length > len(page):
                    raise ValueError("a key ends outside of the page")
                if leaf:
                    yield key, self._value(page, node + 8 + length, low | high << 16, flags)
            except (struct.error, ValueError) as error:
                yield b"", ValueError(f"page {number} is damaged: {error}")
                continue
            if not leaf:
                yield from self.entries(low | high << 16 | flags << 32, depth - 1)

    def _read(self, number: int, depth: int) -> tuple[bytes, list[int], bool]:
        """Return a page, where its nodes begin, and whether they are entries."""
        self.left -= 1
        if self.left < 0:
            raise ValueError("pages form a circle")
        page = self._bytes(number, self.page_size)
        told, _, flags, lower, upper = _HEAD.unpack_from(page)
        kind = flags & (_BRANCH | _LEAF | _OVERFLOW)
        if told != number or kind != (_BRANCH if depth > 1 else _LEAF):  # all leaves are as deep
            raise ValueError("it is another kind of page, or has another number")
        if not _HEAD.size <= lower <= upper <= self.page_size:
            raise ValueError("its nodes have no room")
        nodes = struct.unpack_from(f"<{(lower - _HEAD.size) // 2}H", page, _HEAD.size)
        return page, list(nodes), kind == _LEAF

    def _value(self, page: bytes, start: int, length: int, flags: int) -> bytes | ValueError:
        """Return a value, or what is wrong with it."""
        if length > min(LONGEST_VALUE, self.size):
            return ValueError(f"has {length} bytes; expected at most {LONGEST_VALUE}")
        if flags & ~_ELSEWHERE:
            return ValueError("is a database of its own")
        if not flags & _ELSEWHERE:
            if start + length > len(page):
                return ValueError("is cut off")
            return page[start : start + length]
        try:
            (number,) = struct.unpack_from("<Q", page, start)
            content = self._bytes(number, _HEAD.size + length)
        except (struct.error, ValueError):
            return ValueError("is cut off")
        told, _, kind, _, _ = _HEAD.unpack_from(content)
        if told != number or not kind & _OVERFLOW:
            return ValueError("is damaged")
        return content[_HEAD.size :]

    def _bytes(self, number: int, length: int) -> bytes:
        if number * self.page_size + length > self.size:
            raise ValueError("it is beyond the end of the file")
        self.file.seek(number * self.page_size)
        return self.file.read(length)
