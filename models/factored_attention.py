"""Transformer wave functions of spins 1/2, with and without queries and keys (flax).

Plain flax modules: ``TransformerWaveFunction(extent=(4, 4))`` goes into any ``nk.vqs.MCState``.

Sources: Viteritti, Rende, Becca, PRL 130, 236401 (2023); Rende, Viteritti, Mach. Learn.: Sci.
Technol. 6, 010501 (2025), arXiv 2405.18874, which asks whether queries and keys are needed;
spatial attention: arXiv 2602.02665.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from matattn.models.sizes import check_sizes
from matattn.spins import displacements, grid_places

Array = Any  # jax.Array, or a tracer

ATTENTIONS = ("factored", "t5", "decoupled", "spatial")
BLIND = ("factored", "spatial")  # attentions whose weights ignore the content of the patches
LEAST_HEAD_WIDTH = 4  # narrower heads were reported to diverge (netket discussion 2107)
_DTYPE = jnp.float64
_uniform = nn.initializers.xavier_uniform()


def distances(grid: tuple[int, ...]) -> np.ndarray:
    """Return the length of each displacement to the nearest image, in patches, [n]."""
    steps = grid_places(grid)
    return np.linalg.norm(np.minimum(steps, np.array(grid) - steps), axis=1)


def patches(spins: Array, extent: Sequence[int], patch: Sequence[int]) -> Array:
    """Cut configurations [..., sites] (row-major) into patches [..., n, sites per patch]."""
    lead = spins.shape[:-1]
    cut = [size for pair in zip(_grid(extent, patch), patch, strict=True) for size in pair]
    spins = spins.reshape(*lead, *cut)
    first = len(lead)
    axes = [*range(first, spins.ndim, 2), *range(first + 1, spins.ndim, 2)]
    return spins.transpose(*range(first), *axes).reshape(*lead, -1, math.prod(patch))


def _grid(extent: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Return the number of patches along each direction."""
    return tuple(size // width for size, width in zip(extent, patch, strict=True))


def log_cosh(z: Array) -> Array:
    """Compute log cosh of complex numbers without overflow."""
    z = jnp.where(z.real < 0, -z, z)
    return z + jnp.log1p(jnp.exp(-2 * z)) - math.log(2)


class Attention(nn.Module):
    r"""Attention between patches, with weights that may ignore the content of the patches.

    .. math::
        y_i = W \bigoplus_\mu \sum_j a^\mu_{ij} V^\mu x_j + b

    =============  ====================================================================
    ``factored``   :math:`a_{ij} = \alpha_{j-i}`, free real parameters, no softmax
    ``t5``         :math:`a_{ij} = softmax_j(q_i k_j / \sqrt{e} + \alpha_{j-i})`
    ``decoupled``  :math:`a_{ij} = softmax_j(q_i k_j / \sqrt{e}) + \alpha_{j-i}`
    ``spatial``    :math:`a_{ij} = \alpha_{j-i} softmax_j(-\gamma d_{j-i})`, d in patches
    =============  ====================================================================

    e is the width of a head, j - i the displacement on the periodic patch grid. ``t5`` and
    ``decoupled`` are our reading of two forms that arXiv 2405.18874 names. Without
    ``translation_invariant``, ``factored`` has a weight for every pair, :math:`\alpha_{ij}`.
    """

    grid: tuple[int, ...]
    dim: int
    num_heads: int
    kind: str = "factored"
    translation_invariant: bool = True

    def setup(self) -> None:
        """Create the parameters."""
        heads, n = self.num_heads, math.prod(self.grid)
        shape = (heads, n) if self.translation_invariant else (heads, n, n)
        self.alpha = self.param("alpha", _uniform, shape, _DTYPE)
        if self.kind == "spatial":
            self.gamma = self.param("gamma", nn.initializers.constant(3.0), (heads,), _DTYPE)
        self.value, self.output = _dense(self.dim), _dense(self.dim)
        if self.kind not in BLIND:
            self.query, self.key = _dense(self.dim), _dense(self.dim)

    def __call__(self, x: Array) -> Array:
        """Return the tokens [B, n, d] after attention between the tokens x [B, n, d]."""
        value, weights = self._heads(self.value(x)), self.position_weights()
        if self.kind in BLIND:
            mixed = jnp.einsum("hij,bjhe->bihe", weights, value)
        else:
            query, key = self._heads(self.query(x)), self._heads(self.key(x))
            scores = jnp.einsum("bihe,bjhe->bhij", query, key) / math.sqrt(query.shape[-1])
            if self.kind == "t5":
                weights = nn.softmax(scores + weights, axis=-1)
            else:
                weights = nn.softmax(scores, axis=-1) + weights
            mixed = jnp.einsum("bhij,bjhe->bihe", weights, value)
        return self.output(mixed.reshape(x.shape))

    def contributions(self, x: Array) -> Array:
        """Return what blind attention adds at patch i for tokens x [S, d] at j, [S, j, i, d]."""
        value = self._heads(self.value(x))
        mixed = jnp.einsum("hij,she->sjihe", self.position_weights(), value)
        return self.output(mixed.reshape(*mixed.shape[:3], -1)) - self.offset()

    def offset(self) -> Array:
        """Return what attention adds to every token whatever its content [d]."""
        return self.output(jnp.zeros(self.dim))

    def position_weights(self) -> Array:
        """Return the part of the weights that depends on positions alone, [heads, n, n]."""
        weights = self.alpha
        if self.kind == "spatial":
            decay = nn.softmax(-self.gamma[:, None] * distances(self.grid), axis=-1)
            weights = weights * decay
        return weights[:, displacements(self.grid)] if self.translation_invariant else weights

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)


class Block(nn.Module):
    """A pre-norm layer, x + attention(norm(x)), then x + MLP(norm(x))."""

    attention: Attention
    dim: int
    ffn_ratio: int

    def setup(self) -> None:
        """Create the norms and the MLP."""
        self.attention_norm, self.mlp_norm = _norm(), _norm()
        self.expand, self.contract = _dense(self.ffn_ratio * self.dim), _dense(self.dim)

    def __call__(self, x: Array) -> Array:
        """Return the tokens [B, n, d] after the layer."""
        return self.after_attention(x + self.attention(self.attention_norm(x)))

    def after_attention(self, x: Array) -> Array:
        """Apply the second half of the layer, x + MLP(norm(x))."""
        hidden = nn.gelu(self.expand(self.mlp_norm(x)), approximate=True)
        return x + self.contract(hidden)


class TransformerWaveFunction(nn.Module):
    r"""A wave function: complex log-amplitudes of spins from a transformer on patches.

    .. math::
        z = norm(\sum_i y_i), \quad o = norm(W_r z + b_r) + i \, norm(W_i z + b_i), \quad
        \log \psi = \sum_a \log \cosh o_a

    Parameters are real and of double precision. Invariant under translations by whole patches.

    Args:
        extent: sites along each direction of the lattice, row-major.
        patch: sites of a patch along each direction.
        dim: width d of a token.
        num_heads: attention heads; d / num_heads is the width of one.
        num_layers: pre-norm layers.
        ffn_ratio: hidden width of the MLPs over d.
        attention: one of ``ATTENTIONS``.
        head_norm: whether o has its two norms; the first publications have none.
        translation_invariant: see ``Attention``.

    Raises:
        ValueError: the patches do not divide the lattice, or the widths do not fit.
    """

    kind: ClassVar[str] = "spins"
    citations: ClassVar[tuple[str, ...]] = ("factored_attention", "netket", "blurred_sampling")

    extent: Sequence[int]
    patch: Sequence[int] = (2, 2)
    dim: int = 24
    num_heads: int = 4
    num_layers: int = 2
    ffn_ratio: int = 4
    attention: str = "factored"
    head_norm: bool = True
    translation_invariant: bool = True

    def __post_init__(self) -> None:
        for key in ("extent", "patch"):  # a list from a file has no hash
            object.__setattr__(self, key, tuple(getattr(self, key)))
        _check(self)
        super().__post_init__()

    @property
    def grid(self) -> tuple[int, ...]:
        """Return the number of patches along each direction."""
        return _grid(self.extent, self.patch)

    def setup(self) -> None:
        """Create the layers."""
        self.embedding = _dense(self.dim)
        self.blocks = [
            Block(
                Attention(
                    self.grid, self.dim, self.num_heads, self.attention, self.translation_invariant
                ),
                self.dim,
                self.ffn_ratio,
            )
            for _ in range(self.num_layers)
        ]
        self.sum_norm = _norm()
        self.real, self.imag = _dense(self.dim), _dense(self.dim)
        if self.head_norm:
            self.real_norm, self.imag_norm = _norm(), _norm()

    def __call__(self, spins: Array) -> Array:
        """Return log-amplitudes [...] of configurations [..., sites] of +1 and -1."""
        x = patches(spins, self.extent, self.patch).astype(_DTYPE)
        x = self.embedding(x.reshape(-1, *x.shape[-2:]))
        for block in self.blocks:
            x = block(x)
        return self._readout(x).reshape(spins.shape[:-1])

    def first_attention_terms(self) -> tuple[Array, Array]:
        """Return the tokens after the first layer's blind attention as a sum over patches.

        The first term is what patch j adds at patch i for each configuration of its b spins,
        [2^b, j, i, d]; the second is added at every patch [d]. Bit k of a configuration's number
        is set if spin k of the patch is -1.
        """
        size = math.prod(self.patch)
        down = (np.arange(2**size)[:, None] >> np.arange(size)) & 1
        tokens = self.embedding(jnp.asarray(1.0 - 2 * down, _DTYPE))
        block = self.blocks[0]
        own = jnp.eye(math.prod(self.grid))[:, :, None] * tokens[:, None, None]
        added = block.attention.contributions(block.attention_norm(tokens))
        return own + added, block.attention.offset()

    def from_first_attention(self, x: Array) -> Array:
        """Return log-amplitudes [B] of tokens [B, n, d] after the first layer's attention."""
        x = self.blocks[0].after_attention(x)
        for block in self.blocks[1:]:
            x = block(x)
        return self._readout(x)

    def _readout(self, x: Array) -> Array:
        """Return log-amplitudes [B] of the last layer's tokens [B, n, d]."""
        z = self.sum_norm(x.sum(-2))
        real, imag = self.real(z), self.imag(z)
        if self.head_norm:
            real, imag = self.real_norm(real), self.imag_norm(imag)
        return log_cosh(real + 1j * imag).sum(-1)


def parameter_count(model: TransformerWaveFunction) -> int:
    """Return the number of real parameters, by formula."""
    d, n, heads, ratio = model.dim, math.prod(model.grid), model.num_heads, model.ffn_ratio
    dense = d**2 + d
    mixing = heads * n * (1 if model.translation_invariant else n)
    mixing += {"spatial": heads}.get(model.attention, 0)
    mixing += 0 if model.attention in BLIND else 2 * dense
    mlp = 2 * ratio * d**2 + ratio * d + d
    layer = 2 * dense + mixing + 4 * d + mlp
    head = 2 * d + 2 * dense + (4 * d if model.head_norm else 0)
    return d * (math.prod(model.patch) + 1) + model.num_layers * layer + head


def arguments(model: TransformerWaveFunction) -> dict[str, Any]:
    """Return the arguments that ``model`` was constructed with."""
    flax_own = ("parent", "name")
    return {f.name: getattr(model, f.name) for f in fields(model) if f.name not in flax_own}


def to_arrays(variables: Any) -> dict[str, np.ndarray]:
    """Return the parameters by name, ``blocks_0/attention/alpha`` and so on."""
    flat, _ = jax.tree_util.tree_flatten_with_path(variables["params"])
    return {"/".join(part.key for part in path): np.asarray(leaf) for path, leaf in flat}


def from_arrays(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the variables whose ``to_arrays`` are ``arrays``."""
    params: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, last = name.split("/")
        branch = params
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = jnp.asarray(array)
    return {"params": params}


def fits(model: TransformerWaveFunction, arrays: dict[str, np.ndarray]) -> bool:
    """Return whether ``arrays`` have the names and shapes of the weights of ``model``."""
    spins = jax.ShapeDtypeStruct((1, math.prod(model.extent)), _DTYPE)
    variables = jax.eval_shape(model.init, jax.random.key(0), spins)
    shapes = jax.tree.map(np.shape, from_arrays(arrays))
    return bool(shapes == jax.tree.map(np.shape, dict(variables)))


def _dense(width: int, name: str | None = None) -> nn.Dense:
    """Create a linear layer."""
    return nn.Dense(width, kernel_init=_uniform, param_dtype=_DTYPE, dtype=_DTYPE, name=name)


def _norm(name: str | None = None) -> nn.LayerNorm:
    """Create a normalisation layer."""
    return nn.LayerNorm(epsilon=1e-6, param_dtype=_DTYPE, dtype=_DTYPE, name=name)


def _check(model: TransformerWaveFunction) -> None:
    """Raise ValueError for arguments that do not fit together."""
    extent, patch = model.extent, model.patch
    if len(extent) != len(patch) or any(e % b for e, b in zip(extent, patch, strict=True)):
        raise ValueError(f"patches of {patch} sites do not divide a lattice of {extent} sites")
    if model.attention not in ATTENTIONS:
        raise ValueError(f"attention={model.attention!r}: expected one of {ATTENTIONS}")
    check_sizes(model.dim, model.num_heads, num_layers=model.num_layers, ffn_ratio=model.ffn_ratio)
    if model.dim // model.num_heads < LEAST_HEAD_WIDTH:
        raise ValueError(
            f"dim={model.dim} with num_heads={model.num_heads} gives heads of width "
            f"{model.dim // model.num_heads}, which do not train; expected at least "
            f"{LEAST_HEAD_WIDTH}"
        )
    if not model.translation_invariant and model.attention != "factored":
        raise ValueError(
            f"translation_invariant=False: expected attention='factored', not {model.attention!r}"
        )
