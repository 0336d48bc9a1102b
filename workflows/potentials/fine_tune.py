"""Start a training from the weights of an earlier potential: ``init_from=RUN/model``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from pymatgen.core import Element

from matattn import bundle, pretrained
from matattn.errors import ConfigError
from matattn.models.crystalformer_potential import CrystalformerPotential
from matattn.potentials.dataset import Frame
from matattn.workflows.potentials.errors import batches_of, constants_of


@torch.no_grad()
def start_from(network: CrystalformerPotential, model: str | Path, frames: Sequence[Frame]) -> None:
    """Give ``network`` the weights of a potential (name or folder) of the same sizes.

    Constants of the elements are fitted anew to what the potential leaves of the energies of the
    training ``frames``, since two calculations rarely have the same zero of energy. Forces and
    stresses begin as the potential's. Raises ConfigError for elements that it does not know.
    """
    networks, config, _ = bundle.load(pretrained.find(model))
    known = set(config["elements"])
    if unknown := {int(z) for frame in frames for z in frame.z} - known:
        raise ConfigError(
            f"init_from={model}: this potential knows {_symbols(known)}, and the training "
            f"structures have {_symbols(unknown)}: leave init_from out"
        )
    network.load_state_dict(cast(CrystalformerPotential, networks[0]).state_dict())
    left = [
        replace(frame, energy=frame.energy - energy)
        for part, batch in batches_of(network, frames)
        for frame, energy in zip(part, network(batch.structures).tolist(), strict=True)
    ]
    constants = constants_of(left)
    network.constants += torch.from_numpy(constants.alone)
    network.binding += torch.from_numpy(constants.binding)


def _symbols(numbers: set[int]) -> str:
    return ", ".join(Element.from_Z(z).symbol for z in sorted(numbers))
