"""Molecules: every loader on a few rows made by hand, and on the published files where they are."""

import bz2
import io
import json
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from matattn.datasets import couplings, md17, qm7, qm9, qm9nmr
from matattn.datasets.molecules import bond_distances, bonds, means_by_type, sized_split
from matattn.errors import DataError
from matattn.structures.metrics import composition, evaluate

METHANE = [[0, 0, 0], [0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [-0.63, 0.63, -0.63],
           [0.63, -0.63, -0.63]]  # fmt: skip
WATER = [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]


def test_sized_split_is_seeded_and_exact():
    split = sized_split("toy", 10, 0, [5, 2, 1])
    assert [(split == name).sum() for name in ("train", "val", "test", "")] == [5, 2, 1, 2]
    assert (split == sized_split("toy", 10, 0, [5, 2, 1])).all()
    assert (split != sized_split("toy", 10, 1, [5, 2, 1])).any()
    with pytest.raises(DataError, match="toy: has 10 rows, data.sizes"):
        sized_split("toy", 10, 0, [9, 1, 1])


def test_bonds_of_methane_and_water():
    steps = bond_distances(bonds([6, 1, 1, 1, 1], np.array(METHANE)))
    assert steps[0].tolist() == [0, 1, 1, 1, 1] and steps[1].tolist() == [1, 0, 2, 2, 2]
    apart = np.array(WATER + [[9, 9, 9]])
    assert bond_distances(bonds([8, 1, 1, 1], apart))[3].tolist() == [-1, -1, -1, 0]


def qm7_file(path):
    z = np.array([6, 1, 1, 1, 1] + 9 * [8, 1, 1], dtype=np.uint8)
    pos = np.array(METHANE + 9 * WATER, dtype=np.float32)
    np.savez(
        path, name=[f"{n}.xyz" for n in range(10)], z=z, pos=pos, n_atoms=[5] + 9 * [3],
        heat_of_formation_kcal_mol=-100.0 - np.arange(10),
    )  # fmt: skip
    return path


def test_qm7(tmp_path):
    data = qm7.load("qm7", str(qm7_file(tmp_path / "qm7.npz")), sizes=[6, 2, 2])
    assert data.targets[0].name == "heat_of_formation" and data.extensive
    assert data.has_molecules and data.elements(None) == [1, 6, 8]
    assert data.labels()[:, 0].tolist() == [-100.0 - n for n in range(10)]
    assert data.items[0].pos.numpy() == pytest.approx(np.array(METHANE), abs=1e-6)
    assert not data.items[0].cell.any()
    assert composition(data)[0, [0, 5, 7]].tolist() == [4, 1, 0]  # atoms, not fractions


def test_official_qm7(tmp_path):
    z, r = np.zeros((3, 5)), np.zeros((3, 5, 3))
    z[:], r[:] = [6, 1, 1, 1, 1], np.array(METHANE) / 0.529177210903
    z[2, 3:], r[2, 3:] = 0, 0
    savemat(tmp_path / "qm7.mat", {"R": r, "Z": z, "T": np.array([[-1.0, -2.0, -3.0]])})
    data = qm7.load("qm7", str(tmp_path / "qm7.mat"), ["atomization_energy"], sizes=[3, 0, 0])
    assert [len(item.z) for item in data.items] == [5, 5, 3]
    assert data.items[1].pos.numpy() == pytest.approx(np.array(METHANE), abs=1e-6)


def test_qm7_of_another_kind(tmp_path):
    with pytest.raises(DataError, match="no such file; set MATATTN_DATA"):
        qm7.load("qm7", str(tmp_path / "qm7.npz"))
    np.savez(tmp_path / "x.npz", z=[1])
    with pytest.raises(DataError, match="lacks name, pos, n_atoms"):
        qm7.load("qm7", str(tmp_path / "x.npz"))
    (tmp_path / "y.npz").write_text("no archive")
    with pytest.raises(DataError, match="cannot be read"):
        qm7.load("qm7", str(tmp_path / "y.npz"))


QM9_FILE = """3
gdb {n}\t1 2 3 {n}.5 5 -0.2 0.1 0.3 9 0.02 -76.1 -76.2 -76.3 -76.4 6.0
O\t0.0\t0.0\t0.0\t-0.5
H\t0.96\t0.0\t1.0*^-6\t0.25
H\t-0.24\t0.93\t0.0\t0.25
1 2 3
O\tO
InChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2
"""


def test_official_qm9(tmp_path):
    path, numbers = tmp_path / "dsgdb9nsd.xyz.tar.bz2", range(1, 13)
    with tarfile.open(path, "w:bz2") as archive:
        for n in numbers:
            content = QM9_FILE.format(n=n).encode()
            info = tarfile.TarInfo(f"dsgdb9nsd_{n:06d}.xyz")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (tmp_path / "uncharacterized.txt").write_text("Index  SMILES\n===\n   4  O  x\n\n1 compound\n")
    excluded = str(tmp_path / "uncharacterized.txt")
    data = qm9.load("qm9", str(path), ["dipole_moment", "homo_lumo_gap"], excluded=excluded)
    assert [item.id for item in data.items] == [f"gdb_{n}" for n in numbers if n not in (1, 4)]
    assert data.labels()[0].tolist() == pytest.approx([2.5, 0.3])
    assert data.items[0].pos[1].tolist() == pytest.approx([0.96, 0, 1e-6])
    with pytest.raises(DataError, match="zero_point_energy grow with the number of atoms"):
        assert qm9.load("qm9", str(path), ["homo", "zero_point_energy"]).extensive
    path.write_bytes(bz2.compress(b"no archive"))
    with pytest.raises(DataError, match="not the archive of QM9"):
        qm9.load("qm9", str(path))


@pytest.mark.parametrize("keys", [("z", "R", "E"), ("nuclear_charges", "coords", "energies")])
def test_md17(tmp_path, keys):
    pos = np.array(20 * [WATER]) + 0.01 * np.arange(20)[:, None, None] * np.eye(3)
    values = dict(zip(keys, ([8, 1, 1], pos, -np.arange(20.0)[:, None]), strict=True))
    np.savez(tmp_path / "md17_water.npz", **values)
    data = md17.load("md17", str(tmp_path / "md17_water.npz"), sizes=[10, 5, 5])
    assert data.labels()[:, 0].tolist() == [-float(n) for n in range(20)]
    assert data.items[3].pos[0].tolist() == pytest.approx([0.03, 0, 0])


@pytest.mark.parametrize(
    "load, properties, column",
    [
        (lambda path: qm9.load("qm9", path), "epsgap={n}", "homo_lumo_gap"),
        (lambda path: md17.load("md17", path), "energy={n}", "potential_energy"),
    ],
)
def test_extended_xyz(tmp_path, load, properties, column):
    atoms = "".join(f"{s} {x} {y} {z}\n" for s, (x, y, z) in zip("OHH", WATER, strict=True))
    head = 'Properties=species:S:1:pos:R:3 pbc="F F F" '
    frames = [f"3\n{head}{properties.format(n=n)}\n{atoms}" for n in range(1, 21)]
    (tmp_path / "a.xyz").write_text("".join(frames))
    data = load(str(tmp_path / "a.xyz"))
    assert [target.name for target in data.targets] == [column] and not data.skipped
    assert data.labels()[:, 0].tolist() == list(range(1, 21))


def shieldings(tmp_path, count=12):
    water = {"symbols": list("OHH"), "pos": WATER}
    rows = [water | {"name": f"m{n}", "sigma_ppm": [[300 + n], [30], [31]]} for n in range(count)]
    path = tmp_path / "qm9nmr.json"
    path.write_text(json.dumps(rows))
    return str(path)


def test_shieldings_are_of_atoms(tmp_path):
    data = qm9nmr.load("qm9nmr", shieldings(tmp_path))
    assert data.level == "atom" and data.labels().shape == (36, 1)
    assert data.owners().tolist() == np.repeat(range(12), 3).tolist()
    assert (data.split[data.owners()[data.label_rows("test")]] == "test").all()
    found = evaluate(data, data.labels() + 1.0)["test"]["nmr_shielding"]
    assert found["mae"] == pytest.approx(1.0, abs=1e-5)
    assert set(found["baselines"]) == {"mean", "linear_composition", "increments"}
    oxygen = qm9nmr.load("qm9nmr", shieldings(tmp_path), elements=[8])
    assert (~np.isnan(oxygen.labels())).sum() == 12


def test_increments_see_the_neighbours(tmp_path):
    """Carbon in two surroundings: its mean is wrong for both, its increments are right."""
    rows = []
    for n in range(20):
        kind = "F" if n % 2 else "H"
        rows.append({"name": str(n), "symbols": ["C", kind], "pos": [[0, 0, 0], [1.1, 0, 0]],
                     "sigma_ppm": [[100.0 + 50 * (n % 2)], [30.0]]})  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(rows))
    data = qm9nmr.load("qm9nmr", str(tmp_path / "a.json"))
    carbon = data.labels()[::2] - data.floors["increments"][::2]
    assert abs(carbon).max() < 6  # the ridge keeps a little


def test_differences_to_a_cheap_method(tmp_path):
    path = shieldings(tmp_path)
    data = qm9nmr.load("qm9nmr", path, delta="increments")
    whole = qm9nmr.load("qm9nmr", path)
    expected = whole.labels() - whole.floors["increments"]
    assert data.labels() == pytest.approx(expected, abs=1e-4)
    assert data.targets[0].name == "nmr_shielding_minus_increments"
    assert (data.floors["increments"] == 0).all()  # its own error is that of the label
    with pytest.raises(DataError, match="has no shieldings of a cheap method"):
        qm9nmr.load("qm9nmr", path, delta="baseline")


def test_files_of_the_authors(tmp_path):
    def write(name, numbers):
        text = "".join(
            f"003\nm{n:02d} \n" + "".join(f"{s}  {'  '.join(map(str, row))}\n" for s, row in
                                            zip("OHH", numbers(n), strict=True)) for n in range(10)
        )  # fmt: skip
        (tmp_path / name).write_text(text)

    write("SI_PAH_DFT_NMR.txt", lambda n: [[300 + n], [30], [31]])
    write("SI_PAH_baseline_NMR.txt", lambda n: [[290], [29], [29]])
    write("SI_PAH_DFT_geo.xyz", lambda n: WATER)
    write("SI_PAH_baseline_geo.xyz", lambda n: [[x + 1 for x in row] for row in WATER])
    data = qm9nmr.load("qm9nmr", str(tmp_path), delta="baseline")
    assert data.labels()[:3, 0].tolist() == [10, 1, 2]
    assert data.items[0].pos[0].tolist() == [1, 1, 1]  # the cheap geometry
    plain = qm9nmr.load("qm9nmr", str(tmp_path))
    assert plain.labels()[:3, 0].tolist() == [300, 30, 31] and not plain.items[0].pos[0].any()
    (tmp_path / "SI_PAH_baseline_NMR.txt").write_text("003\nm00\nO 1\nH 2\nC 3\n")
    with pytest.raises(DataError, match="baseline_NMR.txt: m00 is missing or has other atoms"):
        qm9nmr.load("qm9nmr", str(tmp_path), delta="baseline")


def test_couplings_are_of_pairs(tmp_path):
    j = [[0, -80.0, -81.0], [-80.0, 0, -7.0], [-81.0, -7.0, 0]]
    row = {"name": "w", "z": [8, 1, 1], "pos": WATER, "converged": True, "J_hz": j}
    rows = [row | {"name": f"w{n}"} for n in range(10)] + [row | {"converged": False}]
    path = tmp_path / "j.json"
    path.write_text(json.dumps(rows))
    data = couplings.load_sample("qm7_couplings", str(path))
    assert data.level == "pair" and len(data.items) == 10
    assert data.items[0].pair_index.tolist() == [[0, 0, 1], [1, 2, 2]]
    assert data.labels()[:3, 0].tolist() == [-80, -81, -7]
    assert data.floors["type_of_coupling"][:3, 0] == pytest.approx([-80.5, -80.5, -7])
    assert composition(data)[0, [0, 7]].tolist() == [1, 1]


def test_champs(tmp_path):
    train = ["id,molecule_name,atom_index_0,atom_index_1,type,scalar_coupling_constant"]
    atoms = ["molecule_name,atom_index,atom,x,y,z"]
    for n in range(12):
        train += [f"{2 * n},m{n},1,0,1JHC,{80 + n}", f"{2 * n + 1},m{n},1,2,2JHH,-11"]
        places = zip("CHHHH", METHANE, strict=True)
        atoms += [f"m{n},{k},{s},{x},{y},{z}" for k, (s, (x, y, z)) in enumerate(places)]
    (tmp_path / "train.csv").write_text("\n".join(train))
    (tmp_path / "structures.csv").write_text("\n".join(atoms))
    data = couplings.load_champs("champs", str(tmp_path), molecules=11)
    assert len(data.items) == 11 and data.labels()[:2, 0].tolist() == [80, -11]
    assert data.items[0].pair_index.tolist() == [[1, 1], [0, 2]]
    one = couplings.load_champs("champs", str(tmp_path), types=["2JHH"])
    assert set(one.labels()[:, 0]) == {-11} and len(one.items) == 12
    (tmp_path / "train.csv").write_text("id,molecule_name\n")
    with pytest.raises(DataError, match="train.csv: lacks the columns atom_index_0"):
        couplings.load_champs("champs", str(tmp_path))


def test_means_by_type_of_unknown_types_are_the_mean(tmp_path):
    data = qm9nmr.load("qm9nmr", shieldings(tmp_path))
    types = ["new" if data.split[owner] == "test" else "old" for owner in data.owners()]
    train = data.labels()[data.label_rows("train")].mean()
    assert means_by_type(data, types) == pytest.approx(np.full((36, 1), train))


def test_published_files(data_dir):
    folder = data_dir / "molecules"
    data = qm7.load("qm7", str(folder / "qm7.npz"), sizes=[5300, 300, 700])
    assert not data.skipped and data.elements(None) == [1, 6, 7, 8, 16]
    floors = evaluate(data, data.labels())["test"]["heat_of_formation"]["baselines"]
    assert 14 < floors["linear_composition"] < 16
    shieldings = qm9nmr.load("qm9nmr", str(folder / "qm9nmr.json"))
    assert len(shieldings.items) == 465 and len(shieldings.labels()) == 10_105
    assert len(qm9.load("qm9", str(folder / "qm9_reduced_100.xyz")).items) == 100
    assert len(md17.load("md17", str(folder / "ethanol_reduced_100.xyz")).items) == 100
    sample = couplings.load_sample("j", str(folder / "qm7_jcoupling_b3lyp_631g.json"))
    assert sample.floors["type_of_coupling"].shape == sample.labels().shape
