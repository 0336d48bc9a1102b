"""``matattn predict`` on meshes."""

import csv
import shutil

import meshio
import numpy as np
import pytest
from typer.testing import CliRunner

import matattn
from matattn.cli import app
from matattn.meshes.files import read_mesh


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


def test_how_torch_is_set_does_not_matter(finished, meshes, unusual_torch):
    folder = finished[0] / "model"
    samples = [read_mesh(meshes / "m00.npz", 2, ["load"])]
    loaded = matattn.load(folder)
    (expected,) = loaded.predict(samples)
    with unusual_torch():
        for model in (loaded, matattn.load(folder)):
            (field,) = model.predict(samples)
            assert np.array_equal(field, expected)
