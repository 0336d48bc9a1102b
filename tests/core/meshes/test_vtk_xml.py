"""VTK's XML files as programs write them: pieces, encodings, cells, parts; and hostile ones."""

import base64
import gzip
import lzma
import struct
import zlib

import meshio
import numpy as np
import pytest

from matattn.errors import DataError
from matattn.meshes.files import is_mesh_file, mesh_files, read_mesh, write_vtu

NAMES = {"f4": "Float32", "f8": "Float64", "i8": "Int64", "i4": "Int32", "u1": "UInt8"}
CUBE = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)], dtype="f8")
COMPRESS = {"vtkZLibDataCompressor": zlib.compress, "vtkLZMADataCompressor": lzma.compress}


class Writer:
    """Writes arrays as VTK's XML has them."""

    def __init__(self, how="ascii", header="UInt32", order="<", compressor="", joined=True):
        self.how, self.header, self.order, self.compressor = how, header, order, compressor
        self.joined = joined  # uncompressed base64: header and array in one
        self.appended = b""

    def block(self, content, encoded):
        code = self.order + {"UInt32": "I", "UInt64": "Q"}[self.header]
        encode = base64.b64encode if encoded else bytes
        if not self.compressor:
            length = struct.pack(code, len(content))
            return encode(length + content) if self.joined else encode(length) + encode(content)
        pieces = [content[at : at + 40] for at in range(0, len(content), 40)]
        packed = [COMPRESS[self.compressor](piece) for piece in pieces]
        last = len(pieces[-1]) % 40 if pieces else 0
        numbers = [len(pieces), 40, last, *map(len, packed)]
        head = b"".join(struct.pack(code, number) for number in numbers)
        return encode(head) + encode(b"".join(packed))

    def array(self, name, values, kind="f8"):
        values = np.asarray(values)
        width = f' NumberOfComponents="{values.shape[1]}"' if values.ndim == 2 else ""
        start = f'<DataArray type="{NAMES[kind]}" Name="{name}"{width}'
        content = values.astype(self.order + kind).tobytes()
        if self.how == "ascii":
            text = " ".join(map(repr, values.ravel().tolist()))
            return f'{start} format="ascii">\n{text}</DataArray>'
        if self.how == "binary":
            text = self.block(content, True).decode()
            information = '<InformationKey name="L2"><Value>3</Value></InformationKey>'
            return f'{start} format="binary">\n {text}\n{information}</DataArray>'
        offset = len(self.appended)
        self.appended += self.block(content, self.how == "base64")
        return f'{start} format="appended" offset="{offset}"/>'

    def piece(self, points, cells, **fields):
        """Text of a piece; ``cells`` are (VTK's type, nodes)."""
        nodes = [node for _, cell in cells for node in cell]
        ends = np.cumsum([len(cell) for _, cell in cells])
        data = "".join(self.array(name, values) for name, values in fields.items())
        return (
            f'<Piece NumberOfPoints="{len(points)}" NumberOfCells="{len(cells)}">'
            f"<PointData>{data}</PointData><Points>{self.array('Points', points)}</Points><Cells>"
            + self.array("connectivity", nodes, "i8")
            + self.array("offsets", ends, "i4")
            + self.array("types", [kind for kind, _ in cells], "u1")
            + "</Cells></Piece>"
        )

    def write(self, path, *pieces, kind="UnstructuredGrid"):
        order = {"<": "LittleEndian", ">": "BigEndian"}[self.order]
        compressor = f' compressor="{self.compressor}"' if self.compressor else ""
        encoding = "base64" if self.how == "base64" else "raw"
        text = (
            f'<?xml version="1.0"?><VTKFile type="{kind}" byte_order="{order}" '
            f'header_type="{self.header}"{compressor}><{kind}>{"".join(pieces)}</{kind}>'
        ).encode()
        if self.appended:
            text += f'<AppendedData encoding="{encoding}">\n_'.encode() + self.appended
            text += b"\n</AppendedData>"
        path.write_bytes(text + b"</VTKFile>")
        return path


def two_pieces(writer, path):
    shifted = CUBE + [2, 0, 0]
    one = writer.piece(CUBE, [(12, [0, 1, 3, 2, 4, 5, 7, 6])], p=np.arange(8.0), u=CUBE)
    two = writer.piece(shifted, [(10, [0, 1, 2, 4]), (10, [7, 6, 5, 3])], p=-CUBE[:, 0], u=CUBE)
    return writer.write(path, one, two)


WAYS = [
    dict(how=how, header=header, order=order, compressor=compressor)
    for how in ("ascii", "binary", "base64", "raw")
    for header in ("UInt32", "UInt64")
    for order in "<>"
    for compressor in ("", *COMPRESS)
    if how != "ascii" or (header, order, compressor) == ("UInt32", "<", "")
]


@pytest.mark.parametrize("way", [*WAYS, dict(how="binary", joined=False)], ids=str)
def test_all_pieces_in_every_encoding(tmp_path, way):
    path = two_pieces(Writer(**way), tmp_path / "a.vtu")
    sample = read_mesh(path, targets=["p", "u_y"])
    np.testing.assert_array_equal(sample.pos, np.concatenate([CUBE, CUBE + [2, 0, 0]]))
    np.testing.assert_array_equal(sample.y[:, 0], [*range(8), *-CUBE[:, 0]])
    np.testing.assert_array_equal(sample.y[:, 1], [*CUBE[:, 1]] * 2)
    assert {kind: cells.tolist() for kind, cells in sample.cells.items()} == {
        "hexahedron": [[0, 1, 3, 2, 4, 5, 7, 6]],
        "tetra": [[8, 9, 10, 12], [15, 14, 13, 11]],
    }
    write_vtu(tmp_path / "b.vtu", sample, {"p": sample.y[:, 0]})
    written = meshio.read(tmp_path / "b.vtu")
    assert sum(len(block.data) for block in written.cells) == 3 and len(written.points) == 16


@pytest.mark.parametrize("binary, compression", [(False, None), (True, None), (True, "lzma")])
def test_files_of_meshio(tmp_path, binary, compression):
    cells = [("wedge", [[0, 1, 2, 4, 5, 6]]), ("triangle", [[0, 1, 2]])]
    mesh = meshio.Mesh(CUBE, cells, point_data={"p": CUBE[:, 0], "u": CUBE})
    options = {"compression": compression} if binary else {}
    meshio.vtu.write(str(tmp_path / "a.vtu"), mesh, binary=binary, **options)
    sample = read_mesh(tmp_path / "a.vtu", targets=["p", "u_z"])
    np.testing.assert_array_equal(sample.y, CUBE[:, [0, 2]])
    assert {k: c.tolist() for k, c in sample.cells.items()} == {k: c for k, c in cells}


CELLS = {  # VTK's type and nodes: what is read
    "vertex": (1, [0], {}),
    "line": (3, [0, 1], {"line": [[0, 1]]}),
    "poly line": (4, [0, 1, 3], {"line": [[0, 1], [1, 3]]}),
    "strip": (6, [0, 1, 2, 3, 4], {"triangle": [[0, 1, 2], [3, 2, 1], [2, 3, 4]]}),
    "polygon of 3": (7, [0, 1, 2], {"triangle": [[0, 1, 2]]}),
    "polygon of 5": (7, [0, 1, 3, 7, 2], {"polygon5": [[0, 1, 3, 7, 2]]}),
    "pixel": (8, [0, 1, 2, 3], {"quad": [[0, 1, 3, 2]]}),
    "voxel": (11, list(range(8)), {"hexahedron": [[0, 1, 3, 2, 4, 5, 7, 6]]}),
    "wedge": (13, [0, 1, 2, 4, 5, 6], {"wedge": [[0, 2, 1, 4, 6, 5]]}),
    "Lagrange": (70, [0, 1, 3, 2], {"VTK_LAGRANGE_QUADRILATERAL4": [[0, 1, 3, 2]]}),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells(tmp_path, name):
    kind, nodes, expected = CELLS[name]
    writer = Writer()
    path = writer.write(tmp_path / "a.vtu", writer.piece(CUBE, [(kind, nodes)]))
    sample = read_mesh(path)
    assert {kind: cells.tolist() for kind, cells in sample.cells.items()} == expected
    write_vtu(tmp_path / "b.vtu", sample, {})
    again = read_mesh(tmp_path / "b.vtu")
    assert {kind: cells.tolist() for kind, cells in again.cells.items()} == expected


def test_a_voxel_becomes_a_hexahedron_with_its_volume(tmp_path):
    writer = Writer()
    path = writer.write(tmp_path / "a.vtu", writer.piece(CUBE, [(11, range(8))]))
    (cell,) = read_mesh(path).cells["hexahedron"]
    bottom, top = CUBE[cell[:4]], CUBE[cell[4:]]
    for face in (bottom, top):  # neighbours in a face share an edge
        assert [int(abs(face[n] - face[n - 1]).sum()) for n in range(4)] == [1] * 4
    assert abs(bottom - top).sum(axis=1).tolist() == [1] * 4


def test_polyhedra_are_read_as_their_faces(tmp_path):
    """Two tetrahedra that share a face, as polyhedra, and a pyramid that is none."""
    tetrahedra = [[0, 1, 2, 4], [1, 2, 4, 7]]
    stream = [[4, *(n for face in range(4) for n in (3, *np.delete(t, face)))] for t in tetrahedra]
    writer = Writer()
    piece = writer.piece(CUBE, [*((42, t) for t in tetrahedra), (14, [4, 5, 7, 6, 0])])
    faces = writer.array("faces", np.concatenate(stream), "i8")
    faces += writer.array("faceoffsets", [17, 34, -1], "i8")
    path = writer.write(tmp_path / "a.vtu", piece.replace("</Cells>", f"{faces}</Cells>"))
    cells = read_mesh(path).cells
    assert cells["pyramid"].tolist() == [[4, 5, 7, 6, 0]]
    assert {frozenset(face) for face in cells["triangle"].tolist()} == {
        frozenset(np.delete(t, face).tolist()) for t in tetrahedra for face in range(4)
    }
    assert len(cells["triangle"]) == 7
    for damaged in ("4 2 1", "4 3 0 1", "9", "4 -1 0"):
        faces = f'<DataArray type="Int64" Name="faces">{damaged}</DataArray>'
        writer.write(path, piece.replace("</Cells>", f"{faces}</Cells>"))
        with pytest.raises(DataError, match="a.vtu: cannot be read: .*(damaged faces|islice)"):
            read_mesh(path)


def test_surfaces(tmp_path):
    writer = Writer("raw")
    polys = writer.array("connectivity", [0, 1, 3, 2, 4, 5, 7], "i8")
    polys += writer.array("offsets", [4, 7], "i8")
    lines = writer.array("connectivity", [0, 1, 2], "i8") + writer.array("offsets", [3], "i8")
    piece = (
        '<Piece NumberOfPoints="8" NumberOfVerts="0" NumberOfLines="1" NumberOfStrips="0" '
        f'NumberOfPolys="2"><PointData>{writer.array("p", CUBE[:, 0])}</PointData><Points>'
        f"{writer.array('Points', CUBE)}</Points><Lines>{lines}</Lines><Polys>{polys}</Polys>"
        "</Piece>"
    )
    sample = read_mesh(writer.write(tmp_path / "a.vtp", piece, kind="PolyData"), targets=["p"])
    assert {kind: cells.tolist() for kind, cells in sample.cells.items()} == {
        "line": [[0, 1], [1, 2]],
        "quad": [[0, 1, 3, 2]],
        "triangle": [[4, 5, 7]],
    }
    np.testing.assert_array_equal(sample.y[:, 0], CUBE[:, 0])


def test_parts_and_series(tmp_path):
    writer = Writer()
    for number in range(2):
        piece = writer.piece(CUBE + 2 * number, [(11, range(8))], p=CUBE[:, 0] + number)
        writer.write(tmp_path / f"a_{number}.vtu", piece)
    (tmp_path / "a.pvtu").write_text(
        '<VTKFile type="PUnstructuredGrid"><PUnstructuredGrid GhostLevel="0">'
        '<Piece Source="a_0.vtu"/><Piece Source="a_1.vtu"/></PUnstructuredGrid></VTKFile>'
    )
    sample = read_mesh(tmp_path / "a.pvtu", targets=["p"])
    assert sample.y[:, 0].tolist() == [*CUBE[:, 0], *CUBE[:, 0] + 1]
    assert sample.cells["hexahedron"][1].min() == 8
    assert mesh_files(tmp_path) == [tmp_path / "a.pvtu"]  # and not its parts again
    series = tmp_path / "s.pvd"
    rows = [f'<DataSet timestep="{n}" part="0" file="a_{n}.vtu"/>' for n in (0, 1)]
    start, end = '<VTKFile type="Collection"><Collection>', "</Collection></VTKFile>"
    series.write_text(start + "".join(rows) + end)
    assert mesh_files(series) == [tmp_path / "a_0.vtu", tmp_path / "a_1.vtu"]
    assert not is_mesh_file(series)  # a folder also has its files
    for text, message in [
        ("".join(rows).replace('"1"', '"0"'), "several parts at the time 0; merge them"),
        (rows[0].replace("a_0", "b"), "names b.vtu, which does not exist"),
        (rows[0].replace("a_0.vtu", "/etc/passwd"), "names '/etc/passwd'; expected files .vtu"),
        ("", "names no files"),
    ]:
        series.write_text(start + text + end)
        with pytest.raises(DataError, match=f"s.pvd: .*{message}"):
            mesh_files(series)


def test_compressed_files(tmp_path):
    path = two_pieces(Writer("raw"), tmp_path / "a.vtu")
    packed = tmp_path / "b.vtu.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert is_mesh_file(packed)
    sample = read_mesh(packed, targets=["p"])
    assert sample.id == "b"
    np.testing.assert_array_equal(sample.y, read_mesh(path, targets=["p"]).y)


BOMB = '<!DOCTYPE x [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;">]>'
ONE = Writer().piece(CUBE, [(11, range(8))], p=CUBE[:, 0])


def refused(tmp_path, content, message, **arguments):
    path = tmp_path / "a.vtu"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_mesh(path, **arguments)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text


def whole(piece):
    return (
        f'<VTKFile type="UnstructuredGrid"><UnstructuredGrid>{piece}</UnstructuredGrid></VTKFile>'
    )


def test_hostile_files(tmp_path):
    other = Writer().piece(CUBE, [(11, range(8))], q=CUBE[:, 0])
    refused(tmp_path, BOMB + whole(ONE), "declares the XML entity 'a'")
    refused(tmp_path, whole(ONE)[:-30], "is no well-formed XML")
    refused(tmp_path, "<svg/>", "begins with <svg>; expected <VTKFile>")
    refused(tmp_path, '<VTKFile type="ImageData"/>', "holds ImageData; expected UnstructuredGrid")
    refused(tmp_path, whole(""), "the mesh has no nodes")
    for old, new, message in [
        ("\n11<", "\n42<", "has polyhedra .VTK's type 42. without an array of their faces"),
        ("\n11<", "\n99<", "has 1 cells of VTK's type 99 with 8 nodes, which are not read"),
        ("\n11<", "\n10<", "has 1 cells of VTK's type 10 with 8 nodes, which are not read"),
        ("\n11<", "\n11 11<", "types has 2 values, expected 1"),
        ("\n8<", "\n9<", "connectivity has 8 values, expected 9"),
        ("\n8<", "\n-8<", "cannot be read: "),
        ("6 7<", "6 8<", "a hexahedron cell names node 8; there are nodes 0 to 7"),
        ("6 7<", "6 -1<", "a hexahedron cell names node -1"),
        ("6 7<", "6 x<", "holds a text that is no number"),
        ('NumberOfPoints="8"', 'NumberOfPoints="9"', "Points has 24 values, expected 9 x 3"),
        ('NumberOfCells="1"', 'NumberOfCells="2"', "offsets has 1 values, expected 2"),
        ('"ascii"', '"zip"', "has the unknown format 'zip'"),
        ('"Float64" Name="Points"', '"Text" Name="Points"', "Points holds Text, not numbers"),
        ("<Points>", "<Pts>", "no well-formed XML"),
    ]:
        assert old in ONE, old
        refused(tmp_path, whole(ONE.replace(old, new)), message)
    refused(tmp_path, whole(ONE + other), "piece 2 of 2 has no field p", targets=["p"])
    for compressor in ("vtkLZ4DataCompressor", "os.system"):
        text = whole(ONE).replace("<VTKFile", f'<VTKFile compressor="{compressor}"')
        refused(tmp_path, text, f"compressor={compressor}: not known here; save it with ZLib")


@pytest.mark.parametrize("way", WAYS[1:], ids=str)
def test_files_that_end_early(tmp_path, way):
    content = two_pieces(Writer(**way), tmp_path / "a.vtu").read_bytes()
    for share in range(1, 10):
        (tmp_path / "b.vtu").write_bytes(content[: share * len(content) // 10])
        with pytest.raises(DataError, match="b.vtu: "):
            read_mesh(tmp_path / "b.vtu", targets=["p", "u_x"])


def test_sizes_that_lie(tmp_path):
    text = whole(ONE.replace('format="ascii">\n', 'format="binary">', 1))
    start, rest = text.split('format="binary">', 1)
    end = rest[rest.index("<") :]
    for numbers in ([1, 2**31, 0, 9], [2**31, 40, 0], [1, 0, 2**31, 9], [2**32 - 1]):
        block = base64.b64encode(struct.pack(f"<{len(numbers)}I", *numbers)).decode()
        packed = f'{start}format="binary">{block}{end}'
        for content in (
            packed,
            packed.replace("<VTKFile", '<VTKFile compressor="vtkZLibDataCompressor"'),
        ):
            refused(tmp_path, content, "cannot be read: ", targets=["p"])
