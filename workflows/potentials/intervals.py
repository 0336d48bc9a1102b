"""How far to trust forces and energies: split-conformal widths by the strangeness of surroundings.

The spread of an atom is the distance of its surroundings from those of the training atoms, in the
features of the network (``matattn.uncertainty``); that of a structure is the distance of its mean
features. One width is for the length of the error of a force, one for the error of the energy per
atom. Nothing may be selected on the validation structures, on which they are calibrated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matattn.models.crystalformer_potential import CrystalformerPotential
from matattn.potentials.dataset import PotentialDataset
from matattn.structures.batch import CrystalBatch
from matattn.structures.dataset import SPLITS
from matattn.uncertainty import FEWEST_ROWS, Uncertainty
from matattn.workflows.potentials.errors import Errors, batches_of

MOST_ATOMS = 20_000  # of training structures whose surroundings are kept
FORCE, ENERGY = 0, 1  # columns of the uncertainty


@dataclass(frozen=True)
class Widths:
    """Half widths of the 90 % intervals, and the novelty of surroundings: above 1 is flagged."""

    forces: Tensor  # [N] eV/Å, of the length of the error
    energy: Tensor  # [B] eV per atom
    novelty: Tensor  # [N]


@dataclass(frozen=True)
class Trust:
    """How far to trust a structure's values; None where the potential has no intervals."""

    energy: float | None = None  # half width, eV per atom
    force: float | None = None  # the largest half width, eV/Å
    novelty: float | None = None  # the largest: above 1 is flagged

    def columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a table says of it, beside the energy and message of ``row``."""
        found = self.flags(row) | {"force_half_width": self.force}
        if self.energy is not None:
            found["energy_per_atom_lower"] = row["energy_per_atom"] - self.energy
            found["energy_per_atom_upper"] = row["energy_per_atom"] + self.energy
        return found

    def flags(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return whether surroundings are strange, and a message that says so."""
        if self.novelty is None:
            return {}
        flag = self.novelty > 1
        remark = "surroundings of atoms are unlike those of the training structures" * flag
        message = "; ".join(filter(None, (row["message"], remark)))
        return {"ood_score": self.novelty, "ood_flag": flag, "message": message}


def trust_of(found: Widths, batch: CrystalBatch) -> list[Trust]:
    """Return the same of every structure."""
    sizes = torch.bincount(batch.batch.cpu(), minlength=batch.num_graphs).tolist()
    of_atoms = zip(found.forces.split(sizes), found.novelty.split(sizes), strict=True)
    return [
        Trust(*map(_known, (energy, float(forces.max()), float(novelty.max()))))
        for energy, (forces, novelty) in zip(found.energy.tolist(), of_atoms, strict=True)
    ]


def _known(value: float) -> float | None:
    """Return a number, or None where no label told how wide an interval is."""
    return value if np.isfinite(value) else None


def widths(
    network: CrystalformerPotential, uncertainty: Uncertainty, features: Tensor, batch: CrystalBatch
) -> Widths:
    """Return how far forces and energies may be off, from the features of the atoms of a batch."""
    of_atoms, of_structures = _with_means(features, batch)
    return Widths(
        forces=uncertainty.half_widths(network, of_atoms)[:, FORCE],
        energy=uncertainty.half_widths(network, of_structures)[:, ENERGY],
        novelty=uncertainty.novelty(of_atoms),
    )


def _with_means(features: Tensor, batch: CrystalBatch) -> tuple[Tensor, Tensor]:
    """Return features of atoms [N, F], and their means over structures [B, F]."""
    of_atoms, structure = features.cpu().float(), batch.batch.cpu()
    sums = of_atoms.new_zeros(batch.num_graphs, of_atoms.shape[1]).index_add(0, structure, of_atoms)
    return of_atoms, sums / torch.bincount(structure, minlength=batch.num_graphs)[:, None]


def fitted(
    network: CrystalformerPotential, dataset: PotentialDataset, errors: Errors
) -> Uncertainty | None:
    """Return intervals by the validation structures; None where there are too few of them."""
    train, held_out = dataset.rows("train"), dataset.rows("val")
    if len(held_out) < FEWEST_ROWS:
        return None
    atoms = sum(len(dataset.frames[row].z) for row in train)
    parts = (
        _features_and_errors(network, dataset, errors, rows)[:2]
        for rows in (train[:: -(-atoms // MOST_ATOMS)], held_out)
    )
    return Uncertainty.fit("latent_distance", network, *parts)


def _features_and_errors(
    network: CrystalformerPotential, dataset: PotentialDataset, errors: Errors, rows: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of atoms and structures, their errors [n, 2], and the row of each [n].

    Errors of forces are those of atoms, errors of energies those of structures; others are NaN.
    """
    features: list[Tensor] = []
    found: list[Tensor] = []
    owners: list[int] = []
    remaining = iter(rows)
    for part, batch in batches_of(network, [dataset.frames[row] for row in rows]):
        with torch.no_grad():
            of_batch = network.atom_features(batch.structures)
        features += _with_means(of_batch, batch.structures)
        chosen = [next(remaining) for _ in part]
        forces, energies = zip(*map(errors.sizes, chosen), strict=True)
        of_atoms = torch.from_numpy(np.concatenate(forces)).float()
        of_structures = torch.tensor(energies, dtype=torch.float32)
        found += [
            torch.stack([of_atoms, torch.full_like(of_atoms, torch.nan)], 1),
            torch.stack([torch.full_like(of_structures, torch.nan), of_structures], 1),
        ]
        owners += np.repeat(chosen, [len(frame.z) for frame in part]).tolist() + chosen
    return torch.cat(features), torch.cat(found), torch.tensor(owners)


def coverage(
    network: CrystalformerPotential,
    uncertainty: Uncertainty,
    dataset: PotentialDataset,
    errors: Errors,
) -> list[dict[str, Any]]:
    """Return for every split and group but the training rows how many labels are inside.

    Shares of atoms whose force is inside and of structures whose energy is, the mean half widths,
    and the share of atoms that are flagged.
    """
    rows: list[dict[str, Any]] = []
    for split in filter(dataset.rows, SPLITS[1:]):
        features, sizes, owners = _features_and_errors(
            network, dataset, errors, dataset.rows(split)
        )
        half = uncertainty.half_widths(network, features)
        flagged = uncertainty.novelty(features) > 1
        by_group: dict[str, list[int]] = {}
        for row in dataset.rows(split):
            by_group.setdefault(dataset.frames[row].group, []).append(row)
        groups = {"": dataset.rows(split)} | (by_group if len(by_group) > 1 else {})
        for group, chosen in groups.items():
            own = torch.isin(owners, torch.tensor(chosen))
            rows.append(
                {"split": split, "group": group, "structures": len(chosen)}
                | _inside(sizes[own], half[own], flagged[own])
            )
    return rows


def _inside(sizes: Tensor, half: Tensor, flagged: Tensor) -> dict[str, Any]:
    """Return shares and widths of errors [n, 2] in intervals [n, 2]."""
    found: dict[str, Any] = {}
    for name, column, unit in (("forces", FORCE, "eV/Å"), ("energy_per_atom", ENERGY, "eV")):
        known = ~sizes[:, column].isnan()
        if known.any():
            inside = sizes[known, column] <= half[known, column]
            found[name] = {
                "coverage": float(inside.float().mean()),
                "half_width": float(half[known, column].mean()),
                "unit": unit,
            }
    of_atoms = flagged[sizes[:, ENERGY].isnan()]
    found["flagged"] = float(of_atoms.float().mean())
    return found
