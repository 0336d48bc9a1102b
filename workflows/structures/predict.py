"""Predict properties of crystals and molecules with a saved model.

Imports neither Lightning nor PyTorch Geometric, so that a first prediction takes seconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from pymatgen.core import Element, Molecule, Structure

from matattn import bundle, pretrained
from matattn.errors import BundleError, ConfigError, PredictionError, StructureError
from matattn.runtime import find_device, on_cpu
from matattn.structures import vacuum
from matattn.structures.batch import CrystalBatch, by_atom_budget, collate, geometry
from matattn.structures.dataset import sites
from matattn.structures.ensemble import Ensemble
from matattn.structures.inputs import take
from matattn.structures.network import StructureNetwork
from matattn.structures.remarks import remarks_of
from matattn.structures.structure import to_tensors, validate
from matattn.training.losses import LOSSES
from matattn.uncertainty import LEVEL, Uncertainty
from matattn.units import PROPERTIES

if TYPE_CHECKING:
    import pandas

KINDS = ("auto", "known", "new")  # of structures
TOLERANCE = 1e-6  # smallest weight of an image that is still summed
CPU = torch.device("cpu")


def encode(
    network: StructureNetwork,
    items: Sequence[Mapping[str, Any]],
    device: torch.device = CPU,
    atoms_per_batch: int = 1000,
    advance: Callable[[int], Any] = lambda structures: None,
) -> torch.Tensor:
    """Return features [n, F] of items with z, pos and cell, on the CPU, each with ``rows_of`` rows.

    The network goes to ``device`` for that, and then to the CPU, where its readout runs. A batch
    that does not fit into memory is halved and tried again; a structure that does not fit alone has
    NaN. ``advance`` is called with the number of structures done after each batch.
    """
    was_training = network.training
    network.eval().to(device)
    dtype = next(network.parameters()).dtype
    images = network.image_rule(TOLERANCE)
    atoms = sites(items)
    order = np.argsort(atoms, kind="stable")
    batches = by_atom_budget(atoms[order].tolist(), atoms_per_batch)
    waiting = deque(order[batch].tolist() for batch in batches)
    counts = [rows_of(network, item) for item in items] if network.level != "structure" else None
    rows = np.ones(len(items), dtype=np.int64) if counts is None else np.array(counts)
    ends = np.cumsum(rows)
    features: torch.Tensor | None = None
    with torch.no_grad():
        while waiting:
            indices = waiting.popleft()
            try:
                batch = collate([items[index] for index in indices], images).to(device, dtype)
                made = network.features(batch).cpu()
                if features is None:
                    features = made.new_full((int(rows.sum()), made.shape[1]), torch.nan)
                places = [np.arange(ends[n] - rows[n], ends[n]) for n in indices]
                features[np.concatenate(places)] = made
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if (half := len(indices) // 2) > 0:
                    waiting.extendleft((indices[half:], indices[:half]))
                    continue
            advance(len(indices))
    network.train(was_training).to(CPU)
    if features is None:
        features = torch.full((int(rows.sum()), 1), torch.nan, dtype=dtype)
    return features


def rows_of(network: StructureNetwork, item: Mapping[str, Any]) -> int:
    """Return how many values of a target a structure has: one, or one per atom or pair."""
    match network.level:
        case "atom":
            return len(item["z"])
        case "pair":
            return item["pair_index"].shape[1]
    return 1


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether NumPy, CUDA or PyTorch's CPU allocator lacks memory; the last has no type."""
    typed = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    return typed or "DefaultCPUAllocator" in str(error)


@dataclass(frozen=True)
class Predictor:
    """A trained network with all it needs: ``Predictor.load(folder).predict(structures)``."""

    network: StructureNetwork
    config: dict[str, Any]
    uncertainty: Uncertainty | None = None
    device: torch.device = CPU  # where features are made; the rest is quick
    kinds: str = "auto"  # of structures, which intervals are for: one of KINDS

    @classmethod
    def load(cls, model: str | Path, device: str = "cpu") -> Predictor:
        """Load a model by name or folder (``matattn.load``); raise BundleError or ConfigError."""
        folder = pretrained.find(model)
        if (kind := pretrained.kind(folder).name) != "structures":
            raise BundleError(f"{folder}: this model reads {kind}, not structures")
        networks, config, uncertainty = bundle.load(folder)
        if (loss := config.get("loss", "l1")) not in LOSSES:
            raise BundleError(
                f"{folder}/config.json: loss={loss!r}: expected one of {', '.join(LOSSES)}"
            )
        members = cast(list[StructureNetwork], networks)
        network = Ensemble(members) if "members" in config else members[0]
        return cls(network, config, uncertainty, find_device(device))

    def for_kinds(self, kinds: str) -> Predictor:
        """Return this with intervals for "known" or "new" kinds of structures, or "auto".

        By itself ("auto") it asks the structures of a call together whether they are of new kinds.
        Raises ConfigError when it has no such intervals.
        """
        if kinds not in KINDS:
            raise ConfigError(f"kinds={kinds!r}: expected one of {', '.join(KINDS)}")
        if kinds == "new" and (self.uncertainty is None or self.uncertainty.kind_scores is None):
            raise ConfigError("this model has no intervals for new kinds; train with task.kinds=4")
        return replace(self, kinds=kinds)

    @property
    def targets(self) -> list[dict[str, str]]:
        """Return name and unit of each predicted property."""
        return self.config["targets"]

    def values(self, features: torch.Tensor) -> np.ndarray:
        """Return predictions [n, T] in physical units from features [n, F], not below bounds.

        Of a model that classifies they are probabilities.
        """
        mean, std = (
            torch.tensor(self.config["normaliser"][key], dtype=torch.float64)
            for key in ("mean", "std")
        )
        with torch.no_grad():
            output = self.network.readout(features).double() * std + mean
        if self.classifies:
            return output.sigmoid().numpy()
        return np.maximum(output.numpy(), self.minimum)

    @property
    def classifies(self) -> bool:
        """Return whether its values are probabilities; older bundles name no loss."""
        return LOSSES[self.config.get("loss", "l1")].classifies

    def are_new(self, features: torch.Tensor) -> torch.Tensor:
        """Return which structures [n], of features [n, F], get the intervals of new kinds.

        By itself a model gives them to all, where together they are farther from the training rows
        than those of calibration, else to those whose novelty is above 1. Where the interval of
        known kinds is wider, it stays.
        """
        if self.uncertainty is None or self.uncertainty.kind_scores is None:
            return torch.zeros(len(features), dtype=torch.bool)
        if self.kinds == "known":
            return torch.zeros(len(features), dtype=torch.bool)
        with torch.no_grad():
            known, new = (
                self.uncertainty.half_widths(self.network, features, new=kinds)
                for kinds in (False, True)
            )
        wider = (new >= known).all(1)
        if self.kinds == "new":
            return wider
        distances = self.uncertainty.distance(features)
        # Atoms and pairs of one structure are too alike to be counted one by one.
        whole = self.network.level == "structure" and self.uncertainty.is_shifted(distances)
        return wider & ((distances > self.uncertainty.far) | whole)

    def intervals(
        self, features: torch.Tensor, level: float = LEVEL, new: torch.Tensor | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return lower and upper ends [n, T] of the intervals; NaN if not calibrated.

        Those of structures that are ``new`` [n] are for new kinds, and no narrower than others.
        """
        values = self.values(features)
        if self.uncertainty is None:
            return np.full_like(values, np.nan), np.full_like(values, np.nan)
        half = self.half_widths(features, level, new)
        return np.maximum(values - half, self.minimum), values + half

    def half_widths(
        self, features: torch.Tensor, level: float = LEVEL, new: torch.Tensor | None = None
    ) -> np.ndarray:
        """Return half widths [n, T] of ``intervals``, before physical bounds cut them.

        Raises ValueError when the model was not calibrated.
        """
        if self.uncertainty is None:
            raise ValueError("this model has no intervals")
        with torch.no_grad():
            widths = self.uncertainty.half_widths(self.network, features, level)
            if new is not None and new.any():
                wide = self.uncertainty.half_widths(self.network, features, level, new=True)
                widths = torch.where(new[:, None], torch.maximum(widths, wide), widths)
        return widths.double().numpy()

    def probability(
        self, features: torch.Tensor, column: int, low: float, high: float
    ) -> np.ndarray:
        """Return the probability [n] that a target is from ``low`` to ``high``, by its interval.

        Raises ValueError when the model was not calibrated.
        """
        if self.uncertainty is None:
            raise ValueError("this model has no intervals")
        values, new = torch.from_numpy(self.values(features)[:, column]), self.are_new(features)
        if high < self.minimum[column]:
            return np.zeros(len(values))
        ends = (-math.inf if low <= self.minimum[column] else low, high)
        inside = self._inside(features, values, column, ends, new=False)
        if new.any():
            inside = torch.where(
                new, self._inside(features, values, column, ends, new=True), inside
            )
        return inside.numpy()

    def _inside(
        self,
        features: torch.Tensor,
        values: torch.Tensor,
        column: int,
        ends: tuple[float, float],
        new: bool,
    ) -> torch.Tensor:
        """Return the probability [n] that a target is between two ends, which may be infinite."""
        assert self.uncertainty is not None
        with torch.no_grad():
            spread = self.uncertainty.spread(self.network, features, new).double()
        spread = spread.expand(-1, len(self.targets))[:, column]
        below, above = (
            torch.full_like(values, float(end > 0))
            if math.isinf(end)
            else self.uncertainty.below((end - values) / spread, column, new).double()
            for end in ends
        )
        return (above - below).clamp(min=0)

    @property
    def minimum(self) -> np.ndarray:
        """Return the least physical value [T] of each target."""
        names = (target["name"] for target in self.targets)
        return np.array([PROPERTIES[n].minimum if n in PROPERTIES else -np.inf for n in names])

    def energy(self, batch: CrystalBatch) -> torch.Tensor:
        """Return the energy of every cell [B], eV, for ``matattn.structures.derivatives``.

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
        structures: Any,
        places: Sequence[str] | None = None,
        advance: Callable[[int], Any] = lambda structures: None,
    ) -> list[dict[str, Any]]:
        """Return a row per structure: formula, natoms, targets, novelty, status and message.

        ``structures`` are pymatgen's objects, ASE's ``Atoms`` (periodic everywhere: a crystal;
        nowhere: a molecule), paths of files, dictionaries of pymatgen, or a collection of them: a
        list, an array, a dictionary by name, a DataFrame with a column "structure". A file has a
        row for each of its structures. Raises TypeError for what is none of these.

        Each target has an interval and a unit: ``<target>_lower`` and ``_upper`` hold 90 % of the
        true values of crystals like those the model was calibrated on. ``ood_score`` is the
        distance from the training crystals in units of one that 1 % of the calibration crystals
        exceed. ``interval_for`` says which structures the interval is for: "known kinds" or, if the
        structure is flagged, or all together are farther from the training rows than those of
        calibration, "new kinds". ``ood_flag`` is true above 1, for elements that the model never
        saw, for more empty space than its training crystals have, and where the structure itself is
        in doubt.

        ``status`` is "ok" or the name of the error, and ``message`` says what is wrong, was assumed
        or is worth knowing. What is no structure (None, a StructureError) gives a row without
        values and does not stop the others.

        Of a model of atoms or pairs, a target and its ends are lists, with a value for every atom
        or for every pair in ``pairs``, and the novelty is that of the most unusual one.

        ``places`` are what messages call the structures. ``advance`` is called with the number of
        structures done after each batch.
        """
        return [row for _, row in self._predicted(structures, places, advance)]

    def predict_with(
        self,
        structures: Sequence[Any],
        places: Sequence[str],
        more: Callable[[torch.Tensor], Mapping[str, np.ndarray]],
    ) -> list[dict[str, Any]]:
        """Return ``predict`` with more columns, which ``more`` makes of the features [n, F].

        A row without values lacks them. For models of whole structures.
        """
        return [row for _, row in self._predicted(structures, places, more=more)]

    def predict_frame(self, structures: Any) -> pandas.DataFrame:
        """Return ``predict`` as a table of pandas, a row per structure, for further work.

        Its index is that of a DataFrame of structures, the names of a dictionary, or what messages
        call the structures. Numbers are float64, with NaN for what is missing, ``natoms`` is Int64
        and ``ood_flag`` boolean, both with <NA>. Of atoms or pairs, values are lists.
        """
        import pandas as pd

        named = self._predicted(structures)
        table = pd.DataFrame([row for _, row in named], pd.Index([name for name, _ in named]))
        if hasattr(structures, "columns") and len(structures) == len(table):
            table.index = structures.index
        numbers = ["ood_score"]
        if self.network.level == "structure":
            numbers += [t["name"] + end for t in self.targets for end in ("", "_lower", "_upper")]
        kinds = {**dict.fromkeys(numbers, "float64"), "natoms": "Int64", "ood_flag": "boolean"}
        return table.astype(kinds) if len(table) else table

    def embed(
        self,
        structures: Any,
        places: Sequence[str] | None = None,
        advance: Callable[[int], Any] = lambda structures: None,
    ) -> list[dict[str, Any]]:
        """Return a row per structure with what the network knows of it before the readout.

        ``features`` is an array [rows, F]: one row, or one for each name in ``atom`` or ``pair``;
        the members of an ensemble stand beside each other. It is None where there is none, and
        status and message say why. Arguments and the other columns are those of ``predict``.
        """
        with on_cpu():
            readings, items = self._readings(structures, places, advance)
            features = encode(self.network, items, self.device, advance=advance)
            parts = iter(features.split([rows_of(self.network, item) for item in items]))
            return [self._embedded(one, next(parts) if one.item else None) for _, one in readings]

    def _embedded(self, reading: _Reading, features: torch.Tensor | None) -> dict[str, Any]:
        """Return the row of a structure from its features [rows, F]."""
        status, remarks = reading.status, reading.remarks + reading.doubts
        if features is not None and not (len(features) and features.isfinite().all()):
            status, remarks, features = PredictionError.__name__, [_no_value(reading)], None
        row: dict[str, Any] = {"formula": reading.formula, "natoms": reading.natoms}
        row["features"] = None if features is None else features.numpy()
        if self.network.level == "atom":
            row["atom"] = reading.item and [str(n + 1) for n in range(len(reading.item["z"]))]
        elif self.network.level == "pair":
            pairs = reading.item and (reading.item["pair_index"].T + 1).tolist()
            row["pair"] = pairs and [f"{i}-{j}" for i, j in pairs]
        return row | {"status": status, "message": "; ".join(remarks)}

    def _predicted(
        self,
        structures: Any,
        places: Sequence[str] | None = None,
        advance: Callable[[int], Any] = lambda structures: None,
        more: Callable[[torch.Tensor], Mapping[str, np.ndarray]] = lambda features: {},
    ) -> list[tuple[str, dict[str, Any]]]:
        """Return what messages call each structure, and its row."""
        with on_cpu():
            readings, items = self._readings(structures, places, advance)
            results = iter(self._results(items, advance, more))
            return [
                (where, self._row(one, next(results) if one.item else None))
                for where, one in readings
            ]

    def _readings(
        self, structures: Any, places: Sequence[str] | None, advance: Callable[[int], Any]
    ) -> tuple[list[tuple[str, _Reading]], list[dict[str, Any]]]:
        """Return what is known of each structure by its name, and what the network is given."""
        readings = []
        for where, structure in take(structures, places):
            readings.append((where, self._reading(structure, where)))
            if readings[-1][1].item is None:
                advance(1)
        return readings, [one.item for _, one in readings if one.item is not None]

    def read(self, structure: Structure | Molecule | StructureError, where: str) -> Readable:
        """Return what the network is given of a structure, with remarks and doubts.

        Raises StructureError, beginning with ``where``, for what is not physical, or what the
        network was not made for.
        """
        if isinstance(structure, StructureError):
            raise structure
        doubts = validate(structure, where)
        self._check_reads(structure, where)
        item = to_tensors(structure)
        self.network.check(item["z"], item["pos"], item["cell"], where)
        if self.network.level == "pair":
            item["pair_index"] = torch.triu_indices(len(structure), len(structure), 1)
        if isinstance(structure, Structure):
            doubts += vacuum.doubts(geometry(item), self.config.get("vacuum", {}))
        return Readable(item, remarks_of(structure), doubts)

    def _check_reads(self, structure: Structure | Molecule, where: str) -> None:
        """Raise StructureError for what the network was not made for."""
        if isinstance(structure, Structure) and not all(structure.pbc):
            raise StructureError(
                f"{where}: is not periodic in all directions (pbc {structure.pbc}); expected a "
                "crystal, or a Molecule"
            )
        kind = "molecules" if isinstance(structure, Molecule) else "crystals"
        if (trained_on := self.config.get("structures", "crystals")) != kind:
            raise StructureError(
                f"{where}: this model was trained on {trained_on}, and reads no {kind}"
            )
        if (elements := self.config.get("arguments", {}).get("elements")) is None:
            return
        if unknown := {site.specie.Z for site in structure} - set(elements):
            raise StructureError(
                f"{where}: contains {_symbols(unknown)}; this model has constants for "
                f"{_symbols(elements)} only"
            )

    def _reading(self, structure: Structure | Molecule | StructureError, where: str) -> _Reading:
        """Return what is known of a structure before the network sees it."""
        formula, natoms = "", None
        if not isinstance(structure, StructureError):
            formula, natoms = structure.composition.reduced_formula, len(structure)
        try:
            readable = self.read(structure, where)
        except StructureError as error:
            return _Reading(formula, natoms, None, type(error).__name__, [str(error)])
        return _Reading(formula, natoms, readable.item, "ok", readable.remarks, readable.doubts)

    def _results(
        self,
        items: Sequence[Mapping[str, Any]],
        advance: Callable[[int], Any],
        more: Callable[[torch.Tensor], Mapping[str, np.ndarray]],
    ) -> list[dict[str, Any] | None]:
        """Return what the network says of each item, by column; None where it gives no number."""
        features = encode(self.network, items, self.device, advance=advance)
        parts = features.split([rows_of(self.network, item) for item in items])
        usable = [bool(len(part)) and bool(part.isfinite().all()) for part in parts]
        columns: dict[str, np.ndarray] = {}
        if any(usable):
            known = torch.cat(list(compress(parts, usable)))
            columns = {**self._columns(known), **more(known)}
        results: list[dict[str, Any] | None] = [None] * len(items)
        end = 0
        for index in np.flatnonzero(usable):
            start, end = end, end + len(parts[index])
            lists = {name: column[start:end].tolist() for name, column in columns.items()}
            results[index] = self._result(lists)
        return results

    def _columns(self, features: torch.Tensor) -> dict[str, np.ndarray]:
        """Return values, ends of intervals and novelty [n] of features [n, F]."""
        tables, new = {"": self.values(features)}, self.are_new(features)
        if self.uncertainty is not None:
            tables["_lower"], tables["_upper"] = self.intervals(features, new=new)
        columns = {
            target["name"] + suffix: table[:, column]
            for column, target in enumerate(self.targets)
            for suffix, table in tables.items()
        }
        if self.uncertainty is not None:
            columns["ood_score"] = self.uncertainty.novelty(features).numpy()
            columns["interval_for"] = np.where(new.numpy(), "new kinds", "known kinds")
        return columns

    def _result(self, lists: dict[str, list[float]]) -> dict[str, Any]:
        """Return one value of each column, or lists of those of the atoms or pairs."""
        if self.network.level == "structure":
            return {name: value for name, (value,) in lists.items()}
        of_all = ("ood_score", "interval_for")  # "new kinds" comes after "known kinds"
        return {name: max(v) if name in of_all else v for name, v in lists.items()}

    def _row(self, reading: _Reading, result: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the row of a structure from all that is known of it."""
        item, status, remarks, flag = reading.item, reading.status, reading.remarks, None
        if item is not None and result is not None:
            warnings = reading.doubts + self._warnings(item["z"], result)
            remarks, flag = remarks + warnings, bool(warnings)
        elif item is not None:
            status = PredictionError.__name__
            remarks = [_no_value(reading)]
        result = result or {}
        row: dict[str, Any] = {"formula": reading.formula, "natoms": reading.natoms}
        for target in self.targets:
            name = target["name"]
            row |= {key: result.get(key) for key in (name, f"{name}_lower", f"{name}_upper")}
            row[f"{name}_unit"] = target["unit"]
        row |= {"interval_for": result.get("interval_for")}
        row |= {"ood_score": result.get("ood_score"), "ood_flag": flag}
        if self.network.level == "pair":
            row["pairs"] = item and (item["pair_index"].T + 1).tolist()
        row |= {key: value for key, value in result.items() if key not in row}
        return row | {"status": status, "message": "; ".join(remarks)}

    def _warnings(self, z: torch.Tensor, result: Mapping[str, Any]) -> list[str]:
        """Return why a value is not to be trusted: elements or distance from the training rows."""
        warnings = []
        if unseen := _symbols(set(z.tolist()) - set(self.config["elements"])):
            warnings.append(f"no training crystal contains {unseen}: do not trust this value")
        if result.get("ood_score", 0) > 1:
            narrow = result["interval_for"] != "new kinds"
            warnings.append(
                "far from all training crystals" + ": the interval may be too narrow" * narrow
            )
        return warnings


class Readable(NamedTuple):
    """A structure that the network can read: what it is given, and what to say of the value."""

    item: dict[str, Any]
    remarks: list[str]  # what was assumed
    doubts: list[str]  # why the value may be wrong


@dataclass(frozen=True)
class _Reading:
    """A structure as far as it could be read: ``item`` is what the network is given of it.

    If it cannot be read, ``item`` is None, ``status`` the error, and ``remarks`` say why.
    """

    formula: str
    natoms: int | None
    item: dict[str, Any] | None
    status: str
    remarks: list[str]
    doubts: list[str] = field(default_factory=list)


def _no_value(reading: _Reading) -> str:
    return f"no value: too little memory for {reading.natoms} atoms, or an overflow"


def _symbols(elements: Iterable[int]) -> str:
    """Return the symbols of atomic numbers, sorted, as a message lists them."""
    return ", ".join(Element.from_Z(number).symbol for number in sorted(elements))
