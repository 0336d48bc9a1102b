"""Trainings on meshes end to end: what they write, that they repeat and resume, what stops them."""

import csv
import json

import numpy as np
import pytest
import torch

import matattn
from matattn.errors import ConfigError, DataError, TrainingError
from matattn.meshes.baselines import relative_l2
from matattn.meshes.files import read_mesh
from matattn.training import run_log
from matattn.workflows import run
from matattn.workflows.meshes import train
from matattn.workflows.meshes.train import GridGradient, relative_errors


def test_run_folder_is_complete(finished, assert_cleared):
    folder, metrics = finished
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "metrics.csv", "metrics.json", "predictions.csv", "report.md",
        "fields_pressure.png", "loss.png", "spectrum.png", "fields/m30.vtu", "fields/m31.vtu",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "model/model.safetensors", "model/config.json", "model/card.md", "model/SHA256SUMS",
    }  # fmt: skip
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    result = metrics["test"]["pressure"]
    assert result["n"] == 6 and result["unit"] == "Pa"
    assert set(result["baselines"]) == {"constant", "nearest_sample"}
    assert 0 < result["relative_l2"] < 1 and 0 < result["relative_l2_ema"]
    report = (folder / "report.md").read_text()
    assert "| test | pressure |" in report and "broken.npz" in report and "pressure (Pa)" in report
    assert_cleared(folder)


def test_what_is_left_out_is_told_before_the_training(config, tmp_path, capfd):
    run.run(config(tmp_path / "run", "trainer.max_epochs=1"))
    lines = [line for line in capfd.readouterr().err.splitlines() if "left out" in line]
    assert len(lines) == 1 and lines[0].startswith("1 of 37 rows left out; the first: ")
    assert "broken.npz: is damaged" in lines[0] and lines[0].endswith("; more in report.md")


def test_errors_are_those_of_the_table(finished):
    folder, metrics = finished
    with open(folder / "predictions.csv") as lines:
        rows = [row for row in csv.DictReader(lines) if row["split"] == "test"]
    mean = np.mean([float(row["relative_l2"]) for row in rows])
    assert mean == pytest.approx(metrics["test"]["pressure"]["relative_l2"], rel=1e-4)


def test_bundle_reproduces_the_error(finished, meshes):
    folder, metrics = finished
    model = matattn.load(folder / "model")
    samples = [
        read_mesh(meshes / f"m{number}.npz", 2, ["load"], ["pressure"]) for number in range(30, 36)
    ]
    errors = [relative_l2(s.y, p) for s, p in zip(samples, model.predict(samples), strict=True)]
    assert np.mean(errors) == pytest.approx(metrics["test"]["pressure"]["relative_l2"], rel=1e-5)


def test_two_runs_are_bit_equal(config, assert_same_bits, finished, tmp_path):
    run.run(config(tmp_path))
    assert_same_bits(finished[0], tmp_path)


class Stopped(Exception):
    pass


def test_a_resumed_run_is_bit_equal(config, assert_same_bits, finished, tmp_path, monkeypatch):
    folder, metrics = finished
    ended = run_log.RunLog.on_train_epoch_end

    def stop(self, trainer, module):
        ended(self, trainer, module)
        if trainer.current_epoch == 2:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(run_log.RunLog, "on_train_epoch_end", stop)
        with pytest.raises(Stopped):
            run.run(config(tmp_path))
    again = run.run(config(tmp_path))
    assert_same_bits(folder, tmp_path)
    for key in ("relative_l2", "relative_l2_ema"):
        assert again["test"]["pressure"][key] == metrics["test"]["pressure"][key]


def test_it_learns(config, tmp_path):
    metrics = run.run(config(tmp_path, "trainer.max_epochs=30", "optimizer.lr=5e-3"))
    result = metrics["test"]["pressure"]
    assert result["relative_l2"] < 0.5 * result["baselines"]["nearest_sample"]


def test_full_attention_trains(config, tmp_path):
    metrics = run.run(config(tmp_path, "trainer.max_epochs=1", model="full_attention"))
    assert not (tmp_path / "spectrum.png").exists()
    assert metrics["rows"] == {"train": 24, "val": 6, "test": 6}


@pytest.mark.parametrize(
    "override, error, message",
    [
        ("task.gradient_weight=0.1", ConfigError, "needs fields on a plane structured grid"),
        ("task.ema=1.0", ConfigError, r"task.ema=1.0: expected a number from 0 to below 1"),
        ("task.export=-1", ConfigError, "task.export=-1: expected 0 or more"),
        ("data.targets=[velocity]", DataError, "no usable mesh; first problem: .*broken.npz"),
        ("init_from=mp-band-gap", ConfigError, "mp-band-gap is a network of structures"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(config, tmp_path, override, error, message):
    folder = tmp_path / "run"
    with pytest.raises(error, match=message):
        run.run(config(folder, override))
    assert not folder.exists()


def test_a_training_on_meshes_starts_from_no_other(config, finished, tmp_path):
    with pytest.raises(ConfigError, match="init_from cannot start a training"):
        run.run(config(tmp_path / "run", f"init_from={finished[0] / 'model'}"))


def test_a_loss_that_is_not_finite_names_the_meshes(config, tmp_path, monkeypatch):
    def infinite(predicted, true, ptr, *_):
        return torch.full((len(ptr) - 1, 1), torch.inf, requires_grad=True)

    monkeypatch.setattr(train, "relative_errors", infinite)
    with pytest.raises(TrainingError, match="the loss is inf at step 0"):
        run.run(config(tmp_path))
    named = json.loads((tmp_path / "nonfinite_batch.json").read_text())
    assert len(named["ids"]) == 2


def test_relative_errors_are_those_of_each_mesh():
    generator = np.random.default_rng(0)
    true, made = generator.random((2, 9, 3))
    ptr = torch.tensor([0, 4, 9])
    errors = relative_errors(torch.from_numpy(made), torch.from_numpy(true), ptr).numpy()
    for mesh, rows in enumerate((slice(0, 4), slice(4, 9))):
        assert errors[mesh] == pytest.approx(relative_l2(true[rows], made[rows]))


def test_gradient_on_a_grid():
    """Against differences written out, boundary and zeros outside included."""
    n = 6
    generator = np.random.default_rng(0)
    true, made = generator.random((2, n, n))
    inside = np.zeros((n, n))
    inside[1:-1, 1:-1] = 1

    def difference(field, axis):
        padded = np.pad(field, 1)
        later = [slice(1, -1)] * 2
        earlier = list(later)
        later[axis], earlier[axis] = slice(2, None), slice(None, -2)
        return (padded[tuple(later)] - padded[tuple(earlier)]) * n / 2

    expected = sum(
        np.linalg.norm(difference(made * inside, axis) - difference(true, axis))
        / np.linalg.norm(difference(true, axis))
        for axis in (0, 1)
    )
    loss = GridGradient((n, n))(
        torch.from_numpy(made).reshape(-1, 1).float(), torch.from_numpy(true).reshape(-1, 1).float()
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
