"""``matattn models``, ``info``, ``cite`` and ``evaluate`` as a user types them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from matattn import __version__, bundle, pretrained
from matattn.cli import app
from matattn.kinds import KINDS
from matattn.models.crystalformer import Crystalformer
from matattn.models.crystalformer_potential import CrystalformerPotential

ROOT = Path(__file__).parents[2]
ARGUMENTS = {"num_targets": 1, "dim": 8, "num_heads": 1, "num_blocks": 1, "ffn_dim": 8}
TARGET = "formation_energy_per_atom"
DESCRIPTION = {
    "targets": [{"name": TARGET, "unit": "eV/atom"}],
    "normaliser": {"mean": [-1.0], "std": [0.5]},
    "elements": [3, 9, 11, 17],
    "data": {"name": "mp2018_subset", "fingerprint": ""},
    "metrics": {
        "val": {TARGET: {"mae": 0.0597, "baselines": {"linear_composition": 0.3657}}},
        "rows": {"train": 6382},
    },
    "licence": "CC BY 4.0",
}


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Return a folder of two shipped models: one with all metadata, one with the least."""
    torch.manual_seed(0)
    network = Crystalformer(**ARGUMENTS)
    for block in network.blocks:
        block.attention.sigma_fitted.fill_(True)
    folder = tmp_path / "pretrained"
    bundle.save(folder / "mp-formation-energy", network, ARGUMENTS, DESCRIPTION, "# card")
    required = (*bundle.REQUIRED, *KINDS["structures"].bundle_keys)
    least = {key: DESCRIPTION[key] for key in required if key in DESCRIPTION}
    bundle.save(folder / "plain", network, ARGUMENTS, least, "# card")
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    return folder


def test_models_are_listed_with_error_and_baseline(shipped):
    result = run("models")
    assert result.exit_code == 0
    first, second = (line.split() for line in result.stdout.splitlines() if TARGET in line)
    assert first[:7] == ["mp-formation-energy", TARGET, "eV/atom", "0.060", "0.366", "6382", "4"]
    assert first[8:] == ["MB", "CC", "BY", "4.0"]
    assert second[:4] == ["plain", TARGET, "eV/atom", "4"]


def test_potentials_are_listed_with_what_they_predict(tmp_path, monkeypatch):
    result = {"mae": 0.0881, "baselines": {"none": 0.5663}, "unit": "eV/Å"}
    config = {"kind": "potentials", "elements": [14], "data": {}, "seed": 0, "licence": "BSD",
              "metrics": {"val": {"forces": result}, "rows": {"train": 193}}}  # fmt: skip
    network = CrystalformerPotential(dim=8, channels=4, hidden=8)
    arguments = {"dim": 8, "channels": 4, "hidden": 8}
    bundle.save(tmp_path / "silicon", network, arguments, config, "# card")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    (line,) = (line.split() for line in run("models").stdout.splitlines() if "silicon" in line)
    assert line[:7] == ["silicon", "forces", "eV/Å", "0.088", "0.566", "193", "1"]


def test_a_long_target_is_not_cut_in_a_pipe(shipped):
    path = shipped / "plain" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["targets"][0]["name"] = "target_of_a_long_name_" * 10
    path.write_text(json.dumps(config), encoding="utf-8")
    assert "target_of_a_long_name_" * 10 in run("models").stdout.split()


def test_models_without_any(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    result = run("models")
    assert result.exit_code == 0 and "comes without models" in result.stdout


def test_cite(shipped):
    everything = run("cite").stdout
    assert f"version = {{{__version__}}}" in everything and "{crystalformer," in everything
    model = run("cite", "mp-formation-energy").stdout
    keys = re.findall(r"@\w+\{(\w+),", model)
    assert keys == ["matattn", "crystalformer", "materials_project", "megnet"]
    assert "% trained on unknown data" in run("cite", "plain").stdout
    for entry in model.split("\n\n"):
        assert entry.count("{") == entry.count("}")
    result = run("cite", "mp-formation-enregy")
    assert result.exit_code == 2 and "did you mean 'mp-formation-energy'" in result.stderr
    result = run("cite", ROOT)
    assert result.exit_code == 2 and result.stderr.startswith("error: ")


def test_citation_file_says_the_same():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {__version__}\n" in text and "title: matattn\n" in text
    assert "The matattn developers" in run("cite").stdout and "The matattn developers" in text


def test_info(monkeypatch, tmp_path):
    monkeypatch.setenv("MATATTN_DATA", str(tmp_path / "missing"))
    monkeypatch.setenv("MP_API_KEY", "secret")
    result = run("info")
    assert result.exit_code == 0
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in result.stdout.splitlines())
    assert lines["matattn"].startswith(__version__) and lines["torch"] == torch.__version__
    for key in ("python", "numpy", "pymatgen", "system", "processor", "memory", "GPU"):
        assert lines[key]
    assert re.search(r"^backend torch +works on cpu$", result.stdout, re.MULTILINE)
    assert "(no such folder)" in result.stdout and "secret" not in result.stdout


def test_info_with_packages_missing():
    code = (
        "import sys, importlib.metadata as metadata\n"
        "for name in ('torch', 'lightning', 'torch_geometric', 'pymatgen', 'triton', 'numpy'):\n"
        "    sys.modules[name] = None\n"
        "def version(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
        "from matattn.cli import app\n"
        "app(['info'], standalone_mode=False)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "lightning          not installed" in result.stdout
    assert "kernels            cannot be loaded: ModuleNotFoundError" in result.stdout


@pytest.fixture
def table(tmp_path):
    rows = [
        {"id": n, "lattice": [[4 + 0.1 * n, 0, 0], [0, 4, 0], [0, 0, 4]], "Z": [3 + n, 17],
         "frac": [[0, 0, 0], [0.5, 0.5, 0.5]], "e_form": -0.1 * n,
         "split": "val" if n > 8 else "train"} for n in range(12)
    ]  # fmt: skip
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "{broken"]))
    return path


def test_evaluate(shipped, table, tmp_path):
    output = tmp_path / "errors.json"
    result = run("evaluate", "mp-formation-energy", table, "data.max_sites=12", "-o", output)
    assert result.exit_code == 0, result.stderr
    for text in ("Mean absolute errors", "halides (F Cl Br I)", "1 to 4 sites", "eV/atom",
                 "linear in composition", "mine.jsonl:13: "):  # fmt: skip
        assert text in result.stdout
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"1 of 13 rows left out; the first: {table}:13: not a JSON object")
    saved = json.loads(output.read_text())
    assert saved["model"] == "mp-formation-energy" and saved["data"]["name"] == "mine.jsonl"
    assert saved["splits"]["val"][TARGET]["n"] == 3
    assert f"{saved['splits']['val'][TARGET]['mae']:.4f}" in result.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["mp-formation", "prototypes"], "mp-formation: no such folder"),
        (["mp-formation-energy", "mp2019"], "Could not find 'data/mp2019'"),
        (["mp-formation-energy", "absent.jsonl"], "absent.jsonl: no such file"),
        (["mp-formation-energy", "prototypes", "data.max_site=3"], "data.max_site: "),
        (["mp-formation-energy", "prototypes", "task.batch_size=3"], "task: there is no such key"),
        (["mp-formation-energy", "prototypes", "+foo=1"], "foo: there is no such key"),
        (["mp-formation-energy", "prototypes", "model=coulgat"], "Could not override 'model'"),
        (["mp-formation-energy", "prototypes", "data.targets=[log10_bulk_modulus]"],
         "the model predicts formation_energy_per_atom (eV/atom), not log10_bulk_modulus"),
    ],
)  # fmt: skip
def test_mistakes_of_evaluate_are_one_line(shipped, arguments, message):
    result = run("evaluate", *arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line
