"""Parquet: rows of data, with structures as matattn, pymatgen, OPTIMADE or ASE write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matattn.structures.formats.pymatgen_json import Located, records_of
from matattn.structures.formats.record import Record

_STRUCTURE = frozenset({
    "id", "lattice", "Z", "frac", "pos", "pbc", "structure",
    "lattice_vectors", "cartesian_site_positions", "species_at_sites", "species", "dimension_types",
    "numbers", "positions", "cell", "immutable_id",
})  # fmt: skip
_AT_ONCE = 64  # rows
_MOST_BYTES = 2**27  # of them: a million atoms have about 50 MB
_TIGHTEST = 500  # bytes in one of the file; a bomb has 1000 ...
_MUCH = 2**28  # ... and this many bytes


def parse(path: Path) -> Iterator[Record]:
    """Return the structures of a file, with the ids of the rows."""
    return records_of(read_rows(path))


def read_rows(path: Path) -> Iterator[Located]:
    """Yield the rows of a file, some at a time: columns of structures, and numbers and texts.

    A structure in a column of texts is JSON. Other lists, as of forces, are not read. Raises
    ValueError when it is no Parquet file or cannot be read to its end, OSError, and
    ModuleNotFoundError where pyarrow is not installed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            _check_size(path, file.metadata)
            columns = [field.name for field in file.schema_arrow if _is_read(field, pa)]
            number = 0
            for batch in file.iter_batches(_AT_ONCE, columns=columns, use_threads=False):
                if batch.nbytes > _MOST_BYTES:
                    raise ValueError(f"{_AT_ONCE} rows take more than {_MOST_BYTES >> 20} MiB")
                for row in batch.to_pylist():
                    number += 1
                    yield _located(path, number, row)
    except pa.ArrowException as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None


def _is_read(field: Any, pa: Any) -> bool:
    kind = field.type
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return field.name in _STRUCTURE or plain or text


def _check_size(path: Path, metadata: Any) -> None:
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    # Repeated numbers take no room on a page, and eight bytes each when they are read.
    values = sum(g.column(c).num_values for g in groups for c in range(g.num_columns))
    total = max(8 * values, sum(group.total_byte_size for group in groups))
    if total > max(_MUCH, _TIGHTEST * path.stat().st_size):
        raise ValueError(f"unpacks to more than {_TIGHTEST} times its size")


def _located(path: Path, number: int, row: dict[str, Any]) -> Located:
    name = row.get("id")
    name = row.pop("immutable_id", None) if name is None else name
    row = {key: value for key, value in row.items() if key not in _STRUCTURE or value is not None}
    row["id"] = str(number) if name is None else str(name)
    place = f"{path}, row {number} ({row['id']})"
    if isinstance(text := row.get("structure"), str):
        try:
            row["structure"] = json.loads(text)
        except (ValueError, RecursionError):
            return row["id"], place, ValueError("structure is not JSON")
    return row["id"], place, row
