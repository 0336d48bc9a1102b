"""A wave function averaged over the symmetries of its lattice (flax)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

Array = Any  # jax.Array, or a tracer


class Symmetrized(nn.Module):
    r"""The projection of a wave function onto the trivial representation of a group.

    .. math:: \psi_G(\sigma) = \frac{1}{|G|} \sum_{g \in G} \psi(g \sigma)

    Args:
        inner: configurations [..., N] -> log-amplitudes [...].
        permutations: permutations of the sites, ``|G|`` tuples.
        flip: whether the group also has the flip of all spins.
    """

    inner: nn.Module
    permutations: tuple[tuple[int, ...], ...]
    flip: bool = False

    def __call__(self, spins: Array) -> Array:
        """Return log-amplitudes [...] of configurations [..., N]."""
        images = spins[..., np.array(self.permutations)]
        if self.flip:
            images = jnp.concatenate([images, -images], axis=-2)
        return logsumexp(self.inner(images), axis=-1) - jnp.log(images.shape[-2])
