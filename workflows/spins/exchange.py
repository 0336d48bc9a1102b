"""Amplitudes of all configurations that differ by the exchange of two neighbouring spins.

The local energy of a Heisenberg model, the weights of blurred sampling and spin correlations are
sums of the ratios psi(sigma with i, j exchanged) / psi(sigma). Only antiparallel pairs cost an
evaluation of the network, and where its attention ignores the spins, the first layer's attention
is updated from that of sigma instead of computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import netket.jax as nkjax
import numpy as np

from matattn.models.factored_attention import BLIND, TransformerWaveFunction, patches
from matattn.spins import SpinSystem

Array = Any  # jax.Array, or a tracer
# variables, configurations [B, N] -> log-amplitudes [B], ratios [B, K]
Exchange = Callable[[Any, Array], tuple[Array, Array]]
LARGEST_TABLE = 2**26  # bytes of the first layer's table; larger ones leave the caches


def exchange(
    model: nn.Module, pairs: np.ndarray, chunk_size: int, incremental: bool | None = None
) -> Exchange:
    """Return a function of log psi and psi(i, j exchanged) / psi for all ``pairs`` [K, 2].

    Args:
        model: flax module, configurations [..., N] -> log-amplitudes [...].
        pairs: of sites.
        chunk_size: configurations that the network sees at once.
        incremental: update the first layer's attention; None: where ``model`` allows it.

    Raises ValueError when ``model`` does not allow ``incremental``.
    """
    possible = _has_table(model)
    if incremental and not possible:
        raise ValueError("incremental needs a TransformerWaveFunction with blind attention")
    if possible and incremental is not False:
        evaluate = _from_table(model, pairs, chunk_size)
    else:
        evaluate = _from_network(model, pairs, chunk_size)

    def ratios(variables: Any, spins: Array) -> tuple[Array, Array]:
        log_psi, exchanged, antiparallel = evaluate(variables, spins)
        return log_psi, jnp.where(antiparallel, jnp.exp(exchanged - log_psi[:, None]), 1.0)

    return ratios


def swapped(spins: Array, pairs: Array) -> Array:
    """``spins`` [M, N] with the two sites ``pairs`` [M, 2] of each row exchanged."""
    row, (i, j) = jnp.arange(len(spins)), pairs.T
    return spins.at[row, i].set(spins[row, j]).at[row, j].set(spins[row, i])


def local_energies(system: SpinSystem, spins: Array, ratios: Array) -> Array:
    """Local energies per site [B], S.S, from the ratios of ``system.bonds`` [B, K]."""
    pairs, strengths, signs = system.bonds
    values = correlations(spins, ratios, pairs, signs)
    return (strengths * values).sum(-1) / system.sites


def correlations(spins: Array, ratios: Array, pairs: np.ndarray, signs: np.ndarray) -> Array:
    r"""Local values of :math:`S_i \cdot S_j` [B, K]; ``signs`` as in ``SpinSystem.bonds``."""
    one, other = pairs.T
    product = (spins[:, one] * spins[:, other]).astype(ratios.real.dtype)
    return (product + jnp.where(product < 0, 2 * signs * ratios, 0)) / 4


def _has_table(model: nn.Module) -> bool:
    if not isinstance(model, TransformerWaveFunction) or model.attention not in BLIND:
        return False
    entries = 2.0 ** math.prod(model.patch) * math.prod(model.grid) ** 2 * model.dim
    return 8 * entries <= LARGEST_TABLE


def _from_network(model: nn.Module, pairs: np.ndarray, chunk_size: int) -> Callable:
    def exchanged(variables: Any, spins: Array, slot: Array) -> Array:
        return model.apply(variables, swapped(spins, jnp.asarray(pairs)[slot]))

    def evaluate(variables: Any, spins: Array) -> tuple[Array, Array, Array]:
        antiparallel = _antiparallel(spins, pairs)
        log_psi = nkjax.apply_chunked(model.apply, in_axes=(None, 0), chunk_size=chunk_size)(
            variables, spins
        )
        packed = _packed(exchanged, variables, spins, antiparallel, chunk_size)
        return log_psi, packed, antiparallel

    return evaluate


def _from_table(model: Any, pairs: np.ndarray, chunk_size: int) -> Callable:
    size, n = math.prod(model.patch), math.prod(model.grid)
    # Which patch a site is in, and which bit of the patch's number it is.
    sites = patches(np.arange(math.prod(model.extent)), model.extent, model.patch)
    patch_of, bit_of = np.empty((2, sites.size), dtype=int)
    patch_of[sites], bit_of[sites] = np.arange(n)[:, None], 1 << np.arange(size)
    places, flips = patch_of[pairs], bit_of[pairs]  # [K, 2]
    same = places[:, 0] == places[:, 1]  # both bits belong to the first flip, none to the second
    flips = np.where(same[:, None], flips.sum(1, keepdims=True) * np.array([1, 0]), flips)

    def exchanged(given: Any, row: tuple[Array, Array], slot: Array) -> Array:
        variables, table = given
        tokens, held = row
        for patch, flip in zip(
            jnp.asarray(places)[slot].T, jnp.asarray(flips)[slot].T, strict=True
        ):
            old = jnp.take_along_axis(held, patch[:, None], axis=1)[:, 0]
            tokens = tokens + table[(old ^ flip) * n + patch] - table[old * n + patch]
        return _finish(variables, tokens)

    def _finish(variables: Any, tokens: Array) -> Array:
        tokens = tokens.reshape(len(tokens), n, -1)
        return model.apply(variables, tokens, method="from_first_attention")

    def evaluate(variables: Any, spins: Array) -> tuple[Array, Array, Array]:
        table, always = model.apply(variables, method="first_attention_terms")
        table = table.reshape(table.shape[0] * n, -1)  # (configuration, patch) -> all tokens
        held = ((patches(spins, model.extent, model.patch) < 0) * (1 << np.arange(size))).sum(-1)
        tokens = table[held * n + np.arange(n)].sum(1) + jnp.tile(always, n)
        antiparallel = _antiparallel(spins, pairs)
        log_psi = nkjax.apply_chunked(_finish, in_axes=(None, 0), chunk_size=chunk_size)(
            variables, tokens
        )
        given, rows = (variables, table), (tokens, held)
        packed = _packed(exchanged, given, rows, antiparallel, chunk_size)
        return log_psi, packed, antiparallel

    return evaluate


def _antiparallel(spins: Array, pairs: np.ndarray) -> Array:
    return spins[:, pairs[:, 0]] != spins[:, pairs[:, 1]]


def _packed(function: Callable, given: Any, rows: Any, where: Array, chunk_size: int) -> Array:
    """``function(given, rows, pair)`` for the rows and pairs of ``where`` [B, K], else 0."""
    return nkjax.apply_packed(
        jax.jit(function),
        given,
        rows,
        where,
        jnp.zeros((), complex),
        chunk_size=chunk_size,
        min_chunk_size=chunk_size,  # smaller ones for the rest would each be compiled
    )
