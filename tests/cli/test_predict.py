"""``matattn predict`` from files to a table."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

import matattn
from matattn import bundle, pretrained
from matattn.cli import app
from matattn.models.crystalformer import Crystalformer
from matattn.models.text_encoder import CrystalText
from matattn.structures import stream
from matattn.structures.batch import collate
from matattn.structures.disorder import orderings
from matattn.structures.structure import to_tensors
from matattn.workflows.structures import screen
from matattn.workflows.structures.predict import TOLERANCE, Predictor

ARGUMENTS = {"num_targets": 2, "dim": 8, "num_heads": 1, "num_blocks": 1, "ffn_dim": 8}
DESCRIPTION = {
    "targets": [
        {"name": "formation_energy_per_atom", "unit": "eV/atom"},
        {"name": "band_gap", "unit": "eV"},
    ],
    "normaliser": {"mean": [-1.0, 2.0], "std": [0.5, 1.5]},
    "elements": [3, 9, 11, 17],
}


def crystal(*symbols, a=4.2):
    places = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
    return Structure(Lattice.cubic(a), list(symbols), places[: len(symbols)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    network = Crystalformer(**ARGUMENTS)
    folder = tmp_path_factory.mktemp("bundle") / "model"
    bundle.save(folder, network, ARGUMENTS, DESCRIPTION, "# card")
    return folder


def with_config(model, folder, content):
    """Return a copy of a bundle with another config.json and valid checksums."""
    shutil.copytree(model, folder)
    (folder / "config.json").write_text(content)
    names = ("model.safetensors", "config.json", "card.md")
    sums = (f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


@pytest.fixture
def files(tmp_path):
    crystal("Na", "Cl").to(filename=str(tmp_path / "salt.cif"))
    crystal("Li", "F", a=4).to(filename=str(tmp_path / "POSCAR_lif"), fmt="poscar")
    (tmp_path / "broken.cif").write_text("data_broken\n_cell_length_a 3")
    return tmp_path


def predict(model, *arguments):
    result = CliRunner().invoke(app, ["predict", str(model), *map(str, arguments)])
    rows = list(csv.DictReader(io.StringIO(result.stdout))) if result.exit_code < 2 else []
    return result, rows


def test_folder_with_a_bad_file(model, files):
    result, rows = predict(model, files)
    assert result.exit_code == 0
    by_id = {row["id"]: row for row in rows}
    assert set(by_id) == {"salt", "POSCAR_lif", "broken"}
    assert list(rows[0]) == [
        "id", "path", "formula", "natoms",
        "formation_energy_per_atom", "formation_energy_per_atom_lower",
        "formation_energy_per_atom_upper", "formation_energy_per_atom_unit",
        "band_gap", "band_gap_lower", "band_gap_upper", "band_gap_unit",
        "interval_for", "ood_score", "ood_flag", "status", "message",
    ]  # fmt: skip
    salt, broken = by_id["salt"], by_id["broken"]
    assert salt["formula"] == "NaCl" and salt["natoms"] == "2" and salt["status"] == "ok"
    assert salt["band_gap_unit"] == "eV"
    assert broken["status"] == "StructureError" and broken["band_gap"] == ""
    assert str(files / "broken.cif") in broken["message"]


def test_values_are_those_of_the_network(model, files):
    _, rows = predict(model, files / "salt.cif")
    (network,), _, _ = bundle.load(model)
    mean, std = (torch.tensor(DESCRIPTION["normaliser"][key]) for key in ("mean", "std"))
    batch = collate([to_tensors(crystal("Na", "Cl"))], network.image_rule(TOLERANCE))
    with torch.no_grad():
        expected = network(batch)[0] * std + mean
    expected[1].clamp_(min=0)  # no gap is negative
    values = [float(rows[0][name]) for name in ("formation_energy_per_atom", "band_gap")]
    assert np.allclose(values, expected, atol=1e-5)


def test_globs_and_output_file(model, files):
    output = files / "table.csv"
    result, _ = predict(model, str(files / "*.cif"), "-o", output)
    assert result.exit_code == 0
    with open(output) as lines:
        assert {row["id"] for row in csv.DictReader(lines)} == {"salt", "broken"}


def test_several_structures_in_a_file(model, tmp_path):
    path = tmp_path / "many.json"
    path.write_text(json.dumps([crystal("Na", "Cl").as_dict(), crystal("Li", "F").as_dict()]))
    _, rows = predict(model, path)
    assert [(row["id"], row["formula"]) for row in rows] == [("many:1", "NaCl"), ("many:2", "LiF")]


def test_structures_that_are_read_but_not_physical(model, tmp_path):
    Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0] * 3]).to(
        filename=str(tmp_path / "half.cif")
    )
    crystal("Es").to(filename=str(tmp_path / "es.cif"))
    crystal("U", "Cl").to(filename=str(tmp_path / "ucl.cif"))
    result, rows = predict(model, tmp_path)
    messages = {row["id"]: row["message"] for row in rows}
    assert result.exit_code == 0
    assert "half.cif: K0 and Na1 share a place: partial occupancy" in messages["half"]
    assert "es.cif: site 1 has atomic number 99" in messages["es"]
    assert "no training crystal contains U" in messages["ucl"]


def test_partial_occupancies_are_means_over_orderings(model, tmp_path):
    """Files that pymatgen reads and structures in JSON; whole ones have their ordinary rows."""
    half = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0] * 3, [0.5] * 3])
    half.to(filename=str(tmp_path / "half.cif"))
    (tmp_path / "json.json").write_text(json.dumps(half.as_dict()))
    crystal("Na", "Cl").to(filename=str(tmp_path / "whole.cif"))
    dilute = Structure(Lattice.cubic(4), [{"Na": 0.999, "K": 0.001}], [[0] * 3])
    dilute.to(filename=str(tmp_path / "dilute.cif"))
    (tmp_path / "wrong.cif").write_text("data_x\n")
    result, table = predict(model, tmp_path, "--orderings", "6")
    rows = {row["id"]: row for row in table}
    assert result.exit_code == 0
    _, (refused, plain) = predict(model, tmp_path / "half.cif", tmp_path / "whole.cif")
    assert refused["message"].endswith(", or give --orderings 20")
    assert plain.items() <= {**rows["whole"], "path": plain["path"]}.items()
    assert rows["whole"]["orderings"] == rows["wrong"]["orderings"] == ""
    assert "holds all its elements" in rows["dilute"]["message"]
    strange = (
        (tmp_path / "half.cif")
        .read_text()
        .replace("'P 1'", "'Q 99 x'")
        .replace("  1  'x, y, z'", "")
    )
    (tmp_path / "strange.cif").write_text(strange)
    whole = (tmp_path / "whole.cif").read_text().replace("_cell_length_a", "_cell_length_x")
    (tmp_path / "two.cif").write_text(whole + (tmp_path / "half.cif").read_text())
    _, others = predict(model, tmp_path / "strange.cif", tmp_path / "two.cif", "--orderings", "6")
    assert [row["status"] for row in others] == ["StructureError"] * 3
    assert "CIF files of one crystal" in others[2]["message"]
    assert rows["wrong"]["status"] == "StructureError" and rows["half"]["formula"] == "K0.5Na0.5Cl1"
    made = orderings(half, 6)
    values = [row["band_gap"] for row in matattn.load(model).predict(made.structures)]
    for name in ("half", "json"):
        row = rows[name]
        assert row["orderings"] == "6" and row["status"] == "ok"
        assert "mean of 6 orderings of a " in row["message"]
        assert float(row["band_gap"]) == pytest.approx(np.mean(values), abs=1e-4)
        assert float(row["band_gap_orderings_std"]) == pytest.approx(np.std(values, ddof=1), 1e-3)


def test_json_lines_from_the_standard_input(model):
    structure = {"structure": crystal("Na", "Cl").as_dict(), "id": "salt"}
    lines = f"{json.dumps(structure)}\n{{broken\n"
    result = CliRunner().invoke(app, ["predict", str(model), "-"], input=lines)
    first, second = csv.DictReader(io.StringIO(result.stdout))
    assert (first["id"], first["formula"], first["path"]) == ("salt", "NaCl", "-")
    assert second["message"].startswith("-:2: is not JSON")
    result = CliRunner().invoke(app, ["predict", str(model), "-"], input="\n")
    assert result.exit_code == 2 and "the standard input is empty" in result.stderr


def test_every_output_has_the_same_rows(model, files):
    (files / "out").mkdir()
    for suffix in ("csv", "json", "jsonl"):
        result, _ = predict(model, files, "-o", files / "out" / f"table.{suffix}")
        assert result.exit_code == 0 and result.stdout == ""
    texts = {path.suffix: path.read_text() for path in (files / "out").iterdir()}
    rows = [json.loads(line) for line in texts[".jsonl"].splitlines()]
    assert json.loads(texts[".json"]) == rows
    for text, exact in zip(csv.DictReader(io.StringIO(texts[".csv"])), rows, strict=True):
        assert text["id"] == exact["id"] and text["message"] == exact["message"]
        if exact["status"] == "ok":
            assert float(text["band_gap"]) == pytest.approx(exact["band_gap"], rel=1e-5)


def test_the_last_line_says_how_it_went(model, files):
    result, _ = predict(model, files)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("2 of 3 structures in ")
    for part in ("parsing ", "network ", "backend ", " on cpu", "peak memory "):
        assert part in line


@pytest.mark.parametrize("count", [1, 2])
def test_the_last_line_names_no_backend_that_did_not_run(files, tmp_path, count):
    """Neither for a network without kernel operators, nor for an ensemble of such networks."""
    arguments = {"dim": 8, "num_heads": 1, "num_blocks": 1, "ffn_dim": 8, "num_targets": 2}
    networks = [CrystalText(**arguments) for _ in range(count)]
    bundle.save(tmp_path / "text", networks if count > 1 else networks[0], arguments, DESCRIPTION,
                "# card")  # fmt: skip
    result, _ = predict(tmp_path / "text", files / "salt.cif")
    (line,) = result.stderr.strip().splitlines()
    assert "backend" not in line and "/s; on cpu, " in line


def test_the_last_line_names_the_backend_of_an_ensemble(files, tmp_path):
    networks = [Crystalformer(**ARGUMENTS) for _ in range(2)]
    bundle.save(tmp_path / "several", networks, ARGUMENTS, DESCRIPTION, "# card")
    result, _ = predict(tmp_path / "several", files / "salt.cif")
    assert "/s; backend " in result.stderr


def test_processes_change_nothing(model, files, monkeypatch):
    _, expected = predict(model, *(files / "salt.cif" for _ in range(4)), files)
    monkeypatch.setattr(stream, "WORTH_A_PROCESS", 2)
    result, rows = predict(model, *(files / "salt.cif" for _ in range(4)), files)
    assert rows == expected and " in " in result.stderr and " process" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_is_finished(model, files, monkeypatch, keyboard, number):
    monkeypatch.setattr(screen, "CHUNK", 1)
    original = Predictor.predict

    def third_time_signal(self, structures, *rest):
        if "formula" in calls:
            os.kill(os.getpid(), number)
        calls.append("formula")
        return original(self, structures, *rest)

    calls: list[str] = []
    monkeypatch.setattr(Predictor, "predict", third_time_signal)
    handler = signal.getsignal(signal.SIGTERM)
    result, _ = predict(model, files, "-o", files / "table.csv")
    assert result.exit_code == 128 + number
    assert result.stderr.strip() == "interrupted; 1 finished rows are written"
    assert len((files / "table.csv").read_text().splitlines()) == 2  # with the header
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_failure_leaves_what_is_finished(model, files, monkeypatch):
    monkeypatch.setattr(screen, "CHUNK", 2)
    original = Crystalformer.features

    def second_time_fails(self, batch):
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return original(self, batch)

    calls: list[int] = []
    monkeypatch.setattr(Crystalformer, "features", second_time_fails)
    result, _ = predict(model, files, "-o", files / "table.jsonl")
    assert isinstance(result.exception, ZeroDivisionError)
    assert len((files / "table.jsonl").read_text().splitlines()) == 2


def test_a_device_that_is_not_there(model, files):
    result, _ = predict(model, files, "--device", "cuda:99")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: no device 'cuda:99'; this machine has cpu")


def test_models_by_name(model, files, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", model.parent)
    _, rows = predict(model.name, files / "salt.cif")
    assert rows == predict(model, files / "salt.cif")[1] and rows[0]["status"] == "ok"
    assert matattn.load(model.name, device="auto").targets == DESCRIPTION["targets"]
    result, _ = predict("modle", files / "salt.cif")
    assert result.exit_code == 2 and "did you mean 'model'? (known: model)" in result.stderr


@pytest.mark.parametrize("model", pretrained.names("structures"))
def test_shipped_models_are_whole(model):
    predictor = matattn.load(model)
    (row,) = predictor.predict(crystal("Na", "Cl"))
    assert row["status"] == "ok"


def test_exit_status_when_everything_failed(model, files):
    result, rows = predict(model, files / "broken.cif", files / "absent.cif")
    assert result.exit_code == 1 and len(rows) == 2
    assert "absent.cif: no such file" in rows[1]["message"]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "SHA256SUMS").unlink(), "not a model bundle (SHA256SUMS is missing)"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: missing"),
        (lambda f: (f / "card.md").write_text("x"), "card.md: checksum differs"),
        (lambda f: (f / "SHA256SUMS").write_bytes(b"\xff one-word"), "model.safetensors: missing"),
    ],
)
def test_damaged_bundles_are_refused(model, files, tmp_path, damage, message):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    damage(copy)
    result, _ = predict(copy, files)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_a_model_that_is_not_there_is_one_line(files):
    result, _ = predict("no/such/model", files)
    assert result.exit_code == 2
    assert result.stderr.strip().startswith("error: no/such/model: no such folder")


def test_inputs_without_structures_are_rows(model, files):
    (files / "empty").mkdir()
    inputs = [files / "empty", files / "*.nothing", "", files / "salt.cif"]
    result, rows = predict(model, *inputs)
    assert result.exit_code == 0
    messages = [row["message"] for row in rows]
    assert "is a folder without structure files" in messages[0]
    assert "no such file" in messages[1] and "(no name)" in messages[2]
    assert rows[3]["status"] == "ok"


@pytest.mark.parametrize("path", [".", "missing/table.csv"])
def test_output_that_cannot_be_written_is_known_before(model, files, path):
    result, _ = predict(model, files, "-o", files / path)
    assert result.exit_code == 2 and "cannot be written" in result.stderr


@pytest.mark.parametrize("name", [".", "lost.cif"])
def test_unknown_backend_is_one_line(model, files, monkeypatch, name):
    monkeypatch.setenv("MATATTN_BACKEND", "foo")
    result, _ = predict(model, files / name)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: periodic_attention: no backend named 'foo'")


@pytest.mark.parametrize(
    "content, message",
    [("[1]", "config.json: lacks format"), ("{", "config.json: cannot be read"), ("{}", "lacks")],
)
def test_damaged_configs_are_refused(model, files, tmp_path, content, message):
    result, _ = predict(with_config(model, tmp_path / "copy", content), files)
    assert result.exit_code == 2 and message in result.stderr


def test_the_run_folder_is_a_helpful_mistake(model, files):
    result, _ = predict(model.parent, files)
    assert result.exit_code == 2 and f"did you mean {model}?" in result.stderr


def test_a_config_cannot_name_code(model, tmp_path):
    """A bundle whose config names a class of its own choice is refused, checksums right or not."""
    config = json.loads((model / "config.json").read_text())
    copy = with_config(model, tmp_path / "copy", json.dumps(config | {"network": "os.system"}))
    result, _ = predict(copy, tmp_path)
    assert result.exit_code == 2 and "unknown network 'os.system'" in result.stderr


def test_prediction_loads_neither_lightning_nor_pyg(model, files):
    code = (
        "import sys\n"
        "from matattn.cli import app\n"
        f"app(['predict', {str(model)!r}, {str(files)!r}], standalone_mode=False)\n"
        "slow = {'lightning', 'torch_geometric', 'jax', 'hydra', 'torch._dynamo'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
