"""A screening of many substituted crystals: speed, memory, kills, and what the engine costs.

    python benchmarks/screening.py [--structures 100000] [--kills 3] [--processes 2]
        [--work build/screening] [--output benchmarks/results/screening.json]

Crystals of the embedded structure types get other elements and volumes, in cells of 5 to 30 atoms.
``matattn screen mp-formation-energy`` is killed (-9) at random moments and started again; then
every id must be there once. Memory is that of the largest process, looked at every second. The cost
of the engine is the time of a run of a part of them, over that of plain processes that predict the
same chunks and write nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pymatgen.core import Element

from matattn.datasets.prototypes import read_table
from matattn.files import write_json

MODEL = "mp-formation-energy"
FEWEST, MOST = 5, 30  # atoms
PLAIN = 10_000  # structures that the engine is compared on


def crystals(number: int) -> Iterator[dict[str, Any]]:
    """Yield rows of data: structure types with other elements, volumes by the atoms' radii."""
    generator = np.random.default_rng(0)
    rows = read_table()
    elements = sorted({element for row in rows for element in row.structure.symbol_set})
    radius = {name: float(Element(name).atomic_radius or 1.5) for name in elements}
    for count in range(number):
        structure = rows[int(generator.integers(len(rows)))].structure
        old = structure.symbol_set
        new = dict(zip(old, generator.choice(elements, len(old), replace=False), strict=True))
        symbols = [str(new[site.specie.symbol]) for site in structure]
        before = sum(radius[site.specie.symbol] ** 3 for site in structure)
        scale = (sum(radius[name] ** 3 for name in symbols) / before) ** (1 / 3)
        repeats = max(1, math.ceil(FEWEST / len(symbols)))
        most = max(repeats, MOST // len(symbols))
        repeats = int(generator.integers(repeats, most + 1))
        lattice = structure.lattice.matrix * scale
        lattice[0] = lattice[0] * repeats
        shifts = [np.array([n, 0, 0]) for n in range(repeats)]
        frac = [((site + shift) / [repeats, 1, 1]).round(6).tolist()
                for shift in shifts for site in structure.frac_coords]  # fmt: skip
        z = [Element(name).Z for name in symbols] * repeats
        yield {"id": f"s{count}", "Z": z, "frac": frac, "lattice": lattice.round(6).tolist()}


def memory_of(process: int) -> dict[int, float]:
    """Return the resident memory, in MB, of a process and its children. Linux only."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if process in (int(folder.name), int(fields[1])):
                status = (folder / "status").read_text()
                found[int(folder.name)] = int(status.split("VmRSS:")[1].split()[0]) / 1024
        except (OSError, IndexError):
            continue
    return found


def screen(pool: Path, folder: Path, processes: int, kill_after: float | None) -> dict[str, Any]:
    """Run or go on with a screening; return seconds, status, and the memory at every second."""
    matattn = str(Path(sys.executable).with_name("matattn"))
    command = [matattn, "screen", MODEL, str(pool), "-o", str(folder)]
    command += ["--where", "formation_energy_per_atom < -2", "--processes", str(processes)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    largest = []
    while process.poll() is None:
        time.sleep(1)
        largest.append(max(memory_of(process.pid).values(), default=0.0))
        if kill_after is not None and time.perf_counter() - begin > kill_after:
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(3)
            break
    return {"seconds": time.perf_counter() - begin, "memory": largest, "status": process.returncode}


def plain(lines: list[str]) -> int:
    """Predict the structures of lines, as a pool of processes without an engine would."""
    import torch

    from matattn.structures.files import entries
    from matattn.workflows.screening.parts import predictors

    torch.set_num_threads(1)
    found = list(entries(iter(lines)))
    model = predictors((MODEL,))[MODEL]
    return len(model.predict([e.structure for e in found], [e.place for e in found]))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/screening"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/screening.json"))
    arguments = parser.parse_args()
    work, number = arguments.work, arguments.structures
    work.mkdir(parents=True, exist_ok=True)
    pool = work / f"pool-{number}.jsonl"
    if not pool.exists():
        with pool.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in crystals(number))

    few = work / "few.jsonl"
    with pool.open() as file:
        lines = [line for line, _ in zip(file, range(PLAIN), strict=False)]
    few.write_text("".join(lines))
    one = screen(few, work / "few", arguments.processes, None)
    begin = time.perf_counter()
    with Pool(arguments.processes) as workers:
        workers.map(plain, [lines[n : n + 1000] for n in range(0, len(lines), 1000)], chunksize=1)
    without = time.perf_counter() - begin

    moments, runs = random.Random(0), []
    expected = number / PLAIN * one["seconds"]
    for _ in range(arguments.kills):
        longest = expected / (arguments.kills + 1)
        runs.append(
            screen(pool, work / "out", arguments.processes, moments.uniform(0.3, 1) * longest)
        )
    runs.append(screen(pool, work / "out", arguments.processes, None))
    ids: list[str] = []
    for part in sorted((work / "out" / "parts").glob("*.parquet")):
        ids += pq.read_table(part, columns=["id"])["id"].to_pylist()
    seconds = sum(run["seconds"] for run in runs)
    memory = [m for run in runs for m in run["memory"]]
    tenths = [max(part) for part in np.array_split(memory, 10)]
    result = {
        "structures": number, "processes": arguments.processes, "kills": arguments.kills,
        "seconds": round(seconds, 1), "structures_per_s": round(number / seconds, 1),
        "lost": number - len(set(ids)), "doubled": len(ids) - len(set(ids)),
        "largest_process_MB_by_tenth_of_the_time": [round(float(m)) for m in tenths],
        "engine_s": round(one["seconds"], 1), "plain_processes_s": round(without, 1),
        "compared_on": len(lines),
    }  # fmt: skip
    write_json(arguments.output, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
