"""One process against two (trainer=ddp): seconds an epoch, and memory of each process.

python benchmarks/several_processes.py [-o FILE.csv]

One process has one thread, then two. Memory: "unique" is what only that process holds, "shared" its
part of what several hold (USS, and PSS - USS, of Linux). Epochs but the first are counted.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CASES = {
    "crystalformer, prototypes": ["model=crystalformer"],
    "flare, plates": ["model=flare", "task.export=0"],
}
SETTINGS = {
    "1 process, 1 thread": (1, ["trainer.accelerator=cpu"]),
    "1 process, 2 threads": (2, ["trainer.accelerator=cpu"]),
    "2 processes": (1, ["trainer=ddp"]),
    "2 processes, nodes shared": (1, ["trainer=ddp", "task.share_nodes=true"]),
}


def memory(number: int) -> tuple[float, float]:
    """Unique and shared memory of a process, MB."""
    try:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0.0, 0.0
    size = {line.split(":")[0]: float(line.split()[1]) / 1000 for line in lines}
    unique = size["Private_Clean"] + size["Private_Dirty"]
    return unique, size["Pss"] - unique


def measure(arguments: list[str], threads: int, epochs: int) -> tuple[float, dict[int, tuple]]:
    """Median seconds of an epoch; the last memory seen of every training process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *arguments,
                   f"trainer.max_epochs={epochs}", f"paths.output_dir={folder}/run"]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        seen: dict[int, tuple] = {}
        log = Path(folder) / "run" / "metrics.csv"
        while process.poll() is None:
            if log.exists() and len(log.read_text().splitlines()) < epochs:
                found = subprocess.run(
                    ["pgrep", "-f", f"{folder}/run"], capture_output=True, text=True
                )
                for number in map(int, found.stdout.split()):
                    seen[number] = max(seen.get(number, (0.0, 0.0)), memory(number))
            time.sleep(0.5)
        assert process.returncode == 0, command
        with open(log) as rows:
            ends = [float(row["seconds"]) for row in csv.DictReader(rows)]
    return statistics.median(b - a for a, b in zip(ends, ends[1:], strict=False)), seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    rows = []
    for case, arguments in CASES.items():
        alone = 0.0
        for setting, (threads, more) in SETTINGS.items():
            if "nodes" in setting and "flare" not in case:
                continue
            seconds, seen = measure([*arguments, *more], threads, options.epochs)
            alone = alone or seconds
            sizes = "; ".join(f"{u:.0f} + {s:.0f}" for u, s in seen.values())
            rows.append([case, setting, f"{seconds:.2f}", f"{alone / seconds:.2f}", sizes])
            print(" | ".join(rows[-1]), flush=True)
    if options.output:
        with open(options.output, "w", newline="") as file:
            header = ["case", "setting", "seconds an epoch", "speed", "MB unique + shared"]
            csv.writer(file, lineterminator="\n").writerows([header, *rows])


if __name__ == "__main__":
    main()
