"""Energies with their diagnostics, spin correlations, signs: what a wave function says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import netket as nk
import numpy as np
from netket.vqs import MCState

from matattn.models.factored_attention import TransformerWaveFunction
from matattn.models.symmetrized import Symmetrized
from matattn.spins import PAULI, SpinSystem, displacements
from matattn.workflows.spins.exchange import correlations, exchange, local_energies

DISCARDED = 64  # sweeps per chain before any energy is reported
LEAST_CHAIN = 8  # samples per chain below which R-hat and tau mean nothing
LONG_CHAIN = 64  # samples per chain of a reported energy
_MOST_RATIOS = 2**20  # network evaluations for correlations


@dataclass(frozen=True)
class Energy:
    """An energy with everything needed to judge it; per site, in S.S.

    ``tau`` is the autocorrelation time in samples of a chain, ``r_hat`` the split R-hat (near 1:
    the chains agree), ``v_score`` that of ``SpinSystem``.
    """

    mean: float
    error: float
    variance: float
    v_score: float
    tau: float
    r_hat: float
    samples: int

    @property
    def pauli(self) -> float:
        """Energy per site in NetKet's unit."""
        return PAULI * self.mean


def draw(
    system: SpinSystem,
    model: nn.Module,
    variables: Any,
    samples: int,
    per_chain: int,
    chunk_size: int,
    seed: int,
) -> np.ndarray:
    """Fresh configurations from |psi|^2, [chains, per_chain, N]; at least two chains."""
    chains = max(2, samples // per_chain)
    state = MCState(
        system.sampler(chains), model, n_samples=chains * per_chain, chunk_size=chunk_size,
        n_discard_per_chain=DISCARDED, variables=variables, sampler_seed=seed,
    )  # fmt: skip
    return np.asarray(state.samples)


def energy(
    system: SpinSystem, model: nn.Module, variables: Any, spins: np.ndarray, chunk_size: int
) -> Energy:
    """Return the energy from configurations [chains, n, N] of |psi|^2."""
    ratios_of = exchange(model, system.bonds[0], chunk_size)

    @jax.jit
    def local(variables: Any, spins: Any) -> Any:
        return local_energies(system, spins, ratios_of(variables, spins)[1])

    parts = _batches(spins.reshape(-1, system.sites), system.bonds[0])
    values = np.concatenate([np.asarray(local(variables, part)) for part in parts])
    stats = nk.stats.statistics(values.reshape(spins.shape[:2]))
    mean, variance = float(stats.mean.real), float(stats.variance)
    return Energy(
        mean=mean,
        error=float(stats.error_of_mean),
        variance=variance,
        v_score=system.v_score(mean, variance),
        tau=float(stats.tau_corr),
        r_hat=float(stats.R_hat),
        samples=values.size,
    )


def _batches(spins: np.ndarray, pairs: np.ndarray) -> list[np.ndarray]:
    """Return the configurations in equal parts whose ratios fit into memory."""
    parts = max(1, -(-len(spins) * len(pairs) // _MOST_RATIOS))
    while len(spins) % parts:
        parts += 1
    return np.split(spins, parts)


def symmetrized(
    system: SpinSystem, model: TransformerWaveFunction, variables: Any
) -> tuple[Symmetrized, Any]:
    """``model`` averaged over the space group and, at Sz = 0, the spin flip.

    Of symmetries that differ by a translation of whole patches, which the network has already, one
    is kept. The trivial representation is that of the ground state where Marshall's rule holds.
    """
    steps = model.patch if model.translation_invariant else model.extent
    by_patches = [
        np.ravel_multi_index(tuple(((system.cells + shift) % system.extent).T), system.extent)
        for shift in system.cells
        if not (shift % steps).any()
    ]
    kept: dict[tuple[int, ...], tuple[int, ...]] = {}
    for permutation in system.symmetries:
        first = min(tuple(permutation[shift].tolist()) for shift in by_patches)
        kept.setdefault(first, tuple(permutation.tolist()))
    wrapped = Symmetrized(model, tuple(kept.values()), flip=system.total_sz == 0)
    return wrapped, {"params": {"inner": variables["params"]}}


@dataclass(frozen=True)
class Observables:
    """Spin correlations with standard errors; in units of S = 1/2 spins, S.S.

    ``structure_factor`` [L1, L2, ...] is S(q) = 1/N sum_ij exp(iq(r_i - r_j)) <S_i.S_j> at
    q = 2 pi (k1/L1, k2/L2, ...) in the reciprocal basis; ``correlations`` [N] is <S_0.S_r>,
    averaged over equivalent pairs, by the displacement r (row-major). A ladder counts as periodic
    across its rungs here: with two legs that changes nothing.
    """

    structure_factor: np.ndarray
    structure_factor_error: np.ndarray
    correlations: np.ndarray
    correlations_error: np.ndarray
    total_spin: float  # <S^2> of the whole lattice
    staggered: tuple[float, float] | None  # squared staggered magnetisation S(Q)/N, error
    sign: tuple[float, float] | None  # |<s>|, error; s = sign against Marshall's rule
    samples: int


def observables(
    system: SpinSystem, model: nn.Module, variables: Any, spins: np.ndarray, chunk_size: int
) -> Observables:
    """Correlations of all pairs of sites from configurations [chains, n, N] of |psi|^2."""
    sites = system.sites
    pairs = np.stack(np.triu_indices(sites, 1), axis=-1)
    per_chain = max(1, _MOST_RATIOS // (len(pairs) * len(spins)))
    spins = spins[:, :per_chain]
    signs = system.signs(pairs)
    ratios_of = exchange(model, pairs, chunk_size)

    @jax.jit
    def local(variables: Any, spins: Any) -> Any:
        log_psi, ratios = ratios_of(variables, spins)
        return log_psi.imag, correlations(spins, ratios, pairs, signs).real

    parts = [local(variables, part) for part in _batches(spins.reshape(-1, sites), pairs)]
    phase = np.concatenate([np.asarray(part[0]) for part in parts]).reshape(spins.shape[:2])
    chains = np.concatenate([np.asarray(part[1]) for part in parts])
    chains = chains.reshape(*spins.shape[:2], -1).mean(1)  # [chains, pairs]
    full = np.zeros((len(chains), sites, sites))
    full[:, pairs[:, 0], pairs[:, 1]] = full[:, pairs[:, 1], pairs[:, 0]] = chains
    full[:, np.arange(sites), np.arange(sites)] = 0.75
    waves = _waves(system)
    factors = np.einsum("qi,cij,qj->cq", waves.conj(), full, waves).real / sites
    staggered = sign = None
    if system.sublattice is not None:
        pattern = system.sublattice
        staggered = _mean(np.einsum("i,cij,j->c", pattern, full, pattern) / sites**2)
        rotated = 1.0 if system.marshall else 1 - 2 * ((spins[..., pattern > 0] > 0).sum(-1) % 2)
        turned = (np.exp(1j * phase) * rotated).mean(1)
        direction = turned.mean() / max(abs(turned.mean()), 1e-300)
        sign = _mean((turned / direction).real)
    mean, error = _means(factors)
    near, near_error = _means(_by_displacement(system, full))
    return Observables(
        structure_factor=mean.reshape(system.extent),
        structure_factor_error=error.reshape(system.extent),
        correlations=near,
        correlations_error=near_error,
        total_spin=float(mean[0] * sites),
        staggered=staggered,
        sign=sign,
        samples=phase.size,
    )


def _waves(system: SpinSystem) -> np.ndarray:
    """exp(i q r) [wave vectors, sites] on the grid of the finite lattice."""
    turns = system.cells / np.array(system.extent)
    return np.exp(2j * np.pi * system.cells @ turns.T)


def _by_displacement(system: SpinSystem, full: np.ndarray) -> np.ndarray:
    """Mean of [C, N, N] over pairs with the same periodic displacement, [C, N]."""
    number = displacements(system.extent)
    return np.stack([full[:, number == k].mean(1) for k in range(system.sites)], axis=-1)


def _mean(values: np.ndarray) -> tuple[float, float]:
    mean, error = _means(values)
    return float(mean), float(error)


def _means(chains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over independent chains [C, ...] and its standard error."""
    error = chains.std(0, ddof=1) / np.sqrt(len(chains)) if len(chains) > 1 else chains[0] * np.nan
    return chains.mean(0), error


@dataclass(frozen=True)
class Exact:
    """What the sum over all configurations says, where there are few; per site, S.S."""

    energy: float
    variance: float
    ground: float  # lowest two exact energies
    excited: float
    overlaps: tuple[float, float]  # |<psi|n>|^2 with them


def exact_sum(
    system: SpinSystem, model: nn.Module, variables: Any, chunk_size: int
) -> Exact | None:
    """Energy of the state and its overlaps with the lowest two; None on larger lattices."""
    if system.exact is None:
        return None
    energies, states = system.exact
    vs = nk.vqs.FullSumState(system.hilbert, model, variables=variables, chunk_size=chunk_size)
    psi = np.asarray(vs.to_array())
    applied = system.matrix @ psi
    mean = np.vdot(psi, applied).real
    first, second = (float(abs(np.vdot(states[:, n], psi)) ** 2) for n in (0, 1))
    return Exact(
        energy=float(mean),
        variance=float((abs(applied - mean * psi) ** 2).sum()),
        ground=float(energies[0]),
        excited=float(energies[1]),
        overlaps=(first, second),
    )
