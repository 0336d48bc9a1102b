"""Stress in a square steel plate with a random hole, made with scikit-fem.

Small-strain elasticity in plane strain, ``div sigma = 0`` with ``sigma = lambda tr(eps) I +
2 mu eps``: the lower edge is clamped, the upper edge is pulled by 10 MPa, the sides and the hole
are free. Young's modulus is 210 GPa and Poisson's ratio 0.3; the stress is proportional to the
traction and depends on neither Young's modulus nor the size of the plate (100 mm).

The hole is that of the elasticity set of Geo-FNO (Li et al., JMLR 24, 388, 2023): its radius, in
units of the edge, is 0.2 + 0.2 / (1 + exp g) with g a Gaussian process of the angle of covariance
``16 (9 - d^2/dtheta^2)^-1``, here without wave numbers above 6, so that the mesh resolves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from matattn.datasets.pde.generated import Layout, factorised, generate
from matattn.meshes.fields import Field, FieldDataset, MeshSample

EDGE = 100.0  # mm
TRACTION = 10.0  # MPa
YOUNG, POISSON = 210e3, 0.3  # MPa
LAME = (YOUNG * POISSON / ((1 + POISSON) * (1 - 2 * POISSON)), YOUNG / (2 * (1 + POISSON)))

WAVES = 6  # wave numbers of the hole's outline
GRADING = 1.3  # rings are closer to each other near the hole
_VERSION = 1

NOTE = (
    "made by matattn: errors are not comparable with published ones of the elasticity set of"
    " Geo-FNO, which has the same holes but another material and load."
)


def load(
    name: str, sizes: Sequence[int] = (1000, 80, 200), seed: int = 0, ragged: bool = False
) -> FieldDataset:
    """Make plates with a random hole, and the von Mises stress at their nodes, in MPa.

    Coordinates are in mm, from 0 to 100. Every mesh is an O-grid of 54 angles and 18 rings, 972
    nodes, so node n has a similar position in every plate. The stress is computed with quadratic
    triangles (each quadrilateral is two) and brought to the nodes by a lumped L2 projection, which
    averages over the triangles at a node.

    Args:
        name: what reports call the data.
        sizes: numbers of training, validation and test plates.
        seed: plate ``i`` depends on the seed and ``i`` alone.
        ragged: give every mesh its own number of angles and rings, random shifts of its nodes, and
            a random order of nodes; its cells are the triangles.

    Raises:
        DataError: if sizes or seed are invalid, or if scikit-fem is missing.
    """
    recipe = f"plate with hole, ragged {ragged}, version {_VERSION}"
    make = ragged_plate if ragged else aligned_plate
    items, split, skipped = generate(name, recipe, make, sizes, seed)
    return FieldDataset(
        name=name,
        coordinates=(Field("x", "mm"), Field("y", "mm")),
        inputs=(),
        targets=(Field("von_mises_stress", "MPa"),),
        items=items,
        split=split,
        note=f"{name} is {NOTE}",
        aligned=not ragged,
        skipped=skipped,
    )


def aligned_plate(seed: int, run: int) -> list[MeshSample]:
    """Make plate ``run`` on the mesh of 54 angles and 18 rings."""
    rng = np.random.default_rng([seed, run])
    grid = OGrid(sides=(14, 13), rings=18)
    points = grid.points(random_hole(rng))
    stress = _stress(grid, points)
    pos, y = (EDGE * points).astype(np.float32), stress[:, None].astype(np.float32)
    return [MeshSample(f"plate-{run}", pos, pos[:, :0], y, {"quad": grid.quads})]


def ragged_plate(seed: int, run: int) -> list[MeshSample]:
    """Make plate ``run`` on its own mesh of 672 to 1,344 nodes."""
    rng = np.random.default_rng([seed, run])
    hole = random_hole(rng)
    grid = OGrid(sides=tuple(rng.integers(12, 17, 2).tolist()), rings=int(rng.integers(14, 22)))
    points = moved_points(grid, hole, rng)
    stress = _stress(grid, points)
    order = rng.permutation(len(points))
    new_index = np.argsort(order)
    pos, y = (EDGE * points[order]).astype(np.float32), stress[order, None].astype(np.float32)
    return [MeshSample(f"plate-{run}", pos, pos[:, :0], y, {"triangle": new_index[grid.triangles]})]


def random_hole(rng: np.random.Generator) -> np.ndarray:
    """Draw Fourier coefficients of ``g``, those of cosines and those of sines [2, 1 + WAVES].

    In the orthonormal basis of the circle, each has the variance that the covariance assigns to its
    wave number.
    """
    waves = np.arange(WAVES + 1)
    norm = np.where(waves == 0, 1 / np.sqrt(2 * np.pi), 1 / np.sqrt(np.pi))
    return rng.standard_normal((2, WAVES + 1)) * 4 / np.sqrt(waves**2 + 9) * norm


def hole_radius(coefficients: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Return the radius of the hole in direction ``angle``, in units of the edge: 0.2 to 0.4."""
    phase = np.arange(coefficients.shape[1]) * angle[..., None]
    g = np.cos(phase) @ coefficients[0] + np.sin(phase) @ coefficients[1]
    return 0.2 + 0.2 / (1 + np.exp(g))


@dataclass(frozen=True)
class OGrid:
    """A mesh around the hole: rings of nodes from its edge (ring 0) to that of the unit square.

    ``sides`` are the numbers of intervals on the upper or lower and on the left or right edge.
    Node ``ring * angles + k`` lies in direction k, anticlockwise from the lower right corner.
    """

    sides: tuple[int, int]
    rings: int

    @property
    def angles(self) -> int:
        """Return the number of nodes of a ring."""
        return 2 * sum(self.sides)

    @property
    def quads(self) -> np.ndarray:
        """Return the nodes of the quadrilaterals, anticlockwise [E, 4]."""
        ring, k = np.mgrid[: self.rings - 1, : self.angles].reshape(2, -1)
        inner, outer = ring * self.angles, (ring + 1) * self.angles
        after = (k + 1) % self.angles
        return np.stack([inner + k, outer + k, outer + after, inner + after], axis=1)

    @property
    def triangles(self) -> np.ndarray:
        """Return the nodes of the triangles; diagonals of quadrilaterals alternate in direction."""
        ring, k = np.mgrid[: self.rings - 1, : self.angles].reshape(2, -1)
        a, b, c, d = self.quads.T
        even = ((ring + k) % 2 == 0)[:, None]
        first = np.where(even, np.stack([a, b, c], 1), np.stack([a, b, d], 1))
        second = np.where(even, np.stack([a, c, d], 1), np.stack([b, c, d], 1))
        return np.concatenate([first, second])

    @property
    def lower_edge(self) -> np.ndarray:
        """Return the nodes on the lower edge of the plate, ordered."""
        start = (self.rings - 1) * self.angles
        last = start + self.angles - np.arange(self.sides[0], -1, -1)
        return np.where(last == start + self.angles, start, last)

    @property
    def upper_edge(self) -> np.ndarray:
        """Return the nodes on the upper edge of the plate, ordered."""
        return (self.rings - 1) * self.angles + self.sides[1] + np.arange(self.sides[0] + 1)

    def points(self, hole: np.ndarray, moves: np.ndarray | float = 0.0) -> np.ndarray:
        """Return the positions of nodes [N, 2] around a hole.

        ``moves`` [2, rings, angles] shifts them across and along the rings, in units of the
        distances of neighbours; nodes of the square and of the hole stay on their edges.
        """
        wide, high = self.sides
        steps = np.pi / 2 / np.repeat([high, wide] * 2, [high, wide] * 2)
        angles = np.cumsum(steps) - steps - np.pi / 4
        ring, k = np.mgrid[: self.rings, : self.angles] + moves
        whole = np.floor(k).astype(int)
        angle = angles[whole % self.angles] + (k - whole) * steps[whole % self.angles]
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        outer = 0.5 / np.abs(direction).max(-1)
        inner = hole_radius(hole, angle)
        fraction = (ring / (self.rings - 1)) ** GRADING
        points = 0.5 + (inner + fraction * (outer - inner))[..., None] * direction
        return np.clip(points, 0, 1).reshape(-1, 2)  # undoes rounding at the outer edge


def moved_points(grid: OGrid, hole: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return nodes [N, 2] moved at random, as far as every triangle stays well shaped."""
    moves = rng.uniform(-0.3, 0.3, (2, grid.rings, grid.angles))
    moves[0, [0, -1]] = 0
    corners = np.cumsum([0, grid.sides[1], grid.sides[0], grid.sides[1]])
    moves[1, -1, corners] = 0
    before = _areas(grid, grid.points(hole))
    while (_areas(grid, points := grid.points(hole, moves)) < 0.2 * before).any():
        moves *= 0.8
    return points


def _areas(grid: OGrid, points: np.ndarray) -> np.ndarray:
    """Return the areas of the triangles, negative where one is turned over."""
    a, b, c = points[grid.triangles].swapaxes(0, 1)
    return np.linalg.det(np.stack([b - a, c - a], axis=1)) / 2


def _stress(grid: OGrid, points: np.ndarray) -> np.ndarray:
    """Return the von Mises stress [N], MPa, at the nodes of a plate of edge 1."""
    body = elastic_body(grid)
    load = TRACTION * body.pull(points, grid.upper_edge)
    return body.von_mises(points, body.solve(points, load))


@lru_cache(maxsize=2)
def elastic_body(grid: OGrid) -> ElasticBody:
    """Return the elements of a plate that is clamped at its lower edge."""
    return ElasticBody(grid.triangles, grid.lower_edge)


class ElasticBody:
    """Plane strain on quadratic triangles with straight edges.

    Everything that does not depend on the positions of the nodes is computed once: the nodes of
    elements and the indices of their entries in the matrix (with scikit-fem), and the integrals of
    products of shape functions' gradients over the reference triangle, which give the exact
    stiffness of any triangle. Displacements are [V, 2] for the V nodes and mid-edges; the first N
    are those of the vertices. Nodes ``clamped``, and the edges between them, have prescribed
    displacements.
    """

    def __init__(self, triangles: np.ndarray, clamped: np.ndarray) -> None:
        from skfem import ElementTriP2, MeshTri
        from skfem.quadrature import get_quadrature
        from skfem.refdom import RefTri

        self.vertices = int(triangles.max()) + 1
        mesh = MeshTri(np.zeros((2, self.vertices)), triangles.T.copy(), validate=False)
        self.triangles = mesh.t.T
        self.edges = mesh.facets.T
        self.nodes = np.concatenate([mesh.t, self.vertices + mesh.t2f]).T  # [E, 6]
        at, self.weights = get_quadrature(RefTri, 4)
        shape = [ElementTriP2().lbasis(at, i) for i in range(6)]
        self.gradients = np.stack([gradient for _, gradient in shape])  # [6, 2, Q]
        self.hats = np.stack([1 - at[0] - at[1], at[0], at[1]])  # linear functions [3, Q]
        self.products = np.einsum("iaq,jbq,q->abij", *[self.gradients] * 2, self.weights)
        held = np.zeros(self.vertices + len(self.edges), dtype=bool)
        held[clamped] = True
        held[self.vertices :] = held[self.edges].all(axis=1)
        self.layout = Layout(self.nodes, np.stack([held, held], axis=1))

    def _inverse_jacobians(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return inverse [E, 2, 2] (reference, space) and absolute determinant [E] of the maps."""
        corner = points[self.triangles]
        a, b = (corner[:, 1] - corner[:, 0]).T, (corner[:, 2] - corner[:, 0]).T
        determinant = a[0] * b[1] - a[1] * b[0]
        inverse = np.stack([np.stack([b[1], -b[0]], 1), np.stack([-a[1], a[0]], 1)], 1)
        return inverse / determinant[:, None, None], np.abs(determinant)

    def element_matrices(self, points: np.ndarray) -> np.ndarray:
        """Return the stiffness of elements [E, 2, 2, 6, 6], indices component, component, i, j."""
        inverse, size = self._inverse_jacobians(points)
        lame, shear = LAME
        unit = np.eye(2)
        material = lame * np.einsum("pr,qs->prqs", unit, unit) + shear * (
            np.einsum("pq,rs->prqs", unit, unit) + np.einsum("ps,rq->prqs", unit, unit)
        )
        pairs = np.einsum("ear,ebs,e->eabrs", inverse, inverse, size).reshape(-1, 4, 4)
        weights = pairs @ material.transpose(1, 3, 0, 2).reshape(4, 4)  # [E, (a b), (p q)]
        stiffness = weights.transpose(0, 2, 1).reshape(-1, 4) @ self.products.reshape(4, 36)
        return stiffness.reshape(-1, 2, 2, 6, 6)

    def solve(
        self, points: np.ndarray, load: np.ndarray, prescribed: np.ndarray | None = None
    ) -> np.ndarray:
        """Solve for displacements [V, 2] under nodal forces ``load`` [V, 2].

        Held nodes have the displacements ``prescribed`` [V, 2]; None: zero.
        """
        elements, free = self.element_matrices(points), self.layout.free
        displacement = np.zeros_like(load) if prescribed is None else prescribed.copy()
        displacement.reshape(-1)[free] = 0
        force = load.copy()
        if prescribed is not None:
            pushed = np.einsum("epqij,ejq->eip", elements, displacement[self.nodes])
            np.subtract.at(force, self.nodes, pushed)
        factors = factorised(self.layout.matrix(elements))
        displacement.reshape(-1)[free] = factors.solve(force.reshape(-1)[free])
        return displacement

    def pull(self, points: np.ndarray, line: np.ndarray) -> np.ndarray:
        """Return nodal forces [V, 2] of a unit upward traction on the edges of a ``line``."""
        force = np.zeros((self.vertices + len(self.edges), 2))
        pairs = np.sort(np.stack([line[:-1], line[1:]], 1), axis=1)
        order = np.lexsort(self.edges.T[::-1])
        codes = self.edges[order] @ [self.vertices, 1]
        edge = order[np.searchsorted(codes, pairs @ [self.vertices, 1])]
        length = np.linalg.norm(points[pairs[:, 1]] - points[pairs[:, 0]], axis=1)
        np.add.at(force[:, 1], pairs, length[:, None] / 6)  # Simpson's rule
        force[self.vertices + edge, 1] += length * 4 / 6
        return force

    def von_mises(self, points: np.ndarray, displacement: np.ndarray) -> np.ndarray:
        """Return the von Mises stress at vertices [N], by lumped L2 projection on hat functions."""
        inverse, size = self._inverse_jacobians(points)
        lame, shear = LAME
        local = np.einsum("eip,iaq->epaq", displacement[self.nodes], self.gradients, optimize=True)
        gradient = np.einsum("epaq,ear->eqpr", local, inverse, optimize=True)
        strain = (gradient + gradient.swapaxes(-1, -2)) / 2
        pressure = lame * np.trace(strain, axis1=-2, axis2=-1)  # the stress across the plane
        stress = 2 * shear * strain
        xx, yy, xy = stress[..., 0, 0], stress[..., 1, 1], stress[..., 0, 1]
        xx, yy = xx + pressure, yy + pressure
        spread = (xx - yy) ** 2 + (yy - pressure) ** 2 + (pressure - xx) ** 2
        von_mises = np.sqrt(spread / 2 + 3 * xy**2)
        area = size[:, None] * (self.hats @ self.weights)
        total = np.einsum("eq,vq,q,e->ev", von_mises, self.hats, self.weights, size, optimize=True)
        corners = self.triangles.ravel()
        return np.bincount(corners, total.ravel()) / np.bincount(corners, area.ravel())
