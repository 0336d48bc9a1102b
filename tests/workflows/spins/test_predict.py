"""Observables of a saved state."""

import csv
import io
import json

import numpy as np
import pytest
from typer.testing import CliRunner

import matattn
from matattn.cli import app
from matattn.errors import BundleError


def test_observables_of_a_saved_state(finished):
    folder, metrics = finished
    shown = CliRunner().invoke(app, ["predict", str(folder / "model")])
    assert shown.exit_code == 0, shown.output
    rows = {row["observable"]: row for row in csv.DictReader(io.StringIO(shown.stdout))}
    found = rows["energy per site (S.S)"]
    fresh = metrics["energies"]["fresh samples"]
    error = np.hypot(float(found["error"]), fresh["error"])
    assert abs(float(found["value"]) - fresh["mean"]) < 5 * error
    assert float(rows["Marshall sign"]["value"]) > 0.5
    state = matattn.load(folder / "model")
    assert state.log_psi(np.ones((2, 16))).shape == (2,)
    refused = CliRunner().invoke(app, ["predict", str(folder / "model"), "NaCl.cif"])
    assert refused.exit_code == 2 and "needs no input" in refused.stderr
    cited = CliRunner().invoke(app, ["cite", str(folder / "model")])
    assert "ada1a0" in cited.stdout and "2603.18148" in cited.stdout


def test_a_damaged_bundle_is_refused(finished, tmp_path):
    import shutil

    from matattn.files import sha256

    folder = tmp_path / "model"
    shutil.copytree(finished[0] / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config["arguments"]["dim"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="checksum differs"):
        matattn.load(folder)
    names = [p.name for p in folder.iterdir() if p.name != "SHA256SUMS"]
    sums = "".join(f"{sha256(folder / name)}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(sums)
    with pytest.raises(BundleError, match="do not fit"):
        matattn.load(folder)
