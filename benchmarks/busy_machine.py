"""Training beside other work: seconds of a short training of every family, beside busy processes.

python benchmarks/busy_machine.py [--busy 0 1 2 4] [--repeat 3] [--limit 600] [--checkout FOLDER]
    [-o FILE.csv]

Busy processes are endless loops. A fair share: with k of them on c cores, everyone gets c / (c + k)
of the machine, so a training takes (c + k) / c times as long as alone. "ratio" is the measured time
over that. --checkout measures another checkout of matattn in the same way.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAMILIES = {
    "crystalformer": ["model=crystalformer", "trainer.max_epochs=3"],
    "coulgat": ["model=coulgat", "trainer.max_epochs=3"],
    "wavefunction": ["model=wavefunction", "trainer.max_epochs=20", "task.final_samples=1024"],
    "flare": ["model=flare", "trainer.max_epochs=1", "data.sizes=[120,10,10]", "task.export=0"],
    "matter": ["model=matter", "task.sizes=[]"],
    "crystal_text": ["model=crystal_text", "trainer.max_epochs=2"],
}


@contextmanager
def busy(count: int):
    """Keep ``count`` processes busy."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def train(arguments: list[str], checkout: Path, limit: float) -> float:
    """Return the seconds of a training, those of the limit if it takes longer."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *arguments, f"paths.output_dir={folder}/run"]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        try:
            done = subprocess.run(
                command, cwd=checkout, env=environment, capture_output=True, text=True,
                timeout=limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return limit
        if done.returncode:
            sys.exit(f"{' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
        return json.loads(Path(folder, "run", "metrics.json").read_text())["train_time_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2, 4])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600, help="seconds of one training")
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    cores, rows = len(os.sched_getaffinity(0)), []
    for family in options.families:
        alone = None
        for count in options.busy:
            with busy(count):
                times = [
                    train(FAMILIES[family], options.checkout, options.limit)
                    for _ in range(options.repeat)
                ]
            seconds = statistics.median(times)
            alone = seconds if count == 0 else alone
            row = {"family": family, "cores": cores, "busy": count, "seconds": round(seconds, 1)}
            if alone:
                row["ratio"] = round(seconds / (alone * (cores + count) / cores), 2)
            print(row, flush=True)
            rows.append(row)
            if options.output:
                with options.output.open("w", newline="") as file:
                    table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                    table.writeheader()
                    table.writerows(rows)


if __name__ == "__main__":
    main()
