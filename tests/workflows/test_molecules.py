"""Training on molecules, their atoms and their pairs, from the configuration to predictions."""

import csv
import json

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from pymatgen.core import Lattice, Molecule, Structure
from typer.testing import CliRunner

import matattn
from matattn.cli import app
from matattn.conf.schema import register
from matattn.errors import ConfigError
from matattn.workflows import run

SMALL = ["model.dim=8", "model.num_heads=2", "model.num_blocks=1", "model.ffn_dim=8",
         "task.batch_size=8", "trainer.accelerator=cpu", "trainer.max_epochs=2"]  # fmt: skip


def config(folder, *overrides):
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        return compose("train", ["model=coulgat", *SMALL, f"paths.output_dir={folder}", *overrides])


def bent(generator, number):
    """Water with a random angle."""
    angle = generator.uniform(1.2, 2.6)
    pos = np.array([[0, 0, 0], [0.96, 0, 0], [0.96 * np.cos(angle), 0.96 * np.sin(angle), 0]])
    return {"id": f"w{number}", "Z": [8, 1, 1], "pos": pos.tolist(), "angle": angle}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same 40 molecules as a table, with values of atoms, and with values of pairs."""
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = [bent(generator, number) for number in range(40)]
    lines = [json.dumps(row | {"heat_of_formation": 10 * row["angle"]}) for row in rows]
    (folder / "whole.jsonl").write_text("\n".join(lines))
    nmr = [{"name": row["id"], "symbols": ["O", "H", "H"], "pos": row["pos"],
            "sigma_ppm": [[300 + row["angle"]], [30], [30]]} for row in rows]  # fmt: skip
    (folder / "atoms.json").write_text(json.dumps(nmr))
    pairs = [{"name": row["id"], "z": row["Z"], "pos": row["pos"], "converged": True,
              "J_hz": [[0, -80, -80], [-80, 0, row["angle"]], [-80, row["angle"], 0]]}
             for row in rows]  # fmt: skip
    (folder / "pairs.json").write_text(json.dumps(pairs))
    water = "3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"
    (folder / "water.xyz").write_text(water)
    return folder


KINDS = {
    "whole": ["data=table", "data.targets=[heat_of_formation]", "data.path={}/whole.jsonl"],
    "atoms": ["data=qm9nmr", "data.path={}/atoms.json"],
    "pairs": ["data=qm7_couplings", "data.path={}/pairs.json"],
}


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    runs = {}
    for kind, overrides in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        given = [text.format(files) for text in overrides]
        runs[kind] = folder, run.run(config(folder, *given))
    return runs


@pytest.mark.parametrize(
    "kind, target, rows, floors",
    [
        ("whole", "heat_of_formation", 4, set()),
        ("atoms", "nmr_shielding", 12, {"increments"}),
        ("pairs", "scalar_coupling", 12, {"type_of_coupling"}),
    ],
)
def test_errors_stand_beside_floors(finished, kind, target, rows, floors):
    folder, metrics = finished[kind]
    found = metrics["test"][target]
    assert found["n"] == rows
    assert set(found["baselines"]) == {"mean", "linear_composition"} | floors
    with open(folder / "predictions.csv") as lines:
        test = [row for row in csv.DictReader(lines) if row["split"] == "test"]
    errors = [abs(float(row["true"]) - float(row["predicted"])) for row in test]
    assert len(errors) == rows and np.mean(errors) == pytest.approx(found["mae"], rel=1e-3)
    report = (folder / "report.md").read_text()
    assert all(title in report for title in ("linear in composition", "mean of training labels"))
    assert "crystals" not in report and "/model *.xyz\n" in report


def test_elements_and_readout_follow_the_data(finished):
    for kind, readout in (("whole", "sum"), ("atoms", "atoms"), ("pairs", "pairs")):
        folder, _ = finished[kind]
        arguments = json.loads((folder / "model" / "config.json").read_text())["arguments"]
        assert arguments["elements"] == [1, 8] and arguments["readout"] == readout


def test_rows_of_atoms_and_pairs_are_named(finished):
    for kind, names in (("atoms", ["w0:1", "w0:2", "w0:3"]), ("pairs", ["w0:1-2", "w0:1-3"])):
        with open(finished[kind][0] / "predictions.csv") as lines:
            found = [row["id"] for row in csv.DictReader(lines)]
        assert found[: len(names)] == names


def test_bundle_predicts_what_the_run_predicted(finished, files):
    rows = [json.loads(line) for line in (files / "whole.jsonl").read_text().splitlines()]
    molecules = [Molecule(row["Z"], row["pos"]) for row in rows]
    for kind, target in (("whole", "heat_of_formation"), ("atoms", "nmr_shielding")):
        folder, _ = finished[kind]
        with open(folder / "predictions.csv") as lines:
            expected = [float(row["predicted"]) for row in csv.DictReader(lines)]
        found = [row[target] for row in matattn.load(folder / "model").predict(molecules)]
        assert np.ravel(found) == pytest.approx(expected, rel=1e-4)


def test_command_line_predicts_molecules(finished, files):
    for kind, target in (("whole", "heat_of_formation"), ("pairs", "scalar_coupling")):
        model = str(finished[kind][0] / "model")
        out = files / f"{kind}.json"
        result = CliRunner().invoke(
            app, ["predict", model, str(files / "water.xyz"), "-o", str(out)]
        )
        assert result.exit_code == 0, result.output
        (row,) = json.loads(out.read_text())
        assert row["status"] == "ok" and row["formula"] == "H2O" and row["natoms"] == 3
        assert np.shape(row[target]) == (() if kind == "whole" else (3,))
    assert row["pairs"] == [[1, 2], [1, 3], [2, 3]]


def test_what_a_model_cannot_read_is_a_row(finished):
    model = matattn.load(finished["whole"][0] / "model")
    crystal = Structure(Lattice.cubic(3), ["H"], [[0, 0, 0]])
    rows = model.predict([crystal, Molecule(["C", "O"], [[0, 0, 0], [1.1, 0, 0]])])
    assert rows[0]["message"].endswith("trained on molecules, and reads no crystals")
    assert "contains C; this model has constants for H, O only" in rows[1]["message"]
    assert [row["status"] for row in rows] == 2 * ["StructureError"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["model=crystalformer"], "Crystalformer reads crystals only"),
        (["model.cutoff=0.9", "model.switch_width=0.1"], "within the network's range of 0.9 Å"),
        (["model.readout=atoms"], "has a value for every structure, and CoulGAT gives one"),
    ],
)
def test_wrong_pairings_are_refused(files, tmp_path, overrides, message):
    data = [text.format(files) for text in KINDS["whole"]]
    small = [text for text in SMALL if not text.startswith("model.")]
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        given = [*small, *data, f"paths.output_dir={tmp_path}/run"]
        model = [] if overrides[0] == "model=crystalformer" else ["model=coulgat"]
        cfg = compose("train", [*model, *given, *overrides])
    with pytest.raises(ConfigError, match=message):
        run.run(cfg)


def test_a_model_starts_from_another(finished, files, tmp_path):
    """Its first prediction, before any step, is that of the model it starts from."""
    folder, _ = finished["whole"]
    given = [text.format(files) for text in KINDS["whole"]]
    start = ["optimizer.lr=1e-12", f"init_from={folder / 'model'}", "trainer.max_epochs=1"]
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        small = [text for text in SMALL[4:6]]
        overrides = ["model=coulgat", *small, *given, *start, f"paths.output_dir={tmp_path}/run"]
        run.run(compose("train", overrides))
    water = Molecule(["O", "H", "H"], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    (old,), (new,) = (
        matattn.load(place / "model").predict(water) for place in (folder, tmp_path / "run")
    )
    assert new["heat_of_formation"] == pytest.approx(old["heat_of_formation"], rel=1e-4)
