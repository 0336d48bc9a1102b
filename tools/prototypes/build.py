"""Make the table ``prototypes.csv``: relax and label every candidate crystal with CHGNet 0.3.0.

    pip install -e '.[build-data]'
    python tools/prototypes/build.py [--output FILE] [--limit N]

Every crystal of ``candidates.py`` is relaxed within its structure type and gets an equation of
state (``labels.py``). The crystals that pass the filters below are written with their formation
energy, relative to the elements of ``references.py``, and bulk modulus. An interrupted build
continues from the checkpoint beside the output; delete it after changing the recipe.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from candidates import Candidate, candidates
from labels import Fit, candidate_id, label_all, load_calculator
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
from references import relaxed_reference_energies

from matattn.datasets.prototypes import TABLE_COLUMNS, TABLE_PATH, Row
from matattn.datasets.prototypes.registry import PROTOTYPES

# The same composition, nearly the same energy and volume, and still two different crystals.
PHYSICAL_PAIRS = {
    frozenset(("fcc", "hcp")),
    frozenset(("zincblende", "wurtzite")),
    frozenset(("copper3_gold", "aluminium3_titanium")),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(
        description="Build the data set 'prototypes' with CHGNet 0.3.0."
    )
    parser.add_argument("--output", type=Path, default=TABLE_PATH, help="CSV file to write")
    parser.add_argument("--limit", type=int, help="label only the first N compounds")
    arguments = parser.parse_args(argv)
    build_table(arguments.output, arguments.limit)


def build_table(output: Path, limit: int | None = None) -> None:
    """Label all elements and the first ``limit`` compounds, filter them, and write the table."""
    elemental = [candidate for candidate in candidates() if len(candidate[1]) == 1]
    compounds = [candidate for candidate in candidates() if len(candidate[1]) > 1][:limit]
    selected = elemental + compounds
    checkpoint = output.with_suffix(".checkpoint")
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"fits": {}}

    calculate = load_calculator()
    if "relaxed" not in state:
        print("relaxing the elemental reference crystals", flush=True)
        state["relaxed"] = relaxed_reference_energies()
        _write_atomically(checkpoint, json.dumps(state))

    def save(fits: dict[str, Fit]) -> None:
        state["fits"] |= {name: asdict(fit) for name, fit in fits.items()}
        _write_atomically(checkpoint, json.dumps(state))

    remaining = [c for c in selected if candidate_id(c) not in state["fits"]]
    label_all(remaining, calculate, save)
    fits = [
        (candidate, _fit_from_json(state["fits"][candidate_id(candidate)]))
        for candidate in selected
    ]
    rows = filter_rows(fits, reference_energies(fits, state["relaxed"]))
    write_rows(rows, output)
    print(f"{len(rows)} of {len(selected)} crystals written to {output}")


def reference_energies(
    fits: Iterable[tuple[Candidate, Fit]], relaxed: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Return CHGNet's energy (eV/atom) of each element's lowest crystal, labelled or relaxed."""
    energies: dict[str, list[float]] = defaultdict(list)
    for element, crystals in relaxed.items():
        energies[element] += crystals.values()
    for (_, elements), fit in fits:
        if len(elements) == 1 and not fit.failure and fit.residual <= 0.005:
            energies[elements[0]].append(fit.energy)
    return {element: min(values) for element, values in energies.items()}


def filter_rows(fits: Iterable[tuple[Candidate, Fit]], references: dict[str, float]) -> list[Row]:
    """Turn fits into rows, drop the unsound ones, and print how many each filter dropped."""
    rows: list[Row] = []
    dropped: Counter[str] = Counter()
    for candidate, fit in fits:
        reason = fit.failure
        if not reason:
            row = _to_row(candidate, fit, references)
            reason = _objection(row, fit)
        if reason:
            dropped[reason] += 1
        else:
            rows.append(row)
    unique = _drop_duplicates(rows)
    dropped["duplicate of another structure type"] = len(rows) - len(unique)
    for reason, count in dropped.most_common():
        print(f"dropped {count:5d}: {reason}")
    return sorted(unique, key=lambda row: row.id)


def _to_row(candidate: Candidate, fit: Fit, references: dict[str, float]) -> Row:
    name, elements = candidate
    counts = PROTOTYPES[name].counts
    pairs = zip(elements, counts, strict=True)
    reference = sum(references[element] * count for element, count in pairs) / sum(counts)
    return Row(
        id=candidate_id(candidate),
        prototype=name,
        elements=tuple(elements),
        volume=fit.volume,
        shape=fit.shape,
        formation_energy_per_atom=fit.energy - reference,
        bulk_modulus=fit.bulk_modulus,
    )


def _objection(row: Row, fit: Fit) -> str:
    """Return why a row is unsound, or an empty string."""
    if fit.residual > 0.005:
        return "equation of state rms above 5 meV/atom"
    if not 1 <= row.bulk_modulus <= 600:
        return "bulk modulus outside 1..600 GPa"
    if not -3 <= fit.derivative <= 15:
        return "bulk modulus derivative outside -3..15"
    for value, parameter in zip(row.shape, PROTOTYPES[row.prototype].parameters, strict=True):
        margin = 0.01 * (parameter.high - parameter.low)
        if not parameter.low + margin < value < parameter.high - margin:
            return "shape parameter at its bound"
    if not -5 <= row.formation_energy_per_atom <= 1:
        return "formation energy outside -5..1 eV/atom"
    analyzer = SpacegroupAnalyzer(row.structure, symprec=0.01)
    if analyzer.get_space_group_number() != PROTOTYPES[row.prototype].space_group:
        return "space group is not the structure type's"
    return ""


def _drop_duplicates(rows: Iterable[Row]) -> list[Row]:
    """Keep the simplest of a composition's crystals within 2 meV/atom and 0.5 % in volume."""

    def simplest_first(row: Row) -> tuple[int, int]:
        prototype = PROTOTYPES[row.prototype]
        return len(prototype.parameters), -prototype.space_group

    kept: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=simplest_first):
        same = kept[row.reduced_formula]
        if not any(_are_duplicates(row, other) for other in same):
            same.append(row)
    return [row for same in kept.values() for row in same]


def _are_duplicates(one: Row, other: Row) -> bool:
    if frozenset((one.prototype, other.prototype)) in PHYSICAL_PAIRS:
        return False
    gap = abs(one.formation_energy_per_atom - other.formation_energy_per_atom)
    return gap < 0.002 and abs(one.volume / other.volume - 1) < 0.005


def write_rows(rows: Iterable[Row], output: Path) -> None:
    """Write the table atomically."""
    partial = output.with_suffix(".partial")
    with open(partial, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(TABLE_COLUMNS)
        writer.writerows(_to_record(row) for row in rows)
    os.replace(partial, output)


def _to_record(row: Row) -> Iterator[str]:
    yield row.id
    yield row.prototype
    yield " ".join(row.elements)
    yield f"{row.volume:.4f}"
    yield " ".join(f"{value:.5f}" for value in row.shape)
    yield f"{row.formation_energy_per_atom:z.4f}"
    yield f"{row.bulk_modulus:.2f}"


def _fit_from_json(record: dict) -> Fit:
    return Fit(**{**record, "shape": tuple(record["shape"])})


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


if __name__ == "__main__":
    main()
