"""Temperature of a steel sheet under a moving laser, made with scikit-fem.

Transient conduction in the plane of an insulated sheet of thickness ``d`` with constant
properties, ``rho c d dT/dt = k d Laplace(T) + q``, no flux through the edges and ``T = 0`` (the
temperature above the surroundings) at the start. The laser heats with ``q = 2 A P / (pi w^2)
exp(-2 r^2 / w^2)`` (W/mm^2), ``r`` the distance from its centre, and scans parallel tracks of
30 mm, back and forth, without a pause between them. Of additive manufacturing, only this is
modelled: no added material, no melting, no depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_array, diags_array

from matattn.datasets.pde.generated import factorised, generate, random_mesh
from matattn.meshes.fields import Field, FieldDataset, MeshSample

LENGTH, WIDTH, THICKNESS = 40.0, 20.0, 2.0  # mm
CONDUCTIVITY = 0.02  # W/(mm K), as of an austenitic stainless steel
HEAT_CAPACITY = 7.9e-6 * 500  # J/(mm^3 K): density times specific heat
ABSORPTIVITY = 0.4
BEAM_RADIUS = 2.0  # mm, where the intensity is 1/e^2 of its maximum
TRACK = 5.0, 35.0  # mm, x at both ends of a track
HATCH = 3.0  # mm between tracks
POWER = 100.0, 400.0  # W
SPEED = 5.0, 20.0  # mm/s
FIRST_TRACK = 4.0, 10.0  # mm, its y
MOST_TRACKS = 3
STRIDE = 0.25  # mm that the laser moves in a time step
SNAPSHOTS = 4  # of each scan
_VERSION = 1

NOTE = (
    "made by matattn: errors are not comparable with published ones of additive manufacturing"
    " (LPBF), which is another problem. All snapshots of one scan are in one split."
)


def load(name: str, sizes: Sequence[int] = (250, 20, 50), seed: int = 0) -> FieldDataset:
    """Make snapshots of the temperature above the surroundings (K) on sheets of 40 mm by 20 mm.

    Coordinates are in mm. Inputs, the same at all nodes of a snapshot, are the time since the start
    (s) and the power (W), speed (mm/s) and position (mm) of the laser. They determine the field,
    because the first track starts at its left end and the others follow above it. Every scan has a
    mesh of 1,150 to 1,512 nodes and four snapshots at random times.

    Args:
        name: what reports call the data.
        sizes: numbers of training, validation and test scans; each gives four samples.
        seed: scan ``i`` depends on the seed and ``i`` alone.

    Raises:
        DataError: if sizes or seed are invalid, or if scikit-fem is missing.
    """
    recipe = f"moving laser heat, version {_VERSION}"
    items, split, skipped = generate(name, recipe, snapshots, sizes, seed)
    return FieldDataset(
        name=name,
        coordinates=(Field("x", "mm"), Field("y", "mm")),
        inputs=(
            Field("time", "s"),
            Field("laser_power", "W"),
            Field("scan_speed", "mm/s"),
            Field("laser_x", "mm"),
            Field("laser_y", "mm"),
        ),
        targets=(Field("temperature_rise", "K"),),
        items=items,
        split=split,
        note=f"{name} is {NOTE}",
        skipped=skipped,
    )


@dataclass(frozen=True)
class Scan:
    """Parallel tracks at constant speed; the first one goes to the right."""

    power: float  # W
    speed: float  # mm/s
    first_track: float  # mm, y
    tracks: int

    @property
    def steps(self) -> int:
        """Return the number of time steps until the end of the last track."""
        return round(self.tracks * (TRACK[1] - TRACK[0]) / STRIDE)

    @property
    def time_step(self) -> float:
        """Return the time step in seconds."""
        return STRIDE / self.speed

    def laser(self, time: np.ndarray) -> np.ndarray:
        """Return the centre of the beam [T, 2], mm, at times [T], s."""
        length = TRACK[1] - TRACK[0]
        distance = self.speed * time
        track = np.minimum(distance // length, self.tracks - 1)
        along = distance - track * length
        x = np.where(track % 2 == 0, TRACK[0] + along, TRACK[1] - along)
        return np.stack([x, self.first_track + track * HATCH], axis=-1)


def snapshots(seed: int, run: int) -> list[MeshSample]:
    """Make four snapshots of scan ``run``."""
    rng = np.random.default_rng([seed, run])
    power, speed, first_track = (rng.uniform(*bounds) for bounds in (POWER, SPEED, FIRST_TRACK))
    scan = Scan(power, speed, first_track, tracks=int(rng.integers(1, MOST_TRACKS + 1)))
    shape = int(rng.integers(50, 55)), int(rng.integers(23, 29))
    points, triangles = random_mesh(rng, *shape, size=(LENGTH, WIDTH))
    steps = np.sort(rng.choice(np.arange(20, scan.steps + 1), SNAPSHOTS, replace=False))
    times = scan.time_step * np.arange(1, steps[-1] + 1)
    sheet = Sheet(points, triangles)
    temperature = sheet.march(scan.time_step, sheet.heating(scan.power, scan.laser(times)))
    pos = points.astype(np.float32)
    samples = []
    for step in steps:
        at = np.array([times[step - 1], scan.power, scan.speed, *scan.laser(times)[step - 1]])
        x = np.tile(at.astype(np.float32), (len(points), 1))
        y = temperature[step - 1][:, None].astype(np.float32)
        samples.append(MeshSample(f"scan-{run}-step-{step}", pos, x, y, {"triangle": triangles}))
    return samples


class Sheet:
    """Linear triangles for conduction in a sheet; nodes in mm.

    The heat capacity is lumped at the nodes, which keeps the temperature ahead of the laser from
    falling below its initial value.
    """

    def __init__(self, points: np.ndarray, triangles: np.ndarray) -> None:
        from skfem import Basis, BilinearForm, ElementTriP1, LinearForm, MeshTri
        from skfem.helpers import dot, grad

        mesh = MeshTri(np.ascontiguousarray(points.T), np.ascontiguousarray(triangles.T))
        basis = Basis(mesh, ElementTriP1(), intorder=4)
        area = LinearForm(lambda v, w: v).assemble(basis)
        self.capacity = THICKNESS * HEAT_CAPACITY * area  # J/K
        conduction = BilinearForm(lambda u, v, w: dot(grad(u), grad(v))).assemble(basis)
        self.conduction = THICKNESS * CONDUCTIVITY * conduction  # W/K
        # For loads of many steps: the integration points, and each one's share of the nodes.
        self.at = np.asarray(basis.global_coordinates()).reshape(2, -1)
        weights = np.stack([np.asarray(hat) * basis.dx for (hat,) in basis.basis])
        nodes = np.broadcast_to(basis.element_dofs[:, :, None], weights.shape)
        columns = np.broadcast_to(np.arange(self.at.shape[1]).reshape(basis.dx.shape), nodes.shape)
        entries = weights.ravel(), (nodes.ravel(), columns.ravel())
        self.shares = csc_array(entries, shape=(len(points), self.at.shape[1])).tocsr()

    def heating(self, power: float, laser: np.ndarray) -> np.ndarray:
        """Return the power absorbed at the nodes [T, N], W, with the laser at [T, 2]."""
        distance = ((self.at - laser[:, :, None]) ** 2).sum(axis=1)
        peak = 2 * ABSORPTIVITY * power / (np.pi * BEAM_RADIUS**2)
        return (self.shares @ (peak * np.exp(-2 * distance / BEAM_RADIUS**2)).T).T

    def march(
        self, time_step: float, heating: np.ndarray, start: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the temperature [T, N] after each backward Euler step with ``heating`` [T, N]."""
        factors = factorised(diags_array(self.capacity) + time_step * self.conduction)
        current = np.zeros(len(self.capacity)) if start is None else start
        history = np.empty_like(heating)
        for step, power in enumerate(heating):
            current = history[step] = factors.solve(self.capacity * current + time_step * power)
        return history
