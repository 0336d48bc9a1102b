"""Errors of a potential on a data set, by split and group, beside those of simple baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from matattn.models.crystalformer_potential import ELEMENTS, CrystalformerPotential
from matattn.potentials.dataset import Frame, PotentialBatch, PotentialDataset, collate, graph
from matattn.structures.batch import by_atom_budget
from matattn.structures.dataset import SPLITS
from matattn.structures.derivatives import energy_forces_stress

GPA = 160.21766208  # GPa in an eV/Å^3
UNITS = {  # of what is shown: factor from eV, Å and unit
    "energy_per_atom": (1000.0, "meV/atom"),
    "forces": (1.0, "eV/Å"),
    "stress": (GPA, "GPa"),
}
ATOMS_PER_BATCH = 512


@dataclass(frozen=True)
class Constants:
    """What is known of the elements before a training."""

    alone: np.ndarray  # [119] eV, of a lone atom
    binding: np.ndarray  # [119] eV, of an atom with neighbours beside that
    scale: float  # eV/Å, the root mean square of the forces


def constants_of(frames: Sequence[Frame]) -> Constants:
    """Return constants of the elements, fitted to energies by least squares.

    Elements whose lone atoms are among the frames have these energies, and the fit is their
    binding; the others have the fit as the energy of a lone atom. Without any force the scale is
    the deviation of the energies from the fit, eV per atom.
    """
    known = [frame for frame in frames if not np.isnan(frame.energy)]
    alone, fit, rest = np.zeros(ELEMENTS), np.zeros(ELEMENTS), np.zeros(1)
    is_known = np.zeros(ELEMENTS, dtype=bool)
    for frame in known:
        if frame.is_lone_atom:
            alone[frame.z], is_known[frame.z] = frame.energy, True
    together = [frame for frame in known if not frame.is_lone_atom]
    if together:
        counts = np.stack([np.bincount(frame.z, minlength=ELEMENTS) for frame in together])
        shares = counts / counts.sum(1, keepdims=True)
        energies = np.array([frame.energy / len(frame.z) for frame in together])
        energies -= shares @ alone
        fit, *_ = np.linalg.lstsq(shares, energies, rcond=None)
        rest = energies - shares @ fit
    forces = np.concatenate([frame.forces.ravel() for frame in frames])
    forces = forces[~np.isnan(forces)]
    scale = np.sqrt(np.mean(forces**2)) if len(forces) else rest.std()
    binding = np.where(is_known, fit, 0.0)
    return Constants(alone + fit - binding, binding, float(scale) or 1.0)


def labels_of(frames: Sequence[Frame]) -> list[str]:
    """Return which of ``UNITS`` some of the frames have."""
    known = {
        "energy_per_atom": any(not np.isnan(frame.energy) for frame in frames),
        "forces": any(not np.isnan(frame.forces).all() for frame in frames),
        "stress": any(not np.isnan(frame.stress).all() for frame in frames),
    }
    return [name for name in UNITS if known[name]]


@dataclass(frozen=True)
class Errors:
    """What a potential gives for every frame beside the labels, in the units of ``UNITS``."""

    dataset: PotentialDataset
    true: dict[str, list[np.ndarray]]  # by frame
    predicted: dict[str, list[np.ndarray]]
    baseline: dict[str, list[np.ndarray]]  # constants of the elements, no force, no stress

    def metrics(self) -> dict[str, Any]:
        """Return errors of every split, and of every group in it."""
        found: dict[str, Any] = {}
        for split in SPLITS:
            rows = self.dataset.rows(split)
            if rows:
                found[split] = self._of(rows)
        groups = sorted({frame.group for frame in self.dataset.frames})
        if len(groups) > 1:
            found["groups"] = {
                split: {
                    group or "other": self._of(rows)
                    for group in groups
                    if (rows := [r for r in self.dataset.rows(split)
                                 if self.dataset.frames[r].group == group])
                }
                for split in found
            }  # fmt: skip
        return found

    def _of(self, rows: Sequence[int]) -> dict[str, Any]:
        found = {}
        for name, (_, unit) in UNITS.items():
            true, predicted, baseline = (
                np.concatenate([values[name][row].ravel() for row in rows])
                for values in (self.true, self.predicted, self.baseline)
            )
            known = ~np.isnan(true)
            if known.any():
                error = (predicted - true)[known]
                found[name] = {
                    "mae": float(np.abs(error).mean()),
                    "rmse": float(np.sqrt(np.square(error).mean())),
                    "baselines": {"none": float(np.abs(baseline - true)[known].mean())},
                    "unit": unit,
                    "n": int(known.sum()),
                }
        return found

    def sizes(self, row: int) -> tuple[np.ndarray, float]:
        """Return the lengths of the errors of the forces [N], eV/Å, and |dE| per atom, eV."""
        forces = self.predicted["forces"][row] - self.true["forces"][row]
        energy = self.predicted["energy_per_atom"][row] - self.true["energy_per_atom"][row]
        return np.linalg.norm(forces, axis=1), abs(float(energy)) / UNITS["energy_per_atom"][0]

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for every frame, for predictions.csv."""
        listed = []
        for row, frame in enumerate(self.dataset.frames):
            listed.append({"id": frame.id, "split": self.dataset.split[row], "group": frame.group,
                           "atoms": len(frame.z)})  # fmt: skip
            for name, (_, unit) in UNITS.items():
                error = np.abs(self.predicted[name][row] - self.true[name][row])
                key = f"{name}_error ({unit})"
                listed[-1][key] = float(error.mean()) if np.isfinite(error).any() else None
            listed[-1]["true_energy (eV)"] = frame.energy
            energy = self.predicted["energy_per_atom"][row].item() / 1000 * len(frame.z)
            listed[-1]["predicted_energy (eV)"] = energy
        return listed


def errors_of(network: CrystalformerPotential, dataset: PotentialDataset) -> Errors:
    """Return the errors of a network on all frames of a data set."""
    frames = dataset.frames
    predicted: dict[str, list[np.ndarray]] = {name: [] for name in UNITS}
    for part, batch in batches_of(network, frames):
        found = energy_forces_stress(network, batch.structures)
        sizes = [len(frame.z) for frame in part]
        predicted["energy_per_atom"] += list(found.energy.numpy() / sizes)
        predicted["forces"] += np.split(found.forces.numpy(), np.cumsum(sizes)[:-1])
        predicted["stress"] += list(found.stress.numpy())
    true = {
        "energy_per_atom": [np.array(frame.energy / len(frame.z)) for frame in frames],
        "forces": [frame.forces for frame in frames],
        "stress": [frame.stress for frame in frames],
    }
    constants = (network.constants + network.binding).numpy()
    baseline = {
        "energy_per_atom": [np.array(constants[frame.z].mean()) for frame in frames],
        "forces": [np.zeros_like(frame.forces) for frame in frames],
        "stress": [np.zeros((3, 3)) for frame in frames],
    }
    factors = {name: factor for name, (factor, _) in UNITS.items()}
    scaled = [
        {name: [factors[name] * one for one in values[name]] for name in UNITS}
        for values in (true, predicted, baseline)
    ]
    return Errors(dataset, *scaled)


def batches_of(
    network: CrystalformerPotential, frames: Sequence[Frame]
) -> Iterator[tuple[list[Frame], PotentialBatch]]:
    """Yield some frames after the others, and the batch of each such part."""
    rule = network.image_rule()
    for rows in by_atom_budget([len(frame.z) for frame in frames], ATOMS_PER_BATCH):
        part = [frames[row] for row in rows]
        graphs = [graph(frame, rule, row, torch.float32)
                  for frame, row in zip(part, rows, strict=True)]  # fmt: skip
        yield part, collate(part, graphs)
