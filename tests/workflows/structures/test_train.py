"""Trainings on structures end to end: what they write, and that they repeat."""

import csv
import json
import signal

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Molecule, Structure

import matattn
from matattn import bundle, parallel
from matattn.errors import ConfigError
from matattn.workflows import run
from matattn.workflows.structures import batches, report


def test_run_folder_is_complete(finished, assert_cleared):
    folder, metrics = finished
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "metrics.csv", "metrics.json", "predictions.csv", "report.md",
        "parity.png", "loss.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "model/model.safetensors", "model/config.json", "model/card.md", "model/SHA256SUMS",
    }  # fmt: skip
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    energy = metrics["test"]["formation_energy_per_atom"]
    assert energy["n"] == 8 and energy["unit"] == "eV/atom"
    assert set(energy["baselines"]) == {"mean", "linear_composition"}
    with open(folder / "metrics.csv") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert {"train/loss", "val/loss", "val/mae/formation_energy_per_atom"} <= set(rows[0])
    report = (folder / "report.md").read_text()
    assert "| test | band_gap |" in report and "Comparability" in report
    assert "crystals.jsonl:49 (bad)" in report  # what was left out, and why
    assert_cleared(folder)


def test_predictions_reproduce_the_metrics(finished):
    folder, metrics = finished
    with open(folder / "predictions.csv") as lines:
        rows = [row for row in csv.DictReader(lines) if row["split"] == "test" and row["true"]]
    for target in ("formation_energy_per_atom", "band_gap"):
        errors = [
            abs(float(r["true"]) - float(r["predicted"])) for r in rows if r["target"] == target
        ]
        assert len(errors) == metrics["test"][target]["n"]
        assert np.mean(errors) == pytest.approx(metrics["test"][target]["mae"], abs=1e-5)


def test_bundle_reproduces_the_predictions(finished, table):
    folder, _ = finished
    model = matattn.load(folder / "model")
    with open(folder / "predictions.csv") as lines:
        expected = {
            row["id"]: float(row["predicted"])
            for row in csv.DictReader(lines)
            if row["target"] == "formation_energy_per_atom"
        }
    records = [json.loads(line) for line in table.read_text().splitlines()[:48]]
    structures = [Structure(r["lattice"], r["Z"], r["frac"]) for r in records]
    for record, row in zip(records, model.predict(structures), strict=True):
        assert row["status"] == "ok"
        assert row["formation_energy_per_atom"] == pytest.approx(expected[record["id"]], abs=2e-5)


def test_two_runs_are_bit_equal(config, assert_same_bits, finished, table, tmp_path):
    folder, _ = finished
    run.run(config(table, tmp_path))
    assert_same_bits(folder, tmp_path)
    assert (folder / "predictions.csv").read_text() == (tmp_path / "predictions.csv").read_text()


def test_neighbour_lists_from_processes_change_nothing(
    config, assert_same_bits, finished, table, tmp_path, monkeypatch
):
    monkeypatch.setattr(batches, "WORTH_A_PROCESS", 3)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    other = tmp_path / "again"
    handler = signal.getsignal(signal.SIGTERM)
    run.run(config(table, other))
    assert_same_bits(finished[0], other)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_training_on_all_atoms_gives_the_same_model_to_rounding(
    config, weights, finished, table, tmp_path
):
    """Symmetry changes the work, not the result."""
    run.run(config(table, tmp_path / "all", "task.symmetry=0"))
    ours, theirs = weights(finished[0]), weights(tmp_path / "all")
    for name in ours:
        assert torch.allclose(ours[name].float(), theirs[name].float(), rtol=0, atol=2e-3), name


def test_published_sums_train_on_boxes_made_per_batch(config, table, tmp_path):
    overrides = ("model.summation=published_r2", "trainer.max_epochs=1")
    assert run.run(config(table, tmp_path / "boxes", *overrides))["train_time_s"] >= 0


def test_another_seed_gives_another_model(config, assert_same_bits, finished, table, tmp_path):
    run.run(config(table, tmp_path, "seed=1"))
    with pytest.raises(AssertionError):
        assert_same_bits(finished[0], tmp_path)


SMALL = ["model.dim=16", "model.num_heads=2", "model.ffn_dim=24", "model.num_radial=16"]


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


def test_intervals_are_reported_by_distance(train_polymorphs, tmp_path, monkeypatch):
    """In quarters of the test rows, the nearest first."""
    monkeypatch.setattr(report, "FEWEST_ROWS", 4)
    metrics = train_polymorphs(tmp_path, *SMALL, "task.calibration=0.3", "trainer.max_epochs=1")
    text = (tmp_path / "report.md").read_text()
    lines = text.split("By quarters of the test rows")[1].split("\n\n")[1].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    name = next(iter(metrics["test"]))
    mine = [row for row in rows if row[0] == name]
    assert len(mine) == 4 and sum(int(row[5]) for row in mine) == metrics["test"][name]["n"]
    assert [float(row[1]) for row in mine] == sorted(float(row[1]) for row in mine)
    shares = [int(row[5]) * float(row[6].rstrip("%")) / 100 for row in mine]
    whole = metrics["test"][name]["interval"]["coverage"]
    assert sum(shares) / metrics["test"][name]["n"] == pytest.approx(whole, abs=0.01)
    assert "not tested on structures of other kinds" in text


def test_too_few_rows_are_not_kept_apart(train_polymorphs, tmp_path):
    metrics = train_polymorphs(tmp_path, *SMALL, "task.calibration=0.05", "trainer.max_epochs=1")
    assert metrics["rows"]["calibration"] == 0 and metrics["rows"]["train"] == 128
    structure = Structure(Lattice.cubic(4.0), ["Li", "Mg"], [[0, 0, 0], [0.5] * 3])
    (row,) = matattn.load(tmp_path / "model").predict(structure)
    assert row["band_gap"] is not None and row["band_gap_lower"] is None
    assert row["ood_score"] is None and row["ood_flag"] is False
    assert "No rows were kept apart" in (tmp_path / "report.md").read_text()


def test_ensemble_is_trained_saved_and_resumed(train_polymorphs, assert_cleared, tmp_path):
    ensemble = [*SMALL, "task.members=2", "task.spread=ensemble", "task.calibration=0.3"]
    folder = tmp_path / "run"
    metrics = train_polymorphs(folder, *ensemble)
    networks, config, _ = bundle.load(folder / "model")
    assert len(networks) == 2 and config["members"] == 2
    one, two = (network.embedding.weight for network in networks)
    assert not torch.equal(one, two)
    assert 0.9 <= metrics["calibration"]["band_gap"]["interval"]["coverage"]
    weights = (folder / "model" / "model.safetensors").read_bytes()
    (folder / "metrics.json").unlink()  # as if the run had been killed at the very end
    assert train_polymorphs(folder, *ensemble)["val"] == metrics["val"]
    assert (folder / "model" / "model.safetensors").read_bytes() == weights
    assert_cleared(folder)


def test_an_ensemble_needs_members(train_polymorphs, tmp_path):
    with pytest.raises(ConfigError, match="task.spread=ensemble needs task.members"):
        train_polymorphs(tmp_path, *SMALL, "task.spread=ensemble")


@pytest.mark.parametrize(
    "kind, target, rows, floors",
    [
        ("whole", "heat_of_formation", 4, set()),
        ("atoms", "nmr_shielding", 12, {"increments"}),
        ("pairs", "scalar_coupling", 12, {"type_of_coupling"}),
    ],
)
def test_errors_stand_beside_floors(molecule_runs, kind, target, rows, floors):
    folder, metrics = molecule_runs[kind]
    found = metrics["test"][target]
    assert found["n"] == rows
    assert set(found["baselines"]) == {"mean", "linear_composition"} | floors
    with open(folder / "predictions.csv") as lines:
        test = [row for row in csv.DictReader(lines) if row["split"] == "test"]
    errors = [abs(float(row["true"]) - float(row["predicted"])) for row in test]
    assert len(errors) == rows and np.mean(errors) == pytest.approx(found["mae"], rel=1e-3)
    report = (folder / "report.md").read_text()
    assert all(title in report for title in ("linear in composition", "mean of training labels"))
    assert "crystals" not in report and "/model *.xyz\n" in report


def test_elements_and_readout_follow_the_data(molecule_runs):
    for kind, readout in (("whole", "sum"), ("atoms", "atoms"), ("pairs", "pairs")):
        folder, _ = molecule_runs[kind]
        arguments = json.loads((folder / "model" / "config.json").read_text())["arguments"]
        assert arguments["elements"] == [1, 8] and arguments["readout"] == readout


def test_rows_of_atoms_and_pairs_are_named(molecule_runs):
    for kind, names in (("atoms", ["w0:1", "w0:2", "w0:3"]), ("pairs", ["w0:1-2", "w0:1-3"])):
        with open(molecule_runs[kind][0] / "predictions.csv") as lines:
            found = [row["id"] for row in csv.DictReader(lines)]
        assert found[: len(names)] == names


def test_bundle_predicts_what_the_run_predicted(molecule_runs, molecule_files):
    rows = [json.loads(line) for line in (molecule_files / "whole.jsonl").read_text().splitlines()]
    molecules = [Molecule(row["Z"], row["pos"]) for row in rows]
    for kind, target in (("whole", "heat_of_formation"), ("atoms", "nmr_shielding")):
        folder, _ = molecule_runs[kind]
        with open(folder / "predictions.csv") as lines:
            expected = [float(row["predicted"]) for row in csv.DictReader(lines)]
        found = [row[target] for row in matattn.load(folder / "model").predict(molecules)]
        assert np.ravel(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "model, overrides, message",
    [
        ("crystalformer", [], "Crystalformer reads crystals only"),
        ("coulgat", ["model.cutoff=0.9", "model.switch_width=0.1"], "network's range of 0.9 Å"),
        ("coulgat", ["model.readout=atoms"], "has a value for every structure, and CoulGAT gives"),
    ],
)
def test_wrong_pairings_are_refused(molecule_config, tmp_path, model, overrides, message):
    cfg = molecule_config("whole", tmp_path / "run", *overrides, model=model, sizes=())
    with pytest.raises(ConfigError, match=message):
        run.run(cfg)
