"""Every configuration composes, builds, and has no key that nothing uses."""

import copy
import json
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from matattn import networks
from matattn.citations import entries
from matattn.conf.schema import register
from matattn.config import build, check_targets, read_data
from matattn.kinds import KINDS
from matattn.meshes.network import MeshNetwork
from matattn.models.crystalformer_potential import CrystalformerPotential
from matattn.structures.batch import collate
from matattn.structures.network import StructureNetwork
from matattn.testing import random_crystal
from matattn.workflows.fitting import GradientDescent
from matattn.workflows.task import TASKS

CONF = Path(str(files("matattn.conf")))


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


REQUIRED = {
    "path": "my.jsonl",
    "targets": ["e_form"],
    "query": {"elements": ["Li", "O"]},
    "base_url": "https://oqmd.org/optimade",
    "filter": "nsites<=8",
    "fields": {"formation_energy_per_atom": "_oqmd_delta_e"},
    "corpus": "papers",
    "labelled": "labelled.txt",
}


@cache
def _composed(*overrides):
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        cfg = compose("train", [*overrides, "paths.data=nowhere"])
    for key, value in REQUIRED.items():
        if OmegaConf.is_missing(cfg.data, key):
            OmegaConf.update(cfg.data, key, value)
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def composed(*overrides):
    return copy.deepcopy(_composed(*overrides))


@cache
def _built(section, key, arguments):
    return build(json.loads(section), key, **json.loads(arguments))


def built(section, key, **arguments):
    """What the section describes, without values where it is a network; made once for a section."""
    # Of the elements' properties, the features are computed from values.
    device = "cpu" if section.get("element_features") == "properties" else "meta"
    with torch.device(device):
        return _built(json.dumps(section), key, json.dumps(arguments))


CHOICES = [
    f"{group}={option}"
    for group in ("model", "data", "optimizer", "experiment", "trainer", "logger", "paths", "task")
    for option in options(group)
]


@pytest.mark.parametrize("choice", CHOICES)
def test_composes_and_builds(choice):
    """Composed with its group's defaults, every part builds: an unknown key would be refused."""
    config = composed(choice)
    check_targets(config)
    model = config["model"]
    assert isinstance(model.pop("name"), str)
    if model["_target_"].startswith("matattn.models.flare."):
        assert isinstance(built(model, "model", num_inputs=3), MeshNetwork)
    elif model["_target_"].startswith("matattn.models.factored_attention."):
        built(model | {"patch": [2, 2]}, "model", extent=[4, 4])
    elif model["_target_"].endswith(".CrystalformerPotential"):
        assert isinstance(built(model, "model"), CrystalformerPotential)
    elif config["data"]["kind"] == "text":
        sizes = {"vocab_size": 50, "num_labels": 3} if "vocab_size" in model else {}
        built(model | sizes, "model")
    else:
        targets = len(config["data"].get("targets", ["one"]))
        assert isinstance(built(model, "model", num_targets=targets), StructureNetwork)
    if "schedule" in config["optimizer"]:
        GradientDescent.read(config["optimizer"])
        built(config["optimizer"]["schedule"], "optimizer.schedule")
    else:
        TASKS["variational_monte_carlo"].load().optimizer.read(config["optimizer"])
    built(config["trainer"], "trainer", logger=False, default_root_dir="nowhere")
    if not choice.startswith(("data=", "task=")):  # a wrong pair is refused when the run begins
        network = networks.find(model["_target_"].rsplit(".", 1)[1])
        assert config["data"]["kind"] == network.kind


@pytest.mark.parametrize("option", options("task"))
def test_tasks_list_the_defaults_of_their_settings(option):
    section = OmegaConf.to_container(OmegaConf.load(CONF / "task" / f"{option}.yaml"))
    defaults = asdict(TASKS[section["workflow"]].load().settings())
    assert section == defaults and list(section) == list(defaults)


def test_natural_gradient_lists_its_defaults():
    section = OmegaConf.load(CONF / "optimizer" / "natural_gradient.yaml")
    assert section == asdict(TASKS["variational_monte_carlo"].load().optimizer())


@pytest.mark.parametrize("option", options("data"))
def test_data_keys_are_arguments_of_the_loader(option):
    import inspect
    from importlib import import_module

    data = composed(f"data={option}")["data"]
    module, name = data.pop("_target_").rsplit(".", 1)
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    assert set(data) - {"kind", "structures", "licence", "citations"} <= set(parameters)


@pytest.mark.parametrize("option", options("data"))
def test_data_say_their_kind_licence_and_citations(option):
    data = composed(f"data={option}")["data"]
    source, target = read_data(data)
    assert source.kind in KINDS and source.name == data["name"]
    assert not {"kind", "structures", "licence", "citations"} & set(target.arguments)
    assert data.get("structures", "molecules") == "molecules"
    assert "structures" not in data or data["kind"] == "structures"
    if option in ("crystals", "meshes", "potential_files", "table", "text_files"):  # the user's own
        assert "licence" not in data and "citations" not in data
    else:
        licence = data.get("licence", "CC0")
        assert isinstance(licence, str) and licence.strip()
        assert data["citations"] and len(entries(data["citations"])) == len(data["citations"])


def test_data_that_inherit_a_configuration_have_their_own_citations():
    assert composed("data=matbench")["data"]["citations"] == ["matbench"]
    data = composed("data=matbench_phonons")["data"]
    assert data["citations"] == ["matbench", "phonons"]
    assert data["name"] == composed("data=matbench")["data"]["name"]  # of the default task


@pytest.mark.parametrize(
    "option, sizes, epochs, batch_size",
    [
        ("mp_formation_energy", [60000, 5000, 4239], 500, 128),
        ("mp_band_gap", [60000, 5000, 4239], 500, 128),
        ("mp_bulk_modulus", [4664, 393, 393], 500, 128),
        ("mp_shear_modulus", [4664, 392, 393], 500, 128),
        ("jarvis_formation_energy", [44578, 5572, 5572], 800, 256),
        ("jarvis_total_energy", [44578, 5572, 5572], 800, 256),
        ("jarvis_band_gap_opt", [44578, 5572, 5572], 800, 256),
        ("jarvis_band_gap_mbj", [14537, 1817, 1817], 1600, 256),
        ("jarvis_energy_above_hull", [44296, 5537, 5537], 800, 256),
        ("dual_space_jarvis_formation_energy", [44578, 5572, 5572], 800, 256),
        ("dual_space_jarvis_total_energy", [44578, 5572, 5572], 800, 256),
        ("dual_space_jarvis_band_gap_opt", [44578, 5572, 5572], 800, 256),
        ("dual_space_jarvis_band_gap_mbj", [14537, 1817, 1817], 1600, 256),
        ("dual_space_jarvis_energy_above_hull", [44296, 5537, 5537], 800, 256),
    ],
)
def test_published_recipes(option, sizes, epochs, batch_size):
    config = composed(f"experiment=crystalformer_{option}")
    assert config["data"]["sizes"] == sizes
    assert config["trainer"]["max_epochs"] == epochs
    assert config["trainer"]["gradient_clip_val"] == 1.0
    task = {key: config["task"][key] for key in ("batch_size", "averaging_epochs", "select")}
    assert task == {"batch_size": batch_size, "averaging_epochs": 50, "select": "final"}
    optimizer = config["optimizer"]
    assert (optimizer["lr"], optimizer["betas"]) == (5e-4, [0.9, 0.98])
    assert optimizer["schedule"]["_target_"].endswith("InverseSquareRoot")
    assert config["seed"] == 123
    network = built(_without_name(config["model"]), "model")
    parameters = 837_121 if "dual_space" in option else 853_505
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    "option, inputs, parameters, latents, batch_size, weight_decay, epochs",
    [
        ("elasticity", 2, 592_641, 64, 2, 1e-5, 500),
        ("darcy", 3, 691_009, 256, 2, 1e-5, 500),
        ("airfoil", 2, 690_945, 256, 2, 1e-5, 500),
        ("pipe", 2, 625_409, 128, 2, 1e-5, 500),
        ("drivaerml_40k", 3, 691_009, 256, 1, 1e-4, 500),
        ("lpbf", 3, 625_473, 128, 1, 1e-4, 250),
    ],
)
def test_published_recipes_of_flare(
    option, inputs, parameters, latents, batch_size, weight_decay, epochs
):
    config = composed(f"experiment=flare_{option}")
    network = built(_without_name(config["model"]), "model", num_inputs=inputs)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert config["model"]["num_latents"] == latents
    assert config["task"]["batch_size"] == batch_size
    assert config["task"]["gradient_weight"] == (0.1 if option == "darcy" else 0.0)
    assert config["trainer"]["max_epochs"] == epochs
    assert config["trainer"]["gradient_clip_val"] == 1.0
    optimizer = config["optimizer"]
    assert (optimizer["lr"], optimizer["weight_decay"]) == (1e-3, weight_decay)
    assert optimizer["schedule"]["_target_"].endswith("OneCycleWithMomentum")


def _without_name(model):
    return {key: value for key, value in model.items() if key != "name"}


def test_dual_space_network_trains():
    """Three steps in float32 from its configuration: every gradient finite, the loss falls."""
    torch.manual_seed(0)
    network = build(_without_name(composed("model=crystalformer_dual_space")["model"]), "model")
    generator = np.random.default_rng(0)
    samples = [random_crystal(generator, atoms) for atoms in (1, 4, 4, 7)]
    batch = collate(samples, network.image_rule(3e-4)).to(dtype=torch.float32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4)
    losses = []
    for _ in range(3):
        loss = (network(batch)[:, 0] - torch.arange(4)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]


def test_data_can_be_overridden_under_a_model_and_an_experiment():
    assert composed("model=crystalformer", "data=mp2018_subset")["data"]["name"] == "mp2018_subset"
    config = composed("experiment=crystalformer_mp_band_gap", "model.num_blocks=7")
    assert config["model"]["num_blocks"] == 7 and config["data"]["targets"] == ["band_gap"]


@pytest.mark.parametrize("override", ["trainer.epochz=3", "modle=x", "seeed=1", "data.pth=x"])
def test_misspelt_keys_are_refused(override):
    with pytest.raises(ConfigCompositionException):
        composed(override)


def test_units_can_be_given_on_the_command_line():
    config = composed("data=crystals", "data.targets=[tc]", "data.units={tc: K}")
    assert config["data"]["units"] == {"tc": "K"}


def test_commands_of_the_documentation_are_read_as_they_are_meant():
    """docs/data.md, after the shell took its quotes."""
    config = composed(
        "data=optimade",
        'data.filter="elements HAS \\"Li\\" AND nsites<=8"',
        "data.fields={formation_energy_per_atom: _oqmd_delta_e}",
    )
    assert config["data"]["filter"] == 'elements HAS "Li" AND nsites<=8'
    assert config["data"]["fields"] == {"formation_energy_per_atom": "_oqmd_delta_e"}
    config = composed(
        "data=materials_project", "data.query={elements: [Li, O], num_sites: [1, 20]}"
    )
    assert config["data"]["query"] == {"elements": ["Li", "O"], "num_sites": [1, 20]}
    targets = "data.targets=[displacement_x,displacement_y]"
    units = "data.units={displacement_x: mm, displacement_y: mm, x: mm}"
    data = composed("data=meshes", "data.path=folder", "data.inputs=[permeability]", targets, units)
    assert data["data"]["units"] == {"displacement_x": "mm", "displacement_y": "mm", "x": "mm"}
    assert composed("data=drivaerml_40k", "data.points=1m")["data"]["name"] == "drivaerml_1m"
    config = composed("data=matbench", "data.task=log_kvrh", "data.fold=3")
    assert config["data"]["path"] == "nowhere/matbench/matbench_log_kvrh.json.gz"
    assert config["data"]["name"] == "matbench_log_kvrh"
    config = composed("data=matbench_phonons")["data"]
    assert (config["task"], config["path"].split("/")[-2]) == ("phonons", "crystals")
