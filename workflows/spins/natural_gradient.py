"""Stochastic reconfiguration: the natural gradient of the energy, for weighted samples."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from netket.optimizer.solver import cholesky_with_fallback

Array = Any  # jax.Array, or a tracer


def natural_gradient(
    derivatives: Array,
    energies: Array,
    weights: Array,
    shift: Array | float,
    momentum: float = 0.0,
    previous: Array | float = 0.0,
) -> Array:
    r"""Return the direction in which the energy falls fastest, by the change of the state.

    .. math::
        \delta = (X^T X + \lambda)^{-1} X^T f + \mu \, \delta_{previous}, \qquad
        f = 2 \sqrt{w} (E - \bar E) - \mu X \delta_{previous}

    with X the centred log-derivatives times :math:`\sqrt{w}`, real and imaginary parts one below
    the other. It is solved with the smaller one of :math:`X^T X` and :math:`X X^T` (minSR: Chen,
    Heyl, Nat. Phys. 20, 1476 (2024)). The momentum is that of SPRING (Goldshlager, Abrahamsen, Lin,
    J. Comput. Phys. 516, 113351 (2024)). Learning rates mean what they mean in NetKet (factor 2).

    Args:
        derivatives: of Re and Im log psi by each parameter, [M, 2, P].
        energies: local energies [M], complex.
        weights: of the samples, [M], sum 1.
        shift: lambda.
        momentum: mu, 0 to below 1.
        previous: the last direction [P].

    Returns:
        The direction [P]; parameters change by minus the learning rate times it.
    """
    root = jnp.sqrt(weights)
    centred = derivatives - jnp.einsum("m,mcp->cp", weights, derivatives)
    x = (centred * root[:, None, None]).reshape(-1, derivatives.shape[-1])
    force = 2 * root * (energies - (weights * energies).sum())
    f = jnp.stack([force.real, force.imag], axis=-1).reshape(-1)
    f = f - momentum * (x @ jnp.broadcast_to(previous, x.shape[1:]))
    rows, parameters = x.shape
    if rows <= parameters:
        matrix = x @ x.T + shift * jnp.eye(rows)
        direction = x.T @ cholesky_with_fallback(matrix, f)[0]
    else:
        matrix = x.T @ x + shift * jnp.eye(parameters)
        direction = cholesky_with_fallback(matrix, x.T @ f)[0]
    return direction + momentum * previous
