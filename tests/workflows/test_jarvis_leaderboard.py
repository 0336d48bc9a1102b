"""A contribution to the JARVIS leaderboard, from runs made up here."""

import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from matattn.cli import app
from matattn.errors import DataError
from matattn.workflows import jarvis_leaderboard

NAME = "dft_3d_exfoliation_energy"
TEST = {f"JVASP-{number}": 10.0 * number for number in range(1, 21)}


@pytest.fixture
def benchmark(tmp_path):
    path = tmp_path / f"{NAME}.json.zip"
    content = {"train": {"JVASP-99": 1.0}, "val": {"JVASP-98": 2.0}, "test": TEST}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{NAME}.json", json.dumps(content))
    return path


def make_run(folder, seed=0, offset=1.0, change=lambda rows: rows, **model):
    folder.mkdir(parents=True)
    config = {"model": model, "data": {"name": "mine"}, "seed": seed,
              "task": {"workflow": "property_prediction"}}  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(config))
    errors = {"exfoliation": {"mae": offset, "unit": "meV/atom", "baselines": {"mean": 2.0}}}
    record = {"train": errors, "test": errors, "train_time_s": 30.0}
    (folder / "metrics.json").write_text(json.dumps(record))
    true = {"JVASP-99": 1.0, **TEST}
    rows = pd.DataFrame({
        "id": list(true), "target": "exfoliation", "true": list(true.values()),
        "predicted": [value + offset for value in true.values()],
        "split": ["train", *["test"] * len(TEST)],
    })  # fmt: skip
    change(rows.sample(frac=1, random_state=0)).to_csv(folder / "predictions.csv", index=False)


def test_the_mean_of_seeds_is_scored_and_written(tmp_path, benchmark):
    for seed, offset in enumerate((1.0, 4.0)):
        make_run(tmp_path / "runs" / str(seed), seed, offset)
    arguments = ["leaderboard", str(tmp_path / "runs"), "--jarvis", str(benchmark), "-o"]
    result = CliRunner().invoke(app, [*arguments, str(tmp_path / "board"), "--name", "mine"])
    assert result.exit_code == 0, result.output
    assert "dft_3d exfoliation_energy: 20 test rows, mean of 2 seeds" in result.output
    assert "MAE 2.5; mean absolute deviation of the labels 50" in result.output
    csv = "AI-SinglePropertyPrediction-exfoliation_energy-dft_3d-test-mae.csv"
    with zipfile.ZipFile(tmp_path / "board" / f"{csv}.zip") as archive:
        assert archive.namelist() == [csv]
        table = pd.read_csv(archive.open(csv))
    assert table.columns.tolist() == ["id", "prediction"] and table["id"].tolist() == list(TEST)
    np.testing.assert_allclose(table["prediction"], np.array(list(TEST.values())) + 2.5)
    metadata = json.loads((tmp_path / "board" / "metadata.json").read_text())
    assert metadata["model_name"] == "mine"
    assert metadata["time_taken_seconds"] == {f"{csv}.zip": "60"}
    assert "matattn==" in (tmp_path / "board" / "run.sh").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[rows["id"] != "JVASP-7"], "1 of 20 test rows .* the first: JVASP-7"),
        (lambda rows: rows.assign(split="train"), "20 test rows .* are no test rows of this run"),
        (lambda rows: rows.assign(true=rows["true"] / 1000), "has the label .*another property"),
        (lambda rows: pd.concat([rows, rows.assign(target="other")]), "several targets"),
    ],
)
def test_runs_that_are_no_contribution_are_refused(tmp_path, benchmark, change, message):
    make_run(tmp_path / "runs" / "a", change=change)
    with pytest.raises(DataError, match=message):
        jarvis_leaderboard.read([tmp_path / "runs"], benchmark)


def test_other_files_and_mixed_runs_are_refused(tmp_path, benchmark):
    make_run(tmp_path / "runs" / "a")
    record = tmp_path / "runs" / "a" / "metrics.json"
    record.rename(tmp_path / "kept.json")
    with pytest.raises(DataError, match="no finished run"):
        jarvis_leaderboard.read([tmp_path / "runs"], benchmark)
    (tmp_path / "kept.json").rename(record)
    for name, content in {"mine.json.zip": "", "megnet_gappbe.json.zip": "no archive"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=name):
            jarvis_leaderboard.read([tmp_path / "runs"], tmp_path / name)
    make_run(tmp_path / "runs" / "b", dim=32)
    with pytest.raises(DataError, match="differ in model.dim"):
        jarvis_leaderboard.read([tmp_path / "runs"], benchmark)
    refused = CliRunner().invoke(
        app, ["leaderboard", str(tmp_path / "runs"), "--jarvis", str(benchmark)]
    )
    assert refused.exit_code == 2 and "error:" in refused.stderr
