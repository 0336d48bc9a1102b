"""Whether energies, forces and stresses can be what a file says: signs, units, orders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations

import numpy as np

from matattn.errors import DataError
from matattn.potentials.dataset import Frame
from matattn.structures.dataset import formula_key

LARGEST_STRESS = 3.0  # eV/Å^3: 480 GPa
LARGEST_FORCE = 1000.0  # eV/Å
NET_FORCE = 1e-2  # of the sum of sizes: plane waves leave some
FEWEST = 8  # frames from which a sign or an order can be told
CLEAR = 0.5  # correlation
_SHEARS = ("yz", "xz", "xy")
_PAIRS = ([1, 0, 0], [2, 2, 1])


def check_frame(frame: Frame, where: str) -> None:
    """Raise DataError for a frame without labels, or with labels that no structure has."""
    known = [not np.isnan(frame.energy), *(~np.isnan(frame.forces)).ravel(),
             *(~np.isnan(frame.stress)).ravel()]  # fmt: skip
    if not any(known):
        raise DataError(
            f"{where}: has no energy, forces or stress; data.energy_key and the like name the "
            "entries that hold them"
        )
    for name, values in (("energy", frame.energy), ("forces", frame.forces),
                         ("stress", frame.stress)):  # fmt: skip
        if np.isinf(values).any() or 0 < np.isnan(values).sum() < np.size(values):
            raise DataError(f"{where}: {name} has values that are no numbers")
    if len(frame.z) and (frame.z.min() < 1 or frame.z.max() > 118):
        raise DataError(f"{where}: has an atom that is no element")
    if not np.isnan(frame.stress).any():
        if not frame.cell.any():
            raise DataError(f"{where}: has a stress and no cell")
        if np.abs(frame.stress).max() > LARGEST_STRESS:
            raise DataError(
                f"{where}: stress of {np.abs(frame.stress).max():.3g} eV/Å^3: is it in kBar or "
                "GPa? Expected eV/Å^3; 1 GPa is 0.006242, and 1 kBar a tenth of that"
            )
        if np.abs(frame.stress - frame.stress.T).max() > 1e-3 + 0.01 * np.abs(frame.stress).max():
            raise DataError(f"{where}: stress is not symmetric")
    if not np.isnan(frame.forces).any() and np.abs(frame.forces).max() > LARGEST_FORCE:
        raise DataError(f"{where}: a force of {np.abs(frame.forces).max():.3g} eV/Å: expected eV/Å")


def doubts_of(frames: Sequence[Frame]) -> list[str]:
    """Return what of all frames together speaks against signs, orders and units, a line each."""
    doubts = [*_net_forces(frames), *_equal(frames)]
    doubts += [line for line in (_energies(frames), _sign(frames), _order(frames)) if line]
    return doubts


def _net_forces(frames: Sequence[Frame]) -> list[str]:
    doubts = []
    for frame in frames:
        total = np.abs(frame.forces).sum()
        if total > 1e-3 * len(frame.z) and np.abs(frame.forces.sum(0)).max() > NET_FORCE * total:
            doubts.append(
                f"{frame.id}: its forces do not add up to zero: "
                f"{np.abs(frame.forces.sum(0)).max():.2g} eV/Å"
            )
    return doubts


def _equal(frames: Sequence[Frame]) -> list[str]:
    seen: dict[bytes, str] = {}
    doubts = []
    for frame in frames:
        key = (
            frame.z.tobytes() + np.round(frame.pos, 5).tobytes() + np.round(frame.cell, 5).tobytes()
        )
        if key in seen:
            doubts.append(f"{frame.id}: is the same structure as {seen[key]}")
        seen.setdefault(key, frame.id)
    return doubts


def _by_formula(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Return the frames of every reduced formula."""
    groups = defaultdict(list)
    for frame in frames:
        groups[formula_key(frame.z)].append(frame)
    return list(groups.values())


def _energies(frames: Sequence[Frame]) -> str:
    """Doubt that energies are those of whole cells, where cells of one formula differ in size."""
    for found in _by_formula([frame for frame in frames if not np.isnan(frame.energy)]):
        atoms, energies = np.array([(len(frame.z), frame.energy) for frame in found]).T
        if len(found) >= FEWEST and atoms.max() >= 2 * atoms.min():
            per_atom = energies / atoms
            if energies.std() < per_atom.std() and abs(energies.mean()) > 10 * energies.std():
                return (
                    "the energies do not grow with the number of atoms: are they per atom? "
                    "Expected those of whole cells"
                )
    return ""


def _sign(frames: Sequence[Frame]) -> str:
    """Doubt the sign of stresses: larger cells of one formula are under tension."""
    for found in _by_formula([frame for frame in frames if not np.isnan(frame.stress).any()]):
        volume = np.array([frame.volume / len(frame.z) for frame in found])
        trace = np.array([np.trace(frame.stress) for frame in found])
        near = np.abs(volume / np.median(volume) - 1) < 0.2  # slabs have vacuum
        if near.sum() >= FEWEST and volume[near].std() > 1e-3 * volume.mean():
            if np.corrcoef(volume[near], trace[near])[0, 1] < -CLEAR:
                return (
                    "stress falls with the volume: is its sign that of VASP, positive under "
                    "compression? Expected is positive under tension"
                )
    return ""


def _order(frames: Sequence[Frame]) -> str:
    """Doubt the order of shears: in strained crystals without forces they follow the strains."""
    by_atoms = defaultdict(list)
    for frame in frames:
        at_rest = not np.isnan(frame.forces).any() and np.abs(frame.forces).max(initial=0) < 1e-2
        if at_rest and not np.isnan(frame.stress).any():
            by_atoms[frame.z.tobytes()].append(frame)
    for found in by_atoms.values():
        if len(found) < FEWEST:
            continue
        rest = min(found, key=lambda frame: float(np.abs(frame.stress).max()))
        deformed = [np.linalg.solve(rest.cell, frame.cell) for frame in found]
        strains = np.array([(0.5 * (d + d.T))[_PAIRS] for d in deformed])
        stresses = np.array([frame.stress[_PAIRS] for frame in found])
        if strains.std(0).min() < 1e-4 or stresses.std(0).min() < 1e-5:
            continue
        table = np.corrcoef(strains.T, stresses.T)[:3, 3:]
        best = max(permutations(range(3)), key=lambda order: table[range(3), order].sum())
        if best != (0, 1, 2) and table[range(3), best].min() > CLEAR:
            said = " ".join(_SHEARS[place] for place in best)
            return f"the shear stresses seem to stand as {said}; expected is yz xz xy"
    return ""
