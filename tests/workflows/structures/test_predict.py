"""Predictions: a row for everything, and what happens when memory is short."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Molecule, Structure
from typer.testing import CliRunner

import matattn
from matattn import bundle
from matattn.cli import app
from matattn.errors import BundleError, StructureError
from matattn.kinds import KINDS
from matattn.models.crystalformer import Crystalformer
from matattn.models.flare import FLARE
from matattn.structures.batch import collate
from matattn.structures.derivatives import energy_forces_stress
from matattn.structures.files import read
from matattn.structures.remarks import add_doubt, add_remark
from matattn.structures.structure import to_tensors
from matattn.workflows import run
from matattn.workflows.structures.predict import Predictor, encode

NACL = Path(__file__).parents[3] / "docs" / "examples" / "NaCl.cif"
ARGUMENTS = {"num_targets": 1, "dim": 8, "num_heads": 1, "num_blocks": 1, "ffn_dim": 8}


@pytest.fixture
def network():
    """Trained enough to have widths of its own: else every batch makes its own."""
    torch.manual_seed(0)
    network = Crystalformer(**ARGUMENTS).eval()
    for block in network.blocks:
        block.attention.sigma_fitted.fill_(True)
    return network


def crystals(*sizes):
    return [
        Structure(Lattice.from_parameters(4 * n, 4, 4, 90, 90, 90), ["Li"] * n,
                  [[k / n, 0, 0] for k in range(n)])
        for n in sizes
    ]  # fmt: skip


def limited(monkeypatch, atoms, error):
    """A memory that holds batches of so many atoms; returns the sizes that were tried."""
    original, tried = Crystalformer.features, []

    def features(self, batch):
        tried.append(len(batch.z))
        if len(batch.z) > atoms:
            raise error
        return original(self, batch)

    monkeypatch.setattr(Crystalformer, "features", features)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried ..."),
        MemoryError(),
    ],
)
def test_batches_are_halved_until_they_fit(network, monkeypatch, error):
    items = [to_tensors(structure) for structure in crystals(3, 1, 2, 3, 2, 1, 8)]
    expected = encode(network, items)
    tried, done = limited(monkeypatch, 4, error), []
    result = encode(network, items, advance=done.append)
    assert tried[0] == 20 and sum(done) == len(items)
    assert result[6].isnan().all()  # does not fit alone
    assert torch.allclose(result[:6], expected[:6], atol=1e-6)


def test_other_errors_are_not_mistaken(network, monkeypatch):
    limited(monkeypatch, 0, RuntimeError("shapes disagree"))
    with pytest.raises(RuntimeError, match="shapes disagree"):
        encode(network, [to_tensors(crystals(1)[0])])


def test_a_structure_that_does_not_fit_is_a_row(network, monkeypatch):
    limited(monkeypatch, 4, MemoryError())
    config = {
        "targets": [{"name": "band_gap", "unit": "eV"}],
        "normaliser": {"mean": [0.0], "std": [1.0]},
        "elements": [3],
    }
    small, large = Predictor(network, config).predict(crystals(2, 8))
    assert small["status"] == "ok"
    assert large["status"] == "PredictionError" and "memory for 8 atoms" in large["message"]
    (alone,) = Predictor(network, config).predict(crystals(8))
    assert alone == large


def test_predictor_gives_a_row_for_everything(finished, tmp_path):
    model = matattn.load(finished[0] / "model")
    good = Structure(Lattice.cubic(4), ["Li", "F"], [[0] * 3, [0.5] * 3])
    strange = Structure(Lattice.cubic(4), ["U"], [[0] * 3])
    overlap = Structure(Lattice.cubic(4), ["Li", "F"], [[0] * 3, [0] * 3])
    rows = model.predict([good, overlap, StructureError("x.cif: cannot be read"), strange])
    assert [row["status"] for row in rows] == ["ok", "StructureError", "StructureError", "ok"]
    assert rows[0]["formula"] == "LiF" and rows[0]["natoms"] == 2
    assert np.isfinite(rows[0]["band_gap"]) and rows[0]["band_gap_unit"] == "eV"
    assert rows[1]["message"].startswith("structure 2: sites 1 and 2 overlap")
    assert rows[1]["band_gap"] is None
    assert "no training crystal contains U" in rows[3]["message"]
    (alone,) = model.predict(good)
    assert alone["band_gap"] == pytest.approx(rows[0]["band_gap"], abs=1e-5)
    good.to(filename=str(tmp_path / "lif.cif"))
    (from_file,) = model.predict(read(tmp_path / "lif.cif"))
    assert from_file["band_gap"] == pytest.approx(rows[0]["band_gap"], abs=1e-4)


def test_forces_of_a_saved_model_are_slopes_of_its_predictions(finished):
    """Through the normaliser and to the whole cell, as docs/forces.md shows it."""
    model = matattn.load(finished[0] / "model")
    model.network.double()
    structure = Structure(4.3 * np.eye(3), [11, 17], [[0, 0, 0], [0.42, 0.55, 0.5]])
    batch = collate([to_tensors(structure, torch.float64)], model.network.image_rule(1e-10))
    with pytest.raises(ValueError, match="no target|one target in eV/atom"):
        two = [target | {"unit": "eV"} for target in model.targets]
        dataclasses.replace(model, config=model.config | {"targets": two}).energy(batch)
    result = energy_forces_stress(model.energy, batch)
    expected = model.predict(structure)[0]["formation_energy_per_atom"]
    assert result.energy.item() / 2 == pytest.approx(expected, abs=1e-5)
    energies = []
    for step in (-1e-3, 1e-3):
        moved = dataclasses.replace(batch, pos=batch.pos + torch.tensor([[0, 0, 0], [step, 0, 0]]))
        with torch.no_grad():
            energies.append(model.energy(moved).item())
    slope = (energies[1] - energies[0]) / 2e-3
    assert abs(slope + result.forces[1, 0].item()) <= 1e-3 * abs(slope)
    assert abs(slope) > 1e-5


def predictions(folder):
    with open(folder / "predictions.csv") as lines:
        return list(csv.DictReader(lines))


def test_predictions_have_intervals_and_novelty(calibrated, polymorphs):
    folder, _ = calibrated
    row = json.loads(polymorphs.read_text().splitlines()[0])
    known = Structure(row["lattice"], row["Z"], row["frac"])
    strange = Structure(Lattice.cubic(3.0), ["U"], [[0, 0, 0]])
    one, two = matattn.load(folder / "model").predict([known, strange])
    expected = next(r for r in predictions(folder) if r["id"] == row["id"])
    for end in ("lower", "upper"):
        found = one[f"formation_energy_per_atom_{end}"]
        assert found == pytest.approx(float(expected[end]), abs=1e-3)
    assert one["ood_score"] < 1 and one["ood_flag"] is False and one["message"] == ""
    assert two["ood_flag"] is True and "no training crystal contains U" in two["message"]
    assert one["band_gap_lower"] >= 0


def test_command_line_predicts_molecules(molecule_runs, molecule_files, tmp_path):
    for kind, target in (("whole", "heat_of_formation"), ("pairs", "scalar_coupling")):
        model = str(molecule_runs[kind][0] / "model")
        out = tmp_path / f"{kind}.json"
        result = CliRunner().invoke(
            app, ["predict", model, str(molecule_files / "water.xyz"), "-o", str(out)]
        )
        assert result.exit_code == 0, result.output
        (row,) = json.loads(out.read_text())
        assert row["status"] == "ok" and row["formula"] == "H2O" and row["natoms"] == 3
        assert np.shape(row[target]) == (() if kind == "whole" else (3,))
    assert row["pairs"] == [[1, 2], [1, 3], [2, 3]]


def test_what_a_model_cannot_read_is_a_row(molecule_runs):
    model = matattn.load(molecule_runs["whole"][0] / "model")
    crystal = Structure(Lattice.cubic(3), ["H"], [[0, 0, 0]])
    rows = model.predict([crystal, Molecule(["C", "O"], [[0, 0, 0], [1.1, 0, 0]])])
    assert rows[0]["message"].endswith("trained on molecules, and reads no crystals")
    assert "contains C; this model has constants for H, O only" in rows[1]["message"]
    assert [row["status"] for row in rows] == 2 * ["StructureError"]


def test_a_crystal_as_text_is_predicted_like_any_other(compose, table, tmp_path):
    run.run(compose(
        "model=crystal_text", "model.representation=cif_p1", "model.dim=16", "model.ffn_dim=16",
        "model.num_blocks=1", "task.calibration=0", "trainer.max_epochs=1", "data=crystals",
        f"data.path={table}", "data.targets=[e_form]",
        f"paths.output_dir={tmp_path / 'run'}",
    ))  # fmt: skip
    crystal = Structure.from_file(NACL)
    model = matattn.load(tmp_path / "run" / "model")
    good, long = model.predict([crystal, crystal * (2, 2, 2)])
    assert good["status"] == "ok" and good["formation_energy_per_atom"] is not None
    assert long["status"] == "StructureError" and "tokens as cif_p1" in long["message"]


def test_a_mesh_model_is_refused_where_crystals_are_wanted(tmp_path):
    arguments = {"num_inputs": 2, "dim": 8, "num_blocks": 1, "num_heads": 1, "num_latents": 4}
    description = dict.fromkeys(KINDS["meshes"].bundle_keys, []) | {"kind": "meshes", "targets": []}
    bundle.save(tmp_path / "model", FLARE(**arguments), arguments, description, "card")
    with pytest.raises(BundleError, match="this model reads meshes, not structures"):
        Predictor.load(tmp_path / "model")


@pytest.mark.parametrize("run", ["finished", "calibrated", "whole", "pairs"])
def test_how_torch_is_set_does_not_matter(run, request, unusual_torch, molecule_runs):
    folder = (molecule_runs.get(run) or request.getfixturevalue(run))[0] / "model"
    molecule = Molecule(["O", "H", "H"], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    given = [molecule if run in molecule_runs else Structure.from_file(NACL)]
    loaded = matattn.load(folder)
    rows = loaded.predict(given)
    assert rows[0]["status"] == "ok"
    with unusual_torch():
        assert loaded.predict(given) == rows
        loaded_here = matattn.load(folder)
        assert loaded_here.predict(given) == rows
    assert loaded_here.predict(given) == rows
    assert torch.get_default_dtype() == torch.float32


def test_forces_do_not_depend_on_how_torch_is_set(finished, unusual_torch):
    def forces():
        model = matattn.load(finished[0] / "model")
        batch = collate([to_tensors(Structure.from_file(NACL))], model.network.image_rule(1e-6))
        return energy_forces_stress(model.energy, batch).stress

    expected = forces()
    with unusual_torch(), torch.device("cpu"):  # else to_tensors makes them where it is told
        assert torch.equal(forces(), expected)


def test_a_network_in_float64_predicts(calibrated):
    model = matattn.load(calibrated[0] / "model")
    (expected,) = model.predict(Structure.from_file(NACL))
    model.network.double()
    (row,) = model.predict(Structure.from_file(NACL))
    for key in ("formation_energy_per_atom", "formation_energy_per_atom_lower", "ood_score"):
        assert row[key] == pytest.approx(expected[key], abs=1e-4)


def test_remarks_and_doubts_are_in_the_row(finished):
    model = matattn.load(finished[0] / "model")
    rounded, doubtful = (
        Structure(Lattice.cubic(4), ["Li", "F"], [[0] * 3, [0.5] * 3]) for _ in range(2)
    )
    add_remark(rounded, "rounded")
    add_remark(doubtful, "labels")
    add_doubt(doubtful, "another setting")
    before = rounded.copy(), doubtful.copy()
    one, two = model.predict([rounded, doubtful])
    assert (rounded, doubtful) == before
    assert rounded.properties == before[0].properties
    assert (one["message"], one["ood_flag"], one["status"]) == ("rounded", False, "ok")
    assert (two["message"], two["ood_flag"]) == ("labels; another setting", True)
    assert one["band_gap"] == pytest.approx(two["band_gap"], abs=1e-5)


def test_vacuum_is_doubted_unless_the_model_was_trained_on_it(finished, molecule_runs):
    model = matattn.load(finished[0] / "model")
    assert model.config["vacuum"] == {"layer": 0, "sphere": 0}
    slab = Structure(Lattice.tetragonal(4, 30), ["Li", "F"], [[0, 0, 0], [0.5, 0.5, 0]])
    slab_in_a_part_of_space = Structure(
        Lattice(4 * np.eye(3), pbc=(True, True, False)), ["Li"], [[0, 0, 0]]
    )
    one, two = model.predict([slab, slab_in_a_part_of_space])
    assert one["message"].startswith("27.4 Å of vacuum: this model was trained on bulk crystals")
    assert one["ood_flag"] is True and one["status"] == "ok"
    assert "structure 2: is not periodic in all directions" in two["message"]
    normal = {"vacuum": {"layer": 28.0, "sphere": 14.0}}
    used_to = dataclasses.replace(model, config=model.config | normal)
    assert used_to.predict(slab)[0]["message"] == ""
    shipped = {key: value for key, value in model.config.items() if key != "vacuum"}
    assert dataclasses.replace(model, config=shipped).predict(slab)[0]["ood_flag"] is True
    molecules = matattn.load(molecule_runs["whole"][0] / "model")
    assert "vacuum" not in molecules.config
    assert molecules.predict(Molecule(["H"], [[0, 0, 0]]))[0]["message"] == ""


def test_one_bad_element_stops_no_other(finished):
    model = matattn.load(finished[0] / "model")
    good = Structure(Lattice.cubic(4), ["Li", "F"], [[0] * 3, [0.5] * 3])
    rows = model.predict([good, None, 3, good, StructureError("lost"), object])
    assert [row["status"] == "ok" for row in rows] == [True, False, False, True, False, False]
    assert rows[1]["message"].startswith("structure 2 is None, expected a Structure or Molecule")
    assert rows[2]["message"].startswith("structure 3 is an object of type int, expected")
    assert rows[3]["band_gap"] == pytest.approx(rows[0]["band_gap"], abs=1e-5)
    with pytest.raises(TypeError, match="type int, expected a Structure or Molecule of pymatgen"):
        model.predict(3)


def test_predictions_as_a_frame_have_types_and_names(finished):
    import pandas as pd

    model = matattn.load(finished[0] / "model")
    crystal = Structure(Lattice.cubic(4.0), ["Li", "Mg"], [[0, 0, 0], [0.5] * 3])
    table = model.predict_frame({"a": crystal, "b": None})
    assert list(table.index) == ["a", "b"]
    kinds = {name: str(kind) for name, kind in table.dtypes.items()}
    assert kinds["band_gap"] == kinds["band_gap_lower"] == kinds["ood_score"] == "float64"
    assert kinds["natoms"] == "Int64" and kinds["ood_flag"] == "boolean"
    assert table.loc["a", "band_gap"] == model.predict(crystal)[0]["band_gap"]
    assert pd.isna(table.loc["b", "ood_flag"]) and table.loc["b", "status"] == "StructureError"
    given = pd.DataFrame({"structure": [crystal, crystal], "label": [1, 2]}, index=[7, 9])
    joined = given.join(model.predict_frame(given))
    assert joined.loc[9, "label"] == 2 and joined["band_gap"].notna().all()
    assert len(model.predict_frame([])) == 0
