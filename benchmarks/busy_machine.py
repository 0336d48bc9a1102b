"""Training beside other work: seconds of the first epochs of every family, beside busy processes.

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
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAMILIES = {  # and how many epochs; of a tokenizer, which has none, the whole training
    "crystalformer": (["model=crystalformer", "task.train_rows=1000"], 10),
    "coulgat": (["model=coulgat", "task.train_rows=1000"], 10),
    "wavefunction": (["model=wavefunction"], 5),
    "flare": (["model=flare", "data.sizes=[100,10,10]"], 1),
    "matter": (["model=matter", "task.sizes=[]", "task.vocab_size=2000",
                "data.sentences_per_crystal=1"], None),
    "crystal_text": (["model=crystal_text", "task.train_rows=1000"], 6),
}  # fmt: skip


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


def train(arguments: list[str], epochs: int | None, checkout: Path, limit: float) -> float:
    """Return the seconds of a training's first epochs, those of the limit if they take longer.

    It is ended after them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "run")
        process = subprocess.Popen(
            [sys.executable, "train.py", *arguments, f"paths.output_dir={folder}"],
            cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        begin = time.monotonic()
        try:
            while (seconds := trained(folder, epochs)) is None:
                if process.poll() is not None:
                    sys.exit(f"{' '.join(arguments)}: {process.stderr.read()}")
                if time.monotonic() - begin > limit:
                    return limit
                time.sleep(0.2)
            return seconds
        finally:
            process.kill()
            process.communicate()


def trained(folder: Path, epochs: int | None) -> float | None:
    """Return how long the first epochs of a run took, s, or None if they have not ended."""
    if epochs is None:
        path = folder / "metrics.json"
        return json.loads(path.read_text())["train_time_s"] if path.is_file() else None
    path = folder / "metrics.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    return float(rows[epochs - 1]["seconds"]) if len(rows) >= epochs else None


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
                    train(*FAMILIES[family], options.checkout, options.limit)
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
