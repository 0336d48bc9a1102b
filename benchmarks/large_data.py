"""Train on more structures than one keeps in memory: build, kill, resume, second start, memory.

    MATATTN_DATA=... python benchmarks/large_data.py [--output benchmarks/results] [OVERRIDE ...]

One epoch of ``model=crystalformer`` on the 106,113 crystals of Matbench's ``mp_gap``, or on what
the overrides say, with an empty cache. The first process is killed (SIGKILL) when so many files of
neighbour lists are there; the same command then finishes; a third start, in another folder, ends at
its first training step. Memory is that of all processes together, every half second: the part that
is theirs alone or shared among them ("anonymous"), and apart from it the mapped files, which the
system takes back when it needs room.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matattn.files import write_text

ROOT = Path(__file__).parents[1]
DATA = ("data=matbench", "data.task=mp_gap",
        "data.path=${paths.data}/matbench/matbench_mp_gap.jsonl.gz")  # fmt: skip
COLUMNS = (
    "crystals", "table_s", "killed_after_files", "files", "lists_s", "lists_gb",
    "epoch_crystals_per_s", "evaluation_s", "peak_anonymous_gb", "peak_with_files_gb",
    "second_start_s", "threads",
)  # fmt: skip


def child(marks: Path, arguments: list[str], until_first_step: bool) -> None:
    """Run train.py, and write when which part of it began and ended."""
    begin, times = time.time(), {}

    def mark(name: str, **more: Any) -> None:
        times[name] = {"s": time.time() - begin, **more}
        marks.write_text(json.dumps(times))

    def around(
        owner: Any, name: str, title: str, more: Callable[[Any], dict] = lambda r: {}
    ) -> None:
        function = getattr(owner, name)

        def marked(*given: Any, **named: Any) -> Any:
            mark(f"{title} begins")
            result = function(*given, **named)
            mark(f"{title} ends", **more(result))
            return result

        setattr(owner, name, marked)

    from matattn.workflows.structures import batches, train

    around(train, "_read_data", "table", lambda data: {"crystals": len(data.items)})
    around(batches.NeighborStore, "open", "lists", lambda store: {"folder": str(store.folder)})
    around(train.PropertyTask, "evaluate", "evaluation")
    step, crystals = train.PropertyPrediction.training_step, 0

    def counted(self: Any, batch: Any, batch_idx: int) -> Any:
        nonlocal crystals
        if until_first_step:
            mark("step 1")
            os._exit(0)
        if batch_idx % 50 == 0:
            mark("epoch" if batch_idx else "step 1", crystals=crystals)
        crystals += batch.num_graphs
        return step(self, batch, batch_idx)

    train.PropertyPrediction.training_step = counted
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def memory(pid: int) -> tuple[int, int]:
    """Return anonymous and file-mapped bytes of a process and of all its descendants."""
    anonymous = files = 0
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:]
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            continue
        kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        files += 1024 * kb.get("Pss_File", 0)
        anonymous += 1024 * (kb["Pss"] - kb.get("Pss_File", 0))
    return anonymous, files


def run(
    folder: Path, name: str, overrides: list[str], more: tuple[str, ...] = (), kill_at: float = 0
) -> dict[str, Any]:
    """Run a child with the cache of ``folder``; kill it when a share of the lists is there."""
    marks = folder / f"{name}.json"
    arguments = [
        "model=crystalformer", *overrides, "trainer.max_epochs=1",
        f"paths.output_dir={folder / name}",
    ]  # fmt: skip
    command = [sys.executable, __file__, "--child", str(marks), *more, *arguments]
    # Its own group: a SIGKILL leaves it no chance to end its processes.
    process = subprocess.Popen(
        command, env=os.environ | {"MATATTN_CACHE": str(folder / "cache")}, start_new_session=True
    )
    peak = whole = 0
    try:
        while process.poll() is None:
            anonymous, files = memory(process.pid)
            peak, whole = max(peak, anonymous), max(whole, anonymous + files)
            made = len(list(folder.glob("cache/neighbors-*/[0-9]*")))
            if kill_at and made >= kill_at:
                process.kill()
                process.wait()
                return {"files": made}
            time.sleep(0.5)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise SystemExit(f"{name} failed")
    return json.loads(marks.read_text()) | {"peak": peak, "whole": whole}


def measure(folder: Path, overrides: list[str], kill_at: int) -> dict[str, Any]:
    killed = run(folder, "killed", overrides, kill_at=kill_at)
    print(f"killed with {killed['files']} files", file=sys.stderr)
    first = run(folder, "first", overrides)
    second = run(folder, "second", overrides, ("--until-first-step",))
    (lists,) = folder.glob("cache/neighbors-*")
    files = list(lists.glob("[0-9]*"))

    def seconds(title: str) -> float:
        return first[f"{title} ends"]["s"] - first[f"{title} begins"]["s"]

    return {
        "crystals": first["table ends"]["crystals"],
        "table_s": f"{seconds('table'):.0f}",
        "killed_after_files": killed["files"],
        "files": len(files),
        "lists_s": f"{seconds('lists'):.0f}",
        "lists_gb": f"{sum(file.stat().st_size for file in files) / 1e9:.2f}",
        "epoch_crystals_per_s":
            f"{first['epoch']['crystals'] / (first['epoch']['s'] - first['step 1']['s']):.0f}",
        "evaluation_s": f"{seconds('evaluation'):.0f}",
        "peak_anonymous_gb": f"{first['peak'] / 1e9:.2f}",
        "peak_with_files_gb": f"{first['whole'] / 1e9:.2f}",
        "second_start_s": f"{second['step 1']['s']:.1f}",
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until-first-step", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--kill-at", type=int, default=80, help="files of lists that are there")
    parser.add_argument("--folder", type=Path, help="a place for cache and runs; default: /tmp")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    given, overrides = parser.parse_known_args()
    if given.child:
        child(given.child, overrides, given.until_first_step)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        row = measure(Path(folder), overrides or list(DATA), given.kill_at)
    for name in COLUMNS:
        print(f"{name:24}{row[name]}")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerow(row)
    write_text(given.output / "large_data.csv", text.getvalue())


if __name__ == "__main__":
    main()
