"""Mesh files: what is read from them, what is written, and what is refused."""

import sys

import meshio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from matattn.errors import DataError
from matattn.meshes.fields import MeshSample
from matattn.meshes.files import is_mesh_file, read_mesh, write_vtu

POS = np.array([[0, 0], [1, 0], [1, 2], [0, 2], [2, 0]], dtype=np.float32)
QUAD, TRIANGLE = np.array([[0, 1, 2, 3]]), np.array([[1, 4, 2]])
PRESSURE = np.arange(5.0)
DISPLACEMENT = np.arange(15.0).reshape(5, 3)


def write_mesh(path, points=None, cells=None, cell_data=None, **fields):
    points = np.pad(POS, ((0, 0), (0, 1))) if points is None else points
    cells = [("quad", QUAD), ("triangle", TRIANGLE)] if cells is None else cells
    meshio.write(path, meshio.Mesh(points, cells, point_data=fields, cell_data=cell_data))
    return path


def write_npz(path, **content):
    np.savez(path, **({"pos": POS, "pressure": PRESSURE} | content))
    return path


@pytest.mark.parametrize("suffix", [".vtu", ".vtk", ".xdmf"])
def test_fields_and_components(tmp_path, suffix, capfd):
    path = write_mesh(
        tmp_path / f"a{suffix}", displacement=DISPLACEMENT, pressure=PRESSURE, t=PRESSURE[:, None]
    )
    capfd.readouterr()
    names = ["pressure", "t", "displacement_y", "displacement:2"]
    sample = read_mesh(path, inputs=names[:2], targets=names[2:])
    assert sample.id == "a"
    assert {a.dtype for a in (sample.pos, sample.x, sample.y)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(sample.pos, POS)
    np.testing.assert_array_equal(sample.x, np.stack([PRESSURE, PRESSURE], axis=1))
    np.testing.assert_array_equal(sample.y, DISPLACEMENT[:, 1:])
    assert {kind: cells.tolist() for kind, cells in sample.cells.items()} == {
        "quad": QUAD.tolist(),
        "triangle": TRIANGLE.tolist(),
    }
    assert capfd.readouterr() == ("", "")


def test_a_whole_name_comes_before_a_component(tmp_path):
    path = write_npz(tmp_path / "a.npz", u=DISPLACEMENT, u_x=PRESSURE + 7)
    np.testing.assert_array_equal(read_mesh(path, targets=["u_x"]).y[:, 0], PRESSURE + 7)


def test_fields_may_be_absent(tmp_path):
    sample = read_mesh(write_mesh(tmp_path / "a.vtu"))
    assert sample.x.shape == sample.y.shape == (5, 0)


def test_dimension(tmp_path):
    flat, shell = np.pad(POS, ((0, 0), (0, 1)), constant_values=3), np.random.rand(5, 3)
    flat, shell = (write_mesh(tmp_path / f"{len(p)}{p[0, 0]}.vtu", p) for p in (flat, shell))
    assert read_mesh(flat).pos.shape == read_mesh(flat, dimension=2).pos.shape == (5, 2)
    assert read_mesh(flat, dimension=3).pos[:, 2].tolist() == [3] * 5
    assert read_mesh(shell).pos.shape == (5, 3)
    with pytest.raises(DataError, match="vtu: the mesh has 3 coordinates, expected 2"):
        read_mesh(shell, dimension=2)
    with pytest.raises(DataError, match="a.npz: the mesh has 2 coordinates, expected 3"):
        read_mesh(write_npz(tmp_path / "a.npz"), dimension=3)


def test_blocks_of_one_type_polygons_and_vertices(tmp_path):
    pentagon = np.array([[0, 1, 4, 2, 3]])
    blocks = [("triangle", TRIANGLE), ("polygon", pentagon), ("vertex", [[0]])]
    path = write_mesh(tmp_path / "a.vtu", cells=[*blocks, ("triangle", TRIANGLE[:, ::-1])])
    cells = read_mesh(path).cells
    assert cells["triangle"].tolist() == [[1, 4, 2], [2, 4, 1]]
    assert cells["polygon5"].tolist() == pentagon.tolist()
    assert set(cells) == {"triangle", "polygon5"}
    write_vtu(tmp_path / "b.vtu", read_mesh(path), {})
    again = read_mesh(tmp_path / "b.vtu").cells
    assert {k: c.tolist() for k, c in again.items()} == {k: c.tolist() for k, c in cells.items()}


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
meshes = st.tuples(st.integers(1, 12), st.integers(2, 3)).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(np.float32, shape, elements=finite),
        arrays.arrays(np.float32, (shape[0], 3), elements=finite),
        arrays.arrays(np.int64, (4, 3), elements=st.integers(0, shape[0] - 1)),
    )
)


@given(meshes, st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_round_trip(tmp_path_factory, mesh, connected, as_npz):
    pos, vectors, triangles = mesh
    folder = tmp_path_factory.mktemp("round")
    cells = {"triangle": triangles} if connected else {}
    if as_npz:
        path = folder / "s.npz"
        keyed = {f"cells_{kind}": c for kind, c in cells.items()}
        np.savez(path, pos=pos, p=vectors[:, 0], v=vectors, **keyed)
    else:
        path = folder / "s.vtu"
        sample = MeshSample("s", pos, pos, pos, cells)
        write_vtu(path, sample, {"p": vectors[:, 0], "v": vectors})
        assert [file.name for file in folder.iterdir()] == ["s.vtu"]
    read = read_mesh(path, pos.shape[1], inputs=["p"], targets=["v_x", "v_y", "v_z"])
    np.testing.assert_array_equal(read.pos, pos)
    np.testing.assert_array_equal(read.x, vectors[:, :1])
    np.testing.assert_array_equal(read.y, vectors)
    assert set(read.cells) == set(cells)
    for kind in cells:
        np.testing.assert_array_equal(read.cells[kind], cells[kind])


def test_plane_vectors_and_points_can_be_seen_in_other_programs(tmp_path):
    sample = MeshSample("s", POS, POS, POS)
    write_vtu(tmp_path / "a.vtu", sample, {"u": DISPLACEMENT[:, :2]})
    mesh = meshio.read(tmp_path / "a.vtu")
    assert mesh.point_data["u"].shape == mesh.points.shape == (5, 3)
    assert mesh.cells_dict["vertex"][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_what_cannot_be_written(tmp_path):
    sample = MeshSample("s", POS, POS, POS, {"heptagon": QUAD})
    with pytest.raises(DataError, match=r"a.vtu: p has shape \(4,\), the mesh 5 nodes"):
        write_vtu(tmp_path / "a.vtu", sample, {"p": np.zeros(4)})
    with pytest.raises(DataError, match="a.vtu: VTU has no cells of type 'heptagon'"):
        write_vtu(tmp_path / "a.vtu", sample, {})
    assert not list(tmp_path.iterdir())


def refused(path, message, **arguments):
    with pytest.raises(DataError, match=message) as error:
        read_mesh(path, **arguments)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text


def test_unreadable_files(tmp_path, capfd):
    refused(tmp_path / "a.vtu", "no such file")
    for name, content, message in [
        ("a.cgns", b"x", "unknown file type; expected .npz, .vtu"),
        ("b.vtu", b"", "the file is empty"),
        ("c.vtu", b"<VTKFile", "cannot be read: .+"),
        ("d.vtk", b"no mesh\n\n", "cannot be read: Illegal VTK header$"),
        ("d.msh", b"no mesh", "cannot be read: not a .msh file that meshio knows"),
        ("e.npz", b"PK\x03\x04 damaged", "is damaged, or no .npz file"),
        ("f.npz", b"pickle\n.", "is damaged, or no .npz file"),
    ]:
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, message)
    whole = write_mesh(tmp_path / "g.vtu", pressure=PRESSURE).read_bytes()
    for share in (0.3, 0.6, 0.9):
        (tmp_path / "h.vtu").write_bytes(whole[: int(share * len(whole))])
        refused(tmp_path / "h.vtu", "cannot be read: ")
    assert capfd.readouterr().out == ""


def test_pickles_stay_closed(tmp_path):
    path = write_npz(tmp_path / "a.npz", secret=np.array([{"a": 1}], dtype=object))
    assert read_mesh(path, targets=["pressure"]).y.shape == (5, 1)
    refused(path, "Object arrays cannot be loaded", targets=["secret"])


def test_fields_that_cannot_be_used(tmp_path):
    path = write_mesh(
        tmp_path / "a.vtu",
        cell_data={"stress": [np.ones(1), np.ones(1)]},
        pressure=PRESSURE,
        displacement=DISPLACEMENT,
        tensor=np.ones((5, 9)),
        damaged=np.array([0, 1, np.nan, 3, np.inf]),
    )
    for name, message in [
        ("presure", "no field 'presure'; did you mean 'pressure'.*nodes: .*tensor, damaged"),
        ("stress", "stress is a field of the cells, not of the nodes; convert it"),
        ("displacement", "has 3 components; name one of them: displacement_x, displacement_y, "),
        ("tensor", "has 9 components; name one of them: tensor:0, ..., tensor:8"),
        ("tensor_y", "has 9 components; name one of them: tensor:0, ..., tensor:8"),
        ("tensor:9", "tensor:9: tensor has only 9 components"),
        ("pressure_y", "pressure_y: pressure has only 1 components"),
        ("damaged", r"damaged is nan at node 2 \(2 values are not finite\)"),
    ]:
        refused(path, message, targets=[name])
        refused(path, message, inputs=["pressure", name])
    path = write_npz(
        tmp_path / "b.npz",
        short=np.ones(4),
        scalar=np.array(1.0),
        text=np.array(list("abcde")),
        waves=np.ones(5, dtype=complex),
        huge=np.array([0, 1e300, 0, 0, 0]),
    )
    for name, message in [
        ("short", r"short has shape \(4,\), expected one value for each of the 5 nodes"),
        ("scalar", r"scalar has shape \(\), expected one value"),
        ("text", "text holds <U1, not real numbers"),
        ("waves", "waves holds complex128, not real numbers"),
        ("huge", r"huge is 1e\+300 at node 1 \(1 values"),
        ("pos", "no field 'pos'"),
        ("anything", "no field 'anything'; fields at its nodes: pressure, short"),
    ]:
        refused(path, message, targets=[name])


def test_meshes_that_cannot_be_used(tmp_path):
    path = tmp_path / "a.npz"
    for content, message in [
        ({"pos": np.empty((0, 2))}, "the mesh has no nodes"),
        ({"pos": np.ones(4)}, r"pos has shape \(4,\), expected \[N, 1\], "),
        ({"pos": np.ones((5, 4))}, r"pos has shape \(5, 4\)"),
        ({"pos": POS + [[0, np.nan]]}, "y is nan at node 0"),
        ({"cells_quad": QUAD + 2}, "a quad cell names node 5; there are nodes 0 to 4"),
        ({"cells_quad": QUAD - 1}, "a quad cell names node -1"),
        ({"cells_quad": QUAD * 1.0}, "quad cells are float64, not numbers of nodes"),
        ({"cells_quad": QUAD.T}, r"cells_quad has shape \(4, 1\), expected \[E, 4\]"),
        ({"cells_tri": TRIANGLE}, "cells_tri: unknown cells; expected line, line3, triangle"),
    ]:
        refused(write_npz(path, **content), message)
    np.savez(path, x=POS)
    refused(path, r"has no pos \[N, d\]; it has x")
    with open(path, "wb") as file:
        np.save(file, POS)
    refused(path, "is damaged, or no .npz file")
    # meshio would not write these.
    text = (
        "# vtk DataFile Version 3.0\nx\nASCII\nDATASET UNSTRUCTURED_GRID\n"
        "POINTS 3 float\n0 0 0 1 0 0 0 1 0\nCELLS 1 4\n3 0 1 7\nCELL_TYPES 1\n5\n"
    )
    (tmp_path / "b.vtk").write_text(text)
    refused(tmp_path / "b.vtk", "a triangle cell names node 7; there are nodes 0 to 2")


def legacy(path, version, cells):
    points = " ".join(f"{x} {y} {z}" for z in (0, 1) for y in (0, 1) for x in (0, 1))
    path.write_text(
        f"# vtk DataFile Version {version}\nx\nASCII\nDATASET UNSTRUCTURED_GRID\n"
        f"POINTS 8 float\n{points}\n{cells}\n"
    )
    return path


def test_cells_that_meshio_drops_are_no_silence(tmp_path):
    path = legacy(tmp_path / "a.vtk", "3.0", "CELLS 1 5\n4 0 1 2 3\nCELL_TYPES 1\n8")
    refused(path, "cannot handle.; save it as .vtu, for example with ParaView")
    nodes = "OFFSETS vtktypeint64\n0 {0}\nCONNECTIVITY vtktypeint64\n{1}\nCELL_TYPES 1\n{2}"
    for kind, ids, message in [
        (11, "0 1 2 3 4 5 6 7", r"cannot read all of it: .*cannot handle \(type 11\)"),
        (8, "0 1 2 3", "has 'pixel', which meshio does not read; save it as .vtu"),
    ]:
        count = len(ids.split())
        cells = f"CELLS 2 {count}\n" + nodes.format(count, ids, kind)
        refused(legacy(path, "5.1", cells), message)


def test_zones_and_steps_that_meshio_drops_are_no_silence(tmp_path):
    zone = "ZONE N=3, E=1, F=FEPOINT, ET=TRIANGLE\n0 0 1\n1 0 2\n0 1 3\n1 2 3\n"
    path = tmp_path / "a.tec"
    path.write_text(f'TITLE="x"\nVARIABLES="X","Y","p"\n{zone}')
    assert read_mesh(path, targets=["p"]).y[:, 0].tolist() == [1, 2, 3]
    path.write_text(path.read_text() + zone)
    refused(path, "has ZONE several times, and meshio reads one; keep one")
    step = '$NodeData\n1\n"p"\n1\n{0}\n3\n0\n1\n3\n1 {0}\n2 {0}\n3 {0}\n$EndNodeData\n'
    mesh = (
        "$MeshFormat\n2.2 0 8\n$EndMeshFormat\n$Nodes\n3\n1 0 0 0\n2 1 0 0\n3 0 1 0\n$EndNodes\n"
        "$Elements\n1\n1 2 2 0 0 1 2 3\n$EndElements\n"
    )
    path = tmp_path / "a.msh"
    path.write_text(mesh + step.format(1))
    assert read_mesh(path, targets=["p"]).y[:, 0].tolist() == [1, 1, 1]
    path.write_text(mesh + step.format(1) + step.format(2))
    refused(path, 'has "p" several times, and meshio reads one; keep one')


@pytest.mark.parametrize("suffix", [".vtu", ".vtk", ".npz", ".xdmf", ".vtu.gz"])
def test_a_pointer_of_git_lfs(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(path, "is a pointer of Git LFS, and the file itself is missing: git lfs pull")


def test_entities_of_xml_stay_closed(tmp_path):
    path = tmp_path / "a.xdmf"
    path.write_text('<!DOCTYPE x [<!ENTITY a "lol">]><Xdmf>&a;</Xdmf>')
    refused(path, "declares the XML entity 'a'")


@pytest.mark.parametrize("height", [0.0, 5.0, -300.0])
def test_rounding_is_no_third_dimension(tmp_path, height):
    noise = 1e-17 if not height else 2e-16 * abs(height)
    points = np.pad(POS.astype(float), ((0, 0), (0, 1)), constant_values=height)
    points[::2, 2] += noise
    path = write_mesh(tmp_path / "a.vtu", points)
    assert read_mesh(path).pos.shape == read_mesh(path, 2).pos.shape == (5, 2)
    points[0, 2] += 1e-3
    assert read_mesh(write_mesh(tmp_path / "b.vtu", points)).pos.shape == (5, 3)


def test_meshes_far_from_the_origin(tmp_path):
    points = np.pad(POS.astype(float), ((0, 0), (0, 1)))
    points[0, 2] = 0.5
    sample = read_mesh(write_mesh(tmp_path / "a.vtu", points + 1e3))
    assert np.ptp(sample.pos[:, 2]) == pytest.approx(0.5, abs=1e-3)
    path = write_mesh(tmp_path / "b.vtu", points + 3000000.1)
    refused(path, r"the mesh is 2 long, and 3e\+06 from the origin: .*; move it to the origin")


def test_small_meshes_have_their_third_dimension(tmp_path):
    points = np.pad(POS * 1e-9, ((0, 0), (0, 1)))
    points[0, 2] = 1e-12
    assert read_mesh(write_mesh(tmp_path / "a.vtu", points)).pos.shape == (5, 3)


def test_without_meshio(tmp_path, monkeypatch):
    path = write_mesh(tmp_path / "a.vtu")
    other = write_mesh(tmp_path / "a.vtk")
    monkeypatch.setitem(sys.modules, "meshio", None)
    assert len(read_mesh(path).pos) == 5
    refused(other, r"needs the package meshio: pip install 'matattn\[mesh\]'")
    with pytest.raises(DataError, match=r"needs the package meshio: pip install"):
        write_vtu(path, MeshSample("s", POS, POS, POS), {})
    assert read_mesh(write_npz(tmp_path / "a.npz"), targets=["pressure"]).y.shape == (5, 1)


def test_names_of_mesh_files(tmp_path):
    for name in ("a.vtu", "B.VTK", "c.npz", ".d.vtu.3.partial", "._e.vtu", "f.csv"):
        (tmp_path / name).touch()
    (tmp_path / "g.vtu").mkdir()
    names = sorted(p.name for p in tmp_path.iterdir() if is_mesh_file(p))
    assert names == ["B.VTK", "a.vtu", "c.npz"]
