"""``matattn predict`` on meshes."""

import csv
import shutil

import meshio
import numpy as np
import pytest
from typer.testing import CliRunner

import matattn
from matattn.cli import app
from matattn.meshes.fields import MeshSample
from matattn.meshes.files import read_mesh, write_vtu
from matattn.workflows import run
from matattn.workflows.meshes.predict import FieldPredictor


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


def test_other_units_and_a_series(invoke, meshes, finished, tmp_path):
    with np.load(meshes / "m30.npz") as content:
        pos, load = content["pos"], content["load"]
    for name, scale in (("km", 1e-3), ("same", 1), ("mm", 1e3)):
        sample = MeshSample(name, (scale * pos).astype("f4"), pos, pos)
        write_vtu(tmp_path / f"{name}.vtu", sample, {"load": load})
    names = ("mm", "same", "km")
    rows = "".join(
        f'<DataSet timestep="{time}" file="{name}.vtu"/>' for time, name in enumerate(names)
    )
    series = f'<VTKFile type="Collection"><Collection>{rows}</Collection></VTKFile>'
    (tmp_path / "a.pvd").write_text(series)
    result = invoke(tmp_path / "a.pvd", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    with open(tmp_path / "out" / "predictions.csv") as lines:
        message = {row["id"]: row["message"] for row in csv.DictReader(lines)}
    assert list(message) == ["mm", "same", "km"] and message["same"] == ""
    assert "x is " in message["mm"] and ", in the training " in message["mm"]
    assert "the mesh is " in message["km"] and message["km"].endswith("other units?")
    old = FieldPredictor.load(finished[0] / "model")
    assert old.remarks(read_mesh(tmp_path / "mm.vtu", 2, ["load"]))
    del old.config["training_range"]  # as in models from before
    assert old.remarks(read_mesh(tmp_path / "mm.vtu", 2, ["load"])) == []


def test_noise_of_rounding_changes_no_prediction(config, tmp_path):
    """Meshes that are plane but for the noise of a program are plane, in training and after."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "meshes"
    folder.mkdir()
    for number in range(10):
        pos = generator.random((20, 3))
        pos[:, 2] = 1e-17 * generator.standard_normal(20) if number else 0
        fields = {"load": np.full(20, 1.0 + number), "pressure": pos[:, 0]}
        np.savez(folder / f"m{number}.npz", pos=pos, **fields)
    with np.load(folder / "m1.npz") as content:
        arrays = dict(content)
    arrays["pos"][:, 2] = 3e-17 * generator.standard_normal(20)
    np.savez(tmp_path / "other.npz", **arrays)
    run.run(config(tmp_path / "run", f"data.path={folder}", "trainer.max_epochs=2"))
    model = FieldPredictor.load(tmp_path / "run" / "model")
    assert [field.name for field in model.fields("coordinates")] == ["x", "y"]
    first, second = model.predict(
        [read_mesh(path, 2, ["load"]) for path in (folder / "m1.npz", tmp_path / "other.npz")]
    )
    np.testing.assert_allclose(first, second, atol=1e-6 * first.std())


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


def test_how_torch_is_set_does_not_matter(finished, meshes, unusual_torch):
    folder = finished[0] / "model"
    samples = [read_mesh(meshes / "m00.npz", 2, ["load"])]
    loaded = matattn.load(folder)
    (expected,) = loaded.predict(samples)
    with unusual_torch():
        for model in (loaded, matattn.load(folder)):
            (field,) = model.predict(samples)
            assert np.array_equal(field, expected)
