"""Predict properties of crystals with a saved model.

Imports neither Lightning nor PyTorch Geometric, so that a first prediction takes seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pymatgen.core import Structure
from torch import nn

from matattn import bundle, pretrained
from matattn.batch import CrystalBatch, by_atom_budget, collate
from matattn.errors import ConfigError, PredictionError, StructureError
from matattn.neighbors import HasImageRule
from matattn.structure import to_tensors, validate

TOLERANCE = 1e-6  # smallest weight of an image that is still summed


def find_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is a GPU if there is one, else the CPU.

    Raises ConfigError when there is no such device.
    """
    gpus = torch.cuda.device_count()
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    if name not in known:
        raise ConfigError(f"no device {name!r}; this machine has {', '.join(known)}")
    return torch.device(name)


def predict_items(
    network: nn.Module,
    items: Sequence[Mapping[str, Any]],
    mean: torch.Tensor,
    std: torch.Tensor,
    atoms_per_batch: int = 1000,
    advance: Callable[[int], Any] = lambda crystals: None,
) -> np.ndarray:
    """Predictions [n, T] in physical units for items with z, pos and cell.

    A batch that does not fit into memory is halved and tried again; a crystal that does not fit
    alone has NaN. ``advance`` is called with the number of crystals done after each batch.
    """
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    images = cast(HasImageRule, network).image_rule(TOLERANCE)
    order = sorted(range(len(items)), key=lambda row: len(items[row]["z"]))
    sizes = [len(items[row]["z"]) for row in order]
    result = np.full((len(items), len(mean)), np.nan)
    waiting = deque(by_atom_budget(sizes, atoms_per_batch))
    with torch.no_grad():
        while waiting:
            positions = waiting.popleft()
            rows = [order[position] for position in positions]
            try:
                batch = collate([items[row] for row in rows], images).to(device)
                output = network(batch).cpu().double()
                result[rows] = (output * std.double() + mean.double()).numpy()
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if (half := len(rows) // 2) > 0:
                    waiting.extendleft((positions[half:], positions[:half]))
                    continue
            advance(len(rows))
    network.train(was_training)
    return result


def _is_out_of_memory(error: Exception) -> bool:
    """Whether NumPy, CUDA or PyTorch's CPU allocator, which has no type for it, lack memory."""
    known = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    return known or "DefaultCPUAllocator" in str(error)


@dataclass(frozen=True)
class Predictor:
    """A trained network with all it needs: ``Predictor.load(folder).predict(structures)``."""

    network: nn.Module
    config: dict[str, Any]

    @classmethod
    def load(cls, model: str | Path, device: str = "cpu") -> Predictor:
        """Load a model by name or folder (``matattn.load``); raises BundleError or ConfigError."""
        network, config = bundle.load(pretrained.find(model))
        return cls(network.to(find_device(device)), config)

    @property
    def targets(self) -> list[dict[str, str]]:
        """Name and unit of each predicted property."""
        return self.config["targets"]

    def energy(self, batch: CrystalBatch) -> torch.Tensor:
        """Energy of every cell [B], eV: what ``matattn.derivatives`` differentiates.

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
        structures: Structure | Iterable[Structure | StructureError],
        places: Sequence[str] | None = None,
        advance: Callable[[int], Any] = lambda crystals: None,
    ) -> list[dict[str, Any]]:
        """One row per structure: formula, natoms, each target and its unit, status, message.

        ``status`` is "ok" or the name of the error, and ``message`` says what is wrong or worth
        knowing; a bad structure (or a StructureError in its place) gives a row without values and
        does not stop the others. ``places`` are what messages call the structures.
        """
        given = [structures] if isinstance(structures, Structure) else list(structures)
        places = places or [f"structure {number + 1}" for number in range(len(given))]
        rows, items, usable = [], [], []
        for number, structure in enumerate(given):
            row: dict[str, Any] = {"formula": "", "natoms": None}
            for target in self.targets:
                row |= {target["name"]: None, f"{target['name']}_unit": target["unit"]}
            try:
                if isinstance(structure, StructureError):
                    raise structure
                row["formula"], row["natoms"] = (
                    structure.composition.reduced_formula,
                    len(structure),
                )
                remarks = validate(structure, places[number])
                remarks += self._unseen_elements(structure)
                row |= {"status": "ok", "message": "; ".join(remarks)}
                items.append(to_tensors(structure))
                usable.append(row)
            except StructureError as error:
                row |= {"status": type(error).__name__, "message": str(error)}
                advance(1)
            rows.append(row)
        normaliser = self.config["normaliser"]
        values = predict_items(
            self.network,
            items,
            torch.tensor(normaliser["mean"]),
            torch.tensor(normaliser["std"]),
            advance=advance,
        )
        for row, value in zip(usable, values, strict=True):
            row |= {t["name"]: float(v) for t, v in zip(self.targets, value, strict=True)}
            if not np.isfinite(value).all():
                reason = f"no value: too little memory for {row['natoms']} atoms, or an overflow"
                row |= {"status": PredictionError.__name__, "message": reason}
        return rows

    def _unseen_elements(self, structure: Structure) -> list[str]:
        known = set(self.config["elements"])
        unseen = sorted({site.specie.symbol for site in structure if site.specie.Z not in known})
        if not unseen:
            return []
        return [f"no training crystal contains {', '.join(unseen)}: do not trust this value"]
