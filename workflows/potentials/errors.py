"""Errors of a potential on a data set, by split and group, beside those of simple baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matattn.models.crystalformer_potential import ELEMENTS
from matattn.potentials.dataset import Frame, PotentialDataset, collate, graph
from matattn.structures.batch import CrystalBatch, by_atom_budget
from matattn.structures.dataset import SPLITS
from matattn.structures.derivatives import energy_forces_stress

GPA = 160.21766208  # GPa in an eV/Å^3
UNITS = {  # of what is shown: factor from eV, Å and unit
    "energy_per_atom": (1000.0, "meV/atom"),
    "forces": (1.0, "eV/Å"),
    "stress": (GPA, "GPa"),
}
ATOMS_PER_BATCH = 512


def constants_of(frames: Sequence[Frame]) -> tuple[np.ndarray, float]:
    """Return an energy for every element [119], eV, and the root mean square of the forces, eV/Å.

    The energies are fitted to those of the frames by least squares, the smallest ones that fit
    best. Without any force the scale is the deviation of the energies from that, eV per atom.
    """
    known = [frame for frame in frames if not np.isnan(frame.energy)]
    constants = np.zeros(ELEMENTS)
    rest = np.zeros(1)
    if known:
        counts = np.stack([np.bincount(frame.z, minlength=ELEMENTS) for frame in known])
        atoms = counts.sum(1)
        energies = np.array([frame.energy for frame in known]) / atoms
        constants, *_ = np.linalg.lstsq(counts / atoms[:, None], energies, rcond=None)
        rest = energies - counts @ constants / atoms
    forces = np.concatenate([frame.forces.ravel() for frame in frames])
    forces = forces[~np.isnan(forces)]
    scale = np.sqrt(np.mean(forces**2)) if len(forces) else rest.std()
    return constants, float(scale) or 1.0


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


def errors_of(network: Any, dataset: PotentialDataset) -> Errors:
    """Return the errors of a network on all frames of a data set."""
    frames = dataset.frames
    predicted: dict[str, list[np.ndarray]] = {name: [] for name in UNITS}
    for energy, forces, stress in evaluated(network, network.image_rule, frames):
        predicted["energy_per_atom"].append(energy / len(forces))
        predicted["forces"].append(forces)
        predicted["stress"].append(stress)
    true = {
        "energy_per_atom": [np.array(frame.energy / len(frame.z)) for frame in frames],
        "forces": [frame.forces for frame in frames],
        "stress": [frame.stress for frame in frames],
    }
    constants = network.constants.numpy()
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


def evaluated(
    energy: Callable[[CrystalBatch], Tensor], rule: Callable[[], Any], frames: Sequence[Frame]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return energy (eV), forces (eV/Å) and stress (eV/Å^3) of every frame."""
    found = []
    images = rule()
    for rows in by_atom_budget([len(frame.z) for frame in frames], ATOMS_PER_BATCH):
        chosen = [frames[row] for row in rows]
        graphs = [graph(frame, images, row, torch.float32)
                  for frame, row in zip(chosen, rows, strict=True)]  # fmt: skip
        batch = collate(chosen, graphs)
        result = energy_forces_stress(energy, batch.structures)
        forces = np.split(result.forces.numpy(), np.cumsum([len(f.z) for f in chosen])[:-1])
        for number, part in enumerate(forces):
            found.append((result.energy[number].numpy(), part, result.stress[number].numpy()))
    return found
