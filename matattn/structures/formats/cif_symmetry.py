"""The symmetry operations that a block of a CIF means.

Operations that the file lists come first. Otherwise its Hall symbol, Hermann-Mauguin symbol and
number must agree on a setting that fits the cell. Where several settings remain, as for two
origins, the atoms decide (``matattn.structures.formats.cif``).
"""

from __future__ import annotations

import numpy as np

from matattn.errors import StructureError
from matattn.structures.formats.cif_atoms import Notes
from matattn.structures.formats.cif_syntax import NULL, Block
from matattn.structures.formats.space_groups import (
    E_NAMES_TWO,
    Operations,
    Setting,
    SymmetryError,
    by_hall,
    by_number,
    by_symbol,
    parse_operations,
    product,
    settings,
)

_OPERATIONS = (
    "_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz", "_symmetry_equiv_as_xyz",
    "_space_group_symop_operation_xyz_", "_symmetry_equiv_pos_as_xyz_",
    "_space_group_symop_magn_operation_xyz",
)  # fmt: skip
_CENTERINGS = "_space_group_symop_magn_centering_xyz"
_HALL = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_SYMBOL = (
    "_space_group_name_h-m_alt", "_symmetry_space_group_name_h-m", "_space_group_name_h-m",
    "_space_group_name_h-m_full", "_space_group_name_h-m_ref",
)  # fmt: skip
_NUMBER = ("_space_group_it_number", "_symmetry_int_tables_number")
STRAIN = 0.02  # of a product of lattice vectors: more than rounding and thermal expansion
_SLIGHT_STRAIN = 0.005
_SAME = 1e-5  # difference of strains: an angle of 90.001 degrees tells the unique axis


def listed_operations(block: Block) -> Operations | None:
    """Return the operations that a block lists; None if it lists none.

    Time reversal is left out of those of a magnetic crystal. Raises StructureError for operations
    that cannot be read, or are no group.
    """
    triplets = block.column(*_OPERATIONS)
    if not triplets or set(triplets) <= set(NULL):
        return None
    try:
        operations = parse_operations(map(_without_time, _joined(triplets)))
        if centerings := block.column(_CENTERINGS):
            operations = product(operations, parse_operations(map(_without_time, centerings)))
    except SymmetryError as error:
        raise StructureError(str(error)) from None
    return operations


def _joined(triplets: list[str]) -> list[str]:
    """Join the parts of triplets that were written with spaces, and without quotes."""
    if all(triplet.count(",") >= 2 for triplet in triplets):
        return triplets
    joined = [""]
    for part in triplets:
        if joined[-1].count(",") == 2 and not joined[-1].endswith(","):
            joined.append("")
        joined[-1] += part
    return joined if all(triplet.count(",") >= 2 for triplet in joined) else triplets


def _without_time(triplet: str) -> str:
    """Return a triplet without the fourth entry, +1 or -1, of a magnetic operation."""
    parts = triplet.split(",")
    is_magnetic = len(parts) == 4 and parts[3].strip() in ("+1", "-1", "1")
    return ",".join(parts[:3]) if is_magnetic else triplet


def named_settings(block: Block, notes: Notes) -> list[Setting] | None:
    """Return the settings that a block names; None if it names none.

    Raises StructureError for a name that is not known, or names that contradict each other.
    """
    names = []
    if symbol := block.value(*_SYMBOL):
        names.append((f"space group {symbol!r}", by_symbol(symbol)))
    if symbol := block.value(*_HALL):
        setting = by_hall(symbol)
        names.append((f"Hall symbol {symbol!r}", [setting] if setting else []))
    if number := block.value(*_NUMBER):
        group = [s for s in settings() if number.isdecimal() and s.number == int(number)]
        names.append((f"space group number {number}", group))
    if not names:
        return None
    by_name = [meant for name, meant in names if "number" not in name]
    for name, meant in names:
        if not meant and any(by_name):
            notes.doubt(f"the {name} is not known")
        elif not meant or (by_name and not any(by_name)):
            raise StructureError(
                f"the {name} is not one of the 530 settings of the International Tables; list the "
                "operations in _space_group_symop_operation_xyz"
            )
    known = [(name, meant) for name, meant in names if meant]
    common = [s for s in known[0][1] if all(s in meant for _, meant in known)]
    if not common:
        raise StructureError(f"{'; '.join(_told(*name) for name in known)}: they contradict")
    return common if by_name else by_number(common[0].number)


def by_number_only(block: Block) -> bool:
    """Return whether a block names its space group by the number alone."""
    return block.value(*_SYMBOL, *_HALL) is None


def _told(name: str, meant: list[Setting]) -> str:
    return f"the {name} is number {meant[0].number} ({meant[0].name})"


def fitting(candidates: list[Setting], cell: np.ndarray, notes: Notes) -> list[Setting]:
    """Return the settings whose symmetry the cell [3, 3] Å has; StructureError if there is none.

    Where the name leaves a choice, that of the International Tables is taken, with a remark: b as
    the unique axis, and the standard setting of C m m e.
    """
    strains = [setting.operations.strain(cell) for setting in candidates]
    best = min(strains)
    fit = [s for s, strain in zip(candidates, strains, strict=True) if strain <= best + _SAME]
    if best > STRAIN:
        raise StructureError(
            f"the cell does not have the symmetry of {candidates[0].name}: its lengths or angles "
            "are wrong, or the space group is"
        )
    check_strain(best, notes)
    axes = {setting.choice.lstrip("-")[:1] for setting in fit}
    if len(axes) > 1 and axes <= set("abc"):
        fit = [setting for setting in fit if setting.choice.lstrip("-")[:1] == min(axes - {"a"})]
        notes.remark(f"the setting {fit[0].name} was assumed")
    standard = [setting for setting in fit if setting.choice in ("", "1", "2")]
    if standard and standard != fit and fit[0].number in E_NAMES_TWO:
        fit = standard
        notes.remark(f"the standard setting of {fit[0].name} was assumed")
    return fit


def check_strain(strain: float, notes: Notes) -> None:
    """Note that a cell has its symmetry only roughly; StructureError if it does not have it."""
    if strain > STRAIN:
        raise StructureError(
            f"the cell does not have the symmetry of the operations (a product of lattice vectors "
            f"changes by {strain:.1%}): lengths, angles or operations are wrong"
        )
    if strain > _SLIGHT_STRAIN:
        notes.doubt(f"the cell has the symmetry of the file only within {strain:.1%}")
