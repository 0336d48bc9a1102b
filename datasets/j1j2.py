"""The J1-J2 Heisenberg model on small lattices, with published ground-state energies.

No file is read: the Hamiltonian is the data. Energies are in units of S.S with J1 = 1.
"""

from __future__ import annotations

from matattn.errors import DataError
from matattn.spins import Reference, SpinSystem

_VARBENCH = "exact diagonalisation, VarBench (Wu et al., Science 386, 296, 2024)"
# (lattice, extent): {J2: ground-state energy per site}
_PUBLISHED: dict[tuple[str, tuple[int, ...]], dict[float, Reference]] = {
    ("square", (4, 4)): {
        0.0: Reference(-0.7017802005, _VARBENCH),
        0.5: Reference(-0.5286202095, _VARBENCH),
    },
    ("square", (4, 6)): {0.5: Reference(-50.16239379527527 / 96, _VARBENCH)},
    ("square", (6, 6)): {
        0.0: Reference(-97.7575895972357 / 144, _VARBENCH),
        0.2: Reference(-0.599046, _VARBENCH),
        0.3: Reference(-0.562459, _VARBENCH),
        0.4: Reference(-0.529745, _VARBENCH),
        0.45: Reference(-0.515655, _VARBENCH),
        0.5: Reference(-72.548590160286 / 144, _VARBENCH),
        0.55: Reference(-0.495178, _VARBENCH),
        0.6: Reference(-0.493239, _VARBENCH),
        0.7: Reference(-0.530001, _VARBENCH),
        0.8: Reference(-0.586487, _VARBENCH),
        1.0: Reference(-0.714360, _VARBENCH),
    },
    ("square", (10, 10)): {
        0.0: Reference(-0.671549, "quantum Monte Carlo, Sandvik"),
        0.5: Reference(-0.4976939, "best variational energy in VarBench (CNN and MPS), not exact"),
    },
}


def load(
    name: str,
    lattice: str,
    extent: str | int,
    j2: float,
    total_sz: float = 0,
    marshall: bool = True,
) -> SpinSystem:
    """Return the J1-J2 model with J1 = 1.

    Args:
        name: what reports call the data.
        lattice: "chain", "square", "ladder" or "triangular".
        extent: sites along each direction, "16" or "4x4".
        j2: exchange between second neighbours.
        total_sz: z component of the total spin.
        marshall: see ``SpinSystem``.

    Raises:
        DataError: if no finite lattice has these values.
    """
    try:
        sizes = tuple(int(part) for part in str(extent).split("x"))
    except ValueError:
        raise DataError(f"data.extent={extent!r}: expected sites like 4x4, or 16") from None
    published = _PUBLISHED.get((lattice, sizes), {}) if total_sz == 0 else {}
    return SpinSystem(
        name, lattice, sizes, 1.0, float(j2), float(total_sz), marshall, published.get(float(j2))
    )
