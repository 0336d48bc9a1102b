"""Intervals, ensembles and trainings that start from an earlier model, end to end."""

import csv
import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from matattn.ensemble import Ensemble
from pymatgen.core import Lattice, Structure

import matattn
from matattn import bundle
from matattn.conf.schema import register
from matattn.errors import BundleError, ConfigError
from matattn.units import find_properties
from matattn.workflows import run as training
from matattn.workflows.structures.fine_tune import start_from

SMALL = [
    "model.dim=16",
    "model.num_heads=2",
    "model.ffn_dim=24",
    "model.num_radial=16",
]
SHORT = ["task.batch_size=16", "trainer.accelerator=cpu", "trainer.max_epochs=3"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """160 crystals of 80 formulas in two structure types, of light elements only."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "crystals.jsonl"
    lines = []
    for number in range(80):
        z = [3 + number % 9, 12 + number // 9]
        split = "test" if number >= 72 else "val" if number >= 64 else "train"
        for kind in (0.5, 0.25):
            a = float(generator.uniform(3.5, 6))
            row = {"id": f"c{number}-{kind}", "lattice": (a * np.eye(3)).tolist(), "Z": z}
            row |= {"frac": [[0, 0, 0], [kind] * 3], "split": split}
            row |= {"e_form": 0.05 * (z[0] - z[1]) + (a - 4.5) ** 2 + kind, "gap": a}
            lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return path


def run(table, folder, *overrides, targets="e_form,band_gap"):
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        data = ["data=crystals", f"data.path={table}", f"data.targets=[{targets}]"]
        output = f"paths.output_dir={folder}"
        return training.run(compose("train", [*data, *SHORT, output, *overrides]))


@pytest.fixture(scope="module")
def calibrated(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run(table, folder, *SMALL, "task.calibration=0.3")


def predictions(folder):
    with open(folder / "predictions.csv") as lines:
        return list(csv.DictReader(lines))


def test_calibration_rows_share_no_formula_with_training_rows(calibrated):
    folder, metrics = calibrated
    formulas = {split: set() for split in ("train", "calibration")}
    for row in predictions(folder):
        if row["split"] in formulas:
            formulas[row["split"]].add(row["id"].split("-")[0])
    assert not formulas["train"] & formulas["calibration"]
    assert metrics["rows"]["calibration"] >= 20
    assert metrics["rows"]["train"] + metrics["rows"]["calibration"] == 128


def test_intervals_hold_the_promised_share_of_calibration_rows(calibrated):
    folder, metrics = calibrated
    for target in ("formation_energy_per_atom", "band_gap"):
        assert 0.9 <= metrics["calibration"][target]["interval"]["coverage"] <= 0.97
    rows = [row for row in predictions(folder) if row["split"] == "test"]
    inside = [float(r["lower"]) <= float(r["true"]) <= float(r["upper"]) for r in rows]
    found = [metrics["test"][t]["interval"]["coverage"] for t in metrics["test"]]
    assert np.mean(inside) == pytest.approx(np.mean(found))
    assert (folder / "calibration.png").stat().st_size > 1000
    assert "kept apart" in (folder / "model" / "card.md").read_text()


def test_predictions_have_intervals_and_novelty(calibrated, table):
    folder, _ = calibrated
    row = json.loads(table.read_text().splitlines()[0])
    known = Structure(row["lattice"], row["Z"], row["frac"])
    strange = Structure(Lattice.cubic(3.0), ["U"], [[0, 0, 0]])
    one, two = matattn.load(folder / "model").predict([known, strange])
    expected = next(r for r in predictions(folder) if r["id"] == row["id"])
    for end in ("lower", "upper"):
        found = one[f"formation_energy_per_atom_{end}"]
        assert found == pytest.approx(float(expected[end]), abs=1e-3)
    assert one["ood_score"] < 1 and one["ood_flag"] is False and one["message"] == ""
    assert two["ood_flag"] is True and "no training crystal contains U" in two["message"]
    assert one["band_gap_lower"] >= 0


def test_too_few_rows_are_not_kept_apart(table, tmp_path):
    metrics = run(table, tmp_path, *SMALL, "task.calibration=0.05", "trainer.max_epochs=1")
    assert metrics["rows"]["calibration"] == 0 and metrics["rows"]["train"] == 128
    structure = Structure(Lattice.cubic(4.0), ["Li", "Mg"], [[0, 0, 0], [0.5] * 3])
    (row,) = matattn.load(tmp_path / "model").predict(structure)
    assert row["band_gap"] is not None and row["band_gap_lower"] is None
    assert row["ood_score"] is None and row["ood_flag"] is False
    assert "No rows were kept apart" in (tmp_path / "report.md").read_text()


def test_ensemble_is_trained_saved_and_resumed(table, tmp_path):
    ensemble = [*SMALL, "task.members=2", "task.spread=ensemble", "task.calibration=0.3"]
    metrics = run(table, tmp_path, *ensemble)
    network, config, _ = bundle.load(tmp_path / "model")
    assert isinstance(network, Ensemble) and config["members"] == 2
    one, two = (member.embedding.weight for member in network.members)
    assert not torch.equal(one, two)
    assert 0.9 <= metrics["calibration"]["band_gap"]["interval"]["coverage"]
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "metrics.json").unlink()  # as if the run had been killed at the very end
    assert run(table, tmp_path, *ensemble)["val"] == metrics["val"]
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights


def test_an_ensemble_needs_members(table, tmp_path):
    with pytest.raises(ConfigError, match="task.spread=ensemble needs task.members"):
        run(table, tmp_path, *SMALL, "task.spread=ensemble")


def test_known_targets_keep_their_predictions(calibrated):
    folder, _ = calibrated
    source, config, _ = bundle.load(folder / "model")
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


def test_fine_tuning_takes_the_network_of_the_model(calibrated, table, tmp_path):
    folder, metrics = calibrated
    start = f"init_from={folder / 'model'}"
    tuned = run(table, tmp_path, start, "optimizer.lr=1e-6", targets="band_gap")
    _, config, _ = bundle.load(tmp_path / "model")
    assert config["arguments"]["dim"] == 16  # not that of conf/model/crystalformer.yaml
    before = metrics["val"]["band_gap"]["mae"]
    assert tuned["val"]["band_gap"]["mae"] == pytest.approx(before, rel=0.02)
    recorded = (tmp_path / "config.yaml").read_text()
    assert bundle.fingerprint(folder / "model") in recorded


def test_a_shipped_model_can_be_the_start(table, tmp_path):
    short = ["init_from=mp-bulk-modulus", "trainer.max_epochs=1"]  # an ensemble: its first member
    metrics = run(table, tmp_path, *short, targets="e_form")
    assert metrics["parameters"] > 800_000
    assert "mp-bulk-modulus" in (tmp_path / "report.md").read_text()


def test_a_model_that_is_not_there_is_named(table, tmp_path):
    with pytest.raises(BundleError, match="no-such-model"):
        run(table, tmp_path, "init_from=no-such-model")


def test_whether_data_may_be_fetched_does_not_change_a_run():
    paths = {"output_dir": None, "output_root": "outputs"}
    config = {"seed": 1, "paths": paths, "data": {"name": "d", "download": False}}
    names = {"model": "m", "data": "d"}
    folder = training.run_folder(config, names)
    assert training.run_folder(config | {"data": {"name": "d", "download": True}}, names) == folder
    assert training.run_folder(config | {"data": {"name": "e", "download": True}}, names) != folder
    assert training.run_folder(config | {"seed": 2}, names).name[6:] == folder.name[6:]
