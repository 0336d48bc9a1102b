"""``matattn embed`` as a user types it: features of structures in every format."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import matattn
from matattn.cli import app

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MODEL = "mp-band-gap"


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def files(tmp_path):
    (tmp_path / "bad.cif").write_text("data_x\n")
    return [EXAMPLES / "NaCl.cif", tmp_path / "bad.cif", EXAMPLES / "Si.cif"]


@pytest.fixture
def expected(files):
    return matattn.load(MODEL).embed([files[0], files[2]])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "npz"])
def test_every_format_holds_features_and_what_failed(files, expected, tmp_path, suffix):
    output = tmp_path / f"out.{suffix}"
    result = run("embed", MODEL, *files, "-o", output, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "2 of 3 structures in " in result.stderr
    if suffix == "npz":
        with np.load(output) as file:
            content = dict(file)
        ids, status, features = content["id"], content["status"], content["features"]
        assert content["natoms"].tolist()[1] == 0
    else:
        if suffix == "parquet":
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(output).to_pylist()
        elif suffix == "csv":
            rows = list(csv.DictReader(output.read_text().splitlines()))
        else:
            rows = [json.loads(line) for line in output.read_text().splitlines()]
        names = [name for name in rows[0] if name[0] == "f" and name[1:].isdigit()]
        assert list(rows[0])[:4] == ["id", "path", "formula", "natoms"]
        assert list(rows[0])[-2:] == ["status", "message"]
        ids, status = ([row[key] for row in rows] for key in ("id", "status"))
        features = np.array([[float(row[name] or "nan") for name in names] if n != 1 else
                             [np.nan] * len(names) for n, row in enumerate(rows)])  # fmt: skip
    assert list(ids) == ["NaCl", "bad", "Si"]
    assert [str(one) for one in status] == ["ok", "StructureError", "ok"]
    assert features.shape == (3, expected[0]["features"].shape[1])
    assert np.isnan(features[1]).all()
    for row, one in zip((0, 2), expected, strict=True):
        assert np.allclose(features[row], one["features"][0], rtol=1e-4, atol=1e-5)


def test_features_lead_to_the_prediction(files, expected):
    import torch

    model = matattn.load(MODEL)
    values = model.values(torch.from_numpy(np.concatenate([one["features"] for one in expected])))
    told = [row["band_gap"] for row in model.predict([files[0], files[2]])]
    assert values[:, 0].tolist() == pytest.approx(told, rel=1e-6)


def test_all_that_fail_are_told(tmp_path):
    (tmp_path / "bad.cif").write_text("data_x\n")
    output = tmp_path / "out.csv"
    result = run("embed", MODEL, tmp_path / "bad.cif", "-o", output, "--device", "cpu")
    assert result.exit_code == 1 and "StructureError" in output.read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            [MODEL, "x.cif", "-o", "out.xlsx"],
            "out.xlsx: unknown kind of table; expected .csv, .json",
        ),
        ([MODEL, "x.cif", "-o", "absent/out.npz"], "absent/out.npz: "),
        (["mp-band", "x.cif", "-o", "out.npz"], "mp-band: no such folder"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("embed", *arguments)
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 2 and line.startswith("error: ") and message in line
