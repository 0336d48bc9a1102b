"""A sweep on a real Slurm cluster: jobs are requeued in the middle of their training."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
SETTINGS = ["model=crystal_text", "trainer.max_epochs=60", "task.train_rows=1500", "logger=none"]


def train(*overrides):
    sweep = ["-m"] if "hydra/launcher=slurm" in overrides else []
    return [sys.executable, str(ROOT / "train.py"), *sweep, *SETTINGS, *map(str, overrides)]


def wait_for(sweep, condition, seconds=300):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert sweep.poll() is None and time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return found


def epochs(folder):
    """Epochs that the run of seed 0 below a folder has finished."""
    for table in folder.glob("*/seed0-*/metrics.csv"):
        return len(table.read_text().splitlines()) - 1
    return 0


def weights(folder, seed):
    (path,) = folder.glob(f"*/seed{seed}-*/model/model.safetensors")
    return path.read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    command = train(f"paths.output_root={folder}", "seed=0")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=600)
    return weights(folder, 0)


def restarts(environment, job):
    shown = subprocess.run(
        ["scontrol", "show", "job", job], env=environment, capture_output=True, text=True
    ).stdout
    return int(shown.split("Restarts=")[1].split()[0])


def jobs(environment):
    shown = subprocess.run(
        ["squeue", "-h", "-r", "-o", "%i %T"], env=environment, capture_output=True, text=True
    ).stdout
    return dict(line.split() for line in shown.splitlines())


def test_sweep_with_a_requeued_job(cluster, uninterrupted, tmp_path):
    """Two jobs; the first is requeued by the administrator after a few epochs."""
    command = train(
        "seed=0,1", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1",
        "hydra.launcher.mem_gb=null", "hydra.launcher.timeout_min=60",
        f"paths.output_root={tmp_path}",
    )  # fmt: skip
    with subprocess.Popen(command, env=cluster) as sweep:
        wait_for(sweep, lambda: epochs(tmp_path) >= 3)
        first = next(job for job in jobs(cluster) if job.endswith("_0"))
        before = epochs(tmp_path)
        subprocess.run(["scontrol", "requeue", first], env=cluster, check=True)
        assert before < 60
        assert sweep.wait(900) == 0
    assert restarts(cluster, first) == 1
    assert weights(tmp_path, 0) == uninterrupted
    assert len(list(tmp_path.glob("*/seed*/metrics.json"))) == 2
    shown = subprocess.run(
        [sys.executable, "-c", "from matattn.cli import main; main()", "sweep", "report", tmp_path],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    assert shown.count("finished") == 2


def test_job_whose_time_is_up(cluster, uninterrupted, tmp_path):
    """On USR2, which Slurm sends before the limit, submitit requeues and the run goes on.

    The signal is sent as soon as there are epochs: at a time of Slurm's, a slow machine would still
    be importing.
    """
    command = train(
        "seed=0", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1",
        "hydra.launcher.mem_gb=null", "hydra.launcher.timeout_min=10",
        f"paths.output_root={tmp_path}",
    )  # fmt: skip
    with subprocess.Popen(command, env=cluster) as sweep:
        wait_for(sweep, lambda: epochs(tmp_path) >= 3)
        (job,) = jobs(cluster)
        script = subprocess.run(
            ["scontrol", "write", "batch_script", job, "-"],
            env=cluster, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "#SBATCH --signal=USR2@120" in script
        before = epochs(tmp_path)
        subprocess.run(["scancel", "--signal=USR2", job], env=cluster, check=True)
        assert before < 60
        assert sweep.wait(900) == 0
    assert restarts(cluster, job) == 1
    assert weights(tmp_path, 0) == uninterrupted
