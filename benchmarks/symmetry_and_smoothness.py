"""What a trained model's energy does under another description of a crystal, and along a path.

    python benchmarks/symmetry_and_smoothness.py mp-formation-energy another/model

For models with a target in eV/atom, in float64. Of every example crystal (docs/examples): the
largest change of the energy when its cell is repeated, given by other vectors, turned, mirrored or
shifted, or its atoms are reordered. Then the energy while the titanium atom of SrTiO3 moves through
its centre of inversion: differences of a smooth function fall with the step as h^n, those of one
with kinks as h. Sums go on to weights of 1e-12.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from pymatgen.core import Lattice, Structure

import matattn
from matattn.files import write_text
from matattn.structures.batch import collate
from matattn.workflows.reporting import save_figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
TOLERANCE = 1e-12
BASIS = np.array([[1, 1, 0], [0, 1, 0], [1, 0, -1]])  # of determinant -1
TURNED = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
STEPS = (0.008, 0.004, 0.002, 0.001)  # Å
WINDOW, CHUNK = 0.16, 40  # Å to both sides; structures in a batch
ORDERS = (2, 4)  # of the sixth, rounding would be seen


def turned(crystal: Structure, matrix: np.ndarray) -> Structure:
    """Return a crystal with turned or mirrored axes."""
    lattice = Lattice(crystal.lattice.matrix @ matrix)
    return Structure(lattice, crystal.species, crystal.frac_coords)


def rebased(crystal: Structure) -> Structure:
    """Return the same crystal with other lattice vectors."""
    lattice = Lattice(BASIS @ crystal.lattice.matrix)
    return Structure(lattice, crystal.species, crystal.cart_coords, coords_are_cartesian=True)


CHANGES: dict[str, Callable[[Structure], Structure]] = {
    "supercell 2x1x2": lambda crystal: crystal.make_supercell((2, 1, 2), in_place=False),
    "other lattice vectors": rebased,
    "rotation": lambda crystal: turned(crystal, TURNED * np.linalg.det(TURNED)),
    "reflection": lambda crystal: turned(crystal, -TURNED * np.linalg.det(TURNED)),
    "shift": lambda crystal: crystal.copy().translate_sites(
        range(len(crystal)), (0.3, -0.7, 1.9), to_unit_cell=False
    ),
    "order of atoms": lambda crystal: Structure.from_sites(list(crystal)[::-1]),
}


def energies(model: matattn.Model, crystals: list[Structure]) -> np.ndarray:
    """Return the model's energies per atom, eV, in float64."""
    network = model.network.double()
    if len(crystals) > CHUNK:
        halves = crystals[:CHUNK], crystals[CHUNK:]
        return np.concatenate([energies(model, half) for half in halves])
    samples = [
        {
            "z": torch.tensor(crystal.atomic_numbers),
            "pos": torch.tensor(crystal.cart_coords),
            "cell": torch.tensor(crystal.lattice.matrix)[None],
        }
        for crystal in crystals
    ]
    with torch.no_grad():
        total = model.energy(collate(samples, network.image_rule(tolerance=TOLERANCE)))
    return total.numpy() / [len(crystal) for crystal in crystals]


def along_path(model: matattn.Model, places: np.ndarray) -> np.ndarray:
    """Return the energy of SrTiO3, eV/atom, with Ti moved by ``places`` Å from its centre."""
    a, direction = 3.905, np.array([1.0, 0.37, 0.11])
    direction /= np.linalg.norm(direction)
    fixed = [[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]
    crystals = [
        Structure(Lattice.cubic(a), ["Sr", "Ti", "O", "O", "O"],
                  [[0, 0, 0], 0.5 + place * direction / a, *fixed])
        for place in places
    ]  # fmt: skip
    return energies(model, crystals)


def main() -> None:
    """Write the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("models", nargs="+", help="names or folders")
    crystals = [
        Structure.from_file(path) for path in sorted((ROOT / "docs/examples").glob("*.cif"))
    ]
    models = {name: matattn.load(name) for name in parser.parse_args().models}
    lines = ["model,quantity,value"]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, model in models.items():
        label = Path(name).parent.name if Path(name).name == "model" else name
        before = energies(model, crystals)
        for change, function in CHANGES.items():
            after = energies(model, [function(crystal) for crystal in crystals])
            lines.append(f"{label},{change} (eV/atom),{np.abs(after - before).max():.1e}")
        places = np.linspace(-0.4, 0.4, 161)
        left.plot(places, along_path(model, places), label=label)
        ends = {step: round(WINDOW / step) for step in STEPS}
        fine = {step: along_path(model, step * np.arange(-n, n + 1)) for step, n in ends.items()}
        for order in ORDERS:
            sizes = []
            for step in STEPS:
                sizes.append(np.abs(np.diff(fine[step], order)).max())
            rate = np.polyfit(np.log(STEPS), np.log(sizes), 1)[0]
            lines.append(f"{label},difference {order} falls with the power,{rate:.2f}")
            right.loglog(STEPS, sizes, "o-", label=f"{label}, order {order}")
    left.set(xlabel="Ti from its centre, Å", ylabel="energy, eV/atom", title="SrTiO3")
    right.set(xlabel="step h, Å", ylabel="largest difference, eV/atom")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    write_text(RESULTS / "symmetry_and_smoothness.csv", "\n".join(lines) + "\n")
    save_figure(figure, RESULTS / "symmetry_and_smoothness.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
