"""The embedded data set: its table, its structures, and the physics of its labels."""

import csv
import importlib
import random
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from matattn.datasets.prototypes import (
    PROTOTYPES,
    TABLE_COLUMNS,
    TABLE_PATH,
    Row,
    build_structure,
    composition_split,
    read_table,
    reduced_formula,
)
from matattn.errors import DataError

TOOLS = Path(__file__).parents[2] / "tools" / "prototypes"

# pymatgen calls spglib in a way that spglib is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_table()


@pytest.fixture
def tool(monkeypatch):
    """Imports a module of ``tools/prototypes``; as scripts they import each other by name."""
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module


@pytest.fixture(scope="module")
def by_id(rows) -> dict[str, Row]:
    return {row.id: row for row in rows}


def lattice_constant(row: Row) -> float:
    """Conventional cubic lattice constant, Å."""
    centring = PROTOTYPES[row.prototype].lattice.removeprefix("cubic ")
    return (row.structure.volume * {"P": 1, "I": 2, "F": 4}[centring]) ** (1 / 3)


def test_table_has_the_promised_size_and_unique_ids(rows):
    assert 4500 <= len(rows) <= 5600
    assert len({row.id for row in rows}) == len(rows)
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    assert {row.prototype for row in rows} == set(PROTOTYPES)
    assert len({element for row in rows for element in row.elements}) == 67


def test_labels_are_in_range(rows):
    energies = np.array([row.formation_energy_per_atom for row in rows])
    moduli = np.array([row.bulk_modulus for row in rows])
    assert -5 <= energies.min() and energies.max() <= 1
    assert 1 <= moduli.min() and moduli.max() <= 600
    assert -0.8 < energies.mean() < -0.4
    assert 0.8 < energies.std() < 1.2


def test_every_structure_builds(rows):
    for row in rows:
        structure = row.structure
        prototype = PROTOTYPES[row.prototype]
        assert len(structure) == prototype.num_atoms
        assert structure.volume == pytest.approx(row.volume * len(structure))
        composition = structure.composition.get_el_amt_dict()
        assert composition == dict(zip(row.elements, prototype.counts, strict=True))
        assert row.id == f"{row.prototype}-{prototype.formula(row.elements)}"
        frac = structure.frac_coords
        assert frac.min() >= 0 and frac.max() < 1


def test_atoms_keep_their_distance(rows):
    for row in rows:
        distances = row.structure.get_neighbor_list(6.0)[3]
        assert 1.2 < distances.min() < 5.0, row.id  # from N-O 1.27 Å to Cs-Cs 4.91 Å


@pytest.mark.parametrize("name", PROTOTYPES)
def test_space_group_is_the_registrys(name, rows):
    prototype = PROTOTYPES[name]
    row = random.Random(name).choice([row for row in rows if row.prototype == name])
    elements = ("Na", "Cl", "Ti", "O")[: prototype.num_elements]
    ideal = build_structure(name, elements, 20.0, prototype.ideal_shape)
    for structure in (row.structure, ideal):
        analyzer = SpacegroupAnalyzer(structure, symprec=0.01)
        assert analyzer.get_space_group_number() == prototype.space_group
        assert len(analyzer.find_primitive()) == prototype.num_atoms


def test_shapes_stay_inside_their_bounds(rows):
    for row in rows:
        for value, parameter in zip(row.shape, PROTOTYPES[row.prototype].parameters, strict=True):
            assert parameter.low < value < parameter.high, row.id


def test_split_is_disjoint_in_composition_and_80_10_10(rows):
    splits = defaultdict(set)
    for row in rows:
        splits[row.structure.composition.reduced_formula].add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    share = {name: n / len(rows) for name, n in Counter(row.split for row in rows).items()}
    assert share["train"] == pytest.approx(0.8, abs=0.03)
    assert share["val"] == pytest.approx(0.1, abs=0.025)
    assert share["test"] == pytest.approx(0.1, abs=0.025)


def test_split_is_frozen():
    """A changed split would make results of two versions incomparable."""
    assert reduced_formula("perovskite", ("Sr", "Ti", "O")) == "O3Sr1Ti1"
    assert reduced_formula("wurtzite", ("Zn", "S")) == reduced_formula("zincblende", ("Zn", "S"))
    frozen = {
        "Cl1Na1": "train",
        "Mg1O1": "train",
        "O3Sr1Ti1": "train",
        "Si1": "test",
        "Ca1F2": "train",
        "Al1Ni1": "test",
        "Al2Mg1O4": "train",
        "S1Zn1": "val",
    }
    assert {formula: composition_split(formula) for formula in frozen} == frozen


@pytest.mark.parametrize(
    ("name", "energy", "constant", "modulus"),
    [  # CHGNet 0.3.0: formation energy eV/atom, cubic lattice constant Å, bulk modulus GPa
        ("rocksalt-NaCl", -2.072, 5.69, 24),
        ("rocksalt-MgO", -3.062, 4.254, 143),
        ("diamond-Si", 0.0, 5.469, 73),
        ("fcc-Al", 0.0, 4.045, 56),
        ("fcc-Cu", 0.0, 3.616, 141),
        ("fluorite-CaF2", -4.223, 5.51, 75),
        ("perovskite-SrTiO3", -3.582, 3.943, 167),
        ("spinel-MgAl2O4", -3.407, 8.171, 181),
        ("cesium_chloride-AlNi", -0.705, 2.89, 174),
    ],
)
def test_known_crystals(by_id, name, energy, constant, modulus):
    row = by_id[name]
    assert row.formation_energy_per_atom == pytest.approx(energy, abs=0.02)
    assert lattice_constant(row) == pytest.approx(constant, rel=0.004)
    assert row.bulk_modulus == pytest.approx(modulus, rel=0.08)


def test_known_orders_of_polymorphs(by_id):
    def energies(*names):
        return [by_id[name].formation_energy_per_atom for name in names]

    for stable, other in [
        ("rocksalt-NaCl", "cesium_chloride-NaCl"),
        ("rocksalt-NaCl", "zincblende-NaCl"),
        ("zincblende-AlAs", "rocksalt-AlAs"),
        ("rocksalt-TiN", "zincblende-TiN"),
        ("perovskite-SrTiO3", "perovskite-TiSrO3"),
        ("heusler-Co2MnSi", "inverse_heusler-Co2MnSi"),
    ]:
        low, high = energies(stable, other)
        assert low < high, (stable, other)
    wurtzite, zincblende = energies("wurtzite-ZnS", "zincblende-ZnS")
    assert wurtzite == pytest.approx(zincblende, abs=0.02)


def test_elements_are_their_own_zero(rows):
    lowest = defaultdict(list)
    for row in rows:
        if len(row.elements) == 1:
            lowest[row.elements[0]].append(row.formation_energy_per_atom)
    assert all(min(energies) >= 0 for energies in lowest.values())
    assert sum(min(energies) < 0.001 for energies in lowest.values()) > 45


def test_ten_rows_rebuild_from_their_text():
    with open(TABLE_PATH, newline="", encoding="utf-8") as handle:
        records = random.Random(0).sample(list(csv.DictReader(handle)), 10)
    for record in records:
        shape = [float(value) for value in record["shape"].split()]
        elements = record["elements"].split()
        built = build_structure(record["prototype"], elements, float(record["volume"]), shape)
        (row,) = (row for row in read_table() if row.id == record["id"])
        assert built == row.structure
        assert (
            " ".join(f"{value:.5f}" for value in row.shape),
            f"{row.volume:.4f}",
            f"{row.formation_energy_per_atom:.4f}",
            f"{row.bulk_modulus:.2f}",
        ) == tuple(record[name] for name in ("shape", "volume", *TABLE_COLUMNS[-2:]))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="unknown prototype 'garnet'"):
        build_structure("garnet", ["Ca"], 10.0, [])
    with pytest.raises(ValueError, match="takes 2 element"):
        build_structure("rocksalt", ["Na"], 10.0, [])
    with pytest.raises(ValueError, match=r"parameters: c/a, u"):
        build_structure("wurtzite", ["Zn", "S"], 10.0, [1.6])
    with pytest.raises(ValueError, match="positive and finite"):
        build_structure("fcc", ["Al"], float("nan"), [])
    with pytest.raises(ValueError, match="Xx"):
        build_structure("fcc", ["Xx"], 10.0, [])


def test_a_damaged_table_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id,prototype\nx,fcc\n")
    with pytest.raises(DataError, match="missing column.*elements"):
        read_table(path)
    path.write_text(",".join(TABLE_COLUMNS) + "\nfcc-Al,fcc,Al,sixteen,,0.0,70\n")
    with pytest.raises(DataError, match="line 2.*sixteen"):
        read_table(path)
    path.write_text(",".join(TABLE_COLUMNS) + "\nfcc-Al,fcc,Al Cu,16.0,,0.0,70\n")
    with pytest.raises(DataError, match="line 2.*number of elements"):
        read_table(path)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "absent.csv")


def test_candidates_fit_their_prototypes(rows, tool):
    tried = tool("candidates").candidates()
    assert len(set(tried)) == len(tried) == len(tool("candidates").candidates())
    for name, elements in tried:
        assert len(set(elements)) == PROTOTYPES[name].num_elements
    assert {(row.prototype, row.elements) for row in rows} <= set(tried)


def morse_energies(structures):
    """A made-up solid: Morse pairs within 7 Å, smooth enough for an equation of state, eV/atom."""
    energies = []
    for structure in structures:
        distances = structure.get_neighbor_list(7.0)[3]
        bond = np.exp(-1.3 * (distances - 2.9))
        taper = (1 - (distances / 7.0) ** 2) ** 3
        energies.append(0.5 * 0.3 * np.sum((bond**2 - 2 * bond) * taper) / len(structure))
    return np.array(energies)


def test_labels_of_a_model_solid(tool):
    """The steps of the builder find the minimum of a potential whose minimum is known."""
    fits = {}
    tool("labels").label_all([("hcp", ("Mg",)), ("fcc", ("Al",))], morse_energies, fits.update)
    fcc, hcp = fits["fcc-Al"], fits["hcp-Mg"]
    volumes = np.linspace(0.9, 1.1, 201) * fcc.volume
    energies = morse_energies([build_structure("fcc", ["Al"], v, []) for v in volumes])
    best = np.argmin(energies)
    curvature = np.polyfit(volumes[best - 10 : best + 11], energies[best - 10 : best + 11], 2)[0]
    assert fcc.volume == pytest.approx(volumes[best], rel=2e-3)
    assert fcc.energy == pytest.approx(energies[best], abs=1e-5)
    assert fcc.bulk_modulus == pytest.approx(160.2177 * fcc.volume * 2 * curvature, rel=0.03)
    assert hcp.shape[0] == pytest.approx(np.sqrt(8 / 3), abs=0.02)
    assert hcp.energy == pytest.approx(fcc.energy, abs=0.02)


def test_builder_runs_as_a_script(tmp_path):
    command = [sys.executable, TOOLS / "build.py", "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and "--limit" in result.stdout, result.stderr


def test_builder_resumes_where_it_stopped(tmp_path, monkeypatch, capsys, tool):
    build = tool("build")
    tried = [
        ("fcc", ("Al",)),
        ("fcc", ("Cu",)),
        ("sc", ("Cu",)),
        ("copper3_gold", ("Al", "Cu")),
        ("aluminium3_titanium", ("Al", "Cu")),
        ("cesium_chloride", ("Al", "Cu")),
        ("copper_gold", ("Al", "Cu")),
    ]
    monkeypatch.setattr(build, "candidates", lambda: tried)
    monkeypatch.setattr(build, "relaxed_reference_energies", dict)
    monkeypatch.setattr(build, "load_calculator", lambda: morse_energies)
    output = tmp_path / "table.csv"
    build.main(["--output", str(output)])
    table = output.read_text()
    kept = {row.id: row for row in read_table(output)}
    assert {"fcc-Al", "fcc-Cu", "copper3_gold-AlCu3", "aluminium3_titanium-AlCu3"} <= set(kept)
    assert kept["copper3_gold-AlCu3"].formation_energy_per_atom == pytest.approx(0, abs=1e-3)
    assert "written to" in capsys.readouterr().out

    def refuse(structures):
        raise AssertionError("already in the checkpoint")

    monkeypatch.setattr(build, "load_calculator", lambda: refuse)
    output.unlink()
    build.main(["--output", str(output)])
    assert output.read_text() == table


def test_builder_names_the_missing_extra(monkeypatch, tool):
    monkeypatch.setitem(sys.modules, "chgnet.model", None)
    with pytest.raises(ImportError, match=r"matattn\[build-data\]"):
        tool("labels").load_calculator()


def test_birch_murnaghan_recovers_its_own_parameters(tool):
    fit_birch_murnaghan = tool("labels").fit_birch_murnaghan
    volume, energy, modulus, derivative = 20.0, -3.5, 80.0, 4.6
    volumes = volume * np.linspace(0.9, 1.14, 9)
    strain = (volume / volumes) ** (2 / 3)
    energies = energy + 9 * volume * modulus / 160.21766208 / 16 * (
        (strain - 1) ** 3 * derivative + (strain - 1) ** 2 * (6 - 4 * strain)
    )
    fit = fit_birch_murnaghan(volumes, energies)
    assert fit is not None
    assert fit.volume == pytest.approx(volume, rel=1e-6)
    assert fit.energy == pytest.approx(energy, abs=1e-8)
    assert fit.bulk_modulus == pytest.approx(modulus, rel=1e-5)
    assert fit.derivative == pytest.approx(derivative, rel=1e-4)
    assert fit.residual < 1e-8
    assert fit_birch_murnaghan(volumes, -strain) is None


def test_first_guesses_are_near_the_table(rows, tool):
    for row in rows[::100]:
        guess = tool("labels").guess_volume(PROTOTYPES[row.prototype], row.elements)
        assert 0.25 < guess / row.volume < 4, row.id


@pytest.mark.filterwarnings("ignore")
def test_relabelling_reproduces_the_table(by_id, tool):
    """CHGNet gives the table's energy differences, volumes and bulk moduli again."""
    pytest.importorskip("chgnet", reason="needs the build-data extra")
    labels = tool("labels")
    calculate = labels.load_calculator()
    names = ["rocksalt-NaCl", "cesium_chloride-NaCl", "wurtzite-ZnS", "zincblende-ZnS"]
    names += ["cesium_chloride-AlNi", "fcc-Al", "fcc-Ni", "perovskite-SrTiO3", "perovskite-TiSrO3"]
    energy = dict(zip(names, calculate([by_id[n].structure for n in names]), strict=True))
    label = {name: by_id[name].formation_energy_per_atom for name in names}
    for one, other in zip(names[0:4:2] + names[7:8], names[1:4:2] + names[8:9], strict=True):
        assert energy[one] - energy[other] == pytest.approx(label[one] - label[other], abs=0.002)
    alloy = energy["cesium_chloride-AlNi"] - (energy["fcc-Al"] + energy["fcc-Ni"]) / 2
    assert alloy == pytest.approx(label["cesium_chloride-AlNi"], abs=0.002)

    for name in ("rocksalt-NaCl", "wurtzite-ZnS", "perovskite-SrTiO3"):
        row = by_id[name]
        volumes = row.volume * (1 + np.linspace(-0.12, 0.12, 9))
        build = PROTOTYPES[row.prototype].build
        fit = labels.fit_birch_murnaghan(
            volumes, calculate([build(row.elements, volume, row.shape) for volume in volumes])
        )
        assert fit.volume == pytest.approx(row.volume, rel=0.002)
        assert fit.bulk_modulus == pytest.approx(row.bulk_modulus, rel=0.03)
