"""DOC"""

import dataclasses
import json

import numpy as np
import pytest
import torch

from matattn.errors import ConfigError, DataError
from matattn.models.crystalformer import Crystalformer
from matattn.structures.dataset import PropertyDataset
from matattn.structures.metrics import baselines
from matattn.structures.structure import tensors_from_arrays, to_data
from matattn.units import find_properties
from matattn.workflows.structures import evaluate
from matattn.workflows.structures.predict import Predictor

PLACES = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])


CRYSTALS = [  # split, atomic numbers
    ("train", (11, 17)), ("train", (3, 9)), ("train", (12, 8)), ("train", (26,)),
    ("val", (17, 11)),  # a polymorph of a training row
    ("val", (26, 8)), ("test", (30, 16)), ("test", (31, 7)), ("test", (28, 13)),
    ("test", (29,)), ("test", (57, 5)), ("test", (22, 8, 8, 22, 8)),
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset():
    items = []
    for number, (_, z) in enumerate(CRYSTALS):
        cell = (4 + 0.1 * number) * np.eye(3)
        label = float("nan") if number == 9 else -0.1 * number
        items.append(to_data(tensors_from_arrays(z, PLACES[: len(z)], cell), [label], f"c{number}"))
    split = np.array([split for split, _ in CRYSTALS])
    return PropertyDataset("small", find_properties("e_form"), items, split, "a note")


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    network = Crystalformer(num_targets=2, dim=8, num_heads=1, num_blocks=1, ffn_dim=8).eval()
    network.blocks[0].attention.sigma_fitted.fill_(True)
    config = {
        "targets": [
            {"name": "band_gap", "unit": "eV"},
            {"name": "formation_energy_per_atom", "unit": "eV/atom"},
        ],
        "normaliser": {"mean": [0.0, -1.0], "std": [1.0, 0.5]},
        "elements": list(range(1, 99)),
        "data": {"name": "other", "fingerprint": ""},
    }
    return Predictor(network, config)


def test_groups_are_of_held_out_rows(dataset):
    groups = {name: rows.tolist() for name, rows in evaluate.held_out_groups(dataset)}
    filled = {name: rows for name, rows in groups.items() if rows}
    assert filled == {
        "1 to 4 sites": [4, 5, 6, 7, 8, 9, 10],
        "5 to 8 sites": [11],
        "elements": [9],
        "oxides (O)": [5, 11],
        "halides (F Cl Br I)": [4],
        "chalcogenides (S Se Te)": [6],
        "pnictides (N P As Sb)": [7],
        "intermetallics (metals only)": [8],
        "others": [10],
        "with lanthanides or actinides": [10],
    }


def test_errors_are_those_of_what_predict_says(dataset, predictor):
    result = evaluate.evaluate(predictor, dataset)
    structures = [
        evaluate.Structure(i.cell[0].numpy(), i.z.numpy(), i.pos.numpy(),
                             coords_are_cartesian=True) for i in dataset.items
    ]  # fmt: skip
    rows = predictor.predict(structures)
    said = np.array([row["formation_energy_per_atom"] for row in rows])
    true = dataset.labels()[:, 0]
    energy = result["splits"]["test"]["formation_energy_per_atom"]
    known = [6, 7, 8, 10, 11]
    assert energy["n"] == 5 and energy["unit"] == "eV/atom"
    assert energy["mae"] == pytest.approx(np.abs(said - true)[known].mean())
    linear = baselines(dataset)["linear_composition"][:, 0]
    assert energy["baselines"]["linear_composition"] == pytest.approx(
        np.abs(linear - true)[known].mean()
    )
    oxides = result["held_out"]["oxides (O)"]["formation_energy_per_atom"]
    assert oxides["mae"] == pytest.approx(np.abs(said - true)[[5, 11]].mean())
    assert "elements" not in result["held_out"]  # its label is missing
    assert result["failed"] == {}
    json.dumps(result)


def test_intervals_have_coverage_and_width(dataset, predictor, monkeypatch):
    truth = dict(enumerate(dataset.labels()[:, 0]))

    def predict(self, structures, places, advance):
        rows = []
        for number in range(len(list(structures))):
            low = truth[number] - (0.1 if number % 2 else -0.1)
            row = {"formation_energy_per_atom": 0.0, "formation_energy_per_atom_lower": low}
            rows.append(row | {"formation_energy_per_atom_upper": low + 0.4, "status": "ok"})
        return rows

    monkeypatch.setattr(Predictor, "predict", predict)
    result = evaluate.evaluate(predictor, dataset)
    energy = result["splits"]["test"]["formation_energy_per_atom"]
    assert energy["interval"]["coverage"] == pytest.approx(2 / 5)  # 7 and 11 of 6, 7, 8, 10, 11
    assert energy["interval"]["mean_width"] == pytest.approx(0.4)


def test_a_crystal_without_prediction_is_named_and_left_out(dataset, predictor, monkeypatch):
    original = Predictor.predict

    def predict(self, structures, places, advance):
        rows = original(self, structures, places, advance)
        rows[6] |= {"formation_energy_per_atom": None, "status": "PredictionError", "message": "m"}
        return rows

    monkeypatch.setattr(Predictor, "predict", predict)
    result = evaluate.evaluate(predictor, dataset)
    assert result["failed"] == {"c6": "m"}
    assert result["splits"]["test"]["formation_energy_per_atom"]["n"] == 4


def test_rows_that_the_model_has_seen_are_told(dataset, predictor):
    def remarks(data):
        trained = dataclasses.replace(predictor, config=predictor.config | {"data": data})
        return evaluate.evaluate(trained, dataset)["remarks"]

    (same,) = remarks({"name": "small", "fingerprint": dataset.fingerprint()})
    assert "was trained on the train rows of these data" in same
    (other,) = remarks({"name": "small", "fingerprint": "another"})
    assert "another selection or version of small" in other
    (strange,) = remarks({"name": "large", "fingerprint": "another"})
    assert strange.startswith("The model was trained on large")


def test_targets_must_fit(dataset, predictor):
    gap = dataclasses.replace(dataset, targets=find_properties("volume_per_atom"))
    with pytest.raises(ConfigError, match=r"the model predicts band_gap \(eV\), .*not volume_per"):
        evaluate.evaluate(predictor, gap)


def test_data_by_name_and_by_file(predictor, tmp_path):
    data = evaluate.load_data("prototypes", predictor, ["data.targets=[e_form]"])
    assert [target.name for target in data.targets] == ["formation_energy_per_atom"]
    row = {"lattice": (4 * np.eye(3)).tolist(), "frac": [[0, 0, 0]], "e_form": -1, "gap": 1}
    rows = [row | {"id": n, "Z": [n], "split": "train" if n < 9 else "val"} for n in range(3, 12)]
    path = tmp_path / "my data=1.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = evaluate.load_data(str(path), predictor, ["data.max_sites=1"])
    assert data.name == path.name and len(data.rows("val")) == 3 and len(data.targets) == 2
    with pytest.raises(DataError, match="no column for target 'log10_bulk_modulus'"):
        evaluate.load_data(str(path), predictor, ["data.targets=[k_vrh]"])
    with pytest.raises(DataError, match="absent.jsonl: no such file"):
        evaluate.load_data("absent.jsonl", predictor, [])
    with pytest.raises(ConfigError, match="data/mp2019"):
        evaluate.load_data("mp2019", predictor, [])


def test_rows_kept_apart_for_intervals_stay_apart(predictor):
    data = evaluate.load_data("prototypes", predictor, ["data.targets=[e_form]"])
    assert not len(data.rows("calibration"))
    trained_on = {"name": "prototypes", "fingerprint": data.hold_out(0.05).fingerprint()}
    trained = dataclasses.replace(predictor, config=predictor.config | {"data": trained_on})
    data = evaluate.load_data("prototypes", trained, ["data.targets=[e_form]"])
    assert len(data.rows("calibration")) > 100


def test_rows_with_remarks_are_counted(dataset, predictor):
    def told(known):
        config = predictor.config | {"elements": known}
        return evaluate.evaluate(dataclasses.replace(predictor, config=config), dataset)

    result = told([z for z in range(1, 99) if z != 57])
    assert result["noted"] == {"c10": "no training crystal contains La: do not trust this value"}
    assert result["remarks"][-1] == (
        "1 of 12 rows have a remark, and 1 of them are flagged: not to be trusted. One of them: "
        "no training crystal contains La: do not trust this value"
    )
    assert told(list(range(1, 99)))["noted"] == {}
    assert len(told(list(range(1, 99)))["remarks"]) == 1


def test_vacuum_is_remarked(dataset, predictor):
    slab = to_data(tensors_from_arrays((11, 17), PLACES[:2], np.diag([4, 4, 40])), [0.0], "slab")
    with_slab = dataclasses.replace(
        dataset, items=[*dataset.items, slab], split=np.array([*dataset.split, "test"])
    )
    result = evaluate.evaluate(predictor, with_slab)
    assert list(result["noted"]) == ["slab"] and "Å of vacuum" in result["remarks"][-1]
