"""Trainings that start from an earlier model."""

import pytest
import torch
from pymatgen.core import Molecule

import matattn
from matattn import bundle
from matattn.errors import BundleError
from matattn.units import find_properties
from matattn.workflows.run import run
from matattn.workflows.structures.fine_tune import start_from


def test_known_targets_keep_their_predictions(calibrated):
    folder, _ = calibrated
    (source,), config, _ = bundle.load(folder / "model")
    fresh = type(source)(**config["arguments"] | {"num_targets": 2})
    targets = find_properties(["total_energy_per_atom", "band_gap"])
    normaliser = (torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.3]))
    untouched = fresh.output_layer().weight[0].clone()
    start_from(fresh, folder / "model", targets, normaliser)
    features = torch.randn(50, 16)
    old = source.readout(features)[:, 1] * config["normaliser"]["std"][1]
    new = fresh.readout(features)[:, 1] * 0.3 - 2.0
    assert torch.allclose(new, old + config["normaliser"]["mean"][1], atol=1e-5)
    assert torch.equal(fresh.output_layer().weight[0], untouched)
    assert torch.equal(fresh.embedding.weight, source.embedding.weight)


def test_fine_tuning_takes_the_network_of_the_model(train_polymorphs, calibrated, tmp_path):
    folder, metrics = calibrated
    start = f"init_from={folder / 'model'}"
    tuned = train_polymorphs(tmp_path, start, "optimizer.lr=1e-6", targets="band_gap")
    _, config, _ = bundle.load(tmp_path / "model")
    assert config["arguments"]["dim"] == 16  # not that of conf/model/crystalformer.yaml
    before = metrics["val"]["band_gap"]["mae"]
    assert tuned["val"]["band_gap"]["mae"] == pytest.approx(before, rel=0.02)
    recorded = (tmp_path / "config.yaml").read_text()
    assert bundle.fingerprint(folder / "model") in recorded


def test_a_shipped_model_can_be_the_start(train_polymorphs, tmp_path):
    short = ["init_from=mp-bulk-modulus", "trainer.max_epochs=1"]  # an ensemble: its first member
    metrics = train_polymorphs(tmp_path, *short, targets="e_form")
    assert metrics["parameters"] > 800_000
    assert "mp-bulk-modulus" in (tmp_path / "report.md").read_text()


def test_a_model_that_is_not_there_is_named(train_polymorphs, tmp_path):
    with pytest.raises(BundleError, match="no-such-model"):
        train_polymorphs(tmp_path, "init_from=no-such-model")


def test_a_model_starts_from_another(molecule_runs, molecule_config, tmp_path):
    """Its first prediction, before any step, is that of the model it starts from."""
    folder, _ = molecule_runs["whole"]
    start = ["optimizer.lr=1e-12", f"init_from={folder / 'model'}", "trainer.max_epochs=1"]
    run(molecule_config("whole", tmp_path / "run", *start, sizes=()))
    water = Molecule(["O", "H", "H"], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    (old,), (new,) = (
        matattn.load(place / "model").predict(water) for place in (folder, tmp_path / "run")
    )
    assert new["heat_of_formation"] == pytest.approx(old["heat_of_formation"], rel=1e-4)
