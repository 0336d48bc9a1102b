"""Relax 200 rattled crystals in one batch, and one after the other with ASE, in one run.

    python benchmarks/relaxation.py outputs/potential-stillinger_weber/seed0-*/model

Silicon in five structures, 2 to 16 atoms, strained by 3 % and rattled by 0.05 Å. Both move atoms
and cells in float64 by FIRE with the same potential on one thread, until no force is above
0.01 eV/Å and no stress above 0.1 GPa, for at most 500 steps.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.filters import UnitCellFilter
from ase.optimize import FIRE
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

import matattn
from matattn.files import write_text
from matattn.workflows.potentials.errors import GPA
from matattn.workflows.potentials.relaxation import Settings, relax

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
COUNT, STRAIN, RATTLE = 200, 0.03, 0.05


def crystals() -> list[Structure]:
    """Return the crystals, the same in every run."""
    generator, made = np.random.default_rng(0), []
    prototypes = [
        bulk("Si", "diamond", 5.43), bulk("Si", "diamond", 5.43, cubic=True),
        bulk("Si", "diamond", 5.43) * (2, 2, 2), bulk("Si", "sc", 2.6) * (2, 1, 1),
        bulk("Si", "bct", a=4.9, c=2.7) * (1, 1, 2),
    ]  # fmt: skip
    for number in range(COUNT):
        atoms = prototypes[number % len(prototypes)].copy()
        strain = np.eye(3) + generator.uniform(-STRAIN, STRAIN, (3, 3))
        atoms.set_cell(np.array(atoms.cell) @ strain, scale_atoms=True)
        atoms.positions += generator.normal(scale=RATTLE, size=atoms.positions.shape)
        made.append(AseAtomsAdaptor.get_structure(atoms))
    return made


def with_ase(atoms: Atoms, settings: Settings) -> int:
    """Relax one crystal and return the steps, or -1 if they were not enough."""
    optimizer = FIRE(UnitCellFilter(atoms), logfile=None)
    for step, _ in enumerate(optimizer.irun(fmax=1e-9, steps=settings.max_steps)):
        force = np.linalg.norm(atoms.get_forces(), axis=1).max()
        stress = np.abs(atoms.get_stress(voigt=False)).max() * GPA
        if force < settings.max_force and stress < settings.max_stress:
            return step
    return -1


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model")
    torch.set_num_threads(1)
    potential, settings, rows = matattn.load(parser.parse_args().model), Settings(), []
    rows.append("way,at rest,steps in all,CPU s,structures per CPU s")
    begin = time.process_time()
    found = list(relax(potential, crystals(), settings))
    seconds = time.process_time() - begin
    rest = sum(not one.problem for one in found)
    steps = sum(one.steps for one in found)
    rows.append(f"one batch,{rest},{steps},{seconds:.1f},{COUNT / seconds:.2f}")
    reasons = sorted({one.problem for one in found if one.problem})
    calculator = potential.calculator()
    begin, counts = time.process_time(), []
    for structure in crystals():
        atoms = AseAtomsAdaptor.get_atoms(structure)
        atoms.calc = calculator
        counts.append(with_ase(atoms, settings))
    seconds = time.process_time() - begin
    rest = sum(count >= 0 for count in counts)
    steps = sum(count if count >= 0 else settings.max_steps for count in counts)
    rows.append(f"ASE one by one,{rest},{steps},{seconds:.1f},{COUNT / seconds:.2f}")
    write_text(RESULTS / "relaxation.csv", "\n".join(rows) + "\n")
    print("\n".join([*rows, *reasons]))


if __name__ == "__main__":
    main()
