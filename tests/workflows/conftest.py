"""A small run on crystals, and small networks to be explained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Molecule, Structure
from safetensors.torch import load_file
from torch import nn

from matattn.models.coulgat import CoulGAT
from matattn.models.crystalformer import Crystalformer
from matattn.structures.structure import to_tensors
from matattn.workflows import outputs, run
from matattn.workflows.structures.explained import prepare
from matattn.workflows.structures.predict import Predictor

SMALL = [
    "model.dim=16",
    "model.num_heads=2",
    "model.ffn_dim=24",
    "model.num_radial=16",
    "task.batch_size=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=4",
]


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """48 crystals in two structure types whose energy depends on elements and volume."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "crystals.jsonl"
    lines = []
    for number in range(48):
        z = generator.integers(3, 30, 2).tolist()
        a = float(generator.uniform(3.5, 6))
        frac = [[0, 0, 0], [0.5, 0.5, 0.5]] if number % 2 else [[0, 0, 0], [0.25, 0.25, 0.25]]
        energy = float(0.05 * (z[0] - z[1]) + (a - 4.5) ** 2 + 0.3 * (number % 2))
        split = "test" if number >= 40 else "val" if number >= 32 else "train"
        row = {"id": f"c{number}", "lattice": (a * np.eye(3)).tolist(), "Z": z, "frac": frac}
        row |= {"e_form": energy, "split": split}
        if number % 3:
            row["gap"] = abs(energy)
        lines.append(json.dumps(row))
    lines.append(json.dumps({"id": "bad", "lattice": [[0] * 3] * 3, "Z": [3], "frac": [[0] * 3]}))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def config(compose):
    """Return a function: the configuration of a small training on a table of crystals."""

    def configure(table, folder, *overrides):
        data = ["data=crystals", f"data.path={table}", "data.targets=[e_form,band_gap]"]
        return compose(*SMALL, *data, f"paths.output_dir={folder}", *overrides)

    return configure


@pytest.fixture(scope="session")
def finished(config, table, tmp_path_factory):
    """A finished run: its folder and metrics; to be read only."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run.run(config(table, folder))


def _weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


@pytest.fixture(scope="session")
def weights():
    """Return a function: the tensors of the model in a run folder."""
    return _weights


@pytest.fixture(scope="session")
def assert_same_bits():
    """Return a function that compares the models of two run folders."""

    def compare(one, other):
        one, other = _weights(one), _weights(other)
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name

    return compare


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The environment of commands that see a Slurm cluster on this machine.

    Needs root and the Debian packages slurm-wlm and munge; ``.ci/run`` installs them.
    """
    if not shutil.which("slurmctld") or not shutil.which("munged") or os.geteuid() != 0:
        pytest.skip("needs root, slurm-wlm and munge")
    folder = tmp_path_factory.mktemp("slurm")
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parents[1] / "cluster" / "start_slurm.sh"
    said = folder / "start.log"  # a file: the daemons would keep a pipe open
    with said.open("w") as log:
        started = subprocess.run(["bash", script, folder], stdout=log, stderr=log, timeout=120)
    if started.returncode:
        pytest.skip(f"Slurm does not start on this machine: {said.read_text()[-300:]}")
    yield environment
    subprocess.run(["scancel", "--state=RUNNING"], env=environment)
    subprocess.run(["scancel", "--state=PENDING"], env=environment)
    for file in folder.glob("slurm*.pid"):
        subprocess.run(["kill", file.read_text().strip()])


@contextmanager
def _default(setter, changed, usual):
    setter(changed)
    try:
        yield
    finally:
        setter(usual)


UNUSUAL = {
    "float64": lambda: _default(torch.set_default_dtype, torch.float64, torch.float32),
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "another device": lambda: _default(torch.set_default_device, "meta", None),
}


@pytest.fixture(params=UNUSUAL)
def unusual_torch(request):
    """Return a function: a block in which PyTorch is set as other libraries or users set it."""
    return UNUSUAL[request.param]


@pytest.fixture
def assert_cleared(tmp_path):
    """Return a function: nothing of a run stays when its folder is cleared."""

    def clear(folder):
        copy = tmp_path / "cleared"
        shutil.copytree(folder, copy)
        outputs.clear(copy)
        assert not any(copy.iterdir())

    return clear


def make_predictor(network: nn.Module, kind: str) -> Predictor:
    config = {
        "targets": [{"name": "energy", "unit": "eV"}],
        "normaliser": {"mean": [1.0], "std": [2.0]},
        "elements": [1, 6, 8, 11, 17],
        "structures": kind,
    }
    return Predictor(network.eval(), config)


def make_crystals() -> list[dict]:
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0] * 3, [0.5] * 3]
    )
    skewed = Structure(Lattice([[3, 0, 0], [0.7, 3.4, 0], [0.2, 0.5, 4]]), ["C", "O"],
                       [[0, 0, 0], [0.4, 0.55, 0.5]])  # fmt: skip
    named = {"salt": salt.get_primitive_structure(), "skewed": skewed}
    return [{"id": name, **to_tensors(s)} for name, s in named.items()]


def make_molecules(count: int = 4) -> list[dict]:
    rng = np.random.default_rng(0)
    items = []
    for number in range(count):
        places = np.array([[0, 0, 0], [1.2, 0, 0], [-0.6, 0.95, 0], [-0.6, -0.95, 0.1]])
        places = places + 0.1 * rng.normal(size=places.shape)
        molecule = Molecule(["C", "O", "H", "H"], places)
        items.append({"id": f"m{number}", **to_tensors(molecule), "y": torch.zeros(1, 1)})
    return items


def make_coulgat(**options) -> CoulGAT:
    network = CoulGAT(dim=16, num_heads=2, num_blocks=2, ffn_dim=16, elements=[1, 6, 8, 11, 17],
                      **options)  # fmt: skip
    for parameter in network.law_parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def make_crystalformer(**options) -> Crystalformer:
    network = Crystalformer(dim=16, num_heads=2, num_blocks=2, ffn_dim=16, num_radial=8, **options)
    for block in network.blocks:  # as after training: widths do not depend on the batch
        block.attention.sigma_fitted.fill_(True)
        if block.attention.moments is not None:
            block.attention.moments.fitted.fill_(True)
    return network


CASES = {
    "coulgat on molecules": (make_coulgat, "molecules", make_molecules),
    "coulgat on crystals": (make_coulgat, "crystals", make_crystals),
    "plain coulgat": (lambda: make_coulgat(residual=False), "molecules", make_molecules),
    "law in the first softmax only": (
        lambda: make_coulgat(geom_bias=False),
        "molecules",
        make_molecules,
    ),
    "crystalformer": (make_crystalformer, "crystals", make_crystals),
    "angular": (lambda: make_crystalformer(moments="angular"), "crystals", make_crystals),
    "dual space": (lambda: make_crystalformer(reciprocal="converged"), "crystals", make_crystals),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=CASES)
def subjects(request):
    make, kind, items = CASES[request.param]
    return list(prepare(make_predictor(make(), kind), items()))


@pytest.fixture(scope="session")
def explained_cases():
    """Networks, what they read, and items for each; by name."""
    return CASES


@pytest.fixture(scope="session")
def predictor():
    """Return a function: the predictor of a network, and of what it reads."""
    return make_predictor


@pytest.fixture(scope="session")
def molecules():
    """Return a function: so many molecules."""
    return make_molecules


@pytest.fixture(scope="session")
def crystals():
    """Return a function: two crystals."""
    return make_crystals


@pytest.fixture(scope="session")
def coulgat():
    """Return a function: a small network with such options."""
    return make_coulgat


@pytest.fixture
def on_molecules():
    """Return a function: what is explained of a network on molecules."""
    return lambda network: list(prepare(make_predictor(network, "molecules"), make_molecules()))
