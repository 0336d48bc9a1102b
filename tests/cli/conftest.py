"""A potential and crystals for it."""

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from matattn import bundle
from matattn.datasets.stillinger_weber import crystal
from matattn.models.crystalformer_potential import CrystalformerPotential


@pytest.fixture(scope="session")
def potential_model(tmp_path_factory):
    """The bundle of a potential that was not trained: smooth, and with minima."""
    torch.manual_seed(0)
    arguments = {"dim": 8, "hidden": 8, "channels": 4, "num_radial": 8, "num_blocks": 1}
    folder = tmp_path_factory.mktemp("model") / "model"
    network = CrystalformerPotential(**arguments)
    config = {"kind": "potentials", "elements": [14], "data": {"name": "none"}, "seed": 0,
              "metrics": {}, "licence": ""}  # fmt: skip
    bundle.save(folder, network, arguments, config, "a card\n")
    return folder


@pytest.fixture
def silicon_files(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(3):
        pos, cell = crystal(1)
        moved = pos / cell[0, 0] + generator.normal(scale=0.01, size=pos.shape)
        Structure(Lattice(cell), ["Si"] * 8, moved).to(str(tmp_path / f"si{number}.cif"))
    Structure(Lattice.cubic(4), ["Au"], [[0, 0, 0]]).to(str(tmp_path / "gold.cif"))
    (tmp_path / "broken.cif").write_text("nothing")
    return [str(tmp_path / f"{name}.cif") for name in ("si0", "gold", "si1", "broken", "si2")]
