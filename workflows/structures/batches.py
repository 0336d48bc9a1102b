"""Batches of a training on structures, and where their neighbour lists are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import torch
from torch.utils.data import DataLoader

from matattn.errors import ConfigError
from matattn.parallel import parallel_map
from matattn.structures.batch import CrystalBatch, CrystalGraph, collate, join, to_graph
from matattn.structures.dataset import PropertyDataset
from matattn.structures.image_rule import ImageRule
from matattn.structures.items import Geometries, Geometry
from matattn.structures.neighbor_store import NeighborStore, is_alone
from matattn.structures.neighbors import Neighbors
from matattn.workflows.fitting import make_loaders

WORTH_A_PROCESS = 500  # crystals whose neighbour lists take as long as to start a process
MOST_IN_MEMORY = 2**30  # bytes of neighbour lists; more are kept in files
_SAMPLE = 32  # structures that tell how long the lists are


@dataclass(frozen=True)
class Batches:
    """Training and validation structures, as rows of a data set, and how batches are made of them.

    ``size`` of a row is what the time for it grows with: its neighbours, or atoms.
    """

    splits: Mapping[str, Sequence[int]]
    batch_size: int
    make: Callable[[Sequence[int]], CrystalBatch]
    size: Callable[[int], int]

    @classmethod
    def of(cls, dataset: PropertyDataset, batch_size: int, images: ImageRule) -> Self:
        """Make the neighbour lists that the rule ``images`` asks for, once for all epochs.

        They stay in memory, or in the folder of the cache if they would take more than
        ``MOST_IN_MEMORY``. Raises ConfigError when the atoms of a structure do not see each other,
        and WriteError when the cache has no room.
        """
        splits = {s: dataset.rows(s).tolist() for s in ("train", "val") if len(dataset.rows(s))}
        structures = Geometries.of(dataset.items)
        if images.box:  # quick to make, and too long to keep: 125 images of every pair
            sites = structures.sites.tolist()
            return cls(splits, batch_size, partial(_boxes, dataset, images), sites.__getitem__)
        wanted = np.concatenate([*splits.values()])
        expected = _expected_bytes(structures, images, wanted)
        if expected > MOST_IN_MEMORY:
            store = NeighborStore.open(
                images, structures, wanted, expected, torch.get_num_threads()
            )
            for row in wanted[store.alone[wanted]]:
                _refuse(dataset.items[row].id, images)
            edges = store.edges.tolist()
            return cls(splits, batch_size, partial(_stored, dataset, store), edges.__getitem__)
        graphs: dict[int, CrystalGraph] = {}
        for split, rows in splits.items():
            graphs |= _graphs(dataset, structures, rows, images, split)
        return cls(
            splits,
            batch_size,
            lambda rows: join([graphs[row] for row in rows]),
            lambda row: len(graphs[row].neighbors.source),
        )

    def loaders(self, seed: int) -> dict[str, DataLoader]:
        """Return loaders of the splits; the training rows come in the order of ``seed``."""
        return make_loaders(self.splits, self.batch_size, seed, self.make, self.size)


def _expected_bytes(structures: Geometries, images: ImageRule, wanted: np.ndarray) -> float:
    """Return about how many bytes the neighbour lists of the rows ``wanted`` take."""
    sample = wanted[:: -(-len(wanted) // _SAMPLE)]
    lists = [_neighbors(images, structures[row]) for row in sample]
    taken = sum(a.nbytes for one in lists for a in vars(one).values() if a is not None)
    return taken / len(sample) * len(wanted)


def _graphs(
    dataset: PropertyDataset,
    structures: Geometries,
    rows: Sequence[int],
    images: ImageRule,
    split: str,
) -> dict[int, CrystalGraph]:
    """Return all structures of a split with their neighbour lists, by row."""
    lists = parallel_map(
        partial(_neighbors, images),
        [structures[row] for row in rows],
        f"neighbour lists ({split})",
        worth_a_process=WORTH_A_PROCESS,
        chunk=64,
        most=torch.get_num_threads(),
    )
    graphs = {}
    for row, neighbors in zip(rows, lists, strict=True):
        if is_alone(neighbors, int(structures.sites[row]), images.cutoff):
            _refuse(dataset.items[row].id, images)
        graphs[row] = to_graph(dataset.items[row], neighbors, row)
    return graphs


def _neighbors(images: ImageRule, geometry: Geometry) -> Neighbors:
    return images(*geometry).to_keep()


def _stored(dataset: PropertyDataset, store: NeighborStore, rows: Sequence[int]) -> CrystalBatch:
    return join([to_graph(dataset.items[row], store[row], row) for row in rows])


def _boxes(dataset: PropertyDataset, images: ImageRule, rows: Sequence[int]) -> CrystalBatch:
    return collate([dataset.items[row] for row in rows], images, rows)


def _refuse(identifier: str, images: ImageRule) -> None:
    raise ConfigError(
        f"{identifier}: no atom has another one within the network's range of "
        f"{images.cutoff:g} Å; raise model.cutoff"
    )
