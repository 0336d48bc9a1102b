"""Names and units of all properties that matattn predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matattn.errors import DataError

PROBABILITY = "probability"  # unit of what is true or false; labels are 0 or 1
_TRUTHS = {"true": 1.0, "yes": 1.0, "t": 1.0, "false": 0.0, "no": 0.0, "f": 0.0}


@dataclass(frozen=True)
class Property:
    """A predicted property.

    Args:
        name: in results and configurations.
        unit: of its values.
        columns: its names in data files.
        log10_of: columns that hold the property before the logarithm; values that are not positive
            count as missing.
        minimum: no prediction is below it.
        extensive: whether it grows with the number of atoms of the structure.
    """

    name: str
    unit: str
    columns: tuple[str, ...] = ()
    log10_of: tuple[str, ...] = ()
    minimum: float = -math.inf
    extensive: bool = False

    @property
    def is_class(self) -> bool:
        """Return whether it is true or false of a structure, and predictions are probabilities."""
        return self.unit == PROBABILITY


# Short names are those of JSON-lines files; the longer ones are those of the JARVIS data sets.
_PROPERTIES = (
    Property("formation_energy_per_atom", "eV/atom", ("e_form", "formation_energy_peratom")),
    Property("total_energy_per_atom", "eV/atom", ("e_total_per_atom", "optb88vdw_total_energy")),
    Property("energy_above_hull", "eV/atom", ("e_hull", "ehull"), minimum=0.0),
    Property("band_gap", "eV", ("gap", "gap pbe"), minimum=0.0),
    Property("band_gap_opt", "eV", ("gap_opt", "optb88vdw_bandgap"), minimum=0.0),
    Property("band_gap_mbj", "eV", ("gap_mbj", "mbj_bandgap"), minimum=0.0),
    Property("log10_bulk_modulus", "log10(GPa)", log10_of=("k_vrh", "k_voigt", "bulk_modulus_kv")),
    Property(
        "log10_shear_modulus", "log10(GPa)", log10_of=("g_vrh", "g_voigt", "shear_modulus_gv")
    ),
    Property("is_metal", PROBABILITY, minimum=0.0),
    Property("volume_per_atom", "Å^3/atom", minimum=0.0),
    Property("last_phdos_peak", "1/cm", minimum=0.0),
    Property("hypothetical_energy", "standard deviations"),  # of datasets/geometry_probe.py
    # Of molecules
    Property("heat_of_formation", "kcal/mol", ("heat_of_formation_kcal_mol",), extensive=True),
    Property("atomization_energy", "kcal/mol", extensive=True),
    Property("potential_energy", "kcal/mol", extensive=True),
    Property("dipole_moment", "D", minimum=0.0),
    Property("polarizability", "a0^3", minimum=0.0, extensive=True),
    Property("homo", "Ha"),
    Property("lumo", "Ha"),
    Property("homo_lumo_gap", "Ha", minimum=0.0),
    Property("electronic_spatial_extent", "a0^2", minimum=0.0, extensive=True),
    Property("zero_point_energy", "Ha", minimum=0.0, extensive=True),
    Property("internal_energy_0K", "Ha", extensive=True),
    Property("internal_energy", "Ha", extensive=True),
    Property("enthalpy", "Ha", extensive=True),
    Property("free_energy", "Ha", extensive=True),
    Property("heat_capacity", "cal/mol/K", minimum=0.0, extensive=True),
    # Of an atom, and of a pair of atoms.
    Property("nmr_shielding", "ppm"),
    Property("scalar_coupling", "Hz", ("scalar_coupling_constant",)),
)
PROPERTIES: Mapping[str, Property] = {p.name: p for p in _PROPERTIES}
_BY_ALIAS = {name: p for p in _PROPERTIES for name in (p.name, *p.columns, *p.log10_of)}


def find_property(name: str, units: Mapping[str, str] | None = None) -> Property:
    """Return the property called ``name``: its own name, or a column of a data file.

    ``units`` holds the units of properties that matattn does not know. Raises DataError for a
    property that is in neither.
    """
    if name in _BY_ALIAS:
        standard = _BY_ALIAS[name]
        if units and units.get(name, standard.unit) != standard.unit:
            raise DataError(
                f"data.units gives {name!r} the unit {units[name]!r}, but matattn reads it as "
                f"{standard.name} in {standard.unit}: convert it, or name the column differently"
            )
        return standard
    if units and name in units:
        return Property(name, units[name], (name,))
    raise DataError(
        f"target {name!r} has no known unit; use one of {', '.join(PROPERTIES)}, "
        f"or give its unit: 'data.units={{{name}: UNIT}}'"
    )


def find_properties(
    names: str | Sequence[str], units: Mapping[str, str] | None = None
) -> tuple[Property, ...]:
    """Return the properties called ``names``; raise DataError for none and for duplicates."""
    targets = [names] if isinstance(names, str) else list(names)
    properties = tuple(find_property(name, units) for name in targets)
    if not properties:
        raise DataError("data.targets is empty; name at least one property")
    if len(set(properties)) < len(properties):
        raise DataError(f"data.targets={targets} names a property twice")
    return properties


def truth(value: Any) -> Any:
    """Return 1 or 0 for true or false, or a text that says so; anything else as it is."""
    if isinstance(value, str):
        return _TRUTHS.get(value.strip().lower(), value)
    return float(value) if isinstance(value, bool) else value
