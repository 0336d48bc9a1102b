"""Relax the crystals of files: a CIF for each, one table, and nothing done twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifWriter

from matattn import bundle
from matattn.errors import DataError, StructureError
from matattn.extras import import_extra
from matattn.files import atomic_path, write_json, write_text
from matattn.structures.files import Entry
from matattn.structures.structure import validate
from matattn.tables import Row, write_table
from matattn.workflows.potentials.files import crystal_of, unique_name
from matattn.workflows.potentials.predict import Potential
from matattn.workflows.potentials.relaxation import Relaxed, Settings, relax

TABLE, RECORD = "relaxed.csv", "relaxed.json"
BETWEEN = 5.0  # s, from one writing of the table to the next


def relax_entries(
    potential: Potential,
    model: Path,
    entries: Iterable[Entry],
    output: Path,
    settings: Settings,
    rows: list[Row],
    keep_path: bool = False,
    advance: Callable[[int], Any] = lambda crystals: None,
) -> str:
    """Fill ``rows`` and the folder ``output`` from structures; return a line of summary.

    ``output`` gets ``<id>.cif``, with ``keep_path`` also ``<id>.extxyz`` of all steps, and the
    table. A structure that cannot be used is a row with its error. What an earlier call with the
    same model and settings has finished stays as it is.

    Raises DataError for a folder of another model or other settings.
    """
    begin = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    finished = _earlier(output, model, settings)
    relaxing: list[Row] = []

    def usable() -> Iterator[Structure]:
        """Yield what is to be relaxed, and keep its row."""
        named: dict[str, int] = {}
        for entry in entries:
            name = unique_name(entry.id, named)
            if name in finished and (output / f"{name}.cif").is_file():
                rows.append(finished[name])
                advance(1)
                continue
            row = _row(name, entry.path)
            rows.append(row)
            try:
                structure = crystal_of(entry)
                row["message"] = "; ".join(validate(structure, entry.place))
                row |= {"formula": structure.composition.reduced_formula, "natoms": len(structure)}
                potential.check(structure.atomic_numbers, entry.place)
            except StructureError as error:
                row |= {"status": "StructureError", "message": str(error)}
                advance(1)
                continue
            relaxing.append(row)
            yield structure

    written = time.perf_counter()
    for found in relax(potential, usable(), settings, keep_path, advance):
        row = relaxing[found.number]
        row |= _result(found, row["natoms"], row["message"])
        row |= potential.trust(potential.batch_of([found.structure]))[0].flags(row)
        write_text(output / f"{row['id']}.cif", str(CifWriter(found.structure)))
        if keep_path:
            _write_path(output / f"{row['id']}.extxyz", found.path)
        if time.perf_counter() - written > BETWEEN:
            save(output, rows)
            written = time.perf_counter()
    seconds = time.perf_counter() - begin
    steps = sum(row["steps"] or 0 for row in relaxing)
    rest = sum(row["status"] == "ok" for row in rows)
    return (
        f"{rest} of {len(rows)} structures at rest; {len(relaxing)} relaxed in {seconds:.1f} s "
        f"({steps} steps, {len(relaxing) / seconds:.2g} structures/s) on {potential.device}; "
        f"{output / TABLE}"
    )


def save(output: Path, rows: list[Row]) -> None:
    """Write the table of what is finished, with the rows of earlier calls that it has already."""
    if done := [row for row in rows if row["status"]]:
        named = {row["id"] for row in rows}
        others = [row for name, row in _written(output).items() if name not in named]
        write_table(output / TABLE, [*done, *others])


def _earlier(output: Path, model: Path, settings: Settings) -> Mapping[str, Row]:
    """Return the finished rows of an earlier call by id, and record this one."""
    record = {"model": bundle.fingerprint(model), "settings": asdict(settings)}
    path = output / RECORD
    if not path.is_file():
        if (output / TABLE).exists():
            raise DataError(f"{output}: has a {TABLE} of something else; give another folder")
        write_json(path, record)
        return {}
    try:
        same = json.loads(path.read_text(encoding="utf-8")) == record
    except ValueError:
        same = False
    if not same:
        raise DataError(f"{output}: holds crystals relaxed with another model or other settings; "
                        "give another folder")  # fmt: skip
    return {n: row for n, row in _written(output).items() if row["status"] != "StructureError"}


def _written(output: Path) -> dict[str, Row]:
    """Return the rows of the table by id."""
    if not (output / TABLE).is_file():
        return {}
    table = pd.read_csv(output / TABLE, dtype={"id": str, "formula": str, "message": str})
    table = table.astype(object).where(table.notna(), None)
    return {row["id"]: row for row in table.to_dict("records")}


def _row(name: str, path: str) -> Row:
    unknown = (
        "energy_before_per_atom", "energy_after_per_atom", "steps", "max_force", "max_stress",
        "volume_change", "ood_score", "ood_flag",
    )  # fmt: skip
    units = {"energy_unit": "eV/atom", "force_unit": "eV/Å", "stress_unit": "GPa"}
    row: Row = {"id": name, "path": path, "formula": None, "natoms": None}
    return row | dict.fromkeys(unknown) | units | {"status": "", "message": ""}


def _result(found: Relaxed, atoms: int, remarks: str) -> Row:
    messages = [text for text in (found.problem, remarks) if text]
    return {
        "energy_before_per_atom": found.energy_before / atoms,
        "energy_after_per_atom": found.energy_after / atoms,
        "steps": found.steps,
        "max_force": found.max_force,
        "max_stress": found.max_stress,
        "volume_change": found.structure.volume / found.volume_before - 1,
        "status": "NotAtRest" if found.problem else "ok",
        "message": "; ".join(messages),
    }


def _write_path(path: Path, steps: list[Structure]) -> None:
    """Write the steps of a relaxation as extended XYZ."""
    atoms = [AseAtomsAdaptor.get_atoms(structure) for structure in steps]
    with atomic_path(path) as partial:
        import_extra("ase.io").write(partial, atoms, format="extxyz")
