"""CGCNN and SchNet from PyTorch Geometric's operators, with periodic neighbour lists.

Its own neighbour search needs a compiled extra: lists come from
``matattn.structures.neighbors``.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import CGConv, SchNet, global_mean_pool

from matattn.structures.batch import geometry
from matattn.structures.neighbors import periodic_neighbors


class CGCNN(nn.Module):
    """Xie and Grossman 2018: 64 channels, 3 convolutions, 41 Gaussians from 0 to 8 Å.

    ``elements`` [100, F] are the features of each element.
    """

    elements: Tensor
    centers: Tensor

    def __init__(self, elements: Tensor) -> None:
        super().__init__()
        self.register_buffer("elements", elements)
        self.register_buffer("centers", torch.arange(0, 8.1, 0.2))
        self.embedding = nn.Linear(elements.shape[1], 64)
        self.convolutions = nn.ModuleList(CGConv(64, 41, batch_norm=True) for _ in range(3))
        self.head = nn.Sequential(
            nn.Softplus(), nn.Linear(64, 128), nn.Softplus(), nn.Linear(128, 1)
        )

    def forward(self, batch: Batch) -> Tensor:
        basis = torch.exp(-((batch.distance[:, None] - self.centers) ** 2) / 0.2**2)
        x = self.embedding(self.elements[batch.z - 1])
        for convolution in self.convolutions:
            x = convolution(x, batch.edge_index, basis)
        return self.head(global_mean_pool(x, batch.batch))


def published_elements() -> Tensor:
    """CGCNN's published 92 features of 100 elements, as the package jarvis-tools brings them."""
    package = find_spec("jarvis")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("CGCNN's element features: pip install jarvis-tools")
    text = Path(package.origin).with_name("core").joinpath("atom_init.json").read_text()
    table = json.loads(text)
    return torch.tensor([table[str(z)] for z in range(1, 101)], dtype=torch.float32)


class GivenGraph(nn.Module):
    """SchNet's edges and distances, from the batch instead of a neighbour search."""

    def forward(self, batch: Batch, _: Tensor) -> tuple[Tensor, Tensor]:
        return batch.edge_index, batch.distance


class PeriodicSchNet(SchNet):
    """Schütt et al. 2018: 128 channels, 6 blocks, 50 Gaussians up to ``cutoff`` Å."""

    def __init__(self, cutoff: float) -> None:
        super().__init__(cutoff=cutoff, interaction_graph=GivenGraph(), readout="mean")

    def forward(self, batch: Batch) -> Tensor:
        return super().forward(batch.z, batch, batch.batch)  # positions are used for edges only


def nearest_graph(item: Data, cutoff: float, nearest: int | None = None) -> Data:
    """The ``nearest`` images within the cutoff (None: all), the atom itself left out."""
    z, pos, cell = geometry(item)
    target, source, _, distance = periodic_neighbors(pos.astype(float), cell.astype(float), cutoff)
    order = np.lexsort((distance, target))
    order = order[distance[order] > 1e-8]
    rank = np.arange(len(order)) - np.searchsorted(target[order], target[order])
    kept = order[rank < nearest] if nearest else order
    edges = torch.from_numpy(np.stack([source[kept], target[kept]]))
    return Data(z=item.z, y=item.y, num_nodes=len(z), edge_index=edges,
                distance=torch.from_numpy(distance[kept]).float())  # fmt: skip
