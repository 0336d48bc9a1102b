"""Predict crystals with partial occupancies: by the mean over orderings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure

from matattn.errors import StructureError
from matattn.structures.disorder import orderings, read_disordered
from matattn.tables import Row
from matattn.workflows.structures.predict import Predictor

_ENDS = ("_lower", "_upper")
_NORMAL = 1.645  # standard errors that hold 90 %


def disordered(structure: Any, path: str) -> Structure | None:
    """Return a structure that was refused for its partial occupancies; None for another reason."""
    if isinstance(structure, Structure):
        return None if structure.is_ordered else structure
    return read_disordered(Path(path)) if path.lower().endswith(".cif") else None


def predict_disordered(predictor: Predictor, structure: Structure, where: str, count: int) -> Row:
    """Return the row of a crystal with partial occupancies, from at most ``count`` orderings.

    Values are means over the orderings, and so are the ends of intervals, which are wider by the
    statistical error (90 %) where not all orderings were seen. ``<target>_orderings_std`` is the
    standard deviation over the orderings. For models of whole structures.
    """
    try:
        made = orderings(structure, count)
    except (StructureError, ValueError) as error:
        return predictor.predict([StructureError(f"{where}: {error}")], [where])[0]
    places = [f"{where}, ordering {n + 1}" for n in range(len(made.structures))]
    # They are much alike: that all are somewhat far says no more than that one is.
    alone = predictor if predictor.kinds != "auto" else predictor.for_kinds("known")
    rows = alone.predict(made.structures, places)
    good = [row for row in rows if row["status"] == "ok"]
    if predictor.kinds == "auto" and any((row["ood_score"] or 0) > 1 for row in good):
        good = predictor.predict([made.structures[rows.index(row)] for row in good])
    if not good:
        return rows[0]
    row = dict(good[0]) | {"formula": structure.composition.reduced_formula}
    row["orderings"] = len(good)
    for target, least in zip(predictor.targets, predictor.minimum, strict=True):
        name = target["name"]
        values = np.array([one[name] for one in good])
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        of_mean = 0.0 if made.are_all else _NORMAL * spread / math.sqrt(len(values))
        row[name], row[f"{name}_orderings_std"] = float(values.mean()), spread
        if row[f"{name}_lower"] is not None:
            lower, upper = (np.mean([one[name + end] for one in good]) for end in _ENDS)
            row[f"{name}_lower"] = max(float(lower) - of_mean, float(least))
            row[f"{name}_upper"] = float(upper) + of_mean
    if row["ood_score"] is not None:
        row["ood_score"] = max(one["ood_score"] for one in good)
        row["interval_for"] = max(one["interval_for"] for one in good)
    row["ood_flag"] = any(one["ood_flag"] for one in good)
    remarks = dict.fromkeys(one["message"] for one in good if one["message"])
    mean = f"mean of {'all ' if made.are_all else ''}{made.remark}, each as likely as another"
    return row | {"message": "; ".join([mean, *list(remarks)[:1]])}
