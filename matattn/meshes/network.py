"""What every network of fields on meshes offers: the typed interface, and its defaults."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from matattn.attention import AttentionLayer
from matattn.meshes.batch import MeshBatch


class MeshNetwork(nn.Module):
    """Base of all networks of fields: ``forward(batch)`` gives normalised fields [nodes, T].

    A subclass defines ``forward``; the other members have defaults.
    ``matattn.testing.MeshContract`` checks all of them.

    Attributes:
        kind: what the network reads, one of ``matattn.kinds.KINDS``.
        citations: what to cite for it: keys of ``matattn/references.bib``, or BibTeX entries.
    """

    kind: ClassVar[str] = "meshes"
    citations: ClassVar[tuple[str, ...]] = ()

    @property
    def can_share_nodes(self) -> bool:
        """Return whether processes can share the nodes of every mesh (``share_nodes``)."""
        return False

    def share_nodes(self) -> None:
        """Let every process of the default group give its own part of each mesh from now on."""
        raise NotImplementedError

    def spectrum(self, batch: MeshBatch) -> tuple[Tensor, list[Tensor]] | None:
        """Return eigenvalues and eigenvectors of the mixing on one mesh; None without any."""
        return None

    def attention_layers(self) -> list[AttentionLayer]:
        """Return the layers whose attention can be looked into, from the input on."""
        return []

    def with_features(self, batch: MeshBatch) -> tuple[Tensor, Tensor | None]:
        """Return ``forward(batch)``, and features [B, F] of the meshes that tell unlike ones apart.

        None for a network that has none.
        """
        return self(batch), None

    def forward(self, batch: Any) -> Tensor:
        """Return the normalised fields [nodes, T] of a batch."""
        raise NotImplementedError
