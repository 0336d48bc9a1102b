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


@pytest.fixture(scope="module")
def calibrated(config, meshes, tmp_path_factory):
    """A finished run with twenty validation samples, which are enough for intervals."""
    folder, data = tmp_path_factory.mktemp("calibrated"), tmp_path_factory.mktemp("more")
    rows = ["id,split"]
    generator = np.random.default_rng(1)
    for number in range(44):
        pos = generator.random((20, 2))
        load = np.full(20, generator.uniform(1, 2))
        pressure = load * np.sin(3 * pos[:, 0]) + pos[:, 1]
        np.savez(data / f"m{number:02}.npz", pos=pos, load=load, pressure=pressure)
        rows.append(f"m{number:02},{('train', 'val')[number % 2] if number < 40 else 'test'}")
    (data / "split.csv").write_text("\n".join(rows))
    return folder, run.run(config(folder, f"data.path={data}", "task.export=0"))


def table(folder):
    with open(folder / "predictions.csv") as lines:
        return list(csv.DictReader(lines))


def test_a_model_without_intervals_leaves_them_empty(invoke, meshes, tmp_path):
    invoke(meshes / "m31.npz", "-o", tmp_path)
    (row,) = table(tmp_path)
    assert row["pressure_max"] and row["pressure_mean"] and row["ood_flag"] == ""
    assert row["pressure_max_lower"] == row["pressure_min_upper"] == ""
    assert "pressure_half_width" not in meshio.read(tmp_path / "m31.vtu").point_data


def test_intervals_of_fields(calibrated, meshes, tmp_path):
    folder, metrics = calibrated
    result = metrics["test"]["pressure"]
    assert 0.5 < result["in_interval"] <= 1 and 0 < result["maximum_in_interval"] <= 1
    assert "in_interval" not in metrics["val"]["pressure"]
    report = (folder / "report.md").read_text()
    assert "Intervals promise 90 %" in report and "in interval: nodes" in report
    with np.load(meshes / "m31.npz") as content:
        np.savez(tmp_path / "far.npz", **dict(content) | {"load": content["load"] + 30})
    arguments = [folder / "model", meshes / "m31.npz", tmp_path / "far.npz", "-o", tmp_path / "out"]
    done = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    near, far = table(tmp_path / "out")
    for name in ("min", "mean", "max"):
        value, lower, upper = (
            float(near[f"pressure_{name}{end}"]) for end in ("", "_lower", "_upper")
        )
        assert lower < value < upper and upper - value == pytest.approx(value - lower, rel=1e-4)
    assert float(near["ood_score"]) < float(far["ood_score"])
    assert far["ood_flag"] == "True" and "unlike the training meshes" in far["message"]
    fields = meshio.read(tmp_path / "out" / "m31.vtu").point_data
    node, whole = fields["pressure_half_width"], fields["pressure_whole_half_width"]
    assert (0 < node).all() and (node < whole).all()


def test_quantities_of_ones_own(calibrated, meshes):
    """Intervals of any function of a field, from samples that the user has labels of."""
    model = FieldPredictor.load(calibrated[0] / "model")
    samples = [
        read_mesh(meshes / f"m{number:02}.npz", 2, ["load"], ["pressure"]) for number in range(36)
    ]

    def range_of(sample, fields):
        return float(np.ptp(fields[:, 0]))

    predict = model.functional(range_of, samples[:34])
    value, lower, upper = predict(samples[35])
    (fields,) = model.predict(samples[35:])
    assert value == pytest.approx(np.ptp(fields[:, 0])) and lower < value < upper
    errors = sorted(
        abs(range_of(s, p) - range_of(s, s.y))
        for s, p in zip(samples[:34], model.predict(samples[:34]), strict=True)
    )
    assert upper - value == pytest.approx(errors[31], rel=1e-4)  # the 32nd of 34
    with pytest.raises(ValueError, match="4 labelled samples are too few"):
        model.functional(range_of, samples[:4])


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
