"""Large deformation of a rubber plate with a random hole.

A compressible neo-Hookean solid in plane strain, with the energy per undeformed volume
``W = mu / 2 (F : F - 3) - mu ln J + lambda / 2 (ln J)^2`` (Bonet and Wood, Nonlinear Continuum
Mechanics for Finite Element Analysis, 2008), so with the nominal stress
``P = mu (F - F^-T) + lambda ln J F^-T``. The lower edge is clamped, the upper edge is pulled up by
a dead traction (force per undeformed area), the sides and the hole are free. The shear modulus is
1 MPa and Poisson's ratio at small strains 0.4. Hole and mesh are those of ``plate_with_hole``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from matattn.datasets.pde.generated import Layout, NotSolvedError, factorised, generate
from matattn.datasets.pde.plate_with_hole import EDGE, OGrid, random_hole
from matattn.meshes.fields import Field, FieldDataset, MeshSample

SHEAR, POISSON = 1.0, 0.4  # MPa, at small strains
LAME = 2 * SHEAR * POISSON / (1 - 2 * POISSON)  # MPa
TRACTION = 0.05, 0.25  # MPa
GRID = OGrid(sides=(14, 13), rings=18)
LOAD_STEPS = 4
MOST_ITERATIONS = 20
TOLERANCE = 1e-9  # of the residual force, relative to the load
_VERSION = 1

NOTE = (
    "made by matattn: errors are not comparable with published ones of the elasticity set of"
    " Geo-FNO, which has the same holes but another material and load."
)


def load(name: str, sizes: Sequence[int] = (240, 20, 40), seed: int = 0) -> FieldDataset:
    """Make plates with a random hole under a random traction: displacements and stress at nodes.

    Coordinates are those of the undeformed plate in mm, from 0 to 100; the input is the traction
    (MPa), the same at all nodes. Targets are the displacements (mm) and the von Mises stress of the
    Cauchy stress (MPa), constant in each linear triangle and brought to the nodes by a lumped L2
    projection. Every mesh has 972 nodes, and node n has a similar position in every plate.

    Args:
        name: what reports call the data.
        sizes: numbers of training, validation and test plates.
        seed: plate ``i`` depends on the seed and ``i`` alone.

    A plate for which Newton's method does not converge is left out and listed in ``skipped``.

    Raises:
        DataError: if sizes or seed are invalid, or if scikit-fem is missing.
    """
    recipe = f"neo-Hookean plate, version {_VERSION}"
    items, split, skipped = generate(name, recipe, plate, sizes, seed)
    return FieldDataset(
        name=name,
        coordinates=(Field("x", "mm"), Field("y", "mm")),
        inputs=(Field("traction", "MPa"),),
        targets=(
            Field("displacement_x", "mm"),
            Field("displacement_y", "mm"),
            Field("von_mises_stress", "MPa"),
        ),
        items=items,
        split=split,
        note=f"{name} is {NOTE}",
        aligned=True,
        skipped=skipped,
    )


def plate(seed: int, run: int) -> list[MeshSample]:
    """Make plate ``run``."""
    rng = np.random.default_rng([seed, run])
    points = EDGE * GRID.points(random_hole(rng))
    traction = rng.uniform(*TRACTION)
    solid = NeoHookean(points, GRID.triangles, plate_layout())
    force = solid.pull(GRID.upper_edge, traction)
    displacement, _ = solid.equilibrium(force)
    y = np.column_stack([displacement, solid.von_mises(displacement)]).astype(np.float32)
    x = np.full((len(points), 1), traction, dtype=np.float32)
    return [MeshSample(f"plate-{run}", points.astype(np.float32), x, y, {"quad": GRID.quads})]


@lru_cache(maxsize=1)
def plate_layout() -> Layout:
    """Return the pattern of the free displacements of a plate clamped at its lower edge."""
    held = np.zeros((GRID.rings * GRID.angles, 2), dtype=bool)
    held[GRID.lower_edge] = True
    return Layout(GRID.triangles, held)


class NeoHookean:
    """Linear triangles of unit thickness; undeformed ``points`` [N, 2], ``triangles`` [E, 3].

    Displacements and forces are [N, 2]. Held components of ``layout`` stay zero.
    """

    def __init__(self, points: np.ndarray, triangles: np.ndarray, layout: Layout) -> None:
        self.points, self.triangles, self.layout = points, triangles, layout
        corner = points[triangles]
        edges = np.stack([corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]], axis=1)
        self.areas = np.linalg.det(edges) / 2
        reference = np.array([[-1.0, -1.0], [1.0, 0.0], [0.0, 1.0]])
        self.gradients = reference @ np.linalg.inv(edges).swapaxes(1, 2)  # [E, 3, 2]

    def deformation(self, displacement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return deformation gradients F [E, 2, 2] and their determinants J [E]."""
        f = np.eye(2) + displacement[self.triangles].swapaxes(1, 2) @ self.gradients
        return f, np.linalg.det(f)

    def internal_forces(self, displacement: np.ndarray) -> np.ndarray:
        """Return the gradient of the energy: the forces [N, 2] that hold the deformation."""
        f, j = self.deformation(displacement)
        inverse = np.linalg.inv(f).swapaxes(1, 2)
        stress = SHEAR * (f - inverse) + LAME * np.log(j)[:, None, None] * inverse
        forces = self.areas[:, None, None] * (self.gradients @ stress.swapaxes(1, 2))
        total = np.zeros_like(displacement)
        np.add.at(total, self.triangles, forces)
        return total

    def element_matrices(self, displacement: np.ndarray) -> np.ndarray:
        """Return second derivatives of the energy [E, 2, 2, 3, 3]: components, then nodes."""
        f, j = self.deformation(displacement)
        here = self.gradients @ np.linalg.inv(f)  # gradients in the deformed plate
        softened = (SHEAR - LAME * np.log(j))[:, None, None, None, None]
        stretch = self.gradients @ self.gradients.swapaxes(1, 2)
        matrix = SHEAR * np.eye(2)[:, :, None, None] * stretch[:, None, None]
        pairs = np.einsum("eip,ejq->epqij", here, here)
        matrix = matrix + softened * pairs.swapaxes(1, 2) + LAME * pairs
        return self.areas[:, None, None, None, None] * matrix

    def equilibrium(self, load: np.ndarray) -> tuple[np.ndarray, list[float]]:
        """Solve for displacements under nodal forces; returns also the last step's residuals.

        This is Newton's method, with the load in equal steps. Residuals are norms relative to the
        load of their step. Raises NotSolvedError when a step does not converge.
        """
        free = self.layout.free
        displacement = np.zeros_like(load)
        for step in range(1, LOAD_STEPS + 1):
            target = load * step / LOAD_STEPS
            residuals: list[float] = []
            while True:
                residual = (target - self.internal_forces(displacement)).reshape(-1)[free]
                residuals.append(float(np.linalg.norm(residual) / np.linalg.norm(target)))
                if residuals[-1] < TOLERANCE:
                    break
                if len(residuals) > MOST_ITERATIONS:
                    raise NotSolvedError(
                        f"Newton's method does not converge at {step / LOAD_STEPS:.0%} of the load"
                    )
                matrix = self.layout.matrix(self.element_matrices(displacement))
                displacement.reshape(-1)[free] += factorised(matrix).solve(residual)
                if self.deformation(displacement)[1].min() <= 0:
                    raise NotSolvedError(
                        f"a triangle turned over at {step / LOAD_STEPS:.0%} of the load"
                    )
        return displacement, residuals

    def pull(self, line: np.ndarray, traction: float) -> np.ndarray:
        """Return nodal forces of a dead upward traction on the edges of an ordered ``line``."""
        force = np.zeros_like(self.points)
        length = np.linalg.norm(np.diff(self.points[line], axis=0), axis=1)
        for end in (line[:-1], line[1:]):
            np.add.at(force[:, 1], end, traction * length / 2)
        return force

    def von_mises(self, displacement: np.ndarray) -> np.ndarray:
        """Return the von Mises stress of the Cauchy stress at the nodes [N]."""
        f, j = self.deformation(displacement)
        swelling = LAME * np.log(j) / j
        left = SHEAR / j[:, None, None] * (f @ f.swapaxes(1, 2) - np.eye(2))
        xx, yy, zz = left[:, 0, 0] + swelling, left[:, 1, 1] + swelling, swelling
        spread = (xx - yy) ** 2 + (yy - zz) ** 2 + (zz - xx) ** 2
        stress = np.sqrt(spread / 2 + 3 * left[:, 0, 1] ** 2)
        corners, shares = self.triangles.ravel(), np.repeat(self.areas, 3)
        return np.bincount(corners, np.repeat(stress, 3) * shares) / np.bincount(corners, shares)
