"""What networks read: structures, potentials, meshes, spins or text. One word for it everywhere.

A kind is also the name of its folder in ``workflows/``, whose ``predict`` has the class that loads
a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What all parts of matattn need to know of networks of one kind.

    Args:
        name: of the kind, and of its folder in ``workflows/``.
        predictor: the class of ``workflows/<name>/predict.py`` whose ``load(folder, device)``
            reads a bundle.
        bundle_keys: what config.json of a bundle must say beyond what all of them do.
        takes_input: whether a prediction is made of something that a user gives.
        uncertainty: the class of what bundles say of intervals and novelty.
        network: the base class of its networks, where other packages may bring some.
        dataset: the class of its data sets, where other packages may bring some.
    """

    name: str
    predictor: str
    bundle_keys: tuple[str, ...]
    takes_input: bool = True
    uncertainty: str = "matattn.uncertainty.Uncertainty"
    network: str = ""
    dataset: str = ""

    def load(self, folder: str | Path, device: str = "cpu") -> Any:
        """Return the predictor of a bundle; raises BundleError or ConfigError."""
        from matattn.extras import import_extra

        module = import_extra(f"matattn.workflows.{self.name}.predict")
        return getattr(module, self.predictor).load(folder, device)

    def calibrated(self, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> Any:
        """Return the intervals of a bundle, from what it says of them; raises KeyError."""
        module, _, name = self.uncertainty.rpartition(".")
        return getattr(import_module(module), name).from_parts(config, tensors)


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "structures",
            "Predictor",
            ("targets", "normaliser", "elements"),
            network="matattn.structures.network.StructureNetwork",
            dataset="matattn.structures.dataset.PropertyDataset",
        ),
        Kind(
            "meshes",
            "FieldPredictor",
            ("targets", "normaliser", "coordinates", "inputs", "input_scaling"),
            uncertainty="matattn.meshes.uncertainty.FieldUncertainty",
            network="matattn.meshes.network.MeshNetwork",
            dataset="matattn.meshes.fields.FieldDataset",
        ),
        Kind(
            "potentials",
            "Potential",
            ("elements",),
            dataset="matattn.potentials.dataset.PotentialDataset",
        ),
        Kind("spins", "WaveFunction", ("system", "observables"), takes_input=False),
        Kind(
            "text",
            "TextModel",
            ("labels", "vocabulary"),
            uncertainty="matattn.text_uncertainty.LabelSets",
            dataset="matattn.text.TextDataset",
        ),
    )
}


def kind_of(config: Mapping[str, Any]) -> Kind:
    """Return the kind of a bundle from its config.json, which names none if it is "structures".

    Raises KeyError for a kind that is not known.
    """
    return KINDS[str(config.get("kind", "structures"))]
