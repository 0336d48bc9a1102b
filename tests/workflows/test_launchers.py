"""Sweeps by several launchers: a run that fails or is killed stops no other."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from matattn.workflows.sweeps import find_runs

ROOT = Path(__file__).parents[2]


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
    end = time.monotonic() + 300
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=said)
    try:
        while len([*tmp_path.rglob("last.ckpt")]) < 2:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        os.kill(next(processes(marker.encode(), worker)), signal.SIGKILL)
        process.wait(timeout=300)
    finally:
        for pid in processes(marker.encode()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    text = (tmp_path / "said").read_text()
    assert process.returncode == 2 and "Traceback" not in text, text
    assert "error: a run of the sweep was killed" in text


@pytest.mark.parametrize("launcher", ["slurm", "local_cluster", "joblib_pool"])
def test_launchers_compose(compose, launcher):
    config = compose(f"hydra/launcher={launcher}", return_hydra_config=True)
    assert "_launcher" in config.hydra.launcher._target_
