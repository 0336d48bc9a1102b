r"""FLARE: networks for fields on meshes whose nodes exchange features through a few latents.

Puri, Joglekar, Bandreddi, Ferguson, Chen, Zhang, Kara: "FLARE: Fast Low-rank Attention Routing
Engine", arXiv 2508.12594; and FLARE++ (arXiv 2608.11519), whose latent queries depend on the mesh.
``FullAttention`` is the same network with softmax attention between all nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from matattn.attention import AttentionLayer, LayerProbe
from matattn.kernels.low_rank_routing import low_rank_routing, sharded_low_rank_routing
from matattn.kernels.low_rank_routing.spectrum import mixing_spectrum
from matattn.kernels.precision import accumulator
from matattn.meshes.batch import MeshBatch
from matattn.meshes.network import MeshNetwork
from matattn.models.sizes import check_sizes

SCALES = ("one", "sqrt")


class RMSNorm(nn.RMSNorm):
    """The norm of PyTorch, in float32 at least, as its LayerNorm is under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x over its root mean square, times the weight."""
        return super().forward(x.to(accumulator(x.dtype)))


NORMS = {"layer": nn.LayerNorm, "rms": RMSNorm}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
}
QUERIES = ("fixed", "dynamic")
INITS = ("published", "xavier")


class ResidualMLP(nn.Module):
    r"""A multilayer perceptron with a residual around every hidden layer.

    .. math::
        h_0 = \phi(A_1 x) \,[+ x], \quad h_l = h_{l-1} + \phi(B_l h_{l-1}), \quad
        y = A_2 h_L \,[+ h_L]

    with ``depth`` L, so that it has L + 2 linear layers. The terms in brackets are present if their
    flags are set and widths agree. Depth -1 is one linear layer, plus x if both flags are set.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int,
        depth: int,
        activation: str = "gelu",
        input_residual: bool = True,
        output_residual: bool = True,
    ) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]()
        if depth == -1:
            self.fc = nn.Linear(in_dim, out_dim)
            self.input_residual = input_residual and output_residual and in_dim == out_dim
            return
        self.fc1 = nn.Linear(in_dim, hidden_dim)
        self.fcs = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in range(depth))
        self.fc2 = nn.Linear(hidden_dim, out_dim)
        self.input_residual = input_residual and in_dim == hidden_dim
        self.output_residual = output_residual and hidden_dim == out_dim

    def forward(self, x: Float[Tensor, "nodes in_dim"]) -> Float[Tensor, "nodes out_dim"]:
        """Return the outputs of the perceptron."""
        if hasattr(self, "fc"):
            return self.fc(x) + x if self.input_residual else self.fc(x)
        h = self.act(self.fc1(x))
        if self.input_residual:
            h = h + x
        for layer in self.fcs:
            h = h + self.act(layer(h))
        return self.fc2(h) + h if self.output_residual else self.fc2(h)


class LowRankRouting(nn.Module):
    r"""FLARE's mixing operator, from nodes :math:`X \in \mathbb{R}^{N \times C}` to as many.

    Per head, with latent queries :math:`q \in \mathbb{R}^{M \times D}` that are parameters,

    .. math::
        k, v = \mathrm{MLP}_k(X), \mathrm{MLP}_v(X), \qquad
        Y = \mathrm{softmax}_M(s\, k q^T)\, \mathrm{softmax}_N(s\, q k^T)\, v

    followed by a linear layer over all heads. The parameter ``latent_q`` [C, M] is read as
    [H, M, D] in memory order (it is not transposed), as in the authors' code. s is 1 ("one") or
    :math:`D^{-1/2}` ("sqrt"). With "dynamic" queries (FLARE++) and :math:`k_0` a normalised linear
    map of X,

    .. math::
        q = \mathrm{norm}(q_{fix}) + \sigma(g_h)\,
            \mathrm{softmax}_N(s\, \mathrm{norm}(q_0) k_0^T)\, k_0

    where :math:`g_h` starts at 0.25.
    """

    probe: LayerProbe | None = None
    nodes_shared = False  # whether every process holds a part of each mesh's nodes

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_latents: int,
        scale: str,
        qk_norm: bool,
        queries: str,
        kv_depth: int,
        activation: str,
    ) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.scale = 1.0 if scale == "one" else head_dim**-0.5
        self.latent_q = nn.Parameter(torch.empty(dim, num_latents))
        normalise = RMSNorm if qk_norm else nn.Identity
        self.q_norm = normalise(head_dim)
        self.k_norm = normalise(head_dim)
        self.k_proj = ResidualMLP(dim, dim, dim, kv_depth, activation)
        self.v_proj = ResidualMLP(dim, dim, dim, kv_depth, activation)
        self.out_proj = nn.Linear(dim, dim)
        self.dynamic = queries == "dynamic"
        if self.dynamic:
            self.dynamic_q = nn.Parameter(torch.empty(dim, num_latents))
            self.dynamic_k = nn.Linear(dim, dim)
            self.dynamic_q_norm = RMSNorm(head_dim)
            self.dynamic_k_norm = RMSNorm(head_dim)
            self.gate = nn.Parameter(torch.empty(num_heads, 1, 1))

    def queries_and_keys(
        self, x: Float[Tensor, "nodes dim"], ptr: Int[Tensor, " meshes_plus_one"]
    ) -> tuple[Tensor, Float[Tensor, "nodes heads head_dim"]]:
        """Return latent queries, [H, M, D] or [B, H, M, D], and keys."""
        k = self.k_norm(self._heads(self.k_proj(x)))
        q = self.q_norm(self._latents(self.latent_q))
        if self.dynamic:
            k0 = self.dynamic_k_norm(self._heads(self.dynamic_k(x)))
            q0 = self.dynamic_q_norm(self._latents(self.dynamic_q))
            gathered = by_mesh(lambda k: attend(q0.expand(len(k), -1, -1, -1), k, k, self.scale),
                               ptr, k0)  # fmt: skip
            q = q + self.gate.sigmoid() * torch.cat(gathered)
        return q, k

    def forward(
        self, x: Float[Tensor, "nodes dim"], ptr: Int[Tensor, " meshes_plus_one"]
    ) -> Float[Tensor, "nodes dim"]:
        """Return the mixed features of the nodes."""
        q, k = self.queries_and_keys(x, ptr)
        v = self._heads(self.v_proj(x))
        if self.nodes_shared:
            y = sharded_low_rank_routing(q, k, v, cu_seqlens=ptr, scale=self.scale)
        elif self.probe is None:
            y = low_rank_routing(q, k, v, cu_seqlens=ptr, scale=self.scale)
        else:
            y = self.probe.mix(v, ptr, partial(self._factors, q, k, self.probe))
        return self.out_proj(y.flatten(1))

    def _factors(
        self, q: Tensor, k: Tensor, probe: LayerProbe, mesh: int, here: slice
    ) -> list[Tensor]:
        """Return weights of all points for the latents [H, N, M], and of these for all points."""
        queries = q if q.dim() == 3 else q[mesh]
        scores = self.scale * torch.einsum("hmd,nhd->hmn", queries, k[here])
        return [scores.softmax(1).mT, probe.shares(scores, here)]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def _latents(self, parameter: Tensor) -> Tensor:
        dim, num_latents = parameter.shape
        return parameter.view(self.num_heads, num_latents, dim // self.num_heads)


class SelfAttention(nn.Module):
    """Softmax attention between all nodes of a mesh, the O(N^2) baseline of the routing.

    Keys and values as in ``LowRankRouting``; queries from a linear layer instead of latents.
    """

    probe: LayerProbe | None = None

    def __init__(self, dim: int, num_heads: int, kv_depth: int, activation: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = ResidualMLP(dim, dim, dim, kv_depth, activation)
        self.v_proj = ResidualMLP(dim, dim, dim, kv_depth, activation)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "nodes dim"], ptr: Int[Tensor, " meshes_plus_one"]
    ) -> Float[Tensor, "nodes dim"]:
        """Return the mixed features of the nodes."""
        projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        heads = [t.unflatten(-1, (self.num_heads, -1)) for t in projected]
        scale = heads[0].shape[-1] ** -0.5
        if (probe := self.probe) is not None:
            q, k, v = heads

            def factors(_: int, here: slice) -> list[Tensor]:
                scores = scale * torch.einsum("ihd,jhd->hij", q[here], k[here])
                return [probe.shares(scores, here)]

            return self.out_proj(probe.mix(v, ptr, factors).flatten(1))
        mixed = by_mesh(lambda q, k, v: attend(q, k, v, scale), ptr, *heads)
        rows = [part.transpose(1, 2).flatten(0, 1) for part in mixed]
        return self.out_proj(torch.cat(rows).flatten(1))


def by_mesh(run: Callable[..., Tensor], ptr: Tensor, *tokens: Tensor) -> list[Tensor]:
    """Call ``run`` on the tokens [B, H, N, D] of each mesh, or once if all are of one size."""
    sizes = ptr.diff().tolist()
    if len(set(sizes)) == 1:
        return [run(*(t.unflatten(0, (len(sizes), -1)).transpose(1, 2) for t in tokens))]
    parts = [t.split(sizes) for t in tokens]
    return [run(*(p.transpose(0, 1)[None] for p in mesh)) for mesh in zip(*parts, strict=True)]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return softmax attention [B, H, Q, D]."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class Block(nn.Module):
    """A pre-norm residual block, x + mix(norm(x)), then x + MLP(norm(x))."""

    def __init__(
        self, mix: nn.Module, dim: int, norm: str, ffn_ratio: float, ffn_depth: int, activation: str
    ) -> None:
        super().__init__()
        self.norm1 = NORMS[norm](dim)
        self.att = mix
        self.norm2 = NORMS[norm](dim)
        self.mlp = ResidualMLP(dim, dim, round(ffn_ratio * dim), ffn_depth, activation)

    def forward(
        self, x: Float[Tensor, "nodes dim"], ptr: Int[Tensor, " meshes_plus_one"]
    ) -> Float[Tensor, "nodes dim"]:
        """Return the features of the nodes after the block."""
        x = x + self.att(self.norm1(x), ptr)
        return x + self.mlp(self.norm2(x))


class _PointwiseEnds(MeshNetwork):
    """A network of input features, blocks, and a readout at every node."""

    def __init__(
        self,
        mixers: list[nn.Module],
        num_inputs: int,
        num_targets: int,
        dim: int,
        num_octaves: int,
        norm: str,
        ffn_ratio: float,
        ffn_depth: int,
        activation: str,
        init: str,
    ) -> None:
        super().__init__()
        self.num_octaves = num_octaves
        features = num_inputs * (1 + 2 * num_octaves)
        self.in_proj = ResidualMLP(features, dim, dim, 2, activation, input_residual=False)
        self.blocks = nn.ModuleList(
            Block(mix, dim, norm, ffn_ratio, ffn_depth, activation) for mix in mixers
        )
        readout = ResidualMLP(dim, num_targets, dim, 2, activation, output_residual=False)
        self.out_proj = nn.Sequential(NORMS[norm](dim), readout)
        self._initialise(init)

    def _initialise(self, init: str) -> None:
        """Draw all weights as ``init`` says."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if init == "published":
                    nn.init.normal_(module.weight, std=0.02)
                else:
                    nn.init.xavier_uniform_(module.weight, gain=0.7)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(("latent_q", "dynamic_q")):
                nn.init.normal_(parameter, std=0.1)
            elif name.endswith("gate"):
                nn.init.constant_(parameter, 0.25)

    def attention_layers(self) -> list[AttentionLayer]:
        """Return the mixing operators of all blocks."""
        mixers = (m for m in self.modules() if isinstance(m, LowRankRouting | SelfAttention))
        return [AttentionLayer.of(m, m.out_proj.weight, m.num_heads) for m in mixers]

    def _features(self, inputs: Tensor) -> Tensor:
        """Return inputs, and their sines and cosines at 1, 2, 4, ... half waves per unit."""
        if not self.num_octaves:
            return inputs
        octaves = 2.0 ** torch.arange(self.num_octaves, device=inputs.device, dtype=inputs.dtype)
        angles = (torch.pi * octaves * inputs[..., None]).flatten(-2)
        return torch.cat([inputs, angles.sin(), angles.cos()], -1)

    def _hidden(self, batch: MeshBatch) -> Tensor:
        """Return the features of all nodes after the last block."""
        x = self.in_proj(self._features(batch.inputs))
        for block in self.blocks:
            x = block(x, batch.ptr)
        return x

    def with_features(self, batch: MeshBatch) -> tuple[Tensor, Tensor | None]:
        """Return the fields, and means and deviations of the last features over each mesh."""
        x = self._hidden(batch)
        parts = x.split(batch.ptr.diff().tolist())
        features = [torch.cat(torch.std_mean(part, 0, correction=0)[::-1]) for part in parts]
        return self.out_proj(x), torch.stack(features)

    def forward(self, batch: MeshBatch) -> Float[Tensor, "nodes targets"]:
        """Return normalised fields at all nodes of a batch."""
        return self.out_proj(self._hidden(batch))


class FLARE(_PointwiseEnds):
    r"""A network for fields [nodes, T] on a mesh, from coordinates and input fields [nodes, d + F].

    Residual blocks of ``LowRankRouting`` and ``ResidualMLP``, between residual MLPs at both ends,
    with a final norm before the last one. Cost O(N M C + N C^2) per block, linear in N. The output
    does not depend on the order of the nodes. Parameters have the names of the authors'
    checkpoints.

    Deviations from the paper are options that are off by default: Fourier features of the inputs
    (``num_octaves``) and Xavier weights (``init="xavier"``, gain 0.7). FLARE++ as published is
    ``queries="dynamic"``, ``scale="sqrt"``, ``qk_norm=True``, ``kv_depth=-1``, ``ffn_ratio=2``,
    ``ffn_depth=0``.

    Args:
        num_inputs: columns of ``batch.inputs``, d + F.
        num_targets: predicted fields T.
        dim: width C, a multiple of ``num_heads``.
        num_blocks, num_heads, num_latents: B, H, and M (latents of each head).
        scale: factor of the logits: "one", or "sqrt" for :math:`D^{-1/2}`.
        qk_norm: RMS-normalise queries and keys per head.
        queries: "fixed" parameters, or "dynamic".
        kv_depth: depth of the residual MLPs for k and v.
        ffn_depth, ffn_ratio: depth, and hidden width over C, of those after the mixing.
        norm: "layer" or "rms".
        activation: "gelu" (tanh form) or "silu".
        num_octaves: octaves of Fourier features.
        init: "published" (normal, 0.02) or "xavier".

    Raises:
        ValueError: ``dim`` is not a multiple of ``num_heads``, or an option is unknown.
    """

    citations = ("flare", "flare_plus_plus")

    def __init__(
        self,
        num_inputs: int,
        num_targets: int = 1,
        dim: int = 64,
        num_blocks: int = 8,
        num_heads: int = 8,
        num_latents: int = 64,
        scale: str = "one",
        qk_norm: bool = False,
        queries: str = "fixed",
        kv_depth: int = 3,
        ffn_depth: int = 3,
        ffn_ratio: float = 1.0,
        norm: str = "layer",
        activation: str = "gelu",
        num_octaves: int = 0,
        init: str = "published",
    ) -> None:
        sizes = {"num_blocks": num_blocks, "num_latents": num_latents}
        _check(dim, num_heads, sizes, ffn_ratio, norm, activation, init)
        _one_of("scale", scale, SCALES)
        _one_of("queries", queries, QUERIES)
        mixers: list[nn.Module] = [
            LowRankRouting(
                dim, num_heads, num_latents, scale, qk_norm, queries, kv_depth, activation
            )
            for _ in range(num_blocks)
        ]
        super().__init__(
            mixers, num_inputs, num_targets, dim, num_octaves, norm, ffn_ratio, ffn_depth,
            activation, init,
        )  # fmt: skip

    @property
    def can_share_nodes(self) -> bool:
        """Return whether ``share_nodes`` works: dynamic queries would need another exchange."""
        return not any(mixer.dynamic for mixer in self._mixers())

    def share_nodes(self) -> None:
        """Let every process of the default group give its own part of each mesh from now on."""
        for mixer in self._mixers():
            mixer.nodes_shared = True

    def _mixers(self) -> list[LowRankRouting]:
        """Return the mixing operators of all blocks."""
        return [m for m in self.modules() if isinstance(m, LowRankRouting)]

    @torch.no_grad()
    def spectrum(
        self, batch: MeshBatch
    ) -> tuple[Float[Tensor, "blocks heads latents"], list[Float[Tensor, "heads nodes latents"]]]:
        """Return eigenvalues (descending) and eigenvectors of each block's mixing on one mesh.

        See ``mixing_spectrum``.

        Raises:
            ValueError: the batch does not hold exactly one mesh.
        """
        if len(batch.ptr) != 2:
            raise ValueError(f"spectrum needs one mesh, the batch holds {len(batch.ptr) - 1}")
        x = self.in_proj(self._features(batch.inputs))
        values, vectors = [], []
        blocks = (m for m in self.modules() if isinstance(m, Block))
        for block, mixer in zip(blocks, self._mixers(), strict=True):
            q, k = mixer.queries_and_keys(block.norm1(x), batch.ptr)
            q = q[0] if q.dim() == 4 else q
            eigenvalues, eigenvectors = mixing_spectrum(q, k.transpose(0, 1), mixer.scale)
            values.append(eigenvalues)
            vectors.append(eigenvectors)
            x = block(x, batch.ptr)
        return torch.stack(values), vectors


class FullAttention(_PointwiseEnds):
    """FLARE's network with softmax attention between all nodes in place of the routing.

    Arguments are those of ``FLARE``. Cost O(N^2 C) per block.
    """

    citations = ("flare",)  # its network, without its attention

    def __init__(
        self,
        num_inputs: int,
        num_targets: int = 1,
        dim: int = 64,
        num_blocks: int = 8,
        num_heads: int = 8,
        kv_depth: int = 3,
        ffn_depth: int = 3,
        ffn_ratio: float = 1.0,
        norm: str = "layer",
        activation: str = "gelu",
        num_octaves: int = 0,
        init: str = "published",
    ) -> None:
        _check(dim, num_heads, {"num_blocks": num_blocks}, ffn_ratio, norm, activation, init)
        mixers: list[nn.Module] = [
            SelfAttention(dim, num_heads, kv_depth, activation) for _ in range(num_blocks)
        ]
        super().__init__(
            mixers, num_inputs, num_targets, dim, num_octaves, norm, ffn_ratio, ffn_depth,
            activation, init,
        )  # fmt: skip


def _check(
    dim: int,
    num_heads: int,
    sizes: Mapping[str, int],
    ffn_ratio: float,
    norm: str,
    activation: str,
    init: str,
) -> None:
    """Raise ValueError for sizes that do not fit, or an unknown option."""
    check_sizes(dim, num_heads, **sizes, **{"ffn_ratio * dim": ffn_ratio * dim})
    _one_of("norm", norm, NORMS)
    _one_of("activation", activation, ACTIVATIONS)
    _one_of("init", init, INITS)


def _one_of(name: str, value: str, options: Iterable[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``options``."""
    options = list(options)
    if value not in options:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(options)}")
