"""The user's own mesh files as a data set."""

import meshio
import numpy as np
import pytest

from matattn.datasets import meshes
from matattn.errors import DataError

SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32)
QUAD = np.array([[0, 1, 2, 3]])


def write(path, number=0.0, pos=SQUARE, cells=True, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"p": np.full(len(pos), number), "u": np.outer(np.arange(len(pos)), [1, 2])} | fields
    np.savez(path, pos=pos, **fields, **({"cells_quad": QUAD} if cells else {}))


@pytest.fixture
def folder(tmp_path):
    for number in range(20):
        write(tmp_path / f"m{number:02}.npz", number)
    return tmp_path


def load(path, targets=("p",), **arguments):
    return meshes.load("mine", str(path), targets, **arguments)


def test_random_split_and_columns(folder):
    arguments = {"targets": ["p", "u_y"], "inputs": ["u:0"], "note": "Mine."}
    data = load(folder, units={"p": "Pa", "x": "m"}, scaling={"y": "none", "u:0": 3}, **arguments)
    assert [item.id for item in data.items] == [f"m{number:02}" for number in range(20)]
    assert [len(data.rows(name)) for name in ("train", "val", "test")] == [16, 2, 2]
    described = [(f.name, f.unit, f.scaling) for f in (*data.coordinates, *data.inputs)]
    assert described == [("x", "m", "range"), ("y", "", "none"), ("u:0", "", 3)]
    assert [(f.name, f.unit) for f in data.targets] == [("p", "Pa"), ("u_y", "")]
    assert data.items[7].y.tolist() == [[7, 0], [7, 2], [7, 4], [7, 6]]
    assert data.items[7].x[:, 0].tolist() == [0, 1, 2, 3]
    assert data.aligned and data.skipped == []
    assert data.note == "Mine. Random split of the files."
    again, other = load(folder, **arguments), load(folder, split_seed=1, **arguments)
    assert (again.split == data.split).all() and (other.split != data.split).any()
    assert load(folder, targets="p").items[3].y.shape == (4, 1)


def test_a_bad_file_is_left_out_and_moves_no_other(folder):
    whole = load(folder)
    write(folder / "m03.npz", np.nan)
    (folder / "m05.npz").write_bytes(b"damaged")
    np.savez(folder / "m07.npz", pos=SQUARE)
    (folder / "notes.txt").write_text("not a mesh")
    data = load(folder)
    assert len(data.items) == 17
    assert [message.split(": ")[0] for message in data.skipped] == [
        str(folder / f"m0{number}.npz") for number in (3, 5, 7)
    ]
    assert "p is nan at node 0" in data.skipped[0] and "no field 'p'" in data.skipped[2]
    places = dict(zip([item.id for item in whole.items], whole.split, strict=True))
    assert [places[item.id] for item in data.items] == data.split.tolist()


def test_split_in_a_table(folder):
    rows = ["id,split", "m00,train", "m01.npz,val", "m02,test", "m03,", "absent,train"]
    (folder / "split.csv").write_text("\n".join(rows))
    data = load(folder)
    assert data.split.tolist() == ["train", "val", "test"] + [""] * 17
    assert data.skipped == [
        f"{folder / 'split.csv'}: ids without a mesh file: 1, the first is absent",
        f"{folder / 'split.csv'}: mesh files without a row, not used: 16, the first is m04",
    ]
    assert data.note == "Split as the folder says."
    assert len(load(folder, split="random").rows("train")) == 16


@pytest.mark.parametrize(
    "text, message",
    [
        ("m00,train\nm01,val\n", "split.csv: the first line must name the columns id and split"),
        ("m\u00e4", "split.csv: cannot be read: .*utf-8"),
        ("id,split\nm00\n", "no training sample"),
        ("id,split\nm00,training\n", "split.csv: split is training in some rows; use train, val"),
        ("id,split\nother,train\n", "no training sample"),
    ],
)
def test_tables_that_cannot_be_used(folder, text, message):
    (folder / "split.csv").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=message):
        load(folder)


def test_split_in_folders(tmp_path):
    for number, place in enumerate(["test", "train/a", "train/b", "val", "extra"]):
        write(tmp_path / place / "mesh.npz", number)
    data = load(tmp_path, sizes=[2, 1, 1])
    ids = ["extra/mesh", "test/mesh", "train/a/mesh", "train/b/mesh", "val/mesh"]
    assert [item.id for item in data.items] == ids
    assert data.split.tolist() == ["", "test", "train", "train", "val"]
    with pytest.raises(DataError, match=r"train/val/test have \[2, 1, 1\] rows, .* \[5, 1, 1\]"):
        load(tmp_path, sizes=[5, 1, 1])


def test_a_list_of_files_of_several_formats(tmp_path):
    write(tmp_path / "a.npz", 3)
    points = np.pad(SQUARE, ((0, 0), (0, 1)))
    mesh = meshio.Mesh(points, [("quad", QUAD)], point_data={"p": np.full(4, 4.0)})
    mesh.write(tmp_path / "b.vtu")
    files = [str(tmp_path / name) for name in ("b.vtu", "a.npz")]
    data = meshes.load("mine", files, ["p"])
    assert [item.id for item in data.items] == ["a", "b"] and data.aligned
    assert [item.y[0, 0] for item in data.items] == [3, 4]
    alone = meshes.load("mine", files[:1], ["p"])
    assert [item.id for item in alone.items] == ["b"] and alone.split.tolist() == ["train"]
    mesh.write(tmp_path / "a.vtk")
    data = load(tmp_path)
    (message,) = data.skipped
    assert message == f"{tmp_path / 'a.vtk'}: duplicate id: a.npz is used, this file is skipped"


def test_parts_and_series(tmp_path):
    points = np.pad(SQUARE, ((0, 0), (0, 1)))
    for name in ("a_0", "a_1", "b"):
        mesh = meshio.Mesh(points, [("quad", QUAD)], point_data={"p": np.full(4, 4.0)})
        mesh.write(tmp_path / f"{name}.vtu")
    (tmp_path / "a.pvtu").write_text(
        '<VTKFile type="PUnstructuredGrid"><PUnstructuredGrid><Piece Source="a_0.vtu"/>'
        '<Piece Source="a_1.vtu"/></PUnstructuredGrid></VTKFile>'
    )
    assert {item.id: len(item.pos) for item in load(tmp_path).items} == {"a": 8, "b": 4}
    (tmp_path / "s.pvd").write_text(
        '<VTKFile type="Collection"><Collection><DataSet timestep="0" file="b.vtu"/>'
        '<DataSet timestep="1" file="a_1.vtu"/></Collection></VTKFile>'
    )
    series = meshes.load("mine", [str(tmp_path / "s.pvd")], ["p"])
    assert [item.id for item in series.items] == ["a_1", "b"]


def test_meshes_are_spatial_or_plane_as_most_of_them_are(folder):
    tilted = np.pad(SQUARE, ((0, 0), (0, 1))) + [[0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
    write(folder / "m00.npz", pos=tilted)
    data = load(folder)
    assert "m00.npz: the mesh has 3 coordinates, expected 2" in data.skipped[0]
    for number in range(1, 19):
        write(folder / f"m{number:02}.npz", pos=tilted)
    write(folder / "m19.npz", pos=np.pad(SQUARE, ((0, 0), (0, 1)), constant_values=2))
    data = load(folder)
    assert data.skipped == [] and len(data.coordinates) == 3
    assert data.items[19].pos[:, 2].tolist() == [2] * 4


def test_alignment(tmp_path):
    write(tmp_path / "a.npz", pos=SQUARE)
    write(tmp_path / "b.npz", pos=SQUARE * [2, 1])
    assert load(tmp_path).aligned
    write(tmp_path / "c.npz", pos=np.concatenate([SQUARE, SQUARE + 2]))
    assert not load(tmp_path).aligned
    for name in "abc":
        write(tmp_path / f"{name}.npz", cells=False)
    assert not load(tmp_path).aligned


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"targets": []}, "data.targets is empty"),
        ({"targets": ["q"]}, "no usable mesh; first problem: .*m00.npz: has no field 'q'"),
        ({"inputs": ["p"]}, "duplicate field p; name it only once among coordinates, data.inputs"),
        ({"units": {"q": "m"}}, "data.units: no field 'q'; choose x, y, p"),
        ({"scaling": {"p": "none"}}, "data.scaling: no field 'p'; choose x, y$"),
        ({"scaling": {"x": "minmax"}}, "data.scaling: x is 'minmax'; choose range, standard, none"),
        ({"scaling": {"x": 0}}, "data.scaling: x is 0; choose"),
        ({"split": "formula"}, "data.split='formula': choose official or random"),
        ({"split": "official"}, "has neither split.csv .* nor a folder train"),
    ],
)
def test_arguments_that_cannot_be_used(folder, arguments, message):
    with pytest.raises(DataError, match=message):
        load(folder, **arguments)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="missing: no such folder; give data.path=FOLDER"):
        load(tmp_path / "missing")
    with pytest.raises(DataError, match="holds no mesh file; expected .npz, .vtu"):
        load(tmp_path)
    with pytest.raises(DataError, match="data.path is empty; give data.path=FOLDER"):
        load("")
    with pytest.raises(DataError, match="a.vtu: no such file"):
        meshes.load("mine", [str(tmp_path / "a.vtu")], ["p"])


def test_from_the_configuration(folder):
    from matattn.config import build

    config = {"_target_": "matattn.datasets.meshes.load", "name": "mine", "path": str(folder)}
    config |= {"targets": ["p"], "inputs": [], "units": None, "scaling": {"x": "none"}}
    data = build(config, "data")
    assert [field.scaling for field in data.coordinates] == ["none", "range"]
    with pytest.raises(DataError, match="m00.npz: has no field 'q'"):
        build(config | {"targets": ["q"]}, "data")
