"""VTK's XML files: unstructured grids (.vtu), surfaces (.vtp), both in parts (.pvtu, .pvtp).

All pieces of a file are joined in their order. Errors are ValueErrors without the name of the file.
"""

from __future__ import annotations

import base64
import itertools
import lzma
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from matattn.text_files import MOST_BYTES, open_bytes

Block = tuple[str, np.ndarray]  # meshio's name of a type of cells, and their nodes [E, nodes]
Field = Callable[[], np.ndarray]  # reads a field [N] or [N, k]

_NUMBERS = {
    f"{name}{8 * size}": np.dtype(f"{kind}{size}")
    for name, kind, sizes in (("Float", "f", (4, 8)), ("Int", "i", (1, 2, 4, 8)),
                              ("UInt", "u", (1, 2, 4, 8)))
    for size in sizes
}  # fmt: skip
_FIXED = {  # numbers of VTK's types: their names, and how many nodes they have
    3: ("line", 2), 5: ("triangle", 3), 9: ("quad", 4), 10: ("tetra", 4), 12: ("hexahedron", 8),
    13: ("wedge", 6), 14: ("pyramid", 5), 15: ("penta_prism", 10), 16: ("hexa_prism", 12),
    21: ("line3", 3), 22: ("triangle6", 6), 23: ("quad8", 8), 24: ("tetra10", 10),
    25: ("hexahedron20", 20), 26: ("wedge15", 15), 27: ("pyramid13", 13), 28: ("quad9", 9),
    29: ("hexahedron27", 27), 30: ("quad6", 6), 31: ("wedge12", 12), 32: ("wedge18", 18),
    33: ("hexahedron24", 24), 34: ("triangle7", 7), 35: ("line4", 4),
}  # fmt: skip
_SHAPES = ("CURVE", "TRIANGLE", "QUADRILATERAL", "TETRAHEDRON", "HEXAHEDRON", "WEDGE", "PYRAMID")
_ANY_ORDER = {
    first + n: f"VTK_{family}_{shape}"
    for family, first in (("LAGRANGE", 68), ("BEZIER", 75))
    for n, shape in enumerate(_SHAPES)
}
# Cells with another order of nodes than those whose name they get.
_REORDERED = {
    8: ("quad", [0, 1, 3, 2]),
    11: ("hexahedron", [0, 1, 3, 2, 4, 5, 7, 6]),
    13: ("wedge", [0, 2, 1, 3, 5, 4]),  # as meshio orders them
}
_POLYHEDRON = 42
_LEFT_OUT = (0, 1, 2, _POLYHEDRON)  # nothing, single points, and what is read as its faces
_SURFACE = {"Verts": 1, "Lines": 4, "Strips": 6, "Polys": 7}


@dataclass
class Grid:
    """Nodes [N, 3], cells, the fields at the nodes, and the names of those at the cells."""

    points: np.ndarray
    cells: list[Block]
    fields: Mapping[str, Field]
    cell_fields: Sequence[str]


def read_grid(path: Path) -> Grid:
    """Return what a file holds, of all its pieces."""
    root, file = _open(path)
    kind = root.get("type", "")
    if kind in ("PUnstructuredGrid", "PPolyData"):
        grids = [read_grid(part) for part in parts(path)]
    elif kind in ("UnstructuredGrid", "PolyData"):
        pieces = root.findall(f"{kind}/Piece")
        grids = [_piece(piece, file) for piece in pieces if int(piece.get("NumberOfPoints", 0))]
    else:
        raise ValueError(f"holds {kind or 'nothing of VTK'}; expected UnstructuredGrid or PolyData")
    return _joined(grids)


def parts(path: Path) -> list[Path]:
    """Return the files of a grid in parts, or of a series in time (.pvd).

    Raises ValueError when a file is missing, is not of VTK's XML, or when several are of one time.
    """
    root, _ = _open(path)
    data_sets = root.findall("Collection/DataSet")
    times = [float(d.get("timestep", n)) for n, d in enumerate(data_sets)]
    if several := [time for time in times if times.count(time) > 1]:
        raise ValueError(f"has several parts at the time {several[0]:g}; merge them first")
    names = [d.get("file", "") for d in data_sets]
    names += [piece.get("Source", "") for piece in root.iter("Piece")]
    files = [path.parent / name for name in names]
    if not files:
        raise ValueError("names no files")
    for name, file in zip(names, files, strict=True):
        if file.suffix not in (".vtu", ".vtp", ".pvtu", ".pvtp") or file == path:
            raise ValueError(f"names {name!r}; expected files .vtu or .vtp")
        if not file.is_file():
            raise ValueError(f"names {name}, which does not exist")
    return files


def _joined(grids: Sequence[Grid]) -> Grid:
    if not grids:
        raise ValueError("the mesh has no nodes")
    starts = np.cumsum([0, *(len(grid.points) for grid in grids)])
    cells = [
        (kind, block + start)
        for grid, start in zip(grids, starts, strict=False)
        for kind, block in grid.cells
    ]
    names = dict.fromkeys(name for grid in grids for name in grid.fields)
    fields = {name: partial(_joined_field, name, grids) for name in names}
    cell_fields = list(dict.fromkeys(name for grid in grids for name in grid.cell_fields))
    return Grid(np.concatenate([grid.points for grid in grids]), cells, fields, cell_fields)


def _joined_field(name: str, grids: Sequence[Grid]) -> np.ndarray:
    if lacking := [n for n, grid in enumerate(grids, start=1) if name not in grid.fields]:
        raise ValueError(f"piece {lacking[0]} of {len(grids)} has no field {name}")
    values = [grid.fields[name]() for grid in grids]
    if len({part.shape[1:] for part in values}) > 1:
        raise ValueError(f"{name} has other components in other pieces")
    return np.concatenate(values)


def _piece(piece: Element, file: _File) -> Grid:
    count = int(piece.get("NumberOfPoints", 0))
    stored = piece.find("Points/DataArray")
    if stored is None:
        raise ValueError("a piece has no Points")
    points = file.values(stored, count)
    cells = list(_cells(piece, file))
    for kind, block in cells:
        if block.size and not 0 <= block.min() <= block.max() < count:
            wrong = block[(block < 0) | (block >= count)][0]
            raise ValueError(f"a {kind} cell names node {wrong}; there are nodes 0 to {count - 1}")
    fields = {
        str(array.get("Name")): partial(file.values, array, count)
        for array in piece.findall("PointData/*")
    }
    return Grid(points, cells, fields, [str(a.get("Name")) for a in piece.findall("CellData/*")])


def _cells(piece: Element, file: _File) -> Iterator[Block]:
    """Yield the cells of a piece: of a grid with their types, of a surface by kind."""
    sections: list[tuple[str, int, int]] = [
        (name, int(piece.get(f"NumberOf{name}") or 0), kind) for name, kind in _SURFACE.items()
    ]
    for name, count, kind in [("Cells", int(piece.get("NumberOfCells") or 0), -1), *sections]:
        if not count:
            continue
        arrays = {array.get("Name"): array for array in piece.findall(f"{name}/DataArray")}
        if lacking := [key for key in ("connectivity", "offsets") if key not in arrays]:
            raise ValueError(f"{name} has no {lacking[0]}")
        ends = file.values(arrays["offsets"], count).astype(np.int64)
        nodes = file.values(arrays["connectivity"], int(ends[-1])).astype(np.int64)
        types = np.full(count, kind)
        if kind < 0:
            if "types" not in arrays:
                raise ValueError("Cells has no types")
            types = file.values(arrays["types"], count)
            if (types == _POLYHEDRON).any():
                yield from _faces(arrays.get("faces"), file)
        yield from _blocks(nodes, ends, types)


def _faces(stored: Element | None, file: _File) -> Iterator[Block]:
    """Yield the faces of all polyhedra as polygons, each once: meshes here have no polyhedra."""
    if stored is None:
        raise ValueError("has polyhedra (VTK's type 42) without an array of their faces")
    stream = iter(file.values(stored, None).tolist())
    faces: dict[int, dict[frozenset[int], list[int]]] = {}
    for count in stream:
        for _ in range(count):
            face = list(itertools.islice(stream, next(stream, 0)))
            if len(face) < 3:
                raise ValueError("has polyhedra (VTK's type 42) with damaged faces")
            faces.setdefault(len(face), {}).setdefault(frozenset(face), face)
    for same_size in faces.values():
        yield _named(7, np.array(list(same_size.values())))


def _blocks(nodes: np.ndarray, ends: np.ndarray, types: np.ndarray) -> Iterator[Block]:
    starts = np.concatenate([[0], ends[:-1]])
    sizes = ends - starts
    if (sizes < 0).any():
        raise ValueError("the offsets of the cells do not increase")
    kinds = np.stack([types.astype(np.int64), sizes], axis=1)
    _, first, inverse = np.unique(kinds, axis=0, return_index=True, return_inverse=True)
    inverse = inverse.ravel()
    for chosen in np.argsort(first):
        kind, size = kinds[first[chosen]].tolist()
        rows = starts[inverse == chosen]
        if kind not in _LEFT_OUT:
            yield _named(kind, nodes[rows[:, None] + np.arange(size)])


def _named(kind: int, cells: np.ndarray) -> Block:
    """Return cells [E, n] of VTK's type under meshio's name; raise ValueError for other types."""
    size = cells.shape[1]
    if kind in _REORDERED and size == len(order := _REORDERED[kind][1]):
        return _REORDERED[kind][0], cells[:, order]
    if kind in _FIXED and size == _FIXED[kind][1]:
        return _FIXED[kind][0], cells
    if kind in _ANY_ORDER and size:
        return f"{_ANY_ORDER[kind]}{size}", cells
    if kind == 4 and size >= 2:  # a line of several pieces
        return "line", np.stack([cells[:, :-1], cells[:, 1:]], axis=-1).reshape(-1, 2)
    if kind == 6 and size >= 3:  # a strip of triangles, every other one turned
        strip = np.stack([cells[:, :-2], cells[:, 1:-1], cells[:, 2:]], axis=-1)
        strip[:, 1::2] = strip[:, 1::2, ::-1]
        return "triangle", strip.reshape(-1, 3)
    if kind == 7 and size >= 3:
        return {3: "triangle", 4: "quad"}.get(size, f"polygon{size}"), cells
    raise ValueError(
        f"has {len(cells)} cells of VTK's type {kind} with {size} nodes, which are not "
        "read; convert them, for example with ParaView's filter Tetrahedralize"
    )


@dataclass
class _File:
    """How the numbers of a file are stored, and those that stand behind its elements."""

    appended: bytes
    encoded: bool  # whether these are base64
    order: str
    header: np.dtype
    unpack: Callable[[bytes, int], bytes] | None

    def values(self, stored: Element, count: int | None) -> np.ndarray:
        """Return an array [count] or [count, k]; raise ValueError if it has another size."""
        name, kind = stored.get("Name"), stored.get("type", "")
        if kind not in _NUMBERS:
            raise ValueError(f"{name} holds {kind or 'no type'}, not numbers")
        width = int(stored.get("NumberOfComponents") or 1)
        values = self._read(stored, _NUMBERS[kind])
        if count is not None and values.size != count * width:
            shape = f"{count} x {width}" if width > 1 else f"{count}"
            raise ValueError(f"{name} has {values.size} values, expected {shape}")
        return values.reshape(-1, width) if width > 1 else values

    def _read(self, stored: Element, kind: np.dtype) -> np.ndarray:
        how = stored.get("format", "ascii")
        text = "".join([stored.text or "", *(child.tail or "" for child in stored)])
        if how == "ascii":
            return _from_text(text, np.float64 if kind.kind == "f" else np.int64)
        if how == "binary":
            content = self._content("".join(text.split()).encode("ascii"), True)
        elif how == "appended":
            content = self._content(self.appended[int(stored.get("offset", 0)) :], self.encoded)
        else:
            raise ValueError(f"{stored.get('Name')} has the unknown format {how!r}")
        return np.frombuffer(content, kind.newbyteorder(self.order))  # type: ignore[arg-type]

    def _content(self, data: bytes, encoded: bool) -> bytes:
        """Return the bytes of an array, which have their size in front, or sizes if compressed."""
        size = self.header.itemsize
        count = int(np.frombuffer(_taken(data, 0, size, encoded)[0], self.header)[0])
        if self.unpack is None:
            if encoded and len(base64.b64decode(data[: _chars(size)])) > size:  # both in one text
                return _taken(data, 0, size + count, True)[0][size:]
            return _taken(data, _chars(size) if encoded else size, count, encoded)[0]
        header, start = _taken(data, 0, (3 + count) * size, encoded)
        _, block, last, *packed = np.frombuffer(header, self.header).tolist()
        if count * block > MOST_BYTES or last > block:
            raise ValueError("holds an array of a size that cannot be")
        content, _ = _taken(data, start, sum(packed), encoded)
        ends = np.cumsum([0, *packed]).tolist()
        sizes = [block] * (count - 1) + [last or block]
        return b"".join(
            self.unpack(content[begin:end], length)
            for begin, end, length in zip(ends, ends[1:], sizes, strict=False)
        )


def _chars(count: int) -> int:
    """Return how many characters of base64 stand for so many bytes."""
    return -(-count // 3) * 4


def _taken(data: bytes, start: int, count: int, encoded: bool) -> tuple[bytes, int]:
    """Return so many bytes from a place on, and where they end; raise ValueError if they lack."""
    end = start + (_chars(count) if encoded else count)
    taken = base64.b64decode(data[start:end])[:count] if encoded else data[start:end]
    if len(taken) < count:
        raise ValueError("ends in the middle of an array")
    return taken, end


def _from_text(text: str, kind: type) -> np.ndarray:
    if not text.strip():
        return np.empty(0, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy only warns of what is no number
        try:
            return np.fromstring(text, kind, sep=" ")
        except (DeprecationWarning, ValueError):
            raise ValueError("holds a text that is no number") from None


def _inflated(data: bytes, size: int) -> bytes:
    return zlib.decompressobj().decompress(data, size) if size else b""


def _unpacked(data: bytes, size: int) -> bytes:
    return lzma.LZMADecompressor().decompress(data, size)


_COMPRESSORS = {"vtkZLibDataCompressor": _inflated, "vtkLZMADataCompressor": _unpacked}


def _open(path: Path) -> tuple[Element, _File]:
    with open_bytes(path) as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"holds more than {MOST_BYTES / 2**30:g} GiB")
    begin = content.find(b"<AppendedData")
    first, end = content.find(b"_", begin) + 1, content.rfind(b"</AppendedData>")
    appended = content[first:end] if 0 <= begin < first <= end else b""
    root = parse_xml(content[:first] + content[end:] if appended else content)
    if root.tag != "VTKFile":
        raise ValueError(f"begins with <{root.tag}>; expected <VTKFile>")
    order = {"LittleEndian": "<", "BigEndian": ">"}.get(root.get("byte_order", "LittleEndian"))
    header = _NUMBERS.get(root.get("header_type", "UInt32"))
    compressor = root.get("compressor")
    if order is None or header is None or compressor not in (None, *_COMPRESSORS):
        raise ValueError(
            f"byte_order={root.get('byte_order')}, header_type={root.get('header_type')}, "
            f"compressor={compressor}: not known here; save it with ZLib or uncompressed"
        )
    section = root.find("AppendedData")
    encoded = section is not None and section.get("encoding") == "base64"
    unpack = _COMPRESSORS[compressor] if compressor else None
    return root, _File(appended, encoded, order, header.newbyteorder(order), unpack)  # type: ignore[arg-type]


def parse_xml(content: bytes) -> Element:
    """Return the root of an XML text; refuse entities, by which a small one becomes huge.

    Raises ValueError.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = _refuse_entity
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"is no well-formed XML: {error}") from None
    return builder.close()


def _refuse_entity(name: str, *_: object) -> None:
    raise ValueError(f"declares the XML entity {name!r}, which no mesh needs")
