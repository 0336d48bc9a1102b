"""``matattn similar`` and ``matattn suggest`` as users type them."""

import csv
import io
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import matattn
from matattn import pretrained
from matattn.cli import app

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_same_crystal_is_the_nearest(tmp_path):
    features = tmp_path / "features.npz"
    assert run("embed", "mp-band-gap", EXAMPLES, "-o", features).exit_code == 0
    for pool in (EXAMPLES, features):
        result = run("similar", "mp-band-gap", EXAMPLES / "NaCl.cif", pool, "-n", 2)
        assert result.exit_code == 0, result.stderr
        first, second = csv.DictReader(io.StringIO(result.stdout))
        assert first["id"] == "NaCl" and float(first["distance"]) < 1e-3 and first["rank"] == "1"
        assert float(second["distance"]) > 0.1


def test_the_training_rows_that_a_prediction_rests_on(tmp_path):
    """Named, with their labels; the nearest distance is that of the prediction's ood_score."""
    result = run("similar", "mp-band-gap", EXAMPLES / "NaCl.cif", "-n", 3)
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert rows[0]["id"].startswith("mp-") and rows[0]["formula"] == "NaCl"
    assert 4 < float(rows[0]["label_band_gap"]) < 6
    model = matattn.load("mp-band-gap")
    assert model.uncertainty is not None
    (predicted,) = model.predict(str(EXAMPLES / "NaCl.cif"))
    nearest = predicted["ood_score"] * model.uncertainty.far
    assert float(rows[0]["distance"]) == pytest.approx(nearest, rel=0.02, abs=1e-3)
    copied = tmp_path / "model"
    shutil.copytree(pretrained.find("mp-band-gap"), copied)
    sums = copied / "SHA256SUMS"
    lines = [line for line in sums.read_text().splitlines() if "training_rows" not in line]
    sums.write_text("\n".join(lines) + "\n")
    result = run("similar", copied, EXAMPLES / "NaCl.cif")
    assert result.exit_code == 2 and "training_rows.csv: missing here or in" in result.stderr
    (copied / "training_rows.csv").unlink()
    result = run("similar", copied, EXAMPLES / "NaCl.cif")
    assert result.exit_code == 2 and "does not know its training rows" in result.stderr


def test_suggestions_are_written(tmp_path):
    output = tmp_path / "batch.csv"
    result = run("suggest", "mp-band-gap", EXAMPLES, "--maximize", "band_gap", "-n", 2,
                 "--best", 3.0, "-o", output)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "best label 3 eV; " in result.stderr and " of 5 structures" in result.stderr
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert rows[0]["formula"] in ("MgO", "NaCl") and float(rows[0]["score"]) > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--maximize", "band_gap", "--learn", "band_gap"], "give one of --maximize"),
        ([], "give one of --maximize"),
        (["--learn", "band_gap", "--best", 1], "of no use with --learn"),
        (["--maximize", "tc"], "tc: this model predicts band_gap"),
    ],
)
def test_a_goal_that_makes_no_sense_is_refused(arguments, message):
    result = run("suggest", "mp-band-gap", EXAMPLES, *arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_a_query_that_cannot_be_read_is_told(tmp_path):
    result = run("similar", "mp-band-gap", tmp_path / "absent.cif", EXAMPLES)
    assert result.exit_code == 2 and "absent.cif: no such file" in result.stderr


@pytest.mark.parametrize("command", [["similar", "mlearn-si", EXAMPLES / "Si.cif"],
                                     ["suggest", "mlearn-si", "--learn", "energy"]])  # fmt: skip
def test_a_model_without_features_is_refused(command):
    result = run(*command, EXAMPLES)
    assert result.exit_code == 2 and "only structures have features" in result.stderr
