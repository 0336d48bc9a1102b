"""What safety costs in a normal run, as a share of the time of an epoch.

    python benchmarks/safety_overhead.py [-o benchmarks/results/safety_overhead.csv]

Expected: a checkpoint of P parameters with Adam's moments holds 12 P bytes. Beside PyTorch's own
saving it is copied once (10 GB/s) and hashed (SHA-256, 2 GB/s on a processor with instructions for
it, 0.4 GB/s without): 0.6 ns a byte, or 2.6. The default Crystalformer (115,000 parameters) has two
of 1.4 MB an epoch: 1.7 ms, or 7, of about 500. Its 63 steps take 10 microseconds each, what is done
once a run 1 or 2 ms an epoch: 0.7 % in all. FLARE's epoch is 40 times as long.

Measured is the processor time inside the functions that make a run safe, in a training with the
default settings but fewer epochs, on one thread. The epoch is the median one, without the first.
What is done once a run is divided by the epochs of the default run. Of saving a checkpoint, only
what it takes longer than ``torch.save`` of the same content counts. It is checked first that what
was saved so is read as it was, and refused with one wrong bit.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from matattn.cli.train import main as train
from matattn.errors import TrainingError
from matattn.files import write_text
from matattn.training.checkpoint_files import AtomicCheckpoints, read
from matattn.training.run_log import RunLog

CASES = {  # arguments, and the epochs of the default run
    "crystalformer, prototypes": (["model=crystalformer"], 40),
    "flare, plates": (["model=flare", "task.export=0"], 8),
}
EPOCHS = 3
SAVE = "save a checkpoint"
OFTEN = {
    SAVE: ["matattn.training.checkpoint_files:AtomicCheckpoints.save_checkpoint"],
    "seed the random numbers": ["matattn.training.step_seed:StepSeed.on_train_batch_start"],
    "look at the loss": [
        "matattn.workflows.structures.train:stop_unless_finite",
        "matattn.workflows.meshes.train:stop_unless_finite",
    ],
    "write metrics.csv": ["matattn.training.run_log:write_text"],
}
ONCE = {
    "lock the run": ["matattn.workflows.run_folder:FileLock.acquire"],
    "look for an earlier run": ["matattn.workflows.run_folder:earlier_run"],
    "remove half files": ["matattn.workflows.run_folder:clear_partial"],
    "write config.yaml": ["matattn.workflows.run_folder:write_text"],
    "read the cache": ["matattn.cache:read_sealed"],
    "fingerprint of the data": [
        "matattn.structures.dataset:PropertyDataset.fingerprint",
        "matattn.meshes.fields:FieldDataset.fingerprint",
    ],
    "read the last checkpoint": ["matattn.training.checkpoint_files:read"],
    "checksums of the model": ["matattn.bundle:sha256"],
}


def watch(places: list[str], spent: list[float]) -> None:
    """Let the functions at ``module:name`` append the seconds of every call to ``spent``."""
    for place in places:
        module, names = place.split(":")
        *owners, name = names.split(".")
        owner: Any = importlib.import_module(module)
        for step in owners:
            owner = getattr(owner, step)
        setattr(owner, name, _timed(getattr(owner, name), spent))


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.process_time() - begin)

    return timed


def _noting_ends(function: Callable[..., Any], ends: list[float]) -> Callable[..., Any]:
    def noting(*args: Any) -> Any:
        ends.append(time.process_time())
        return function(*args)

    return noting


def savings(path: Path) -> dict[str, float]:
    """Seconds of ``torch.save`` and of a safe checkpoint with the content of one, median of 20.

    Exits unless it is read as it was, and refused with one wrong bit.
    """
    content, place = read(path), path.with_name("copy.ckpt")
    safe = AtomicCheckpoints().save_checkpoint
    safe(content, place)
    again, flipped = read(place), bytearray(place.read_bytes())
    if any(not torch.equal(again["state_dict"][k], v) for k, v in content["state_dict"].items()):
        sys.exit("a checkpoint is not what was saved: no times")
    flipped[len(flipped) // 2] ^= 1
    place.write_bytes(flipped)
    try:
        read(place)
        sys.exit("a wrong bit was not noticed: no times")
    except TrainingError:
        pass
    found: dict[str, list[float]] = {"plain": [], "safe": []}
    for _ in range(20):
        _timed(torch.save, found["plain"])(content, place)
        _timed(safe, found["safe"])(content, place)
    return {kind: statistics.median(seconds) for kind, seconds in found.items()}


def measure(arguments: list[str], default_epochs: int) -> list[list[object]]:
    """Rows of the table: what, calls, milliseconds an epoch, and its share of the epoch (%)."""
    spent: dict[str, list[float]] = {name: [] for name in [*OFTEN, *ONCE]}
    for name, places in (OFTEN | ONCE).items():
        watch(places, spent[name])
    ends: list[float] = []
    RunLog.on_train_epoch_end = _noting_ends(RunLog.on_train_epoch_end, ends)
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["train.py", *arguments, f"trainer.max_epochs={EPOCHS}",
                    "trainer.accelerator=cpu", f"paths.output_dir={folder}/run"]  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr):
            train()
        calls = {name: len(seconds) for name, seconds in spent.items()}
        seconds = savings(Path(folder) / "run" / "checkpoints" / "last.ckpt")
    epoch = statistics.median(b - a for a, b in itertools.pairwise(ends))
    costs = {name: sum(spent[name][: calls[name]]) / EPOCHS for name in OFTEN}
    costs[SAVE] *= 1 - seconds["plain"] / seconds["safe"]
    costs |= {name: sum(spent[name][: calls[name]]) / default_epochs for name in ONCE}
    costs["all"] = sum(costs.values())
    calls["all"] = sum(calls.values())
    rows = []
    for name, cost in costs.items():
        shares = f"{1000 * cost:.3f}", f"{1000 * epoch:.0f}", f"{100 * cost / epoch:.4f}"
        rows.append([name, calls[name], *shares])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--case", choices=CASES, help="only this one, in this process")
    options = parser.parse_args()
    if options.case:
        torch.set_num_threads(1)
        print(json.dumps(measure(*CASES[options.case])))
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "what", "calls", "ms per epoch", "epoch, ms", "share, %"])
    for case in CASES:
        command = [sys.executable, __file__, "--case", case]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        writer.writerows([case, *row] for row in json.loads(found.stdout))
    print(text.getvalue(), end="")
    if options.output:
        write_text(options.output, text.getvalue())


if __name__ == "__main__":
    main()
