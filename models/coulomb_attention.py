r"""The attention operator of CoulGAT: weights that follow a screened-Coulomb law of the distance.

Gokden: "CoulGAT: An Experiment on Interpretability of Graph Attention Networks", arXiv 1912.08409.
The published operator ties its parameters to the node slots of a padded adjacency matrix. Here they
belong to the species of the two nodes, so that graphs of any size and any order of their nodes
share them; ``law="reference"`` is the published law.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.nn.inits import glorot, zeros
from torch_geometric.utils import add_self_loops

from matattn.attention import LayerProbe
from matattn.kernels.precision import accumulator
from matattn.structures.neighbors import SELF

LAWS = ("log", "reference")
QUERIES = ("static", "dynamic")


class ScreenedCoulomb(nn.Module):
    r"""The logarithm of a Yukawa weight with constants for each pair of target and source species.

    .. math::
        \ell_{ij} = c_{t_i t_j} - p_{t_i t_j} \ln r_{ij} - r_{ij} / \lambda_{t_i t_j}
                    + \ln s(r_{ij}), \qquad \ell_{ii} = c^0_{t_i}

    so that :math:`e^\ell = e^c\, r^{-p} e^{-r / \lambda} s(r)`. The switch s is a polynomial of
    degree five with two continuous derivatives; it falls from 1 to 0 over the last
    ``switch_width`` Å before ``cutoff``. Every table over pairs of species is a constant plus a
    learned change, :math:`p = 1 + f_{t_i}^\top M f_{t_j}` with features f of the species (one-hot
    by default, so that M is the change of the table). All changes start at zero, which separates
    what is learned from what is assumed: p = 1, c = c^0 = 0, and a :math:`\lambda` between 2 and
    4 Å that differs between heads. :math:`\lambda` never falls below 0.5 Å.

    Shapes: length [E] Å, target and source species [E] -> logits [E, H], at least in float32.
    """

    SHORTEST_RANGE = 0.5  # Å
    SMALLEST = 1e-30  # of s, so that its logarithm stays finite
    species_features: Tensor | None
    first_range: Tensor

    def __init__(
        self,
        num_species: int,
        heads: int,
        cutoff: float | None,
        switch_width: float,
        species_features: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_species, self.heads = num_species, heads
        self.cutoff, self.switch_width = cutoff, switch_width
        self.register_buffer("species_features", species_features, persistent=False)
        width = num_species if species_features is None else species_features.shape[1]
        # Changes of c, p and of what softplus makes the range.
        self.pairs = nn.Parameter(torch.empty(width, width, 3, heads))
        self.self_term = nn.Parameter(torch.empty(width, heads))
        first = 2 + 2 * (torch.arange(heads) + 0.5) / heads - self.SHORTEST_RANGE
        self.register_buffer("first_range", first.expm1().log(), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all learned changes to zero."""
        zeros(self.pairs)
        zeros(self.self_term)

    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return c, p and range (Å) of target and source species [S, S, H], and c^0 [S, H]."""
        pairs: Tensor = self.pairs
        own: Tensor = self.self_term
        if (features := self.species_features) is not None:
            pairs = torch.einsum("sa,tb,abch->stch", features, features, pairs)
            own = features @ own
        strength, power, reach = pairs.unbind(2)
        reach = F.softplus(self.first_range + reach) + self.SHORTEST_RANGE
        return strength, 1 + power, reach, own

    def forward(self, length: Tensor, target: Tensor, source: Tensor) -> Tensor:
        """Return the logits [E, H] of edges."""
        length = length.to(torch.promote_types(length.dtype, torch.float32))
        strength, power, reach, own = self.tables()
        constants = torch.stack([strength, -power, -1 / reach], -1).flatten(0, 1)
        constants = constants[target * self.num_species + source]  # [E, H, 3]
        radial = torch.stack([torch.ones_like(length), length.clamp(min=SELF).log(), length], -1)
        logits = (constants * radial[:, None]).sum(-1) + self._log_switch(length)[:, None]
        return torch.where((length < SELF)[:, None], own[target], logits)

    def _log_switch(self, length: Tensor) -> Tensor:
        """Return ln s."""
        if self.cutoff is None:
            return torch.zeros_like(length)
        y = ((self.cutoff - length) / self.switch_width).clamp(0, 1)
        return (y**3 * (10 + y * (6 * y - 15))).clamp(min=self.SMALLEST).log()


class PowerOfAdjacency(nn.Module):
    r"""The published law, a power of the adjacency :math:`A_{ij} = r_{ij}^{-2}`.

    .. math:: \ell_{ij} = A_{ij}^{P_{t_i t_j}}, \qquad A_{ii} = 10^3

    The publication has node slots in place of species, and starts from a random P.

    Shapes: as ``ScreenedCoulomb``; a self term is an edge of length :math:`10^{-3/2}`.
    """

    SELF_LENGTH = 1e3**-0.5

    def __init__(self, num_species: int, heads: int) -> None:
        super().__init__()
        self.num_species, self.heads = num_species, heads
        self.power = nn.Parameter(torch.empty(num_species, num_species, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the powers at random."""
        glorot(self.power)

    def forward(self, length: Tensor, target: Tensor, source: Tensor) -> Tensor:
        """Return the logits [E, H] of edges."""
        length = length.to(torch.promote_types(length.dtype, torch.float32))
        length = torch.where(length < SELF, self.SELF_LENGTH, length)
        power = self.power.flatten(0, 1)[target * self.num_species + source]
        return (length**-2)[:, None] ** power


class CoulombField(MessagePassing):
    """The field at every node: the mean of its neighbours' values under the law's own weights.

    PyG's explainers read one attention per module. This is a separate module so that they read
    ``alpha`` of ``CoulombGATConv`` and not these weights.
    """

    def __init__(self) -> None:
        super().__init__(node_dim=0)

    def forward(self, value: Tensor, edge_index: Tensor, field_weight: Tensor) -> Tensor:
        """Return the field [N, H, C] of values [N, H, C], with weights [E, H]."""
        # propagate_type: (value: Tensor, field_weight: Tensor)
        return self.propagate(edge_index, value=value, field_weight=field_weight)

    def message(self, value_j: Tensor, field_weight: Tensor) -> Tensor:
        """Weight the values of the sources."""
        return value_j * field_weight.unsqueeze(-1)


class CoulombGATConv(MessagePassing):
    r"""The attention operator of CoulGAT (arXiv 1912.08409) on a sparse graph with distances.

    Per head, the law :math:`\ell` alone turns values
    :math:`\mathbf{v}_i = \mathbf{W} \mathbf{x}_i + \mathbf{b}` into a field, which the target's
    query then scores,

    .. math::
        \mathbf{z}_i = \sum_{j \in \mathcal{N}(i)} \tilde{A}_{ij} \mathbf{v}_j, \qquad
        \tilde{A}_{ij} = \mathrm{softmax}_j(\ell_{ij})

    .. math::
        \mathbf{x}^{\prime}_i = \sum_{j \in \mathcal{N}(i)} \alpha_{ij} \mathbf{v}_j, \qquad
        \alpha_{ij} = \mathrm{softmax}_j(\mathrm{LeakyReLU}(\mathbf{a}_{t_i}^\top \mathbf{z}_j)
        + \ell_{ij})

    where :math:`t_i` is the species of node i. With :obj:`query="dynamic"` the score is
    :math:`\mathbf{a}_{t_i}^\top \mathrm{LeakyReLU}(\mathbf{Q} \mathbf{x}_i + \mathbf{z}_j)`. The
    law is in both softmaxes. The published operator has it in the first one only
    (:obj:`geom_bias=False`). The weights of a crystal's infinitely many atoms then depend on their
    species alone, and the output has no useful limit as the cutoff grows.

    Unlike other operators of this form it is not bipartite, since the fields of the sources come
    from the same graph. Two nodes may have any number of edges between them, and edges of a node
    to its own periodic images are kept. For such graphs, pass self loops as edges of length 0 and
    set :obj:`add_self_loops=False`; otherwise PyG's explainers take self images for self loops.

    ``matattn.kernels.periodic_attention`` cannot replace this law: its weights decay as Gaussians,
    and its gradients leave out any other term of the logits.

    Args:
        in_channels (int): Size of each input sample, or :obj:`-1` to derive it at the first call.
        out_channels (int): Size of each output sample, per head.
        heads (int, optional): Number of attention heads. (default: :obj:`1`)
        concat (bool, optional): If set to :obj:`False`, heads are averaged instead of
            concatenated. (default: :obj:`True`)
        num_species (int, optional): S, number of species; for the published operator the number
            of node slots. (default: :obj:`1`)
        law (str, optional): :obj:`"log"` (:class:`ScreenedCoulomb`) or :obj:`"reference"`
            (:class:`PowerOfAdjacency`, with one bias per species). (default: :obj:`"log"`)
        query (str, optional): :obj:`"static"` (published) or :obj:`"dynamic"`.
            (default: :obj:`"static"`)
        geom_bias (bool, optional): Whether the law is in the second softmax, too.
            (default: :obj:`True`)
        cutoff (float, optional): Length in Å beyond which an edge has no weight; :obj:`None` for a
            complete graph. (default: :obj:`None`)
        switch_width (float, optional): Å before the cutoff over which weights go to zero.
            (default: :obj:`1.0`)
        species_features (torch.Tensor, optional): Features [S, K] of the species, which tie their
            constants; :obj:`None` leaves these independent. (default: :obj:`None`)
        negative_slope (float, optional): LeakyReLU angle of the negative slope.
            (default: :obj:`0.2`)
        dropout (float, optional): Dropout probability of the attention coefficients.
            (default: :obj:`0`)
        add_self_loops (bool, optional): If set to :obj:`False`, will not append self loops of
            length 0 to the edges. (default: :obj:`True`)
        bias (bool, optional): If set to :obj:`False`, values have no additive bias.
            (default: :obj:`True`)
        residual (bool, optional): If set to :obj:`True`, a learnable skip-connection is added.
            (default: :obj:`False`)
        potential (bool, optional): If set to :obj:`True`, will append
            :math:`\ln \sum_j e^{\ell_{ij}}` of every head to the output: how much there is around
            the node, which no mean tells. (default: :obj:`False`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **input:** node features :math:`(|\mathcal{V}|, F_{in})`, edge indices
          :math:`(2, |\mathcal{E}|)`, edge lengths :math:`(|\mathcal{E}|)` in Å, species
          :math:`(|\mathcal{V}|)` from 0, constants of the logits :math:`(|\mathcal{E}|)`
          *(optional)*
        - **output:** node features :math:`(|\mathcal{V}|, H * F_{out})`, with H more columns if
          :obj:`potential=True`. If
          :obj:`return_attention_weights=True`, then :math:`((|\mathcal{V}|, H * F_{out}),
          ((2, |\mathcal{E}|), (|\mathcal{E}|, H)))`
    """

    probe: LayerProbe | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        num_species: int = 1,
        law: str = "log",
        query: str = "static",
        geom_bias: bool = True,
        cutoff: float | None = None,
        switch_width: float = 1.0,
        species_features: Tensor | None = None,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        bias: bool = True,
        residual: bool = False,
        potential: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(node_dim=0, **kwargs)
        for name, value, options in (("law", law, LAWS), ("query", query, QUERIES)):
            if value not in options:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(options)}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.heads, self.concat, self.geom_bias = heads, concat, geom_bias
        self.negative_slope, self.dropout = negative_slope, dropout
        self.add_self_loops, self.potential = add_self_loops, potential
        self.register_buffer("species_features", species_features, persistent=False)
        width = heads * out_channels
        self.lin = Linear(in_channels, width, bias=False, weight_initializer="glorot")
        kinds = num_species if species_features is None else species_features.shape[1]
        self.att = nn.Parameter(torch.empty(kinds, heads, out_channels))
        if law == "log":
            self.law: ScreenedCoulomb | PowerOfAdjacency = ScreenedCoulomb(
                num_species, heads, cutoff, switch_width, species_features
            )
            slots: tuple[int, ...] = (heads, out_channels)
        else:
            self.law = PowerOfAdjacency(num_species, heads)
            slots = (num_species, heads, out_channels)
        self.field = CoulombField()
        self.lin_query = (
            Linear(in_channels, width, bias=False, weight_initializer="glorot")
            if query == "dynamic"
            else None
        )
        self.bias = nn.Parameter(torch.empty(slots)) if bias else None
        self.res = (
            Linear(in_channels, width if concat else out_channels, bias=False,
                   weight_initializer="glorot")
            if residual else None
        )  # fmt: skip
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all parameters to their initial values."""
        super().reset_parameters()
        for module in (self.lin, self.law, self.lin_query, self.res):
            if module is not None:
                module.reset_parameters()
        glorot(self.att)
        zeros(self.bias)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_length: Tensor,
        species: Tensor,
        edge_bias: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        r"""Run the forward pass of the module.

        Args:
            x (torch.Tensor): The input node features.
            edge_index (torch.Tensor): The edge indices, from source to target.
            edge_length (torch.Tensor): The length of every edge, in Å.
            species (torch.Tensor): The species of every node, counted from 0.
            edge_bias (torch.Tensor, optional): Constants to add to the logits: the logarithm of
                the number of edges that each one stands for. (default: :obj:`None`)
            return_attention_weights (bool, optional): Will additionally return
                :obj:`(edge_index, attention_weights)` whenever it is set to a value.
                (default: :obj:`None`)
        """
        if self.probe is not None:
            edge_bias = self.probe.biased(edge_bias)
        if self.add_self_loops:
            loops = x.size(0)
            edge_index, _ = add_self_loops(edge_index, num_nodes=loops)
            edge_length = torch.cat([edge_length, edge_length.new_zeros(loops)])
            if edge_bias is not None:
                edge_bias = torch.cat([edge_bias, edge_bias.new_zeros(loops)])
        value = self.lin(x).view(-1, self.heads, self.out_channels)
        if self.bias is not None:
            value = value + (self.bias[species] if self.bias.dim() == 3 else self.bias)
        source, target = edge_index[0], edge_index[1]
        logits = self.law(edge_length, species[target], species[source])
        if edge_bias is not None:
            logits = logits + edge_bias.unsqueeze(-1)
        weight, log_sum = _softmax(logits, target, x.size(0))
        z = self.field(value, edge_index, weight.to(value.dtype))
        query: Tensor = self.att
        if self.species_features is not None:
            query = torch.einsum("sk,khc->shc", self.species_features, query)
        query = query[species]
        shift = None
        if self.lin_query is not None:
            shift = self.lin_query(x).view(-1, self.heads, self.out_channels)
        if not self.geom_bias:
            logits = torch.zeros_like(logits) if edge_bias is None else edge_bias.unsqueeze(-1)
        # edge_updater_type: (z: Tensor, query: Tensor, shift: OptTensor, logits: Tensor)
        alpha = self.edge_updater(edge_index, z=z, query=query, shift=shift, logits=logits)
        alpha = F.dropout(alpha.to(value.dtype), p=self.dropout, training=self.training)
        if self.probe is not None:
            alpha = self.probe.weigh(alpha, value[source])
        # propagate_type: (value: Tensor, alpha: Tensor)
        out = self.propagate(edge_index, value=value, alpha=alpha)
        if self.probe is not None:
            out = self.probe.gate(out)
        out = out.flatten(1) if self.concat else out.mean(dim=1)
        if self.res is not None:
            out = out + self.res(x)
        if self.potential:
            out = torch.cat([out, log_sum.to(out.dtype)], 1)
        if return_attention_weights is not None:
            return out, (edge_index, alpha)
        return out

    def edge_update(self, z_j: Tensor, query_i: Tensor, shift_i: Tensor | None, logits: Tensor,
                    index: Tensor, dim_size: int) -> Tensor:  # fmt: skip
        """Return the attention coefficients [E, H]."""
        if shift_i is None:
            score = F.leaky_relu((query_i * z_j).sum(dim=-1), self.negative_slope)
        else:
            score = (query_i * F.leaky_relu(shift_i + z_j, self.negative_slope)).sum(dim=-1)
        return _softmax(score + logits, index, dim_size)[0]

    def message(self, value_j: Tensor, alpha: Tensor) -> Tensor:
        """Weight the values of the sources."""
        return value_j * alpha.unsqueeze(-1)

    def __repr__(self) -> str:
        name, inputs, outputs = type(self).__name__, self.in_channels, self.out_channels
        return f"{name}({inputs}, {outputs}, heads={self.heads})"


def _softmax(logits: Tensor, target: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Return weights [E, H] that sum to one at every target, and their log-sum-exp [nodes, H].

    PyG's ``softmax`` does not return the latter.
    """
    logits = logits.to(accumulator(logits.dtype))
    zero = logits.new_zeros(nodes, logits.shape[1])
    with torch.no_grad():  # a shift that cancels
        index = target[:, None].expand_as(logits)
        most = zero.scatter_reduce(0, index, logits, "amax", include_self=False)
    weights = (logits - most[target]).exp()
    total = zero.index_add(0, target, weights)
    return weights / total[target], total.clamp(min=1e-30).log() + most
