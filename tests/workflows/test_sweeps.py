"""Several runs: one that fails stops no other, none is written twice at once, and their table."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

from matattn import files
from matattn.cli import app
from matattn.errors import ConfigError, DataError, TrainingError, WriteError
from matattn.training.checkpoint_files import AtomicCheckpoints, read
from matattn.workflows import run_folder
from matattn.workflows.run_folder import keeping_errors, state, working_on
from matattn.workflows.sweeps import differing, find_runs, groups, objective, tables, write

ROOT = Path(__file__).parents[2]


def make_run(folder, seed, lr, mae=None, error=None):
    folder.mkdir(parents=True)
    config = {
        "model": {"_target_": "matattn.models.crystalformer.Crystalformer", "dim": 8},
        "data": {"name": "prototypes"},
        "task": {"workflow": "property_prediction"},
        "optimizer": {"lr": lr},
        "seed": seed,
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    if mae is not None:
        result = {"band_gap": {"mae": mae, "unit": "eV", "baselines": {"mean": 1.0}}}
        (folder / "metrics.json").write_text(json.dumps({"val": result}))
    if error:
        (folder / "error.txt").write_text(error)


@pytest.fixture
def outputs(tmp_path):
    for seed in (0, 1, 2):
        make_run(tmp_path / "a" / f"seed{seed}-aa", seed, 1e-3, mae=0.3 + 0.01 * seed)
    make_run(tmp_path / "a" / "seed0-bb", 0, 1e-2, mae=0.2)
    make_run(tmp_path / "a" / "seed1-bb", 1, 1e-2, error="TrainingError: the loss is nan\n")
    make_run(tmp_path / "a" / "seed2-bb", 2, 1e-2)
    (tmp_path / "a" / "other").mkdir()
    (tmp_path / "a" / "other" / "config.yaml").write_text("- not a run")
    return tmp_path


def test_table_of_runs(outputs):
    runs = find_runs(outputs)
    assert differing(runs) == ["optimizer.lr"]
    states = {run.folder.name: run.state for run in runs}
    assert states == {
        "seed0-aa": "finished", "seed1-aa": "finished", "seed2-aa": "finished",
        "seed0-bb": "finished", "seed1-bb": "failed", "seed2-bb": "stopped",
    }  # fmt: skip
    (best, mean, _), (three, other, spread) = groups(runs)
    assert [run.seed for run in best] == [0] and mean == 0.2
    assert len(three) == 3 and other == pytest.approx(0.31) and spread == pytest.approx(0.01)
    every, means = tables(runs)
    assert every.row_count == 6 and means.row_count == 2


def test_report_command(outputs):
    target = outputs / "report.csv"
    result = CliRunner().invoke(app, ["sweep", "report", str(outputs), "-o", str(target)])
    assert result.exit_code == 0 and "the loss is nan" in result.output
    assert target.read_text().count("finished") == 4
    assert target.with_suffix(".png").stat().st_size > 1000
    empty = CliRunner().invoke(app, ["sweep", "report", str(outputs / "a" / "other")])
    assert empty.exit_code == 2
    with pytest.raises(DataError, match="no such folder"):
        find_runs(outputs / "gone")


def test_a_running_run_is_seen(outputs):
    folder = outputs / "a" / "seed2-bb"
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        assert state(folder) == ("running", "")
        with pytest.raises(ConfigError, match="another process is working on this run"):
            with working_on(folder):
                pass
    assert state(folder) == ("stopped", "")


def test_an_error_is_told_when_it_cannot_be_kept(tmp_path, monkeypatch):
    def full_disk(*_):
        raise WriteError("no space")

    monkeypatch.setattr(run_folder, "write_text", full_disk)
    with pytest.raises(ConfigError, match="wrong"), keeping_errors(tmp_path):
        raise ConfigError("wrong")


def test_an_error_is_kept_until_the_next_try(tmp_path):
    folder = tmp_path / "run"
    make_run(folder, 0, 1e-3)
    with pytest.raises(ConfigError), keeping_errors(folder):
        raise ConfigError("wrong\n value")
    assert state(folder) == ("failed", "ConfigError: wrong value")
    with pytest.raises(KeyboardInterrupt), keeping_errors(folder):
        raise KeyboardInterrupt
    assert state(folder) == ("stopped", "")


def test_settings_of_one_network_only_are_not_compared(outputs):
    make_run(outputs / "b" / "seed0-cc", 0, 1e-3, mae=0.1)
    path = outputs / "b" / "seed0-cc" / "config.yaml"
    config = json.loads(path.read_text())
    config["model"] = {"_target_": "matattn.models.coulgat.CoulGAT", "num_heads": 2}
    path.write_text(json.dumps(config))
    runs = find_runs(outputs)
    assert differing(runs) == ["model", "optimizer.lr"]
    write(outputs / "all.csv", runs)
    assert "CoulGAT" in (outputs / "all.csv").read_text()


@pytest.mark.parametrize(
    "workflow, metrics, value",
    [
        ("property_prediction", {"test": {"a": {"mae": 2.0, "unit": "eV"}}}, 2.0),
        (
            "property_prediction",
            {"val": {"a": {"mae": 1.0, "baselines": {"mean": 2.0}},
                     "b": {"mae": 3.0, "baselines": {"mean": 4.0}}}},
            0.625,
        ),
        ("property_prediction", {"train": {"a": {"mae": 0.5, "unit": "eV"}}}, 0.5),
        ("field_surrogate", {"val": {"p": {"relative_l2": 0.2}, "q": {"relative_l2": 0.4}}}, 0.3),
        ("variational_monte_carlo", {"energies": {"fresh samples": {"mean": -0.5}}}, -0.5),
        ("tokenization", {"val": {"detector": {"span_f1": 0.7}}}, 0.3),
        ("language_model", {"test": {"all types": {"span_f1": 0.6}}}, 0.4),
    ],
)  # fmt: skip
def test_objective(workflow, metrics, value):
    assert objective(workflow, metrics)[1] == pytest.approx(value)


def sweep(*overrides):
    command = [sys.executable, "train.py", "-m", "model=crystal_text", "trainer.max_epochs=1",
               "task.train_rows=64", "task.calibration=0", *overrides]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment,
                          timeout=500)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib_pool", "local_cluster"])
def test_launchers_do_the_same(tmp_path, launcher):
    """Three runs, of which one is a mistake: the others finish, the sweep ends with status 2."""
    done = sweep("seed=0,-1,1", f"hydra/launcher={launcher}", f"paths.output_root={tmp_path}")
    assert done.returncode == 2, done.stderr
    assert "seed=-1: expected a number from 0 to 2^31 - 1" in done.stderr
    runs = find_runs(tmp_path)
    assert [run.seed for run in runs] == [0, 1] and {run.state for run in runs} == {"finished"}
    seeds = sorted(str(run.folder.relative_to(tmp_path)) for run in runs)
    assert all("seed" in place and "202" not in place.split("-")[0] for place in seeds)


def processes(marker, part=b""):
    """Those that have inherited ``marker`` and whose command line has ``part`` in it."""
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if marker in (place / "environ").read_bytes() and (
                part in (place / "cmdline").read_bytes()
            ):
                yield int(place.name)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "launcher, worker",
    [("joblib_pool", b"popen_loky"), ("local_cluster", b"submitit.core._submit")],
)
def test_a_killed_run_is_told(tmp_path, launcher, worker):
    marker = f"MATATTN_TEST={tmp_path}"
    command = [sys.executable, "train.py", "-m", "model=crystal_text", "trainer.max_epochs=100000",
               "task.train_rows=64", "task.calibration=0", "seed=0,1",
               f"hydra/launcher={launcher}", f"paths.output_root={tmp_path}"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MATATTN_TEST": str(tmp_path)}
    end = time.monotonic() + 120
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=said)
    try:
        while len([*tmp_path.rglob("last.ckpt")]) < 2:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        os.kill(next(processes(marker.encode(), worker)), signal.SIGKILL)
        process.wait(timeout=120)
    finally:
        for pid in processes(marker.encode()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    text = (tmp_path / "said").read_text()
    assert process.returncode == 2 and "Traceback" not in text, text
    assert "error: a run of the sweep was killed" in text


@pytest.mark.parametrize("launcher", ["slurm", "local_cluster", "joblib_pool"])
def test_launchers_compose(launcher):
    command = [sys.executable, "train.py", "--cfg", "hydra", f"hydra/launcher={launcher}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "_launcher" in done.stdout


def test_checkpoint_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"step": 1}, path)

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_seal", full_disk)
    with pytest.raises(WriteError, match="last.ckpt: cannot be written: No space left on device"):
        AtomicCheckpoints().save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert read(path) == {"step": 1} == torch.load(path, weights_only=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_wrong_bit_in_a_checkpoint_is_refused(tmp_path):
    """PyTorch alone would read most of these files, with a wrong weight."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"weights": torch.ones(10_000)}, path)
    assert read(path)["weights"].sum() == 10_000
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(whole)
        damaged[int(generator.integers(len(damaged)))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match="last.ckpt: cannot be read"):
            read(path)
    path.write_bytes(whole[:20_000])
    with pytest.raises(TrainingError, match="last.ckpt: cannot be read"):
        read(path)
