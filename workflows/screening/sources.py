"""The structures of a screening before they are parsed: quick to read, and to send elsewhere.

One process reads pieces and hands them to those that parse and predict. Read again, sources give
the same pieces in the same order, by which a screening knows what it has done.
"""

from __future__ import annotations

import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from matattn.errors import MatattnError, StructureError
from matattn.structures.files import Entry, entries, holds_one, is_structure_file
from matattn.structures.formats import aselmdb, parquet
from matattn.structures.formats.pymatgen_json import Located, parse_rows, records_of
from matattn.structures.stream import find_sources
from matattn.text_files import read_lines, without_compression

_TAR = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_LARGEST_MEMBER = 2**26  # bytes of one file in an archive
_TABLES = {".parquet": parquet.read_rows, ".aselmdb": aselmdb.read_rows}


class Piece(ABC):
    """A structure, or a file of few, that a process can be sent."""

    @property
    def size(self) -> int:
        """Return about how many bytes of text it holds itself."""
        return 0

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Yield its structures, or the errors in their places."""


@dataclass(frozen=True)
class File(Piece):
    """A file of one structure, or few."""

    path: str

    def entries(self) -> Iterator[Entry]:
        """Yield its structures, or the errors in their places."""
        return entries(Path(self.path))


@dataclass(frozen=True)
class Line(Piece):
    """A line of a file of JSON lines; ``number`` counts from 1."""

    path: str
    number: int
    text: str

    @property
    def size(self) -> int:
        """Return the length of the line."""
        return len(self.text)

    def entries(self) -> Iterator[Entry]:
        """Yield its structure, or the error in its place."""
        stem = Path(without_compression(Path(self.path).name)).stem
        for name, place, structure in parse_rows([self.text], self.path, self.number):
            yield Entry(name or f"{stem}:{self.number}", self.path, place, structure)


@dataclass(frozen=True)
class TableRow(Piece):
    """A row of Parquet or of ASE's LMDB."""

    path: str
    located: Located

    def entries(self) -> Iterator[Entry]:
        """Yield its structure, or the error in its place."""
        for name, place, structure in records_of([self.located]):
            yield Entry(name, self.path, place, structure)


@dataclass(frozen=True)
class Member(Piece):
    """A file in an archive."""

    archive: str
    name: str
    content: bytes

    @property
    def size(self) -> int:
        """Return the length of the file."""
        return len(self.content)

    def entries(self) -> Iterator[Entry]:
        """Yield its structures, or the errors in their places."""
        where = f"{self.archive}:{self.name}"
        try:
            yield from self._entries(where)
        except (OSError, ValueError) as error:  # a name that this system cannot write
            stem = Path(self.name).stem[:100]
            yield Entry(stem, where, where, StructureError(f"{where[:200]}: {error}"))

    def _entries(self, where: str) -> Iterator[Entry]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(self.name).name
            path.write_bytes(self.content)
            for entry in entries(path):
                structure = entry.structure
                if isinstance(structure, StructureError):
                    structure = StructureError(str(structure).replace(str(path), where))
                place = entry.place.replace(str(path), where)
                yield Entry(entry.id, where, place, structure)


@dataclass(frozen=True)
class Parsed(Piece):
    """A structure of a file that cannot be divided without parsing it, or an error."""

    entry: Entry

    def entries(self) -> Iterator[Entry]:
        """Yield it."""
        yield self.entry


def find(names: Iterable[str]) -> list[Path]:
    """Return the files that paths, folders and globs name: structures, tables and archives.

    Raises MatattnError when there is none, and for the standard input, which cannot be read again.
    """
    names = list(names)
    if "-" in names:
        raise MatattnError("-: a screening reads its sources again to go on; give a file")
    found = [source for source in find_sources(names) if isinstance(source, Path)]
    for name in names:  # a folder means its archives, too
        inside = sorted(Path(name).iterdir()) if Path(name).is_dir() else []
        archives = [path for path in inside if path.name.lower().endswith(_TAR)]
        if archives:
            found = [path for path in found if path != Path(name)] + archives
    for path in found:
        if not path.exists():
            raise MatattnError(f"{path}: no such file")
    if not found:
        raise MatattnError("no source: give files, folders or globs after the model")
    return found


def pieces(paths: Iterable[Path]) -> Iterator[Piece]:
    """Yield the pieces of files, in order. What cannot be read is an error in its place."""
    for path in paths:
        try:
            yield from _of_file(path)
        except Exception as error:  # readers raise anything on damaged files
            reason = " ".join((str(error) or type(error).__name__).split())
            named = reason if reason.startswith(str(path)) else f"{path}: {reason}"
            yield Parsed(Entry(path.stem, str(path), str(path), StructureError(named)))


def _of_file(path: Path) -> Iterator[Piece]:
    name, inner = path.name.lower(), without_compression(path.name.lower())
    if name.endswith(_TAR):
        yield from _members(path)
    elif inner.endswith(".jsonl"):
        for number, line in zip(count(1), read_lines(path)):  # noqa: B905
            if line.strip():
                yield Line(str(path), number, line)
    elif reader := _TABLES.get(path.suffix.lower()):
        for located in reader(path):
            yield TableRow(str(path), located)
    elif holds_one(path):
        yield File(str(path))
    else:
        for entry in entries(path):
            yield Parsed(entry)


def _members(path: Path) -> Iterator[Piece]:
    found = False
    with tarfile.open(path, "r|*") as archive:  # a stream: nothing is extracted by its own name
        for member in archive:
            if not member.isfile() or not is_structure_file(Path(Path(member.name).name)):
                continue
            found, where = True, f"{path}:{member.name}"
            file = archive.extractfile(member)
            if file is None or member.size > _LARGEST_MEMBER:
                error = StructureError(f"{where}: has more than {_LARGEST_MEMBER >> 20} MiB")
                yield Parsed(Entry(Path(member.name).stem, where, where, error))
                continue
            yield Member(str(path), member.name, file.read())
    if not found:
        raise StructureError(f"{path}: holds no structure file")
