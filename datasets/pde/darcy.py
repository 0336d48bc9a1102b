"""Pressure of a flow through a medium of two permeabilities, made with scikit-fem.

Darcy's law in the unit square, ``-div(a grad u) = 1`` with ``u = 0`` on the boundary, all
quantities dimensionless. The permeability ``a`` is 12 where a Gaussian random field is positive
and 3 elsewhere; the field is that of the Darcy set of Li et al. (Fourier Neural Operator, ICLR
2021): without a constant part, of covariance ``(9 - Laplace)^-2`` with zero normal derivatives,
here a cosine series of 32 waves in each direction. Every sample has its own unstructured mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from scipy.sparse import csc_array

from matattn.datasets.pde.generated import factorised, generate, random_mesh
from matattn.meshes.fields import Field, FieldDataset, MeshSample

LOW, HIGH = 3.0, 12.0
WAVES = 32
_VERSION = 1

NOTE = (
    "made by matattn: errors are not comparable with published ones of the Darcy set of the Fourier"
    " Neural Operator, which is solved with finite differences on a regular grid."
)

Coefficient = Callable[[np.ndarray, np.ndarray], np.ndarray]


def load(name: str, sizes: Sequence[int] = (1000, 80, 200), seed: int = 0) -> FieldDataset:
    """Make samples of permeability and pressure at the nodes of triangles, all dimensionless.

    Coordinates are from 0 to 1. A mesh has 900 to 1,296 nodes, on average 1,089.

    Args:
        name: what reports call the data.
        sizes: numbers of training, validation and test samples.
        seed: sample ``i`` depends on the seed and ``i`` alone.

    Raises:
        DataError: if sizes or seed are invalid, or if scikit-fem is missing.
    """
    items, split, skipped = generate(name, f"darcy, version {_VERSION}", flow, sizes, seed)
    return FieldDataset(
        name=name,
        coordinates=(Field("x", "1"), Field("y", "1")),
        inputs=(Field("permeability", "1"),),
        targets=(Field("pressure", "1"),),
        items=items,
        split=split,
        note=f"{name} is {NOTE}",
        skipped=skipped,
    )


def flow(seed: int, run: int) -> list[MeshSample]:
    """Make sample ``run``."""
    rng = np.random.default_rng([seed, run])
    permeability = random_permeability(rng)
    points, triangles = random_mesh(rng, *rng.integers(30, 37, 2).tolist())
    pressure = solve(points, triangles, permeability)
    pos, x, y = (
        values.astype(np.float32)
        for values in (points, permeability(*points.T)[:, None], pressure[:, None])
    )
    return [MeshSample(f"flow-{run}", pos, x, y, {"triangle": triangles})]


def random_permeability(rng: np.random.Generator) -> Coefficient:
    """Draw a permeability: HIGH where a random field is positive, else LOW."""
    waves = np.arange(WAVES)
    norm = np.where(waves == 0, 1.0, np.sqrt(2.0))
    square = np.pi**2 * (waves[:, None] ** 2 + waves**2)
    coefficients = rng.standard_normal((WAVES, WAVES)) * np.outer(norm, norm) / (square + 9)
    coefficients[0, 0] = 0

    def permeability(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        # Chebyshev polynomials of a cosine are the cosines of its multiples, in one call.
        along_x, along_y = (chebvander(np.cos(np.pi * at), WAVES - 1) for at in (x, y))
        field = ((along_x @ coefficients) * along_y).sum(axis=-1)
        return np.where(field > 0, HIGH, LOW)

    return permeability


def solve(
    points: np.ndarray,
    triangles: np.ndarray,
    permeability: Coefficient,
    source: Coefficient = lambda x, y: np.ones_like(x),
) -> np.ndarray:
    """Compute the pressure at the nodes [N], with linear triangles.

    The coefficients are evaluated at six points of each triangle, so that the line between two
    permeabilities may cross it.
    """
    from skfem import Basis, BilinearForm, ElementTriP1, LinearForm, MeshTri
    from skfem.helpers import dot, grad

    mesh = MeshTri(np.ascontiguousarray(points.T), np.ascontiguousarray(triangles.T))
    basis = Basis(mesh, ElementTriP1(), intorder=4)
    at = np.asarray(basis.global_coordinates())
    matrix = BilinearForm(lambda u, v, w: w.a * dot(grad(u), grad(v)))
    stiffness = csc_array(matrix.assemble(basis, a=permeability(*at)))
    load = LinearForm(lambda v, w: w.f * v).assemble(basis, f=source(*at))
    inner = mesh.interior_nodes()
    pressure = np.zeros(len(points))
    pressure[inner] = factorised(stiffness[inner][:, inner]).solve(load[inner])
    return pressure
