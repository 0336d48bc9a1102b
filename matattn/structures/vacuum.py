"""Empty space in a crystal: flat layers, as above a surface, and spheres, as in a pore.

Both are measured from the surfaces of the atoms, spheres of their covalent radii, and do not depend
on the choice of the cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from matattn.structures.covalent_radii import covalent_radii
from matattn.structures.neighbors import compact_basis

# Of the crystals of Materials Project 2018, 0.1 % have a thicker layer: single layers of WSe2 and
# their like in a box. Between the layers of MoS2 and graphite there are 1 to 2 Å.
THINNEST = 4.0  # Å: a thinner layer counts as none
NARROWEST = 10.0  # Å: a narrower sphere, as in most zeolites, counts as none,
WIDEST = 14.0  # Å: and a wider one as this
EXACT = 0.02  # Å: of a sphere
QUANTILE = 0.99  # of training crystals have no more empty space than a model calls normal
MOST_CRYSTALS = 2000  # that tell the quantile
_FEW = 64  # atoms, which rule out most directions
_STEP = 4.0  # Å between the first points of the search for spheres
_MOST_POINTS = 1e5  # of them
_CORNERS = np.array(list(product((-0.5, 0.5), repeat=3)))

Geometry = tuple[np.ndarray, np.ndarray, np.ndarray]  # z [N], pos [N, 3] Å, cell [3, 3] Å


def normal_space(crystals: Sequence[Geometry]) -> dict[str, float]:
    """Return the ``layer`` and the ``sphere``, Å, that few of these training crystals exceed."""
    some = sample(crystals)
    measured = {
        "layer": [empty_layer(*crystal) for crystal in some],
        "sphere": [empty_sphere(*crystal) for crystal in some],
    }
    return {name: float(np.quantile(sizes, QUANTILE)) for name, sizes in measured.items()}


def sample(crystals: Any) -> Any:
    """Return those of a sequence of crystals, or of their rows, that tell what is normal."""
    return crystals[:: -(-len(crystals) // MOST_CRYSTALS)]


def doubts(crystal: Geometry, normal: Mapping[str, float]) -> list[str]:
    """Return what to say of a crystal with more empty space than is ``normal`` for a model."""
    if (layer := empty_layer(*crystal)) > (usual := normal.get("layer", 0)):
        return [f"{layer:.1f} Å of vacuum: {_why(usual)}"]
    if (sphere := empty_sphere(*crystal)) > (usual := normal.get("sphere", 0)):
        more = " or more" if sphere == WIDEST else ""
        return [f"an empty sphere of {sphere:.1f} Å{more}: {_why(usual)}"]
    return []


def _why(usual: float) -> str:
    if usual:
        return f"few of the crystals that this model was trained on have more than {usual:.1f} Å"
    return "this model was trained on bulk crystals, and surfaces cost energy"


def empty_layer(z: np.ndarray, pos: np.ndarray, cell: np.ndarray) -> float:
    """Return the thickness, Å, of the thickest flat layer without atoms in any direction, or 0.

    Args:
        z: atomic numbers [N].
        pos: Cartesian positions [N, 3], Å.
        cell: lattice vectors [3, 3], Å, in rows.

    A layer of thickness t needs lattice planes more than t apart; there are few such directions.
    """
    cell = compact_basis(cell) @ cell
    dual = np.linalg.inv(cell)  # its columns are reciprocal lattice vectors, without 2 pi
    frac, radius = pos @ dual, covalent_radii()[z]
    best = _thickest(np.eye(3), frac, dual, radius, THINNEST)
    longest = np.linalg.norm(cell, axis=1) / (best + 2 * radius.min())
    ranges = (range(-int(reach), int(reach) + 1) for reach in longest)
    planes = np.array([plane for plane in product(*ranges) if plane > (0, 0, 0)]).reshape(-1, 3)
    best = _thickest(planes, frac, dual, radius, best)
    return best if best > THINNEST else 0.0


def _thickest(
    planes: np.ndarray, frac: np.ndarray, dual: np.ndarray, radius: np.ndarray, best: float
) -> float:
    """Return the thickness of the thickest layer along ``planes`` [n, 3], at least ``best``."""
    spacing = 1 / np.linalg.norm(planes @ dual.T, axis=1)
    few = np.sort(frac[:: -(-len(frac) // _FEW)] @ planes.T % 1, axis=0)
    most = np.diff(few, axis=0, append=few[:1] + 1).max(0) * spacing - 2 * radius.min()
    for number in np.argsort(-most):
        if most[number] <= best:
            break
        share = _thickness(frac @ planes[number], radius / spacing[number])
        best = max(best, share * spacing[number])
    return float(best)


def _thickness(height: np.ndarray, radius: np.ndarray) -> float:
    """Return the largest gap between intervals ``height`` +- ``radius``, which repeat at 1."""
    height = np.concatenate([height % 1 + shift for shift in (-1, 0, 1)])
    begin, end = height - np.tile(radius, 3), height + np.tile(radius, 3)
    order = np.argsort(begin)
    begin, reached = begin[order][1:], np.maximum.accumulate(end[order])[:-1]
    once = (begin >= 0) & (begin < 1)
    return float((begin - reached)[once].max())


def empty_sphere(z: np.ndarray, pos: np.ndarray, cell: np.ndarray) -> float:
    """Return the diameter, Å, of the largest sphere without atoms, or 0; arguments as above.

    Boxes that can hold no better centre than the best one are left out, and the others are cut
    into eight, until all are. In most crystals none of the first boxes is left.
    """
    cell = compact_basis(cell) @ cell
    step = max(_STEP, float(abs(np.linalg.det(cell)) / _MOST_POINTS) ** (1 / 3))
    parts = np.ceil(np.linalg.norm(cell, axis=1) / step)
    box = cell / parts[:, None]
    centres = (np.indices(parts.astype(int)).reshape(3, -1).T + 0.5) @ box
    best = NARROWEST / 2
    reach = _reach(box)
    if (_surface_distance(z, pos, cell, best - reach)(centres) < best - reach).all():
        return 0.0
    distance = _surface_distance(z, pos, cell, WIDEST / 2)
    while len(centres) and best < WIDEST / 2:
        found = distance(centres)
        best = max(best, float(found.max()))
        open_ones = centres[found + _reach(box) > best + EXACT / 2]
        box = box / 2
        centres = (open_ones[:, None] + _CORNERS @ box).reshape(-1, 3)
    return min(2 * best, WIDEST) if best > NARROWEST / 2 else 0.0


def _reach(box: np.ndarray) -> float:
    """Return the distance of the corners of a box from its centre: the most that a sphere gains."""
    return float(np.linalg.norm(_CORNERS @ box, axis=1).max())


def _surface_distance(
    z: np.ndarray, pos: np.ndarray, cell: np.ndarray, most: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of points [n, 3] in the cell: how far the nearest atom's surface is, Å.

    Beyond ``most`` it is infinite.
    """
    from scipy.spatial import cKDTree

    margin = max(most + float(covalent_radii()[z].max()), 0.0)
    number, images = _images(z, pos, cell, margin)
    trees = [(cKDTree(images[number == one]), covalent_radii()[one]) for one in np.unique(z)]

    def distance(points: np.ndarray) -> np.ndarray:
        nearest = [
            tree.query(points, distance_upper_bound=max(most + radius, 0.0))[0] - radius
            for tree, radius in trees
        ]
        return np.min(nearest, axis=0)

    return distance


def _images(
    z: np.ndarray, pos: np.ndarray, cell: np.ndarray, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return atomic numbers [M] and positions [M, 3] of the atoms up to ``margin`` Å outside."""
    dual = np.linalg.inv(cell)
    edge = margin * np.linalg.norm(dual, axis=0)
    ranges = (range(-reach, reach + 1) for reach in np.ceil(edge).astype(int).tolist())
    frac = np.array(list(product(*ranges)))[:, None] + pos @ dual % 1
    inside = ((frac >= -edge) & (frac <= 1 + edge)).all(-1)
    return np.broadcast_to(z, inside.shape)[inside], frac[inside] @ cell
