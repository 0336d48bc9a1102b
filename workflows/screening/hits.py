"""The end of a screening: its best structures, without repetitions, and a picture of all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow
import pyarrow.parquet
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyarrow import compute

from matattn.tables import Row
from matattn.workflows.screening.criteria import Criterion
from matattn.workflows.screening.parts import with_values
from matattn.workflows.screening.plan import Plan, parts_of

SAME = 1e-3  # distance of fingerprints, in their standard deviations, that are one crystal's ...
NOISE = 1e-4  # ... or in their size, where all structures are alike


@dataclass(frozen=True)
class Summary:
    """Every structure of a finished screening, as far as a ranking needs it.

    ``original`` [n] is the row of the first structure that is the same crystal, itself if it is
    new. Probabilities are NaN where there is no value, and without criteria.
    """

    rows: int
    with_values: int
    flagged: int
    original: np.ndarray
    probability: np.ndarray

    @property
    def new(self) -> np.ndarray:
        """Return which structures [n] repeat no earlier one."""
        return self.original == np.arange(len(self.original))

    @property
    def repeated(self) -> int:
        """Return how many structures repeat an earlier one."""
        return int((~self.new).sum())

    @property
    def expected(self) -> float:
        """Return how many different crystals are expected to meet the criteria."""
        return float(np.nansum(self.probability[self.new]))

    def best(self, number: int) -> np.ndarray:
        """Return the rows of the most probable different crystals, best first."""
        rows = np.flatnonzero(self.new & ~np.isnan(self.probability))
        return rows[np.argsort(-self.probability[rows], kind="stable")[:number]]


def is_complete(plan: Plan) -> bool:
    """Return whether every shard has finished, and every part is there."""
    told = set()
    for shard in range(plan.shards):
        try:
            told.add(json.loads(plan.finished(shard).read_text(encoding="utf-8"))["parts"])
        except FileNotFoundError:
            return False
    return len(told) == 1 and all(plan.part(number).exists() for number in range(*told))


def summarize(plan: Plan) -> Summary:
    """Read what a ranking needs of all parts; some tens of bytes for each structure."""
    names = ["formula", "fingerprint", "ood_flag", "status"]
    columns = names + (["probability"] if plan.where else [])
    tables = [pyarrow.parquet.read_table(path, columns=columns) for path in parts_of(plan)]
    whole = pyarrow.concat_tables(tables)
    formulas = whole["formula"].combine_chunks().dictionary_encode().indices.to_numpy()
    prints = whole["fingerprint"].combine_chunks()
    known = prints.is_valid().to_numpy(zero_copy_only=False)
    filled = np.full((len(whole), prints.type.list_size), np.nan, dtype=np.float32)
    filled[known] = prints.drop_null().flatten().to_numpy().reshape(-1, filled.shape[1])
    probability = np.full(len(whole), np.nan)
    if plan.where:
        probability = whole["probability"].to_numpy().astype(float)
    return Summary(
        len(whole),
        with_values(whole),
        compute.sum(whole["ood_flag"]).as_py() or 0,
        same_crystals(formulas, filled),
        probability,
    )


def first_error(plan: Plan) -> str:
    """Return what the first row without values says, or nothing."""
    for path in parts_of(plan):
        rows = pyarrow.parquet.read_table(path, columns=["status", "message"]).to_pylist()
        for row in rows:
            if row["status"] != "ok":
                return str(row["message"])
    return ""


def same_crystals(formulas: np.ndarray, fingerprints: np.ndarray) -> np.ndarray:
    """Return for each structure [n] the first with its formula and fingerprint [n, K].

    Other cells, supercells and orders of atoms of one crystal agree; NaN agrees with nothing.
    Mirror images do too, for a network cannot tell them apart.
    """
    original = np.arange(len(formulas))
    known = np.flatnonzero(np.isfinite(fingerprints).all(1))
    if not len(known):
        return original
    points = fingerprints[known].astype(np.float64)
    near = np.maximum(SAME * points.std(0), NOISE * np.abs(points).mean(0))
    order = np.lexsort((points[:, 0], formulas[known]))
    sorted_points, sorted_formulas = points[order], formulas[known][order]
    group, first = np.zeros(len(order), dtype=np.int64), 0
    for n in range(1, len(order)):
        same = sorted_formulas[n] == sorted_formulas[first]
        if not (same and (np.abs(sorted_points[n] - sorted_points[first]) < near).all()):
            first = n
        group[n] = first
    rows = known[order]
    earliest = np.full(len(order), len(formulas))
    np.minimum.at(earliest, group, rows)
    original[rows] = earliest[group]
    return original


def table(plan: Plan, summary: Summary, number: int) -> list[Row]:
    """Return the rows of the best structures, whole, with how often each was repeated."""
    best = summary.best(number)
    copies = np.bincount(summary.original, minlength=len(summary.original))
    found: dict[int, Row] = {}
    begin = 0
    for path in parts_of(plan):
        end = begin + pyarrow.parquet.read_metadata(path).num_rows
        wanted = best[(best >= begin) & (best < end)]
        if len(wanted):
            taken = pyarrow.parquet.read_table(path).take(wanted - begin).to_pylist()
            found |= dict(zip(wanted.tolist(), taken, strict=True))
        begin = end
    rows = []
    for index in best.tolist():
        row = {key: value for key, value in found[index].items() if key != "fingerprint"}
        rows.append(row | {"repeated": int(copies[index]) - 1})
    return rows


def plot(plan: Plan, rows: Sequence[Row]) -> Figure:
    """Draw the probabilities and predictions of the best structures, with what was wanted."""
    wanted = [criterion for criterion in plan.criteria if criterion.truth is None]
    figure = Figure(figsize=(4.2 * max(1, len(wanted)), 3.4), layout="constrained")
    axes = figure.subplots(1, max(1, len(wanted)), squeeze=False)[0]
    shown = list(reversed(rows[:25]))
    for axis, criterion in zip(axes, wanted, strict=False):
        _intervals(axis, criterion, shown)
    return figure


def _intervals(axis: Axes, criterion: Criterion, rows: Sequence[Row]) -> None:
    name = criterion.target
    values = np.array([row[name] for row in rows], dtype=float)
    ends = np.array([[row[f"{name}_lower"], row[f"{name}_upper"]] for row in rows], dtype=float)
    height = np.arange(len(rows))
    axis.hlines(height, ends[:, 0], ends[:, 1], color="tab:blue", alpha=0.5, linewidth=1)
    axis.plot(values, height, "o", color="tab:blue", markersize=3)
    for end in (criterion.low, criterion.high):
        if np.isfinite(end):
            axis.axvline(end, color="tab:red", linewidth=1)
    axis.set_yticks(height, [row["formula"] for row in rows], fontsize=6)
    unit = rows[0][f"{name}_unit"] if rows else ""
    axis.set_xlabel(f"{name}, {unit}; lines: 90 % intervals")
