"""Relaxed structures and equations of state of candidate crystals, from CHGNet energies alone.

Each candidate goes through (A) a coarse search for its volume, (B) coordinate-wise relaxation of
volume and free shape parameters, (C) a third-order Birch-Murnaghan equation of state at fixed
shape. :func:`label` is a generator that yields the points whose energies it needs, is sent those
energies, and returns a :class:`Fit`; :func:`label_all` advances many of them together, so that
CHGNet gets full batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from candidates import Candidate
from pymatgen.core import Element, Structure

from matattn.datasets.prototypes.registry import PROTOTYPES, Prototype

GPA = 160.21766208  # GPa per eV/Å^3

SCAN_STEP, SCAN_REACH = 0.15, 1.4  # in ln(volume)
SWEEP_SCALES = (1.0, 0.7, 0.5, 0.35)
VOLUME_STEP = 0.05  # in ln(volume)
SHAPE_STEP = 0.08  # of the distance between a parameter's bounds
SETTLED_GAIN = 2e-4  # eV/atom: a sweep that gains less ends the relaxation
EOS_POINTS, EOS_HALF_WIDTH = 9, 0.12
EOS_RECENTRES, EOS_CENTRED = 4, 0.02

BATCH_SIZE = 16  # crystals per CHGNet call: larger batches fall out of the cache and take longer

Point = tuple[float, tuple[float, ...]]
"""A volume (Å^3/atom) and the values of the free shape parameters."""
Request = Generator[list[Point], np.ndarray, "Fit"]
"""A computation that yields points, is sent their energies (eV/atom), and returns a fit."""


@dataclass(frozen=True)
class Fit:
    """Equation of state of one candidate at its relaxed shape; without one, ``failure`` says why.

    ``volume`` Å^3/atom, ``energy`` eV/atom (CHGNet's own zero), ``bulk_modulus`` GPa, its pressure
    derivative, and the root-mean-square residual of the fit in eV/atom.
    """

    volume: float = np.nan
    shape: tuple[float, ...] = ()
    energy: float = np.nan
    bulk_modulus: float = np.nan
    derivative: float = np.nan
    residual: float = np.nan
    failure: str = ""


def candidate_id(candidate: Candidate) -> str:
    """Return the stable id of a candidate, e.g. ``perovskite-SrTiO3``."""
    prototype, elements = candidate
    return f"{prototype}-{PROTOTYPES[prototype].formula(elements)}"


def load_calculator() -> Callable[[Sequence[Structure]], np.ndarray]:
    """Return a function from structures to CHGNet 0.3.0 energies in eV/atom.

    The function gives ``inf`` where an atom has no neighbour within CHGNet's 6 Å. It uses one
    thread, so that the table does not depend on the machine's number of cores.

    Raises:
        ImportError: if CHGNet is not installed.
    """
    try:
        import torch
        from chgnet.model import CHGNet
    except ImportError as error:
        raise ImportError(
            "building the data set needs CHGNet: pip install 'matattn[build-data]'"
        ) from error
    torch.set_num_threads(1)
    model = CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False)
    model.graph_converter.set_isolated_atom_response("ignore")

    def calculate(structures: Sequence[Structure]) -> np.ndarray:
        energies = np.full(len(structures), np.inf)
        graphs = [model.graph_converter(structure) for structure in structures]
        connected = [i for i, graph in enumerate(graphs) if _is_connected(graph)]
        for start in range(0, len(connected), BATCH_SIZE):
            batch = connected[start : start + BATCH_SIZE]
            with torch.inference_mode():
                energies[batch] = model([graphs[i] for i in batch], task="e")["e"].numpy()
        return energies

    return calculate


def _is_connected(graph: Any) -> bool:
    if graph is None:
        return False
    bonded = graph.atom_graph.reshape(-1, 2)[:, 0]  # shape (0,) where there is no bond at all
    return len(bonded.unique()) == len(graph.atomic_number)


def label_all(
    remaining: Sequence[Candidate],
    calculate: Callable[[Sequence[Structure]], np.ndarray],
    save: Callable[[dict[str, Fit]], None],
    pool_size: int = 40,
    save_every: int = 100,
) -> None:
    """Label candidates, ``pool_size`` at a time, and pass the fits by id to ``save``."""
    waiting = iter(remaining)
    active: list[tuple[Candidate, Request, list[Point]]] = []
    done: dict[str, Fit] = {}
    finished, start = 0, time.perf_counter()
    while True:
        while len(active) < pool_size and (candidate := next(waiting, None)) is not None:
            job = label(candidate)
            active.append((candidate, job, next(job)))
        if not active:
            break
        structures = [
            PROTOTYPES[candidate[0]].build(candidate[1], volume, shape)
            for candidate, _, points in active
            for volume, shape in points
        ]
        energies = iter(np.split(calculate(structures), np.cumsum([len(p) for *_, p in active])))
        still_active = []
        for candidate, job, _ in active:
            try:
                still_active.append((candidate, job, job.send(next(energies))))
            except StopIteration as stop:
                done[candidate_id(candidate)] = stop.value
                finished += 1
        active = still_active
        if len(done) >= save_every or (done and not active):
            save(done)
            done = {}
            elapsed = time.perf_counter() - start
            left = elapsed / finished * (len(remaining) - finished)
            print(
                f"{finished}/{len(remaining)} labelled, {elapsed:.0f} s, {left:.0f} s left",
                flush=True,
            )


def label(candidate: Candidate) -> Request:
    """Label one candidate with steps A, B and C."""
    name, elements = candidate
    prototype = PROTOTYPES[name]
    volume = yield from scan_volume(prototype, guess_volume(prototype, elements))
    if volume is None:
        return Fit(failure="no interior minimum")
    volume, shape = yield from relax_shape(prototype, volume)
    return (yield from equation_of_state(volume, shape))


def guess_volume(prototype: Prototype, elements: Sequence[str]) -> float:
    """Guess the volume (Å^3/atom): that at which the ideal structure's closest atoms touch.

    Slater's radii add up to bond lengths in salts and covalent crystals, metallic radii in metals.
    Contacts between two cations of a salt do not count.
    """
    is_metal = {symbol: bool(Element(symbol).is_metal) for symbol in elements}
    radius_kind = "Metallic radius" if all(is_metal.values()) else "Atomic radius"
    # pymatgen knows no metallic radius of Sn, Pb and Bi
    radius = {symbol: float(Element(symbol).data.get(radius_kind) or 1.5) for symbol in elements}
    structure = prototype.build(elements, 20.0, prototype.ideal_shape)
    symbols = [site.specie.symbol for site in structure]
    first, second, _, distances = structure.get_neighbor_list(6.0)
    scales = [
        (radius[symbols[i]] + radius[symbols[j]]) / distance
        for i, j, distance in zip(first, second, distances, strict=True)
        if all(is_metal.values()) or not (is_metal[symbols[i]] and is_metal[symbols[j]])
    ]
    return 20.0 * max(scales) ** 3


def scan_volume(
    prototype: Prototype, guess: float
) -> Generator[list[Point], np.ndarray, float | None]:
    """Walk downhill from the guess until three volumes bracket a minimum (step A).

    The shape is the ideal one. Returns the bracket's parabolic minimum (Å^3/atom), or None if there
    is none within ``SCAN_REACH``.
    """
    grid = np.log(guess) + SCAN_STEP * np.arange(-1, 2)
    energies = yield [(float(np.exp(x)), prototype.ideal_shape) for x in grid]
    while True:
        lowest = int(np.argmin(energies))
        if 0 < lowest < len(grid) - 1:
            left, middle, right = energies[lowest - 1 : lowest + 2]
            offset = _parabola_step(left, middle, right, SCAN_STEP)
            return float(np.exp(grid[lowest] + offset))
        direction = -1 if lowest == 0 else 1
        further = grid[lowest] + direction * SCAN_STEP * np.arange(1, 3)
        if abs(further[-1] - np.log(guess)) > SCAN_REACH:
            return None
        grid = np.concatenate([grid, further])
        reached = yield [(float(np.exp(x)), prototype.ideal_shape) for x in further]
        order = np.argsort(grid)
        grid, energies = grid[order], np.concatenate([energies, reached])[order]


def relax_shape(
    prototype: Prototype, volume: float
) -> Generator[list[Point], np.ndarray, tuple[float, tuple[float, ...]]]:
    """Minimise over ln(volume) and the shape parameters, one coordinate at a time (step B).

    Each step fits a parabola through three points and is accepted only if it lowers the energy;
    shape parameters stay within their bounds.
    """
    parameters = prototype.parameters
    if not parameters:
        return volume, ()
    low = np.array([-np.inf] + [p.low for p in parameters])
    high = np.array([np.inf] + [p.high for p in parameters])
    steps = np.array([VOLUME_STEP] + [SHAPE_STEP * (p.high - p.low) for p in parameters])
    x = np.array([np.log(volume), *prototype.ideal_shape])
    (energy,) = yield [_to_point(x)]
    for scale in SWEEP_SCALES:
        before = energy
        for axis in [*range(1, len(x)), 0]:
            step = steps[axis] * scale
            probes = [x + offset * step * np.eye(len(x))[axis] for offset in (-1, 1)]
            left, right = yield [_to_point(probe) for probe in probes]
            trials = [(left, probes[0]), (right, probes[1])]
            offset = _parabola_step(left, energy, right, step)
            if abs(offset) > 0.05 * step:
                target = x.copy()
                target[axis] += offset
                target = np.clip(target, low, high)
                (reached,) = yield [_to_point(target)]
                trials.append((reached, target))
            allowed = [(e, p) for e, p in trials if np.all(p >= low) and np.all(p <= high)]
            best = min(allowed, key=lambda trial: trial[0], default=(np.inf, x))
            if best[0] < energy:
                energy, x = best
        if before - energy < SETTLED_GAIN:
            break
    return _to_point(x)


def _to_point(x: np.ndarray) -> Point:
    return float(np.exp(x[0])), tuple(float(value) for value in x[1:])


def _parabola_step(left: float, middle: float, right: float, step: float) -> float:
    """Return the offset of the minimum of a parabola through three points, at most 2.5 steps."""
    curvature = left + right - 2 * middle
    if not np.isfinite(curvature) or curvature <= 0:
        return float(1.5 * step * np.sign(left - right)) if np.isfinite(left - right) else 0.0
    return float(np.clip(0.5 * (left - right) / curvature, -2.5, 2.5) * step)


def equation_of_state(volume: float, shape: tuple[float, ...]) -> Request:
    """Fit a Birch-Murnaghan equation at fixed shape, recentred until it settles (step C)."""
    shape = tuple(round(value, 5) for value in shape)
    for _ in range(1 + EOS_RECENTRES):
        volumes = volume * (1 + np.linspace(-EOS_HALF_WIDTH, EOS_HALF_WIDTH, EOS_POINTS))
        energies = yield [(float(v), shape) for v in volumes]
        if not np.all(np.isfinite(energies)):
            return Fit(failure="isolated atoms")
        fit = fit_birch_murnaghan(volumes, energies)
        if fit is None:  # no minimum inside: follow the energy downhill
            volume = float(volumes[np.argmin(energies)])
            continue
        shift, volume = fit.volume / volume - 1, round(fit.volume, 4)
        if abs(shift) <= EOS_CENTRED:
            (energy,) = yield [(volume, shape)]  # the label belongs to exactly the row's structure
            return Fit(volume, shape, float(energy), fit.bulk_modulus, fit.derivative, fit.residual)
    return Fit(failure="unsettled equation of state")


def fit_birch_murnaghan(volumes: np.ndarray, energies: np.ndarray) -> Fit | None:
    """Fit a third-order Birch-Murnaghan equation: a cubic in x = V^(-2/3), so a linear problem.

    Args:
        volumes: Å^3/atom.
        energies: eV/atom.

    Returns:
        The fit at its minimum, or None if the cubic has no minimum among the volumes.
    """
    scale = float(np.mean(volumes)) ** (2 / 3)  # keeps x near 1, for a well-conditioned fit
    cubic = np.polynomial.Polynomial.fit(scale * volumes ** (-2 / 3), energies, 3).convert()
    roots = cubic.deriv().roots()
    for x in roots.real[np.abs(roots.imag) < 1e-9]:
        if x <= 0 or cubic.deriv(2)(x) <= 0:
            continue
        v = float((x / scale) ** -1.5)
        if not volumes[0] < v < volumes[-1]:
            continue
        x1, x2 = -2 / 3 * x / v, 10 / 9 * x / v**2  # dx/dV, d2x/dV2
        second = cubic.deriv(2)(x) * x1**2
        third = cubic.deriv(3)(x) * x1**3 + 3 * cubic.deriv(2)(x) * x1 * x2
        residual = float(np.sqrt(np.mean((cubic(scale * volumes ** (-2 / 3)) - energies) ** 2)))
        return Fit(
            volume=v,
            energy=float(cubic(x)),
            bulk_modulus=float(GPA * v * second),
            derivative=float(-1 - v * third / second),
            residual=residual,
        )
    return None
