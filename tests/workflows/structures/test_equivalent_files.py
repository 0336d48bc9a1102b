"""The same crystal in thirteen files gives one value."""

import gzip
import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter
from pymatgen.io.vasp import Poscar
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

import matattn
from matattn import pretrained
from matattn.datasets import prototypes
from matattn.models.coulgat import CoulGAT
from matattn.structures.files import read
from matattn.structures.remarks import doubts_of

CRYSTALS, MOST_SITES = 20, 12
LARGEST_SPREAD = 1e-4  # of the target's unit: eV/atom, eV, log10(GPa)


def write_files(structure: Structure, folder) -> list:
    """Write a crystal in thirteen ways, from CIF with symmetry to a supercell."""
    symmetric, whole = str(CifWriter(structure, symprec=1e-3)), str(CifWriter(structure))
    poscar = Poscar(structure)
    atoms = "".join(f"{s.specie} {s.x:.10f} {s.y:.10f} {s.z:.10f}\n" for s in structure)
    vectors = " ".join(f"{x:.10f}" for x in structure.lattice.matrix.ravel())
    scaled = f"-{structure.volume:.10f}\n" + "".join(
        " ".join(f"{x / 3:.12f}" for x in row) + "\n" for row in structure.lattice.matrix
    )
    negative = poscar.get_str(significant_figures=12).split("\n")
    turned = Structure(
        Lattice(structure.lattice.matrix @ np.array([[0.6, 0.8, 0], [-0.8, 0.6, 0], [0, 0, 1]])),
        structure.species, structure.frac_coords + [0.11, -0.37, 1.5],
    )  # fmt: skip
    row = {"id": "a", "lattice": structure.lattice.matrix.tolist(),
           "Z": list(structure.atomic_numbers), "frac": structure.frac_coords.tolist()}  # fmt: skip
    contents = {
        "symmetric.cif": symmetric,
        "whole.cif": whole,
        "mmcif.cif": whole.replace("_cell_", "_cell.").replace("_atom_site_", "_atom_site."),
        "utf16.cif": symmetric.encode("utf-16"),
        "compressed.cif.gz": gzip.compress(symmetric.encode()),
        "refined.cif": str(CifWriter(SpacegroupAnalyzer(structure, 1e-3).get_refined_structure())),
        "direct.vasp": poscar.get_str(significant_figures=12),
        "negative.vasp": "\n".join([negative[0], scaled.rstrip(), *negative[5:]]),
        "turned.poscar": Poscar(turned).get_str(direct=False, significant_figures=12),
        "a.extxyz": f'{len(structure)}\nLattice="{vectors}" pbc="T T T"\n{atoms}',
        "a.json": structure.to(fmt="json"),
        "a.jsonl": json.dumps(row),
        "super.vasp": Poscar(structure.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]],
                                                      in_place=False)
                             .get_sorted_structure()).get_str(significant_figures=12),
    }  # fmt: skip
    for name, content in contents.items():
        content = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


@pytest.fixture(scope="module")
def crystals():
    """Small crystals of the built-in data, of many structure types."""
    items = prototypes.load(["formation_energy_per_atom"]).items
    small = [item for item in items if len(item.z) <= MOST_SITES]
    chosen = np.random.default_rng(7).permutation(len(small))[:CRYSTALS]
    return [
        Structure(item.cell[0].double().numpy(), item.z.tolist(), item.pos.double().numpy(),
                  coords_are_cartesian=True)
        for item in (small[index] for index in chosen)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def models(predictor):
    everything = CoulGAT(dim=16, num_heads=2, num_blocks=2, elements=list(range(1, 99)))
    coulgat = predictor(everything, "crystals")
    shipped = {name: matattn.load(name) for name in pretrained.names("structures")}
    return shipped | {"coulgat": coulgat}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:No Pauling electroneg:UserWarning")
def test_thirteen_files_give_one_value(crystals, models, tmp_path):
    spreads = {name: [] for name in models}
    for number, crystal in enumerate(crystals):
        (folder := tmp_path / str(number)).mkdir()
        structures = [read(path)[0] for path in write_files(crystal, folder)]
        assert len(structures) == 13 and not any(map(doubts_of, structures))
        for name, model in models.items():
            rows = model.predict(structures)
            values = [row[model.targets[0]["name"]] for row in rows]
            spreads[name].append(max(values) - min(values))
    print({name: f"{max(values):.1e}" for name, values in spreads.items()})
    assert max(map(max, spreads.values())) <= LARGEST_SPREAD
