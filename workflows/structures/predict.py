"""Predict properties of crystals and molecules with a saved model.

Imports neither Lightning nor PyTorch Geometric, so that a first prediction takes seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pymatgen.core import Element, Molecule, Structure

from matattn import bundle, pretrained
from matattn.errors import BundleError, PredictionError, StructureError
from matattn.runtime import find_device
from matattn.structures.batch import CrystalBatch, by_atom_budget, collate
from matattn.structures.ensemble import Ensemble
from matattn.structures.network import StructureNetwork
from matattn.structures.structure import to_tensors, validate
from matattn.uncertainty import LEVEL, Uncertainty
from matattn.units import PROPERTIES

TOLERANCE = 1e-6  # smallest weight of an image that is still summed
CPU = torch.device("cpu")


def encode(
    network: StructureNetwork,
    items: Sequence[Mapping[str, Any]],
    device: torch.device = CPU,
    atoms_per_batch: int = 1000,
    advance: Callable[[int], Any] = lambda crystals: None,
) -> torch.Tensor:
    """Features [n, F] of items with z, pos and cell, on the CPU: a row for each (``rows_of``).

    The network goes to ``device`` for that, and then to the CPU, where its readout runs. A batch
    that does not fit into memory is halved and tried again; a crystal that does not fit alone has
    NaN. ``advance`` is called with the number of crystals done after each batch.
    """
    was_training = network.training
    network.eval().to(device)
    images = network.image_rule(TOLERANCE)
    order = sorted(range(len(items)), key=lambda row: len(items[row]["z"]))
    waiting = deque(by_atom_budget((len(items[row]["z"]) for row in order), atoms_per_batch))
    done: list[tuple[list[int], torch.Tensor]] = []
    with torch.no_grad():
        while waiting:
            positions = waiting.popleft()
            rows = [order[position] for position in positions]
            try:
                batch = collate([items[row] for row in rows], images).to(device)
                done.append((rows, network.features(batch).cpu()))
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if (half := len(rows) // 2) > 0:
                    waiting.extendleft((positions[half:], positions[:half]))
                    continue
            advance(len(rows))
    network.train(was_training).to(CPU)
    sample = done[0][1] if done else torch.empty(0, 1)
    counts = [rows_of(network, item) for item in items]
    features = [sample.new_full((count, sample.shape[1]), torch.nan) for count in counts]
    for rows, found in done:
        parts = found.split([counts[row] for row in rows])
        for row, part in zip(rows, parts, strict=True):
            features[row] = part
    return torch.cat(features) if features else sample


def rows_of(network: StructureNetwork, item: Mapping[str, Any]) -> int:
    """How many values of a target a network gives for a structure: one, or one per atom or pair."""
    match network.level:
        case "atom":
            return len(item["z"])
        case "pair":
            return item["pair_index"].shape[1]
    return 1


def _is_out_of_memory(error: Exception) -> bool:
    """Whether NumPy, CUDA or PyTorch's CPU allocator, which has no type for it, lack memory."""
    known = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    return known or "DefaultCPUAllocator" in str(error)


@dataclass(frozen=True)
class Predictor:
    """A trained network with all it needs: ``Predictor.load(folder).predict(structures)``."""

    network: StructureNetwork
    config: dict[str, Any]
    uncertainty: Uncertainty | None = None
    device: torch.device = CPU  # where features are made; the rest is quick

    @classmethod
    def load(cls, model: str | Path, device: str = "cpu") -> Predictor:
        """Load a model by name or folder (``matattn.load``); raises BundleError or ConfigError."""
        folder = pretrained.find(model)
        if (kind := pretrained.kind(folder).name) != "structures":
            raise BundleError(f"{folder}: this model reads {kind}, not structures")
        networks, config, uncertainty = bundle.load(folder)
        members = cast(list[StructureNetwork], networks)
        network = Ensemble(members) if "members" in config else members[0]
        return cls(network, config, uncertainty, find_device(device))

    @property
    def targets(self) -> list[dict[str, str]]:
        """Name and unit of each predicted property."""
        return self.config["targets"]

    def values(self, features: torch.Tensor) -> np.ndarray:
        """Predictions [n, T] in physical units from features [n, F], above physical bounds."""
        mean, std = (
            torch.tensor(self.config["normaliser"][key], dtype=torch.float64)
            for key in ("mean", "std")
        )
        with torch.no_grad():
            output = self.network.readout(features)
        return np.maximum((output.double() * std + mean).numpy(), self._minimum)

    def intervals(
        self, features: torch.Tensor, level: float = LEVEL
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends [n, T] of the intervals; NaN if the model is not calibrated."""
        values = self.values(features)
        if self.uncertainty is None:
            return np.full_like(values, np.nan), np.full_like(values, np.nan)
        with torch.no_grad():
            half = self.uncertainty.half_widths(self.network, features, level).double().numpy()
        return np.maximum(values - half, self._minimum), values + half

    @property
    def _minimum(self) -> np.ndarray:
        names = (target["name"] for target in self.targets)
        return np.array([PROPERTIES[n].minimum if n in PROPERTIES else -np.inf for n in names])

    def energy(self, batch: CrystalBatch) -> torch.Tensor:
        """Energy of every cell [B], eV: what ``matattn.structures.derivatives`` differentiates.

        Raises ValueError when the model predicts no energy in eV/atom, or several.
        """
        columns = [n for n, target in enumerate(self.targets) if target["unit"] == "eV/atom"]
        if len(columns) != 1:
            names = ", ".join(target["name"] for target in self.targets)
            raise ValueError(f"expected one target in eV/atom; this model predicts {names}")
        mean, std = (self.config["normaliser"][key][columns[0]] for key in ("mean", "std"))
        per_atom = self.network(batch)[:, columns[0]] * std + mean
        return per_atom * torch.bincount(batch.batch, minlength=batch.num_graphs)

    def predict(
        self,
        structures: Structure | Molecule | Iterable[Structure | Molecule | StructureError],
        places: Sequence[str] | None = None,
        advance: Callable[[int], Any] = lambda crystals: None,
    ) -> list[dict[str, Any]]:
        """One row per structure: formula, natoms, each target with its interval and unit, the
        novelty, status and message.

        ``<target>_lower`` and ``_upper`` hold 90 % of the true values of crystals like those the
        model was calibrated on. ``ood_score`` is the distance from the training crystals in units
        of one that 1 % of the calibration crystals exceed; ``ood_flag`` is true above 1, and for
        elements that the model never saw. ``status`` is "ok" or the name of the error, and
        ``message`` says what is wrong or worth knowing; a bad structure (or a StructureError in its
        place) gives a row without values and does not stop the others. ``places`` are what messages
        call the structures.

        Of a model of atoms or pairs, a target and its ends are lists, with a value for every atom
        or for every pair in ``pairs``, and the novelty is that of the most unusual one.
        """
        if isinstance(structures, Structure | Molecule):
            structures = [structures]
        given = list(structures)
        places = places or [f"structure {number + 1}" for number in range(len(given))]
        rows, items, usable = [], [], []
        has_pairs = self.network.level == "pair"
        for structure, place in zip(given, places, strict=True):
            row: dict[str, Any] = {"formula": "", "natoms": None}
            for target in self.targets:
                name = target["name"]
                row |= {name: None, f"{name}_lower": None, f"{name}_upper": None}
                row[f"{name}_unit"] = target["unit"]
            row |= {"ood_score": None, "ood_flag": None}
            if has_pairs:
                row["pairs"] = None
            try:
                if not isinstance(structure, StructureError):
                    row["formula"] = structure.composition.reduced_formula
                    row["natoms"] = len(structure)
                item, remarks = self.read(structure, place)
                row |= {"status": "ok", "message": "; ".join(remarks)}
                if has_pairs:
                    row["pairs"] = (item["pair_index"].T + 1).tolist()
                items.append(item)
                usable.append(row)
            except StructureError as error:
                row |= {"status": type(error).__name__, "message": str(error)}
                advance(1)
            rows.append(row)
        features = encode(self.network, items, self.device, advance=advance)
        parts = features.split([rows_of(self.network, item) for item in items])
        fits = [bool(len(part)) and bool(part.isfinite().all()) for part in parts]
        kept = [part for part, fit in zip(parts, fits, strict=True) if fit]
        judged = self._judge(torch.cat(kept)) if kept else iter(())
        for row, item, part, fit in zip(usable, items, parts, fits, strict=True):
            if fit:
                row |= self._together([next(judged) for _ in part])
                self._warn(row, item["z"])
            else:
                reason = f"no value: too little memory for {row['natoms']} atoms, or an overflow"
                row |= {"status": PredictionError.__name__, "message": reason}
        return rows

    def read(
        self, structure: Structure | Molecule | StructureError, place: str
    ) -> tuple[dict[str, Any], list[str]]:
        """What the network is given of a structure, and remarks.

        Raises StructureError for what is not physical, or what the network was not made for.
        """
        if isinstance(structure, StructureError):
            raise structure
        remarks = validate(structure, place)
        self._check_reads(structure, place)
        item = to_tensors(structure)
        self.network.check(item["z"], item["pos"], item["cell"], place)
        if self.network.level == "pair":
            item["pair_index"] = torch.triu_indices(len(structure), len(structure), 1)
        return item, remarks

    def _check_reads(self, structure: Structure | Molecule, place: str) -> None:
        """Raise StructureError for what the network was not made for."""
        kind = "molecules" if isinstance(structure, Molecule) else "crystals"
        if (known := self.config.get("structures", "crystals")) != kind:
            raise StructureError(f"{place}: this model was trained on {known}, and reads no {kind}")
        if (elements := self.config.get("arguments", {}).get("elements")) is None:
            return
        if unknown := {site.specie.Z for site in structure} - set(elements):
            symbols, listed = (
                ", ".join(Element.from_Z(z).symbol for z in sorted(found))
                for found in (unknown, elements)
            )
            raise StructureError(
                f"{place}: contains {symbols}; this model has constants for {listed} only"
            )

    def _together(self, judged: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What was found of a structure: of one value, or lists of those of its atoms or pairs."""
        if self.network.level == "structure":
            return judged[0]
        found: dict[str, Any] = {key: [one[key] for one in judged] for key in judged[0]}
        if "ood_score" in found:
            found["ood_score"] = max(found["ood_score"])
        return found

    def _judge(self, features: torch.Tensor) -> Iterator[dict[str, Any]]:
        """Values, intervals and novelty of every row of features."""
        values, (lower, upper) = self.values(features), self.intervals(features)
        novelty = None if self.uncertainty is None else self.uncertainty.novelty(features)
        for n in range(len(values)):
            found: dict[str, Any] = {}
            for column, target in enumerate(self.targets):
                name = target["name"]
                found[name] = float(values[n, column])
                if self.uncertainty is not None:
                    found[f"{name}_lower"] = float(lower[n, column])
                    found[f"{name}_upper"] = float(upper[n, column])
            if novelty is not None:
                found["ood_score"] = float(novelty[n])
            yield found

    def _warn(self, row: dict[str, Any], z: torch.Tensor) -> None:
        """Set ``ood_flag`` of a row, and say in its message what is behind it."""
        remarks = [row["message"]] if row["message"] else []
        unseen = sorted(set(z.tolist()) - set(self.config["elements"]))
        if unseen:
            symbols = ", ".join(Element.from_Z(number).symbol for number in unseen)
            remarks.append(f"no training crystal contains {symbols}: do not trust this value")
        far = row["ood_score"] is not None and row["ood_score"] > 1
        if far:
            remarks.append("far from all training crystals: the interval may be too narrow")
        row["ood_flag"] = bool(unseen) or far
        row["message"] = "; ".join(remarks)
