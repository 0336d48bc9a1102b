"""Neighbour lists of data sets that are large, in files below the folder of ``matattn.cache``.

A shard is a safetensors file with the lists of consecutive structures: ``records``, in which those
of a structure stand together, so that one read fetches them, and an index. Everything is checked by
CRC-32: the index when a shard is opened, a record whenever it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from matattn import cache
from matattn.errors import WriteError
from matattn.files import is_partial, write_bytes
from matattn.parallel import parallel_map
from matattn.structures import harmonics
from matattn.structures.batch import by_atom_budget
from matattn.structures.image_rule import ImageRule
from matattn.structures.items import Geometries
from matattn.structures.neighbors import SELF, Neighbors

_FORMAT = 2  # raise it whenever a list has other numbers, or a shard another layout
_ATOMS = 2**14  # of a shard: its lists take some seconds, and some ten megabytes
_ABANDONED = 3600  # seconds after which a partial file is that of a killed process
_INDEX = {"end": "<u8", "rows": "<u4", "edges": "<u4", "crc": "<u4", "image": "|u1", "alone": "|u1"}
_TYPES = {"<u8": "U64", "<u4": "U32", "|u1": "U8"}
_LONGEST_HEADER = 2**16  # bytes

Index = dict[str, np.ndarray]


class NeighborStore:
    """The lists of many structures, read from files one by one, and so from any process.

    A list that cannot be read is made again, with a remark on the standard error, and its file is
    removed, so that the next ``open`` makes it anew.
    """

    def __init__(self, rule: ImageRule, structures: Geometries) -> None:
        self._rule, self._structures = rule, structures
        key = (_FORMAT, structures.fingerprint(), rule, version("pymatgen"), version("spglib"))
        self._key = hashlib.sha256(repr(key).encode()).hexdigest()
        self.folder = cache.folder() / f"neighbors-{self._key[:32]}"
        shards = list(by_atom_budget(structures.sites.tolist(), _ATOMS))
        self._bounds = [(shard[0], shard[-1] + 1) for shard in shards]
        self._shard = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
        self._index = {name: np.zeros(len(structures), kind) for name, kind in _INDEX.items()}
        self._told: set[int] = set()  # shards with damaged lists

    @classmethod
    def open(
        cls, rule: ImageRule, structures: Geometries, wanted: np.ndarray, expected: float, most: int
    ) -> NeighborStore:
        """Return the lists of the rows ``wanted``, after making those that are not there.

        ``expected`` are the bytes that all of them may take; ``most`` processes make them. One that
        is killed leaves whole shards, with which the next goes on. Several may do so at once.

        Raises WriteError when the folder of the cache has too little room, or cannot be written.
        """
        store = cls(rule, structures)
        shards = np.unique(store._shard[wanted]).tolist()
        missing = [shard for shard in shards if not store._load(shard)]
        if missing:
            store._make(missing, expected * len(missing) / len(shards), len(wanted), most)
        return store

    def __getitem__(self, row: int) -> Neighbors:
        """Return the list of a structure."""
        shard = int(self._shard[row])
        index = {name: int(column[row]) for name, column in self._index.items()}
        functions = harmonics.count(self._rule.degree)
        size = _size(index["rows"], index["edges"], index["image"], functions)
        try:
            with open(self._path(shard), "rb", buffering=0) as file:
                file.seek(index["end"] - size)
                record = file.read(size)
        except OSError:
            record = b""
        if len(record) == size and zlib.crc32(record, row) == index["crc"]:
            return _decode(record, index["rows"], index["edges"], index["image"], functions)
        self._tell(shard)
        return self._rule(*self._structures[row]).to_keep()

    @property
    def edges(self) -> np.ndarray:
        """Return the neighbours of every structure [n]; 0 where the lists were not wanted."""
        return self._index["edges"]

    @property
    def alone(self) -> np.ndarray:
        """Return whether no atom of a structure has another one in reach [n]."""
        return self._index["alone"].astype(bool)

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.safetensors"

    def _tell(self, shard: int) -> None:
        if shard in self._told:
            return
        self._told.add(shard)
        path = self._path(shard)
        print(f"remark: {path}: is damaged or gone; its lists are made again", file=sys.stderr)
        path.unlink(missing_ok=True)

    def _load(self, shard: int) -> bool:
        """Take over the index of a shard; False if there is none that is whole and ours."""
        start, stop = self._bounds[shard]
        if (index := _read_index(self._path(shard), self._key, stop - start)) is None:
            return False
        for name, column in index.items():
            self._index[name][start:stop] = column
        return True

    def _make(self, missing: list[int], expected: float, structures: int, most: int) -> None:
        self._check_room(expected)
        print(
            f"neighbour lists of {structures} structures take about {expected / 1e9:.1f} GB; they "
            f"are made once and kept in {self.folder}",
            file=sys.stderr,
        )
        for path in filter(is_partial, self.folder.glob(".*")):
            with suppress(OSError):  # that of a process which writes has another name by now
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
        # Processes that do the same at the same time each begin elsewhere.
        order = np.random.default_rng(os.getpid()).permutation(missing).tolist()
        tasks = [(self._path(s), self._bounds[s][0], self._structures.part(*self._bounds[s]))
                 for s in order]  # fmt: skip
        make = partial(_make_shard, self._rule, self._key)
        try:
            for _ in parallel_map(make, tasks, "neighbour lists", chunk=1, most=most):
                pass
        except WriteError as error:
            raise WriteError(
                f"{error}; set MATATTN_CACHE to a folder with {expected / 1e9:.1f} GB of room"
            ) from None
        for shard in missing:
            if not self._load(shard):
                raise WriteError(f"{self._path(shard)}: was written, and is not whole; delete it")

    def _check_room(self, expected: float) -> None:
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if (free := shutil.disk_usage(existing).free) < expected:
            raise WriteError(
                f"{self.folder}: neighbour lists need about {expected / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB are free; set MATATTN_CACHE to a folder with more room"
            )


def is_alone(neighbors: Neighbors, atoms: int, cutoff: float) -> bool:
    """Return whether no atom has another one within the cutoff, Å, although it might."""
    return bool(cutoff > SELF and atoms > 1 and (neighbors.distance < SELF).all())


def _make_shard(rule: ImageRule, key: str, task: tuple[Path, int, Geometries]) -> None:
    """Write the shard of some structures, of which the first is a row of the data set."""
    path, first, structures = task
    if _read_index(path, key, len(structures)) is not None:
        return  # by now, another process has made it
    records, index = [], np.zeros((len(structures), len(_INDEX)), dtype=np.int64)
    for row in range(len(structures)):
        neighbors = rule(*structures[row]).to_keep()
        record, image = _encode(neighbors)
        rows, edges = len(neighbors.counts), len(neighbors.source)
        alone = is_alone(neighbors, int(structures.sites[row]), rule.cutoff)
        index[row] = len(record), rows, edges, zlib.crc32(record, first + row), image, alone
        records.append(record)
    index[:, 0] = np.cumsum(index[:, 0])
    columns = {n: index[:, c].astype(kind) for c, (n, kind) in enumerate(_INDEX.items())}
    write_bytes(path, _pack(columns, b"".join(records), key))


def _pack(index: Index, records: bytes, key: str) -> bytes:
    from safetensors.numpy import save

    # One entry, as several come in any order, and the same lists shall give the same file.
    metadata = {"lists": f"{key} {_crc(index):08x}"}
    return save({**index, "records": np.frombuffer(records, np.uint8)}, metadata)


def _crc(index: Mapping[str, np.ndarray]) -> int:
    crc = 0
    for name in _INDEX:
        crc = zlib.crc32(index[name].tobytes(), crc)
    return crc


def _read_index(path: Path, key: str, count: int) -> Index | None:
    """Return the index of a shard, ``end`` counted from the start of the file; None if not ours."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                return None
            header: dict[str, Any] = json.loads(file.read(length))
            metadata, begin = header.pop("__metadata__"), 8 + length
            index = {}
            for name, kind in _INDEX.items():
                start, stop = header[name]["data_offsets"]
                if header[name]["dtype"] != _TYPES[kind] or header[name]["shape"] != [count]:
                    return None
                file.seek(begin + start)
                index[name] = np.frombuffer(file.read(stop - start), dtype=kind).copy()
            size = os.fstat(file.fileno()).st_size
            records, end = header["records"]["data_offsets"]
            whole = size == begin + max(part["data_offsets"][1] for part in header.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    ours = metadata.get("lists") == f"{key} {_crc(index):08x}"
    if not (ours and whole and int(index["end"][-1]) == end - records):
        return None
    index["end"] += np.uint64(begin + records)
    return index


def _encode(neighbors: Neighbors) -> tuple[bytes, int]:
    """Return the record of a list, and the bytes of a number of its images: 0, 2 or 4."""
    arrays: Sequence[Any] = (
        neighbors.distance.astype("<f8", casting="equiv"),
        *(getattr(neighbors, name).astype("<i4", casting="equiv")
          for name in ("atoms", "orbit_size", "counts", "source")),
    )  # fmt: skip
    if neighbors.multiplicity is not None:
        parts = [a for a in (neighbors.multiplicity, neighbors.harmonics) if a is not None]
        last, image = [a.astype("<f4", casting="equiv") for a in parts], 0
    else:
        assert neighbors.image is not None
        image = neighbors.image.dtype.itemsize
        last = [neighbors.image.astype(f"<i{image}", casting="equiv")]
    return b"".join(array.tobytes() for array in (*arrays, *last)), image


def _size(rows: int, edges: int, image: int, functions: int) -> int:
    """Return the bytes of a record; without images it has harmonics, if any."""
    return 12 * rows + edges * (12 + (3 * image or 4 + 4 * functions))


def _decode(record: bytes, rows: int, edges: int, image: int, functions: int) -> Neighbors:
    start, parts = 0, []
    lengths = [("<f8", edges), *[("<i4", rows)] * 3, ("<i4", edges)]
    lengths.append((f"<i{image}", 3 * edges) if image else ("<f4", edges))
    lengths.append(("<f4", 0 if image else functions * edges))
    for kind, count in lengths:
        parts.append(np.frombuffer(record, kind, count, start))
        start += parts[-1].nbytes
    distance, atoms, orbit_size, counts, source, last, directions = parts
    return Neighbors(
        atoms, orbit_size, counts, source, distance,
        multiplicity=None if image else last,
        image=last.reshape(-1, 3) if image else None,
        harmonics=directions.reshape(edges, -1) if len(directions) else None,
    )  # fmt: skip
