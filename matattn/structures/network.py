"""What every network of crystals and molecules offers: the typed interface, and its defaults."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from matattn.attention import AttentionLayer
from matattn.structures.image_rule import ImageRule


class StructureNetwork(nn.Module):
    """Base of all networks of structures: ``forward(batch) = readout(features(batch))``.

    A subclass defines ``image_rule``, ``features``, ``readout`` and ``output_layer``; the other
    members have defaults. ``matattn.testing.StructureContract`` checks all of them.

    Attributes:
        kind: what the network reads, one of ``matattn.kinds.KINDS``.
        citations: what to cite for it: keys of ``matattn/references.bib``, or BibTeX entries.
        reads_molecules: whether it reads structures without a cell.
        operators: names of the kernel operators (folders of kernels/) that its forward pass calls.
    """

    kind: ClassVar[str] = "structures"
    citations: ClassVar[tuple[str, ...]] = ()
    reads_molecules: ClassVar[bool] = False
    operators: ClassVar[tuple[str, ...]] = ()

    @property
    def level(self) -> str:
        """Return what has a value of each target: "structure", "atom" or "pair"."""
        return "structure"

    @property
    def element_constants(self) -> Tensor | None:
        """Return the constants [elements, T] that the network adds for its atoms, if it has any."""
        return None

    def image_rule(self, tolerance: float, symmetry: float = 0.0) -> ImageRule:
        """Return which images the network sums, down to a weight of ``tolerance``.

        With ``symmetry`` (Å), equivalent atoms may stand as one row where the network allows it.
        """
        raise NotImplementedError

    def features(self, batch: Any) -> Tensor:
        """Return what the network knows of every structure, atom or pair [rows, F]."""
        raise NotImplementedError

    def readout(self, features: Tensor) -> Tensor:
        """Return the outputs [rows, T] of features [rows, F]."""
        raise NotImplementedError

    def output_layer(self) -> nn.Linear:
        """Return the last layer, with one row per target."""
        raise NotImplementedError

    def check(self, z: Tensor, pos: Tensor, cell: Tensor, where: str = "structure") -> None:
        """Raise StructureError, beginning with ``where``, for what the network cannot read."""

    def attention_layers(self) -> list[AttentionLayer]:
        """Return the layers whose attention can be looked into, from the input on."""
        return []

    def forward(self, batch: Any) -> Tensor:
        """Return the outputs [rows, T] of a batch."""
        return self.readout(self.features(batch))
