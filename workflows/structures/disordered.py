"""Predict crystals with partial occupancies: by the mean over orderings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from pymatgen.core import Structure

from matattn.errors import StructureError
from matattn.structures.disorder import orderings, read_disordered
from matattn.structures.files import Entry
from matattn.structures.structure import ORDER_IT
from matattn.tables import Row
from matattn.units import PROPERTIES
from matattn.workflows.structures.predict import Predictor

_ENDS = ("_lower", "_upper")
_NORMAL = 1.645  # standard errors that hold 90 %


def takes_orderings(predictor: object) -> bool:
    """Return whether a model predicts properties of whole crystals that do not grow with them."""
    if not isinstance(predictor, Predictor) or predictor.network.level != "structure":
        return False
    names = [target["name"] for target in predictor.targets]
    grow = [name in PROPERTIES and PROPERTIES[name].extensive for name in names]
    return not any(grow) and predictor.config["arguments"].get("readout") != "sum"


def disordered(entry: Entry) -> Structure | None:
    """Return a structure that was refused for its partial occupancies; None for another reason.

    Raises StructureError where it cannot be read with them.
    """
    if isinstance(entry.structure, Structure):
        return None if entry.structure.is_ordered else entry.structure
    if ORDER_IT not in str(entry.structure):
        return None
    if entry.place != entry.path or not entry.path.lower().endswith(".cif"):
        raise StructureError(
            "partial occupancies are read from CIF files of one crystal and from structures of "
            "pymatgen"
        )
    return read_disordered(Path(entry.path))


def with_orderings(predictor: Predictor, entry: Entry, row: Row, count: int) -> Row:
    """Return the row of an entry, of one with partial occupancies from its orderings."""
    columns: Row = {"orderings": None}
    columns |= {f"{target['name']}_orderings_std": None for target in predictor.targets}
    if row["status"] == "ok":
        return row | columns
    try:
        if (structure := disordered(entry)) is None:
            return row | columns
        return predict_disordered(predictor, structure, entry.place, count)
    except StructureError as error:
        return row | columns | {"message": f"{entry.place}: {error}"}


def predict_disordered(predictor: Predictor, structure: Structure, where: str, count: int) -> Row:
    """Return the row of a crystal with partial occupancies, from at most ``count`` orderings.

    Values are means over the orderings, and so are the ends of intervals, which are wider by the
    statistical error (90 %) where not all orderings were seen. ``<target>_orderings_std`` is the
    standard deviation over the orderings, ``natoms`` the size of the first. For models of whole
    structures whose targets do not grow with the cell.

    Raises StructureError as ``orderings`` does, or when no ordering can be predicted.
    """
    try:
        made = orderings(structure, count)
    except ValueError as error:  # of pymatgen, for what is no element
        raise StructureError(str(error)) from None
    places = [f"{where}, ordering {n + 1}" for n in range(len(made.structures))]
    # They are much alike: that all are somewhat far says no more than that one is.
    alone = predictor if predictor.kinds != "auto" else predictor.for_kinds("known")
    rows = alone.predict(made.structures, places)
    done = [n for n, row in enumerate(rows) if row["status"] == "ok"]
    if not done:
        raise StructureError(rows[0]["message"].removeprefix(f"{where}: "))
    if predictor.kinds == "auto" and any((rows[n]["ood_score"] or 0) > 1 for n in done):
        good = predictor.predict([made.structures[n] for n in done])
    else:
        good = [rows[n] for n in done]
    row = dict(good[0]) | {"formula": structure.composition.reduced_formula}
    row["orderings"], are_all = len(good), made.are_all and len(good) == len(rows)
    for target, least in zip(predictor.targets, predictor.minimum, strict=True):
        name = target["name"]
        values = np.array([one[name] for one in good])
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        of_mean = 0.0 if are_all else _NORMAL * spread / math.sqrt(len(values))
        row[name], row[f"{name}_orderings_std"] = float(values.mean()), spread
        if row[f"{name}_lower"] is not None:
            lower, upper = (np.mean([one[name + end] for one in good]) for end in _ENDS)
            row[f"{name}_lower"] = max(float(lower) - of_mean, float(least))
            row[f"{name}_upper"] = float(upper) + of_mean
    if row["ood_score"] is not None:
        row["ood_score"] = max(one["ood_score"] for one in good)
        row["interval_for"] = max(one["interval_for"] for one in good)
    row["ood_flag"] = any(one["ood_flag"] for one in good)
    remarks = [f"mean of {'all ' if are_all else ''}{made.remark}, each as likely as another"]
    if len(good) < len(rows):
        remarks.append(f"{len(rows) - len(good)} of them have no value")
    for one in good:
        remarks += one["message"].split("; ")
    return row | {"message": "; ".join(dict.fromkeys(filter(None, remarks)))}
