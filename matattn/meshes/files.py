"""Meshes with fields from files: VTU, VTP, VTK and other formats of meshio, and NumPy's .npz.

A .npz file has ``pos`` [N, d], one array [N] or [N, k] for each field, and optionally
``cells_<type>`` [E, nodes] with meshio's names of cell types. Nothing here unpickles.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from matattn.errors import DataError
from matattn.files import atomic_path
from matattn.meshes.fields import ROUNDING, MeshSample
from matattn.meshes.vtk_xml import parse_xml, parts, read_grid
from matattn.text_files import open_bytes, without_compression

_XML = (".vtu", ".vtp", ".pvtu", ".pvtp")  # these may be compressed
SUFFIXES = (".npz", *_XML, ".vtk", ".xdmf", ".msh", ".med", ".e", ".exo", ".avs", ".tec", ".inp",
            ".su2", ".stl", ".ply", ".obj", ".off")  # fmt: skip

# Numbers of nodes of the cells that a .npz file may hold.
_CELL_NODES = {
    "line": 2, "line3": 3, "triangle": 3, "triangle6": 6, "quad": 4, "quad8": 8, "quad9": 9,
    "tetra": 4, "tetra10": 10, "hexahedron": 8, "hexahedron20": 20, "hexahedron27": 27,
    "wedge": 6, "wedge15": 15, "pyramid": 5, "pyramid13": 13,
}  # fmt: skip
_AXES = "xyz"
_LOST = 1e-3  # of the length of a mesh: what single precision may take from its coordinates
# What meshio takes one of and drops the others in silence, by format: zones, and fields in time.
_ONCE = {".tec": r"(?im)^\s*(zone)\b", ".msh": r"(?s)\$NodeData\s+\d+\s+(\".*?\")"}


@dataclass
class _Content:
    """The content of a file, not yet checked."""

    points: np.ndarray
    cells: list[tuple[str, np.ndarray]]
    fields: list[str]  # names of the fields at the nodes
    field: Callable[[str], np.ndarray]  # the field of a name
    cell_fields: Collection[str]  # names of the fields at the cells


def is_mesh_file(path: Path) -> bool:
    """Return whether the name of a file is one that ``read_mesh`` knows."""
    return bool(_suffix(path)) and not path.name.startswith(".") and path.is_file()


def mesh_name(path: Path) -> str:
    """Return the name of a mesh file without its suffix, and without that of a compression."""
    return Path(without_compression(path.name)).stem


def mesh_files(path: Path, below: bool = False) -> list[Path]:
    """Return the meshes of a folder, sorted, or of a series (.pvd); of a file, the file.

    With ``below``, those of the sub-folders, too. Files that are parts of another one in the folder
    (.pvtu) are left out. Raises DataError for a series that cannot be read.
    """
    if path.is_dir():
        files = sorted(filter(is_mesh_file, path.rglob("*") if below else path.iterdir()))
        whole: list[Path] = []
        for file in files:
            if file.suffix in (".pvtu", ".pvtp"):
                with contextlib.suppress(ValueError, OSError):  # reading it tells what is wrong
                    whole += parts(file)
        return [file for file in files if file not in whole]
    if path.suffix.lower() != ".pvd":
        return [path]
    try:
        return parts(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {error}") from error


def _suffix(path: Path) -> str:
    """Return the suffix of a mesh file in small letters, "" of any other."""
    whole, bare = (
        Path(name).suffix.lower() for name in (path.name, without_compression(path.name))
    )
    return whole if whole in SUFFIXES else bare if bare in _XML else ""


def read_mesh(
    path: str | Path,
    dimension: int | None = None,
    inputs: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> MeshSample:
    """Return one mesh with the named fields at its nodes; its id is the name of the file.

    A component of a vector field is named ``displacement_x`` (y, z) or ``displacement:0``. Without
    ``dimension``, a mesh with a constant third coordinate counts as plane, because most formats
    have no plane meshes; constant means but for rounding. Voxels and pixels become hexahedra and
    quadrilaterals, strips triangles, polyhedra their faces. ``cells`` leaves out single vertices.

    Raises DataError, naming the file, when it cannot be read, has no nodes or another dimension,
    when a field is missing, is not a finite number at every node, and when a cell names a node that
    does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not _suffix(path):
        raise DataError(f"{path}: unknown file type; expected {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        open_bytes(path).close()
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    try:
        with _opened(path) as content:
            pos = _positions(content.points, dimension, path)
            x, y = (
                np.stack([_column(content, name, len(pos), path) for name in names], axis=1)
                if names
                else np.empty((len(pos), 0), dtype=np.float32)
                for names in (inputs, targets)
            )
            return MeshSample(mesh_name(path), pos, x, y, _cells(content.cells, len(pos), path))
    except DataError:
        raise
    except ModuleNotFoundError as error:
        hint = "'matattn[mesh]'" if error.name in ("meshio", "h5py") else error.name
        raise DataError(f"{path}: needs the package {error.name}: pip install {hint}") from error
    except Exception as error:  # parsers raise anything on damaged files
        reason = " ".join((str(error) or type(error).__name__).split())
        raise DataError(f"{path}: cannot be read: {reason}") from error


def write_vtu(path: str | Path, sample: MeshSample, fields: Mapping[str, np.ndarray]) -> None:
    """Write the mesh of a sample with fields [N] or [N, k] at its nodes, for ParaView and others.

    The file is whole or absent. Raises DataError when a field has another number of nodes, when
    meshio is missing, or when VTU has no such cells.
    """
    try:
        import meshio
    except ModuleNotFoundError as error:
        raise DataError(f"{path}: needs the package meshio: pip install 'matattn[mesh]'") from error
    nodes = len(sample.pos)
    for name, values in fields.items():
        if values.ndim not in (1, 2) or len(values) != nodes:
            raise DataError(f"{path}: {name} has shape {values.shape}, the mesh {nodes} nodes")
    # Viewers do not show points without cells.
    cells = sample.cells or {"vertex": np.arange(nodes)[:, None]}
    try:
        mesh = meshio.Mesh(
            _in_space(sample.pos),
            [
                (kind.rstrip("0123456789") if kind.startswith(("polygon", "VTK_")) else kind, c)
                for kind, c in cells.items()
            ],
            point_data={
                name: _in_space(values) if values.shape[1:] == (2,) else values
                for name, values in fields.items()
            },
        )
        with atomic_path(path) as partial:
            meshio.write(partial, mesh, file_format="vtu")
    except KeyError as error:
        raise DataError(f"{path}: VTU has no cells of type {error}") from error


def _in_space(vectors: np.ndarray) -> np.ndarray:
    """Return vectors [N, d] with zeros up to the three components of VTU."""
    return np.pad(vectors, ((0, 0), (0, 3 - vectors.shape[1])))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Content]:
    if _suffix(path) in _XML:
        grid = read_grid(path)
        yield _Content(grid.points, grid.cells, list(grid.fields), lambda name: grid.fields[name](),
                       grid.cell_fields)  # fmt: skip
    elif path.suffix.lower() == ".npz":
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path}: is damaged, or no .npz file")
        with open(path, "rb") as file:  # np.load leaves damaged files open
            yield _from_npz(np.load(file, allow_pickle=False), path)
    else:
        yield _from_meshio(path)


def _from_npz(arrays: Mapping[str, np.ndarray], path: Path) -> _Content:
    if "pos" not in arrays:
        raise DataError(f"{path}: has no pos [N, d]; it has {', '.join(arrays) or 'nothing'}")
    cells = []
    for key in arrays:
        kind = key.removeprefix("cells_")
        if kind == key:
            continue
        if kind not in _CELL_NODES:
            raise DataError(f"{path}: {key}: unknown cells; expected {', '.join(_CELL_NODES)}")
        if arrays[key].ndim != 2 or arrays[key].shape[1] != _CELL_NODES[kind]:
            raise DataError(
                f"{path}: {key} has shape {arrays[key].shape}, expected [E, {_CELL_NODES[kind]}]"
            )
        cells.append((kind, arrays[key]))
    names = [name for name in arrays if name != "pos" and not name.startswith("cells_")]
    return _Content(arrays["pos"], cells, names, arrays.__getitem__, ())


def _from_meshio(path: Path) -> _Content:
    import meshio

    if path.suffix.lower() == ".xdmf":
        parse_xml(path.read_bytes())  # it declares no entities
    if pattern := _ONCE.get(path.suffix.lower()):
        found = re.findall(pattern, path.read_text(encoding="latin-1"))
        if several := [name for name in found if found.count(name) > 1]:
            raise ValueError(f"has {several[0]} several times, and meshio reads one; keep one")
    # On an error meshio prints the reason and exits.
    reasons, warned = io.StringIO(), io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(reasons),
        contextlib.redirect_stderr(warned),
    ):
        warnings.simplefilter("ignore")
        try:
            mesh = meshio.read(path)
        except SystemExit:
            reason = " ".join(reasons.getvalue().split())
            if re.search("cannot handle|supported", reason):
                reason += "; save it as .vtu, for example with ParaView"
            raise ValueError(reason or f"not a {path.suffix} file that meshio knows") from None
        except KeyError as error:
            raise ValueError(f"has {error}, which meshio does not read; save it as .vtu") from None
    if dropped := re.search(r"skip|cannot handle|discard", warned.getvalue(), re.IGNORECASE):
        raise ValueError(f"meshio cannot read all of it: {' '.join(dropped.string.split())}")
    if many := [block.type for block in mesh.cells if block.type.startswith("polyhedron")]:
        raise ValueError(f"has cells of type {many[0]}, which are not read")
    cells = [
        (f"polygon{block.data.shape[1]}" if block.type == "polygon" else block.type, block.data)
        for block in mesh.cells
        if block.type != "vertex"
    ]
    fields = mesh.point_data
    return _Content(mesh.points, cells, list(fields), fields.__getitem__, mesh.cell_data)


def _positions(points: np.ndarray, dimension: int | None, path: Path) -> np.ndarray:
    if points.ndim != 2 or points.shape[1] not in (1, 2, 3):
        raise DataError(f"{path}: pos has shape {points.shape}, expected [N, 1], [N, 2] or [N, 3]")
    if not len(points):
        raise DataError(f"{path}: the mesh has no nodes")
    if points.shape[1] == 3 and dimension != 3 and _is_plane(points):
        points = points[:, :2]
    if dimension not in (None, points.shape[1]):
        raise DataError(f"{path}: the mesh has {points.shape[1]} coordinates, expected {dimension}")
    columns = [_numbers(c, _AXES[i], path) for i, c in enumerate(points.T)]
    pos = np.stack(columns, axis=1)
    length = np.ptp(points.astype(np.float64), axis=0).max()
    if length and np.abs(pos - points.astype(np.float64)).max() > _LOST * length:
        raise DataError(
            f"{path}: the mesh is {length:.3g} long, and {np.abs(points).max():.3g} from the "
            "origin: single precision cannot tell its nodes apart; move it to the origin"
        )
    return pos


def _is_plane(points: np.ndarray) -> bool:
    """Return whether the third coordinate is constant but for rounding."""
    with np.errstate(invalid="ignore", over="ignore"):
        extents = np.ptp(points.astype(np.float64), axis=0)
        stored = np.finfo(points.dtype).eps if points.dtype.kind == "f" else 0
        rounding = max(ROUNDING * extents[:2].max(), 4 * stored * np.abs(points[:, 2]).max())
        return bool(extents[2] <= rounding)


def _column(content: _Content, name: str, nodes: int, path: Path) -> np.ndarray:
    """Return a field [N], or a component of one, by its name."""
    field, component = _find(content, name, path)
    values = np.asarray(content.field(field))
    if values.ndim not in (1, 2) or len(values) != nodes:
        raise DataError(
            f"{path}: {field} has shape {values.shape}, expected one value for each of the "
            f"{nodes} nodes"
        )
    width = values.shape[1] if values.ndim == 2 else 1
    tensor = width > len(_AXES) and name.rpartition("_")[0] == field  # no axis: which one is xy?
    if tensor or (component is None and width != 1):
        raise DataError(
            f"{path}: {field} has {width} components; name one of them: "
            f"{', '.join(_parts(field, width))}"
        )
    if (component or 0) >= width:
        raise DataError(f"{path}: {name}: {field} has only {width} components")
    return _numbers(values.reshape(nodes, width)[:, component or 0], name, path)


def _find(content: _Content, name: str, path: Path) -> tuple[str, int | None]:
    """Return the field and the component that a name means (None: a field with one only)."""
    if name in content.fields:
        return name, None
    field, _, axis = name.rpartition("_")
    if field in content.fields and axis in tuple(_AXES):
        return field, _AXES.index(axis)
    field, _, number = name.rpartition(":")
    if field in content.fields and number.isdecimal():
        return field, int(number)
    if name in content.cell_fields:
        raise DataError(
            f"{path}: {name} is a field of the cells, not of the nodes; convert it, for example "
            "with ParaView's filter Cell Data to Point Data"
        )
    near = difflib.get_close_matches(name, content.fields, n=1)
    raise DataError(
        f"{path}: has no field {name!r}{f'; did you mean {near[0]!r}?' if near else ''}; fields at "
        f"its nodes: {', '.join(content.fields) or 'none'}"
    )


def _parts(field: str, width: int) -> list[str]:
    if width <= len(_AXES):
        return [f"{field}_{axis}" for axis in _AXES[:width]]
    return [f"{field}:0", "...", f"{field}:{width - 1}"]


def _numbers(values: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Return values [N] as float32; raise DataError unless they are finite numbers."""
    if values.dtype.kind not in "fiub":
        raise DataError(f"{path}: {name} holds {values.dtype}, not real numbers")
    with np.errstate(over="ignore"):  # too large for float32: infinite, and refused below
        numbers = values.astype(np.float32)
    if (bad := np.flatnonzero(~np.isfinite(numbers))).size:
        raise DataError(
            f"{path}: {name} is {values[bad[0]]} at node {bad[0]} ({bad.size} values are not "
            "finite)"
        )
    return numbers


def _cells(
    blocks: Sequence[tuple[str, np.ndarray]], nodes: int, path: Path
) -> dict[str, np.ndarray]:
    """Return the cells by their type; a file may have several blocks of one type."""
    blocks_by_kind: dict[str, list[np.ndarray]] = {}
    for kind, cells in blocks:
        if cells.dtype.kind not in "iu":
            raise DataError(f"{path}: {kind} cells are {cells.dtype}, not numbers of nodes")
        if cells.size and not 0 <= cells.min() <= cells.max() < nodes:
            wrong = cells[(cells < 0) | (cells >= nodes)][0]
            raise DataError(
                f"{path}: a {kind} cell names node {wrong}; there are nodes 0 to {nodes - 1}"
            )
        blocks_by_kind.setdefault(kind, []).append(cells.astype(np.int64))
    return {kind: np.concatenate(parts) for kind, parts in blocks_by_kind.items()}
