"""The models that come with matattn predict what they predicted when they were released."""

import json
from pathlib import Path

import numpy as np
import pytest

import matattn
from matattn import pretrained
from matattn.datasets import crystals
from matattn.structures.files import read
from matattn.units import PROPERTIES
from matattn.workflows.structures.predict import encode

ROOT = Path(__file__).parents[2]
# {model: {formula: [value, lower, upper]}} of docs/examples/*.cif
GOLDEN = json.loads((ROOT / "tests" / "golden" / "shipped_models.json").read_text())


def test_every_shipped_model_has_golden_predictions():
    assert pretrained.names() == sorted(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_predictions(name):
    model = matattn.load(name)
    target = model.targets[0]["name"]
    structures = [
        read(ROOT / "docs" / "examples" / f"{formula}.cif")[0] for formula in GOLDEN[name]
    ]
    for row, expected in zip(model.predict(structures), GOLDEN[name].values(), strict=True):
        found = [row[target], row[f"{target}_lower"], row[f"{target}_upper"]]
        assert found == pytest.approx(expected, abs=3e-4), row["formula"]
        assert row["status"] == "ok" and row["ood_flag"] is False


@pytest.mark.parametrize("name", pretrained.names())
def test_a_shipped_model_says_what_it_is(name):
    folder = pretrained.find(name)
    config = json.loads((folder / "config.json").read_text())
    card = (folder / "card.md").read_text()
    assert config["licence"] == "CC-BY 4.0" and config["licence"] in card
    for target in config["targets"]:
        assert target["unit"] == PROPERTIES[target["name"]].unit
        assert target["name"] in card
        assert config["metrics"]["val"][target["name"]]["interval"]["coverage"] > 0.8
    assert "not comparable" in card and "/tmp" not in card
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6


@pytest.mark.slow
@pytest.mark.parametrize("name", pretrained.names())
def test_validation_error_is_the_recorded_one(name, data_dir):
    model = matattn.load(name)
    names = [target["name"] for target in model.targets]
    data = crystals.load("mp", str(data_dir / "crystals" / "mp2018.jsonl.gz"), names)
    rows = data.rows("val")
    values = model.values(encode(model.network, [data.items[row] for row in rows]))
    for column, target in enumerate(names):
        error = np.nanmean(np.abs(values[:, column] - data.labels()[rows, column]))
        recorded = model.config["metrics"]["val"][target]["mae"]
        assert error == pytest.approx(recorded, abs=1e-4)
