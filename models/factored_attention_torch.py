"""The transformer wave function in torch: the same amplitudes, and its attention maps.

It serves to analyse trained networks with torch's tools. ``matattn.models.factored_attention`` is
the network that is optimised; weights pass between them by name, as NumPy arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from matattn.attention import AttentionLayer, LayerProbe
from matattn.spins import displacements, grid_places

ATTENTIONS = ("factored", "t5", "decoupled", "spatial")


class TorchWaveFunction(nn.Module):
    """The twin of ``factored_attention.TransformerWaveFunction``; the same arguments, in float64.

    Raises:
        ValueError: ``attention`` is unknown.
    """

    def __init__(
        self,
        extent: Sequence[int],
        patch: Sequence[int] = (2, 2),
        dim: int = 24,
        num_heads: int = 4,
        num_layers: int = 2,
        ffn_ratio: int = 4,
        attention: str = "factored",
        head_norm: bool = True,
        translation_invariant: bool = True,
    ) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise ValueError(f"attention={attention!r}: expected one of {ATTENTIONS}")
        self.extent, self.patch = tuple(extent), tuple(patch)
        grid = tuple(size // width for size, width in zip(extent, patch, strict=True))
        self.embedding = nn.Linear(math.prod(patch), dim)
        self.blocks = nn.ModuleList(
            _Block(grid, dim, num_heads, ffn_ratio, attention, translation_invariant)
            for _ in range(num_layers)
        )
        self.sum_norm = _norm(dim)
        self.real, self.imag = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.real_norm = _norm(dim) if head_norm else nn.Identity()
        self.imag_norm = _norm(dim) if head_norm else nn.Identity()
        self.double()

    def forward(self, spins: Tensor) -> Tensor:
        """Return complex log-amplitudes [B] of configurations [B, N] of +1 and -1."""
        return self._run(spins)[0]

    def attention_maps(self, spins: Tensor) -> Tensor:
        """Return attention weights [layers, B, heads, n, n]; row i has those of patch i."""
        return torch.stack(self._run(spins)[1])

    def attention_layers(self) -> list[AttentionLayer]:
        """Return the attention of all blocks."""
        modules = (m for m in self.modules() if isinstance(m, _Attention))
        return [AttentionLayer.of(m, m.output.weight, m.num_heads) for m in modules]

    def _run(self, spins: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return log-amplitudes [B] and the attention weights of each layer."""
        x = self.embedding(self._patches(spins))
        maps = []
        for block in self.blocks:
            x, weights = block(x)
            maps.append(weights)
        z = self.sum_norm(x.sum(1))
        o = torch.complex(self.real_norm(self.real(z)), self.imag_norm(self.imag(z)))
        o = torch.where(o.real < 0, -o, o)
        return (o + torch.log1p(torch.exp(-2 * o)) - math.log(2)).sum(-1), maps

    def _patches(self, spins: Tensor) -> Tensor:
        """Cut configurations [B, N] into patches [B, n, sites per patch]."""
        cut = [part for size, width in zip(self.extent, self.patch, strict=True)
               for part in (size // width, width)]  # fmt: skip
        x = spins.to(torch.float64).reshape(-1, *cut)
        x = x.permute(0, *range(1, x.ndim, 2), *range(2, x.ndim, 2))
        return x.reshape(len(x), -1, math.prod(self.patch))

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Load the weights of ``factored_attention.to_arrays``."""
        state = {}
        for name, array in arrays.items():
            *path, last = name.replace("blocks_", "blocks/").split("/")
            tensor = torch.from_numpy(np.array(array))
            tensor = tensor.T if last == "kernel" else tensor
            last = {"kernel": "weight", "scale": "weight"}.get(last, last)
            state[".".join([*path, last])] = tensor
        self.load_state_dict(state)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the weights by the names that ``factored_attention.from_arrays`` reads."""
        arrays = {}
        for name, tensor in self.state_dict().items():
            *path, last = name.replace("blocks.", "blocks_").split(".")
            if last == "weight":
                last = "kernel" if tensor.ndim == 2 else "scale"
            array = tensor.T if last == "kernel" else tensor
            arrays["/".join([*path, last])] = array.contiguous().numpy()
        return arrays


class _Block(nn.Module):
    """The twin of ``factored_attention.Block``, which also returns the attention weights."""

    def __init__(
        self, grid: tuple[int, ...], dim: int, num_heads: int, ffn_ratio: int, kind: str,
        translation_invariant: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.attention_norm, self.mlp_norm = _norm(dim), _norm(dim)
        self.attention = _Attention(grid, dim, num_heads, kind, translation_invariant)
        self.expand, self.contract = (
            nn.Linear(dim, ffn_ratio * dim),
            nn.Linear(ffn_ratio * dim, dim),
        )
        self.gelu = nn.GELU("tanh")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens [B, n, d] after the layer, and its weights [B, heads, n, n]."""
        added, weights = self.attention(self.attention_norm(x))
        x = x + added
        return x + self.contract(self.gelu(self.expand(self.mlp_norm(x)))), weights


class _Attention(nn.Module):
    """The twin of ``factored_attention.Attention``, which also returns its weights."""

    shift: Tensor
    distance: Tensor
    probe: LayerProbe | None = None

    def __init__(
        self, grid: tuple[int, ...], dim: int, num_heads: int, kind: str,
        translation_invariant: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind, self.num_heads, self.invariant = kind, num_heads, translation_invariant
        n, steps, sizes = math.prod(grid), torch.from_numpy(grid_places(grid)), torch.tensor(grid)
        self.register_buffer("shift", torch.from_numpy(displacements(grid)), persistent=False)
        nearest = torch.minimum(steps, sizes - steps).double()
        self.register_buffer("distance", nearest.norm(dim=-1), persistent=False)
        shape = (num_heads, n) if translation_invariant else (num_heads, n, n)
        self.alpha = nn.Parameter(torch.zeros(shape))
        self.value, self.output = nn.Linear(dim, dim), nn.Linear(dim, dim)
        if kind == "spatial":
            self.gamma = nn.Parameter(torch.full((num_heads,), 3.0))
        if kind in ("t5", "decoupled"):
            self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens [B, n, d] after attention, and its weights [B, heads, n, n]."""
        weights = self._weights(x)
        mixed = torch.einsum("bhij,bjhe->bihe", weights, self._heads(self.value(x)))
        if self.probe is not None:
            mixed = self.probe.gate(mixed)
        return self.output(mixed.flatten(2)), weights

    def _weights(self, x: Tensor) -> Tensor:
        """Return the attention weights [B, heads, n, n]."""
        position: Tensor = self.alpha
        if self.kind == "spatial":
            decay = torch.softmax(-self.gamma[:, None] * self.distance, dim=-1)
            position = position * decay
        if self.invariant:
            position = position[:, self.shift]
        if self.kind in ("factored", "spatial"):
            return position.expand(len(x), *position.shape)
        query, key = self._heads(self.query(x)), self._heads(self.key(x))
        scores = torch.einsum("bihe,bjhe->bhij", query, key) / math.sqrt(query.shape[-1])
        if self.kind == "t5":
            return torch.softmax(scores + position, dim=-1)
        return torch.softmax(scores, dim=-1) + position

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6)
