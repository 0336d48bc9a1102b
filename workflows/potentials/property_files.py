"""Equation of state, elastic constants and phonons of the crystals of files: a table and plots."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from pymatgen.core import Structure

from matattn.errors import StructureError
from matattn.extras import import_extra
from matattn.structures.files import Entry
from matattn.structures.structure import validate
from matattn.tables import Row, write_table
from matattn.workflows.potentials.files import crystal_of, unique_name
from matattn.workflows.potentials.predict import Potential
from matattn.workflows.potentials.properties import (
    ElasticConstants,
    EquationOfState,
    at_rest,
    elastic_constants,
    equation_of_state,
)
from matattn.workflows.reporting import save_figure

if TYPE_CHECKING:
    from matattn.workflows.potentials.phonons import Phonons

EOS, ELASTIC, PHONON = "eos", "elastic", "phonon"
TABLE = "properties.csv"
_AXES = ("xx", "yy", "zz", "yz", "xz", "xy")


def compute(
    potential: Potential,
    entries: Iterable[Entry],
    output: Path,
    asked: Collection[str],
    rows: list[Row],
    advance: Callable[[int], Any] = lambda crystals: None,
) -> str:
    """Fill ``rows`` and the folder ``output`` from structures; return a line of summary.

    Every crystal is relaxed first. A structure that cannot be used is a row with its error.
    """
    begin = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    potential = potential.double()
    named: dict[str, int] = {}
    for entry in entries:
        row: Row = {"id": unique_name(entry.id, named), "path": entry.path}
        row |= {"formula": None, "natoms": None, "status": "", "message": ""}
        rows.append(row)
        try:
            structure = crystal_of(entry)
            remarks = validate(structure, entry.place)
            potential.check(structure.atomic_numbers, entry.place)
            row |= {"formula": structure.composition.reduced_formula, "natoms": len(structure)}
            row |= _of_crystal(potential, structure, output, row["id"], asked, remarks)
        except StructureError as error:
            row |= {"status": "StructureError", "message": str(error)}
        write_table(output / TABLE, _same_columns(rows))
        advance(1)
    done = sum(row["status"] == "ok" for row in rows)
    seconds = time.perf_counter() - begin
    return f"{done} of {len(rows)} crystals in {seconds:.1f} s; {output / TABLE}"


def _same_columns(rows: list[Row]) -> list[Row]:
    """Return the rows with all columns of all, status and message last."""
    last = ("status", "message")
    names = [n for n in dict.fromkeys(name for row in rows for name in row) if n not in last]
    return [{name: row.get(name) for name in (*names, *last)} for row in rows]


def _of_crystal(
    potential: Potential,
    structure: Structure,
    output: Path,
    name: str,
    asked: Collection[str],
    remarks: list[str],
) -> Row:
    """Return the properties of a crystal, and write its files."""
    rest = at_rest(potential, structure)
    if rest.problem:
        return {"status": "NotAtRest", "message": "; ".join([rest.problem, *remarks])}
    crystal, messages = rest.structure, list(remarks)
    row: Row = {
        "energy_per_atom (eV)": rest.energy_after / len(crystal),
        "volume_per_atom (Å^3)": crystal.volume / len(crystal),
    }
    row |= {f"{axis} (Å)": length for axis, length in zip("abc", crystal.lattice.abc, strict=True)}
    if EOS in asked:
        found = equation_of_state(potential, crystal)
        row |= {
            "bulk_modulus_eos (GPa)": found.bulk_modulus,
            "bulk_modulus_derivative": found.derivative,
            "eos_residual (meV/atom)": found.residual,
        }
        if np.isnan(found.volume):
            messages.append("the energies of the equation of state have no minimum")
        save_figure(eos_plot(found), output / f"{name}_eos.png")
    if ELASTIC in asked:
        constants = elastic_constants(potential, crystal)
        bulk, shear = constants.moduli()
        row |= {"bulk_modulus (GPa)": bulk, "shear_modulus (GPa)": shear,
                "elastically_stable": constants.stable}  # fmt: skip
        row |= {f"C{i}{j} (GPa)": float(constants.relaxed[i - 1, j - 1])
                for i, j in ((1, 1), (1, 2), (4, 4))}  # fmt: skip
        if constants.unrelaxed:
            messages.append(f"{constants.unrelaxed} strained cells did not come to rest")
        write_table(output / f"{name}_elastic.csv", _elastic_rows(constants))
    if PHONON in asked:
        modes = import_extra("matattn.workflows.potentials.phonons").phonons(potential, crystal)
        row |= {
            "highest_phonon_at_gamma (THz)": float(modes.at_gamma[-1]),
            "lowest_phonon (THz)": modes.lowest,
            "dynamically_stable": modes.stable,
        }
        save_figure(phonon_plot(modes), output / f"{name}_phonons.png")
    return row | {"status": "ok", "message": "; ".join(messages)}


def _elastic_rows(constants: ElasticConstants) -> list[Row]:
    return [
        {"atoms": kind, "stress": axis,
         **{f"{other} (GPa)": float(v) for other, v in zip(_AXES, values, strict=True)}}
        for kind, table in (("relaxed", constants.relaxed), ("clamped", constants.clamped))
        for axis, values in zip(_AXES, table, strict=True)
    ]  # fmt: skip


def eos_plot(found: EquationOfState) -> Figure:
    """Draw energies against volumes, and the fitted curve."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.volumes, found.energies, "o", markersize=4)
    if np.isfinite(found.volume):
        fine = np.linspace(found.volumes.min(), found.volumes.max(), 200)
        label = f"$V_0$ {found.volume:.3f} Å³, $B_0$ {found.bulk_modulus:.1f} GPa"
        axes.plot(fine, found.curve(fine), label=label)
        axes.legend(fontsize=8)
    axes.set(xlabel="volume per atom / Å³", ylabel="energy per atom / eV")
    return figure


def phonon_plot(modes: Phonons) -> Figure:
    """Draw the bands along lines of high symmetry, and the density of states."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    place = 0.0
    ticks: dict[float, str] = {}
    for begin, end, frequencies in modes.bands:
        points = place + np.linspace(0, 1, len(frequencies))
        left.plot(points, frequencies, color="C0", linewidth=1)
        for where, label in ((place, begin), (place + 1, end)):
            name = "Γ" if "Gamma" in label else label.replace("_", "")
            known = ticks.get(where, name)
            ticks[where] = name if known == name else f"{known}|{name}"
        place += 1
    for where in ticks:
        left.axvline(where, color="0.8", linewidth=0.8)
    left.axhline(0, color="black", linewidth=0.8)
    left.set_xticks(list(ticks), list(ticks.values()))
    left.set(ylabel="frequency / THz (negative: imaginary)", xlim=(0, max(place, 1)))
    right.plot(modes.density[1], modes.density[0])
    right.set(xlabel="states per THz and cell")
    return figure
