"""Occupancies that are one within rounding, or within their own error: one rule for all formats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_ROUNDING = 0.001
_LARGEST_ERROR = 0.02  # from one, however large the error that the file tells
_BINARY = 1e-9  # by which 1 - 0.999 exceeds 0.001


def round_occupancy(value: float, own_error: float | None = None) -> float:
    """Return 1 for an occupancy that is one within 0.001, or twice its own error; else itself."""
    off = abs(1 - value)
    allowed = max(_ROUNDING, min(2 * (own_error or 0), _LARGEST_ERROR))
    return 1.0 if off <= allowed + _BINARY else value


def site_species(
    parts: Iterable[tuple[str, float]], own_error: float | None = None
) -> tuple[dict[str, float], float | None]:
    """Return the occupancies of one site by element, and the one that was rounded to 1, if any.

    Parts of one element, as Fe2+ and Fe3+, add up. Elements that occupy nothing are left out.
    Raises ValueError for an occupancy below 0, and when nothing occupies the site.
    """
    sums: dict[str, float] = {}
    for element, occupancy in parts:
        if occupancy < 0:
            raise ValueError(f"{element} has the occupancy {occupancy:g}")
        sums[element] = sums.get(element, 0.0) + occupancy
    species = {element: share for element, share in sums.items() if share > 0}
    if not species:
        raise ValueError("nothing occupies it (occupancy 0)")
    if len(species) > 1:
        return species, None
    ((element, share),) = species.items()
    rounded = round_occupancy(share, own_error)
    told = share if rounded != share and abs(rounded - share) > 1e-6 else None
    return {element: rounded}, told


def occupancy_remark(rounded: Mapping[str, float]) -> str:
    """Return the remark on sites, by their names, whose occupancies were rounded to 1."""
    names = list(rounded)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    sites = ", ".join(f"{name} ({rounded[name]:g})" for name in names[:3])
    return f"occupancies taken as 1: {sites}{more}"
