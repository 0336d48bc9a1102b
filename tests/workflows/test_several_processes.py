"""Trainings in two processes against the same in one.

They are started as programs: processes cannot be forked for training after a backward pass, and
pytest's own process has seen many.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from matattn.errors import ConfigError
from matattn.training.processes import balanced_share, share_of_mean, summed
from matattn.training.sampler import EpochShuffle, SharedBatches
from matattn.workflows import run

ROOT = Path(__file__).parents[2]
SMALL = {
    "crystals": [
        "model=crystalformer", "data=crystals", "data.path=rows.jsonl", "data.targets=[alpha,beta]",
        "data.units={alpha: eV, beta: eV}", "data.split=random", "model.dim=16",
        "model.num_blocks=2", "model.num_heads=4", "task.batch_size=7", "task.calibration=0",
        "optimizer.lr=1e-3", "task.averaging_epochs=1",
    ],
    "meshes": [
        "model=flare", "data=meshes", "data.path=meshes", "data.targets=[pressure]",
        "data.units={pressure: Pa}", "data.split=random", "model.dim=16", "model.num_heads=2",
        "model.num_blocks=2", "model.num_latents=8", "task.batch_size=3", "task.export=0",
        "optimizer.lr=1e-3",
    ],
}  # fmt: skip


def command(folder, kind, *more):
    trainer = ["trainer.max_epochs=3", f"paths.output_dir={folder}"]
    return [sys.executable, str(ROOT / "train.py"), *SMALL[kind], *trainer, *more]


def train(place, folder, kind, *more):
    return subprocess.run(
        command(folder, kind, *more), cwd=place, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 40 crystals of 1 to 4 atoms, some labels of them missing, and 30 meshes."""
    folder = tmp_path_factory.mktemp("place")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(40):
        count = int(generator.integers(1, 5))
        places = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]][:count]
        rows.append({
            "id": f"c{number}",
            "lattice": (generator.uniform(3.5, 5) * np.eye(3)).tolist(),
            "Z": generator.integers(3, 30, count).tolist(),
            "frac": places,
            "alpha": float(generator.normal()),
            "beta": float(generator.normal()) if number % 3 else None,
        })  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "meshes").mkdir()
    for number in range(30):
        pos = generator.random((int(generator.integers(11, 40)), 2))
        pressure = generator.uniform(1, 2) * np.sin(3 * pos[:, 0]) + pos[:, 1]
        np.savez(folder / "meshes" / f"m{number:02}.npz", pos=pos, pressure=pressure)
    return folder


def state(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def largest_difference(one, other):
    """Of all weights but the keys' bias, which a softmax does not see: its gradient is noise."""
    one, other = (state(folder)["state_dict"] for folder in (one, other))
    assert one.keys() == other.keys()
    return max(
        float((one[name] - other[name]).abs().max())
        for name in one
        if one[name].is_floating_point() and one[name].numel() and "k_proj.bias" not in name
    )


@pytest.fixture(scope="module")
def alone(place):
    """Runs in one process."""
    for kind in SMALL:
        result = train(place, f"{kind}-alone", kind)
        assert result.returncode == 0, result.stderr
    return place


@pytest.mark.parametrize(
    "kind, more", [("crystals", ()), ("meshes", ()), ("meshes", ("task.share_nodes=true",))]
)
def test_two_processes_train_as_one(alone, kind, more):
    folder = alone / f"{kind}-two{len(more)}"
    result = train(alone, folder, kind, "trainer=ddp", *more)
    assert result.returncode == 0, result.stderr
    assert largest_difference(alone / f"{kind}-alone", folder) < 1e-6
    logs = [(place / "metrics.csv").read_text().splitlines() for place in
            (folder, alone / f"{kind}-alone")]  # fmt: skip
    assert len(logs[0]) == 4
    for found, expected in zip(*logs, strict=True):
        if found[0] == "e":
            assert found == expected
            continue
        found, expected = (list(map(float, line.split(",")))[2:] for line in (found, expected))
        # One number for a batch: its rows without a label weigh as the others.
        assert found[:-1] == pytest.approx(expected[:-1], rel=1e-4)
        assert found[-1] == pytest.approx(expected[-1], rel=1e-4 if kind == "meshes" else 0.2)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["train_time_s"] > 0


def started_nodes(place, folder, kind, *more):
    """Two nodes of one process each, which torchrun has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*command(folder, kind, "trainer=ddp", "trainer.num_nodes=2")[1:]]
    if not any(item.startswith("trainer.devices") for item in more):
        arguments.append("trainer.devices=1")
    return [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}",
                "--master-addr=127.0.0.1", f"--master-port={port}", "--nproc-per-node=1",
                *arguments, *more,
            ],
            cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip


def two_nodes(place, folder, kind, *more):
    """The results of two nodes."""
    nodes = started_nodes(place, folder, kind, *more)
    said = [node.communicate(timeout=300) for node in nodes]
    return [node.returncode for node in nodes], said


@pytest.mark.parametrize("kind", [pytest.param("crystals", marks=pytest.mark.slow), "meshes"])
def test_two_nodes_train_as_one_process(alone, kind):
    folder = alone / f"{kind}-nodes"
    statuses, said = two_nodes(alone, folder, kind)
    assert statuses == [0, 0], said
    assert largest_difference(alone / f"{kind}-alone", folder) < 1e-6
    outputs = [out for out, _ in said]
    assert "report: " in outputs[0] and "report: " not in outputs[1]
    statuses, said = two_nodes(alone, folder, kind)  # both see that the run is finished
    assert statuses == [0, 0] and "holds this run, finished" in said[0][0]


@pytest.mark.slow
def test_two_tasks_of_slurm_train_as_one_process(alone, cluster):
    """On one node: Debian's Slurm does not take two nodes of one machine."""
    folder = alone / "crystals-slurm"
    tasks = ["srun", "--ntasks=2", "--ntasks-per-node=2", "--overcommit"]
    result = subprocess.run(
        [*tasks, *command(folder, "crystals", "trainer=ddp", "trainer.devices=2")], cwd=alone,
        env=cluster, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("report: ") == 1
    assert largest_difference(alone / "crystals-alone", folder) < 1e-6


@pytest.mark.slow
def test_nodes_that_end_resume_bit_for_bit(place):
    """As when a cluster loses both nodes."""
    folder, more = place / "nodes", ("crystals", "trainer.max_epochs=20")
    nodes = started_nodes(place, folder, *more)
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert all(node.poll() is None for node in nodes)
        time.sleep(0.02)
    for process in processes_of(folder):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    for node in nodes:
        node.communicate(timeout=60)
        assert node.returncode != 0
    assert 0 <= state(folder)["epoch"] < 19
    whole = place / "nodes-whole"
    for again in (folder, whole):
        statuses, said = two_nodes(place, again, *more)
        assert statuses == [0, 0], said
    one, other = (state(place)["state_dict"] for place in (folder, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_nodes_that_are_not_as_many_as_configured(place):
    statuses, said = two_nodes(place, place / "wrong", "crystals", "trainer.devices=2")
    message = "error: 2 processes were started, and trainer.devices x trainer.num_nodes is 4"
    assert all(statuses) and message in said[0][1]
    result = train(place, place / "wrong", "crystals", "trainer=ddp", "trainer.num_nodes=2")
    assert result.returncode == 2 and "error: 1 process was started, and" in result.stderr
    assert not (place / "wrong").exists()


@pytest.mark.slow
def test_a_mistake_about_the_folder_ends_all_nodes(place):
    (place / "of another use").mkdir()
    (place / "of another use" / "letter.txt").write_text("Dear")
    statuses, said = two_nodes(place, place / "of another use", "meshes")
    assert all(statuses) and "is not empty and holds no run" in said[0][1]


FROM_FILES = (
    "from matattn.workflows.structures import batches; batches.MOST_IN_MEMORY = 0; "
    "from matattn.cli.train import main; main()"
)


def test_two_processes_read_neighbour_lists_from_files(alone, tmp_path):
    folder = alone / "crystals-from-files"
    _, _, *arguments = command(folder, "crystals", "trainer=ddp")
    result = subprocess.run(
        [sys.executable, "-c", FROM_FILES, *arguments], cwd=alone, capture_output=True, text=True,
        timeout=300, env=os.environ | {"MATATTN_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.glob("neighbors-*/*.safetensors"))
    assert largest_difference(alone / "crystals-alone", folder) < 1e-6


def test_settings_that_cannot_be_shared(compose, place, monkeypatch):
    monkeypatch.chdir(place)
    for kind, more, message in (
        ("crystals", ("trainer=ddp", "task.batch_size=1"), "at least 1, and trainer.devices"),
        ("crystals", ("trainer.devices=2",), "trainer=ddp shares the batches"),
        ("crystals", ("+trainer.num_nodes=2",), "trainer=ddp shares the batches"),
        ("meshes", ("trainer=ddp", "task.share_nodes=true", "model=flare_plus_plus"),
         "model.queries=fixed"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            run.run(compose(*SMALL[kind], "paths.output_dir=refused", *more))


def test_a_loss_that_is_not_finite_is_named(place):
    result = train(place, "diverged", "crystals", "trainer=ddp", "optimizer.lr=1e30")
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: the loss is")
    assert "nonfinite_batch.json" in result.stderr
    assert (place / "diverged" / "error.txt").exists()


def processes_of(folder):
    """Processes that were started with this folder in their command."""
    found = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_the_run_resumes(place, keyboard):
    folder = place / "stopped"
    arguments = ("crystals", "trainer=ddp", "trainer.max_epochs=200")
    process = subprocess.Popen(
        command(folder, *arguments), cwd=place, stderr=subprocess.PIPE, text=True
    )
    while not (folder / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130 and "resumes from the last epoch" in message, message
    assert not processes_of(folder)
    assert 0 <= state(folder)["epoch"] < 199
    assert train(place, folder, *arguments).returncode == 0
    whole = place / "whole"
    assert train(place, whole, *arguments).returncode == 0
    one, other = (state(place)["state_dict"] for place in (folder, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len((folder / "metrics.csv").read_text().splitlines()) == 201


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["a worker", "the parent"])
def test_a_killed_process_ends_the_others(place, victim):
    folder = place / f"killed-{victim[-6:]}"
    process = subprocess.Popen(
        command(folder, "crystals", "trainer=ddp", "trainer.max_epochs=4000"),
        cwd=place, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (folder / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.02)
    workers = [number for number in processes_of(folder) if number != process.pid]
    assert len(workers) == 2
    os.kill(process.pid if victim == "the parent" else workers[1], signal.SIGKILL)
    _, message = process.communicate(timeout=60)
    if victim == "a worker":
        assert process.returncode == 2 and "ended by itself" in message, message
    deadline = time.monotonic() + 10
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_of(folder)
    assert state(folder)["epoch"] >= 0


def test_shares_are_whole_and_even():
    generator = np.random.default_rng(1)
    for _ in range(50):
        sizes = generator.integers(0, 200, 64).tolist()
        processes = int(generator.integers(1, 9))
        shares = [balanced_share(sizes, number, processes) for number in range(processes)]
        assert sorted(place for share in shares for place in share) == list(range(64))
        assert all(share and share == sorted(share) for share in shares)
        loads = [sum(sizes[place] for place in share) for share in shares]
        assert max(loads) <= (4 / 3) * max(sum(sizes) / processes, max(sizes))  # Graham's bound


def test_one_process_is_as_before():
    values = torch.randn(5)
    assert summed(values) is values and share_of_mean(values, torch.tensor(3)) is values
    batches = SharedBatches(EpochShuffle(23, seed=3), 5, sizes=[1] * 23)
    batches.sampler.set_epoch(2)
    rows = list(EpochShuffle.__iter__(batches.sampler))
    assert list(batches) == [rows[start : start + 5] for start in range(0, 20, 5)]
    assert len(batches) == 4
