"""Ground-state searches end to end: run folder, resumption, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import matattn
from matattn import bundle
from matattn.errors import BundleError, ConfigError
from matattn.workflows import run


def test_run_folder_is_complete(finished, assert_cleared):
    folder, metrics = finished
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "metrics.csv", "metrics.json", "observables.json", "report.md",
        "energy.png", "structure_factor.png", "extrapolation.png", "attention.png",
        "checkpoints/last.ckpt",
        "model/model.safetensors", "model/config.json", "model/card.md", "model/SHA256SUMS",
    }  # fmt: skip
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    fresh = metrics["energies"]["fresh samples"]
    assert {"mean", "error", "variance", "v_score", "tau", "r_hat", "pauli"} <= fresh.keys()
    assert fresh["pauli"] == pytest.approx(4 * fresh["mean"])
    exact = metrics["exact_sum"]["all configurations"]
    assert abs(fresh["mean"] - exact["energy"]) < 5 * fresh["error"]
    assert exact["energy"] > metrics["reference"]["energy"]
    assert fresh["relative_error"] < 0.5 and 0 <= sum(exact["overlaps"]) <= 1
    better = metrics["exact_sum"]["symmetrized, all configurations"]
    assert better["energy"] < exact["energy"]
    attention = metrics["attention"]
    assert np.array(attention["ratio"]).shape == (1, 2) and 0 < attention["fidelity"] <= 1
    report = (folder / "report.md").read_text()
    for text in ("| fresh samples |", "Lanczos", "frozen to its mean", "Marshall sign"):
        assert text in report
    table = report.split("| observable | value | error |\n|---|---|---|\n")[1].split("\n\n")[0]
    listed = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()]
    observed = json.loads((folder / "observables.json").read_text())
    assert listed[:-1] == list(observed["scalars"]) and listed[-1].startswith("largest S(q)")
    assert len(listed) == 6 and not any("energy" in name for name in listed)
    assert_cleared(folder)


def started(small, folder, devices):
    """A run in a process of its own, with so many of jax's devices, and its progress as a file."""
    train = Path(__file__).parents[3] / "train.py"
    few = ["task.symmetrized_samples=0", "task.attention_samples=0", "trainer.max_epochs=12"]
    environment = dict(os.environ, XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")
    with open(f"{folder}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, train, *small, *few, f"paths.output_dir={folder}"],
            env=environment, stderr=log, stdout=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_terminated_runs_resume_bit_for_bit(small, tmp_path, devices):
    whole, cut = (started(small, tmp_path / name, devices) for name in ("whole", "cut"))
    log = tmp_path / "cut.log"
    while "epoch 2/" not in log.read_text() and cut.poll() is None:
        time.sleep(0.02)
    cut.send_signal(signal.SIGTERM)
    assert cut.wait(300) == 143, log.read_text()
    assert not (tmp_path / "cut" / "metrics.json").exists()
    again = started(small, tmp_path / "cut", devices)
    assert again.wait(300) == 0 and whole.wait(300) == 0, log.read_text()
    one, other = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_run_starts_from_another(configured, finished, tmp_path):
    start = f"init_from={finished[0] / 'model'}"
    metrics = run.run(
        configured(tmp_path, start, "data.j2=0.4", "trainer.max_epochs=1", "model.attention=t5")
    )
    assert metrics["energies"]["fresh samples"]["relative_error"] < 0.5
    with pytest.raises(BundleError, match="for another lattice"):
        run.run(configured(tmp_path / "b", start, "data.extent=6x6"))
    with pytest.raises(ConfigError, match="this task trains networks of spins"):
        run.run(configured(tmp_path / "c", "init_from=mp-band-gap"))
    with pytest.raises(BundleError, match="is no torch network"):
        bundle.load(finished[0] / "model")


@pytest.mark.parametrize(
    "override, message",
    [
        ("task.samples=65", "no multiple of task.chains"),
        ("data.lattice=triangular", "odd loops"),
        ("model.patch=3", "do not divide"),
        ("data.total_sz=0.5", "does not exist"),
        ("trainer.devices=2", "use all devices that jax sees"),
        ("+trainer.strategy=ddp", "one process"),
        ("task.blur=1.0", "to below 1"),
        ("model.num_heads=8", "heads of width 1"),
    ],
)
def test_mistakes_are_named(configured, tmp_path, override, message):
    with pytest.raises(matattn.errors.MatattnError, match=message):
        run.run(configured(tmp_path, override))
    assert not any(tmp_path.iterdir())


def test_a_missing_package_is_named(configured, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "netket", None)
    for name in ("train", "engine"):
        monkeypatch.delitem(sys.modules, f"matattn.workflows.spins.{name}", raising=False)
    with pytest.raises(ConfigError, match="needs the package netket.*matattn.all"):
        run.run(configured(tmp_path))


def test_short_chains_are_told(configured, tmp_path):
    config, task = run.read(configured(tmp_path, "task.chains=32"))
    with pytest.warns(UserWarning, match="2 samples per chain"):
        task.prepare(config)
    config, task = run.read(configured(tmp_path, "task.chains=8"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task.prepare(config)
