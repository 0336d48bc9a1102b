"""The table of several runs."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from matattn.cli import app
from matattn.errors import DataError
from matattn.workflows.sweeps import differing, find_runs, means, tables, write


def make_run(folder, seed, lr, mae=None, error=None):
    folder.mkdir(parents=True)
    config = {
        "model": {"_target_": "matattn.models.crystalformer.Crystalformer", "dim": 8},
        "data": {"name": "prototypes"},
        "task": {"workflow": "property_prediction"},
        "optimizer": {"lr": lr},
        "seed": seed,
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    if mae is not None:
        result = {"band_gap": {"mae": mae, "unit": "eV", "baselines": {"mean": 1.0}}}
        (folder / "metrics.json").write_text(json.dumps({"val": result}))
    if error:
        (folder / "error.txt").write_text(error)


@pytest.fixture
def outputs(tmp_path):
    for seed in (0, 1, 2):
        make_run(tmp_path / "a" / f"seed{seed}-aa", seed, 1e-3, mae=0.3 + 0.01 * seed)
    make_run(tmp_path / "a" / "seed0-bb", 0, 1e-2, mae=0.2)
    make_run(tmp_path / "a" / "seed1-bb", 1, 1e-2, error="TrainingError: the loss is nan\n")
    make_run(tmp_path / "a" / "seed2-bb", 2, 1e-2)
    (tmp_path / "a" / "other").mkdir()
    (tmp_path / "a" / "other" / "config.yaml").write_text("- not a run")
    return tmp_path


def test_table_of_runs(outputs):
    runs = find_runs(outputs)
    assert differing(runs) == ["optimizer.lr"]
    states = {run.folder.name: run.state for run in runs}
    assert states == {
        "seed0-aa": "finished", "seed1-aa": "finished", "seed2-aa": "finished",
        "seed0-bb": "finished", "seed1-bb": "failed", "seed2-bb": "stopped",
    }  # fmt: skip
    summed = means(runs)
    assert list(summed.columns) == ["what", "optimizer.lr", "count", "mean", "std"]
    assert list(summed["what"]) == 2 * ["val MAE, eV"]
    assert list(summed["optimizer.lr"]) == ["0.01", "0.001"] and list(summed["count"]) == [1, 3]
    assert list(summed["mean"]) == pytest.approx([0.2, 0.31])
    assert list(summed["std"]) == pytest.approx([np.nan, 0.01], nan_ok=True)
    every, best = tables(runs)
    assert every.row_count == 6 and best.row_count == 2


def test_report_command(outputs):
    target = outputs / "report.csv"
    result = CliRunner().invoke(app, ["sweep", "report", str(outputs), "-o", str(target)])
    assert result.exit_code == 0 and "the loss is nan" in result.output
    assert target.read_text().count("finished") == 4
    assert target.with_suffix(".png").stat().st_size > 1000
    empty = CliRunner().invoke(app, ["sweep", "report", str(outputs / "a" / "other")])
    assert empty.exit_code == 2
    with pytest.raises(DataError, match="no such folder"):
        find_runs(outputs / "gone")


def test_a_run_of_an_unknown_task_is_told(outputs):
    folder = outputs / "a" / "seed0-bb"
    config = json.loads((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(json.dumps(config | {"task": {"workflow": "alchemy"}}))
    (run,) = (run for run in find_runs(outputs) if run.folder == folder)
    assert run.state == "finished" and run.objective is None
    assert "no task 'alchemy'" in run.message
    result = CliRunner().invoke(app, ["sweep", "report", str(outputs)])
    assert result.exit_code == 0 and "alchemy" in result.output


def test_settings_of_one_network_only_are_not_compared(outputs):
    make_run(outputs / "b" / "seed0-cc", 0, 1e-3, mae=0.1)
    path = outputs / "b" / "seed0-cc" / "config.yaml"
    config = json.loads(path.read_text())
    config["model"] = {"_target_": "matattn.models.coulgat.CoulGAT", "num_heads": 2}
    path.write_text(json.dumps(config))
    runs = find_runs(outputs)
    assert differing(runs) == ["model", "optimizer.lr"]
    write(outputs / "all.csv", runs)
    assert "CoulGAT" in (outputs / "all.csv").read_text()
