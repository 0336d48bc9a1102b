"""Trainings on meshes end to end: what they write, that they repeat and resume, what stops them."""

import csv
import json
import shutil
from pathlib import Path

import meshio
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import load_file
from typer.testing import CliRunner

import matattn
from matattn.cli import app
from matattn.conf.schema import register
from matattn.errors import BundleError, ConfigError, DataError, TrainingError
from matattn.meshes.baselines import relative_l2
from matattn.meshes.files import read_mesh
from matattn.training import run_log
from matattn.workflows import run
from matattn.workflows.meshes import train
from matattn.workflows.meshes.train import GridGradient, relative_errors

SMALL = [
    "model=flare", "model.dim=16", "model.num_heads=2", "model.num_blocks=2",
    "model.num_latents=8", "trainer.accelerator=cpu", "trainer.max_epochs=4", "task.export=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    """36 meshes of 20 to 40 nodes with a field that depends on a load, and one broken file."""
    folder = tmp_path_factory.mktemp("meshes")
    generator = np.random.default_rng(0)
    rows = ["id,split"]
    for number in range(36):
        nodes = int(generator.integers(20, 41))
        pos = generator.random((nodes, 2))
        load = np.full(nodes, generator.uniform(1, 2))
        pressure = load * np.sin(3 * pos[:, 0]) + pos[:, 1]
        np.savez(folder / f"m{number:02}.npz", pos=pos, load=load, pressure=pressure)
        split = "test" if number >= 30 else "val" if number >= 24 else "train"
        rows.append(f"m{number:02},{split}")
    (folder / "broken.npz").write_bytes(b"no archive")
    (folder / "split.csv").write_text("\n".join([*rows, "broken,train"]) + "\n")
    return folder


def config(meshes, folder, *overrides):
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        data = [
            "data=meshes", f"data.path={meshes}", "data.targets=[pressure]", "data.inputs=[load]",
            "data.units={pressure: Pa, load: N}",
        ]  # fmt: skip
        return compose("train", [*SMALL, *data, f"paths.output_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def finished(meshes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run.run(config(meshes, folder))


def test_run_folder_is_complete(finished):
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


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def assert_same_bits(one, other):
    one, other = weights(one), weights(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_runs_are_bit_equal(finished, meshes, tmp_path):
    run.run(config(meshes, tmp_path))
    assert_same_bits(finished[0], tmp_path)


class Stopped(Exception):
    pass


def test_a_resumed_run_is_bit_equal(finished, meshes, tmp_path, monkeypatch):
    folder, metrics = finished
    ended = run_log.RunLog.on_train_epoch_end

    def stop(self, trainer, module):
        ended(self, trainer, module)
        if trainer.current_epoch == 2:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(run_log.RunLog, "on_train_epoch_end", stop)
        with pytest.raises(Stopped):
            run.run(config(meshes, tmp_path))
    again = run.run(config(meshes, tmp_path))
    assert_same_bits(folder, tmp_path)
    for key in ("relative_l2", "relative_l2_ema"):
        assert again["test"]["pressure"][key] == metrics["test"]["pressure"][key]


def test_it_learns(meshes, tmp_path):
    metrics = run.run(config(meshes, tmp_path, "trainer.max_epochs=30", "optimizer.lr=5e-3"))
    result = metrics["test"]["pressure"]
    assert result["relative_l2"] < 0.5 * result["baselines"]["nearest_sample"]


def test_full_attention_trains(meshes, tmp_path):
    overrides = ["model=full_attention", "~model.num_latents"]
    cfg = [o for o in SMALL if not o.startswith(("model=", "model.num_latents"))]
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        composed = compose(
            "train",
            [overrides[0], *cfg, "data=meshes", f"data.path={meshes}", "data.targets=[pressure]",
             f"paths.output_dir={tmp_path}", "trainer.max_epochs=1"],
        )  # fmt: skip
    metrics = run.run(composed)
    assert not (tmp_path / "spectrum.png").exists()
    assert metrics["rows"] == {"train": 24, "val": 6, "test": 6}


@pytest.mark.parametrize(
    "override, error, message",
    [
        ("task.gradient_weight=0.1", ConfigError, "needs fields on a plane structured grid"),
        ("task.ema=1.0", ConfigError, r"task.ema=1.0: expected a number from 0 to below 1"),
        ("task.export=-1", ConfigError, "task.export=-1: expected 0 or more"),
        ("data.targets=[velocity]", DataError, "no usable mesh; first problem: .*broken.npz"),
        ("init_from=mp-band-gap", ConfigError, "init_from"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(meshes, tmp_path, override, error, message):
    folder = tmp_path / "run"
    with pytest.raises(error, match=message):
        run.run(config(meshes, folder, override))
    assert not folder.exists()


def test_crystals_do_not_fit_a_mesh_network(tmp_path):
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        cfg = compose("train", ["model=flare", "data=prototypes"])
    with pytest.raises(ConfigError, match="model=flare needs data of kind 'meshes'"):
        run.run(cfg)


def test_a_loss_that_is_not_finite_names_the_meshes(meshes, tmp_path, monkeypatch):
    def infinite(predicted, true, ptr, *_):
        return torch.full((len(ptr) - 1, 1), torch.inf, requires_grad=True)

    monkeypatch.setattr(train, "relative_errors", infinite)
    with pytest.raises(TrainingError, match="the loss is inf at step 0"):
        run.run(config(meshes, tmp_path))
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


@pytest.fixture()
def invoke(finished):
    def run(*arguments):
        return CliRunner().invoke(
            app, ["predict", str(finished[0] / "model"), *map(str, arguments)]
        )

    return run


def test_predict_writes_fields(invoke, meshes, finished, tmp_path):
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for name in ("m30", "m31"):
        shutil.copy(meshes / f"{name}.npz", inputs)
    result = invoke(inputs, meshes / "broken.npz", meshes / "m31.npz", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "3 of 4 meshes" in result.output
    with open(tmp_path / "out" / "predictions.csv") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["id"] for row in rows] == ["m30", "m31-1", "broken", "m31-2"]
    assert [row["status"] for row in rows] == ["ok", "ok", "DataError", "ok"]
    assert "broken.npz" in rows[2]["message"] and rows[0]["pressure_unit"] == "Pa"
    written = meshio.read(tmp_path / "out" / "m30.vtu")
    exported = meshio.read(finished[0] / "fields" / "m30.vtu")
    assert np.array_equal(
        written.point_data["pressure"], exported.point_data["pressure_predicted"]
    ) or np.allclose(
        written.point_data["pressure"], exported.point_data["pressure_predicted"], rtol=1e-5
    )


def test_predict_says_what_is_wrong(invoke, meshes, finished, tmp_path):
    result = invoke(meshes / "m30.npz")
    assert result.exit_code == 2 and "-o FOLDER" in result.output
    result = invoke(tmp_path, "-o", tmp_path / "out")
    assert result.exit_code == 2 and "no mesh file in" in result.output
    result = invoke(tmp_path / "absent.vtu", "-o", tmp_path / "out")
    assert result.exit_code == 2 and "no such file or folder" in result.output
    fields = tmp_path / "fields"
    shutil.copytree(finished[0] / "fields", fields)
    result = invoke(fields / "m30.vtu", "-o", fields)
    assert result.exit_code == 1
    with open(fields / "predictions.csv") as lines:
        assert "would be overwritten" in next(csv.DictReader(lines))["message"]
    np.savez(tmp_path / "noload.npz", pos=np.zeros((3, 2)))
    result = invoke(tmp_path / "noload.npz", "-o", tmp_path / "out")
    assert result.exit_code == 1
    with open(tmp_path / "out" / "predictions.csv") as lines:
        assert "load" in next(csv.DictReader(lines))["message"]


def test_a_mesh_model_is_refused_where_crystals_are_wanted(finished):
    from matattn.workflows.structures.predict import Predictor

    with pytest.raises(BundleError, match="this model reads meshes, not crystals"):
        Predictor.load(finished[0] / "model")
