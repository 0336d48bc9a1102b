"""Trainings with other losses: regression, and classification from labels to prediction."""

import csv
import json

import numpy as np
import pytest
from pymatgen.core import Structure

import matattn
from matattn.errors import BundleError, ConfigError, DataError
from matattn.workflows import run
from matattn.workflows.structures import evaluate, train
from matattn.workflows.structures.predict import Predictor
from matattn.workflows.task import TASKS

CLASSIFY = ["data.targets=[is_metal]", "task.loss=cross_entropy", "optimizer.lr=1e-2"]


@pytest.fixture(scope="session")
def metals(tmp_path_factory):
    """120 crystals; those of large sodium chlorides and all with iron are metals."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "metals.jsonl"
    lines = []
    for number in range(120):
        a, iron = float(generator.uniform(3.5, 5.5)), bool(number % 2)
        metal = bool(a > 4.5) ^ iron
        written = [metal, int(metal), str(metal), "yes" if metal else "no"][number % 4]
        row = {"id": f"c{number}", "lattice": (a * np.eye(3)).tolist(), "is_metal": written}
        row |= {"Z": [26 if iron else 11, 17], "frac": [[0, 0, 0], [0.5] * 3], "gap": a}
        row["split"] = "test" if number >= 100 else "val" if number >= 80 else "train"
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def classified(config, metals, tmp_path_factory):
    """A finished classification: its folder and metrics; to be read only."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, run.run(config(metals, folder, *CLASSIFY, "trainer.max_epochs=12"))


def test_labels_are_read_however_they_are_written(config, metals, tmp_path):
    settings, task = run.read(config(metals, tmp_path, *CLASSIFY))
    labels = task.prepare(settings).dataset.labels()[:, 0]
    rows = [json.loads(line) for line in metals.read_text().splitlines()]
    large = [row["lattice"][0][0] > 4.5 for row in rows]
    assert labels.tolist() == [float(one ^ bool(n % 2)) for n, one in enumerate(large)]


def test_classification_beats_what_sees_the_composition_only(classified):
    folder, metrics = classified
    found = metrics["test"]["is_metal"]
    assert found["unit"] == "probability" and "mae" not in found
    assert found["log_loss"] < 0.7 * found["baselines"]["linear_composition"]["log_loss"]
    assert found["auroc"] > 0.9 > found["baselines"]["linear_composition"]["auroc"]
    assert found["baselines"]["mean"]["auroc"] == found["baselines"]["mean"]["balanced_accuracy"]
    assert metrics["rows"]["calibration"] == 0
    report = (folder / "report.md").read_text()
    for text in ("AUROC", "balanced accuracy at 0.5", "log loss", "have no interval",
                 "logistic in composition", "probabilities.png"):  # fmt: skip
        assert text in report
    assert "parity" not in report and (folder / "probabilities.png").stat().st_size > 1000
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert "val/log_loss/is_metal" in header and "mae" not in header


def test_runs_are_compared_by_log_loss(classified):
    _, metrics = classified
    objective = TASKS["property_prediction"].objective
    assert objective(metrics) == ("val log loss", metrics["val"]["is_metal"]["log_loss"])
    twice = {"val": {"a": metrics["val"]["is_metal"], "b": metrics["val"]["is_metal"]}}
    name, value = objective(twice)
    floor = metrics["val"]["is_metal"]["baselines"]["mean"]["log_loss"]
    assert name == "val log loss over the mean predictor's"
    assert value == pytest.approx(metrics["val"]["is_metal"]["log_loss"] / floor)


def test_bundle_predicts_the_probabilities_of_the_run(classified, metals):
    folder, _ = classified
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["loss"] == "cross_entropy"
    assert config["normaliser"] == {"mean": [0.0], "std": [1.0]}
    rows = [json.loads(line) for line in metals.read_text().splitlines()]
    structures = [Structure(row["lattice"], row["Z"], row["frac"]) for row in rows]
    with open(folder / "predictions.csv") as lines:
        expected = list(csv.DictReader(lines))
    for row, told in zip(matattn.load(folder / "model").predict(structures), expected, strict=True):
        assert 0 <= row["is_metal"] <= 1 and row["is_metal_unit"] == "probability"
        assert row["is_metal_lower"] is None and row["is_metal_upper"] is None
        assert row["is_metal"] == pytest.approx(float(told["predicted"]), abs=2e-5)
        assert told["lower"] == told["upper"] == ""


def test_evaluation_scores_probabilities(classified, metals):
    folder, metrics = classified
    predictor = Predictor.load(folder / "model")
    data = evaluate.load_data(str(metals), predictor, [])
    result = evaluate.evaluate(predictor, data)
    found, expected = result["splits"]["test"]["is_metal"], metrics["test"]["is_metal"]
    assert found["log_loss"] == pytest.approx(expected["log_loss"], abs=1e-4)
    assert "The model was trained on the train rows of these data" in result["remarks"][0]
    table = evaluate.groups_table(result["held_out"])
    assert [column.header for column in table.columns][2:4] == [
        "log loss",
        "logistic in composition",
    ]


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_other_losses_of_regression(config, metals, tmp_path, loss):
    few = ["data.targets=[gap]", f"task.loss={loss}", "trainer.max_epochs=1"]
    metrics = run.run(config(metals, tmp_path / loss, *few))
    assert metrics["test"]["band_gap"]["mae"] > 0
    assert json.loads((tmp_path / loss / "model" / "config.json").read_text())["loss"] == loss


def test_runs_from_before_losses_keep_their_folder_and_loss(config, metals, compose):
    def folder(*overrides):
        return run.read(compose("data=prototypes", *overrides))[0].folder()

    assert folder("task.loss=mse") != folder() == folder("task.loss=l1")
    assert not Predictor(None, {}).classifies


@pytest.mark.parametrize(
    "overrides, error, message",
    [
        (["task.loss=l2"], ConfigError, "task.loss='l2': expected one of l1, mse, huber, cross_en"),
        (
            ["data.targets=[gap]"],
            ConfigError,
            "is for what is true or false, and band_gap is in eV",
        ),
        (["data.targets=[gap]", "data.units={gap: probability}"], DataError, "matattn reads it as"),
        (["task.loss=l1"], ConfigError, "is_metal is true or false: give task.loss=cross_entropy"),
    ],
)
def test_losses_that_do_not_fit_are_refused(config, metals, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        run.run(config(metals, tmp_path, *CLASSIFY, *overrides))


@pytest.mark.parametrize(
    "values, message",
    [
        ([1, 0, 0.5, 1], "c2: stable is 0.5; expected 0 or 1, or true or false"),
        ([1, 0, 3, 1], "c2: stable is 3; expected 0 or 1"),
        ([1, 1, 1, 1], "stable is 1 in all training rows: there is nothing to tell apart"),
    ],
)
def test_labels_that_are_no_classes_are_refused(config, tmp_path, values, message):
    path = tmp_path / "a.jsonl"
    rows = [
        {"id": f"c{n}", "lattice": (4 * np.eye(3)).tolist(), "Z": [3 + n], "frac": [[0, 0, 0]],
         "stable": value, "split": "train"} for n, value in enumerate(values)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    mine = ["data.targets=[stable]", "data.units={stable: probability}", "task.loss=cross_entropy"]
    with pytest.raises(DataError, match=message):
        run.run(config(path, tmp_path / "run", *mine))


def test_a_classification_may_start_from_a_regression(config, metals, tmp_path, classified):
    run.run(config(metals, tmp_path / "gap", "data.targets=[gap]", "trainer.max_epochs=1"))
    start = f"init_from={tmp_path / 'gap' / 'model'}"
    metrics = run.run(config(metals, tmp_path / "a", *CLASSIFY, start, "trainer.max_epochs=1"))
    assert metrics["test"]["is_metal"]["log_loss"] > 0
    again = f"init_from={classified[0] / 'model'}"
    settings, task = run.read(config(metals, tmp_path / "b", *CLASSIFY, again))
    (network,) = task.prepare(settings).networks
    trained = Predictor.load(classified[0] / "model").network
    assert (network.output_layer().weight == trained.output_layer().weight).all()


def test_a_loss_of_a_stranger_is_refused(classified, tmp_path):
    import shutil

    from matattn.files import sha256

    shutil.copytree(classified[0] / "model", tmp_path / "model")
    path, sums = tmp_path / "model" / "config.json", tmp_path / "model" / "SHA256SUMS"
    path.write_text(path.read_text().replace('"cross_entropy"', '"mine"'))
    lines = [line for line in sums.read_text().splitlines() if "config.json" not in line]
    sums.write_text("\n".join([*lines, f"{sha256(path)}  config.json\n"]))
    with pytest.raises(BundleError, match="loss='mine': expected one of l1, mse"):
        Predictor.load(tmp_path / "model")


def test_networks_with_constants_of_elements_classify(compose, metals):
    small = ["model=coulgat", "data=crystals", f"data.path={metals}", "model.dim=16"]
    settings, task = run.read(compose(*small, *CLASSIFY))
    prepared = task.prepare(settings)
    assert not prepared.networks[0].element_constants.any()
    mean, std = train.normalise(prepared.networks[0], prepared.dataset)
    assert mean.tolist() == [0.0] and std.tolist() == [1.0]
