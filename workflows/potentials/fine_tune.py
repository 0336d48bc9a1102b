"""Start a training from the weights of an earlier potential: ``init_from=RUN/model``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from matattn import bundle, pretrained
from matattn.models.crystalformer_potential import CrystalformerPotential
from matattn.potentials.dataset import Frame, collate, graph
from matattn.workflows.potentials.errors import constants_of

FRAMES_PER_BATCH = 16


def start_from(network: CrystalformerPotential, model: str | Path, frames: Sequence[Frame]) -> None:
    """Give ``network`` the weights of a potential (name or folder) of the same sizes.

    Constants of the elements are fitted anew to what the potential leaves of the energies of the
    training ``frames``, since two calculations rarely have the same zero of energy. Forces and
    stresses begin as the potential's. Of an ensemble, the first member.
    """
    networks, _, _ = bundle.load(pretrained.find(model))
    network.load_state_dict(cast(CrystalformerPotential, networks[0]).state_dict())
    left = [
        replace(frame, energy=frame.energy - energy)
        for frame, energy in zip(frames, energies(network, frames), strict=True)
    ]
    constants = constants_of(left)
    network.constants += torch.from_numpy(constants.alone)
    network.binding += torch.from_numpy(constants.binding)


@torch.no_grad()
def energies(network: CrystalformerPotential, frames: Sequence[Frame]) -> list[float]:
    """Return what a network says of the energy of every frame, eV."""
    rule, found = network.image_rule(), []
    for start in range(0, len(frames), FRAMES_PER_BATCH):
        part = frames[start : start + FRAMES_PER_BATCH]
        graphs = [graph(frame, rule, row, torch.float32) for row, frame in enumerate(part)]
        found += network(collate(part, graphs).structures).tolist()
    return found
