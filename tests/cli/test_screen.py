"""``matattn screen`` as users type it, with mistakes and kills."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from matattn.cli import app

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MODEL = "mp-band-gap"


def run(*arguments):
    return CliRunner().invoke(app, ["screen", *map(str, arguments)])


def test_a_screening_ends_with_its_best_crystals(tmp_path):
    folder = tmp_path / "out"
    command = [MODEL, EXAMPLES, "-o", folder, "--where", "band_gap > 3", "-n", 2, "--processes", 1]
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    assert "5 of 5 structures have values" in result.stderr
    assert "the 2 most probable" in result.stdout
    rows = list(csv.DictReader(io.StringIO((folder / "hits.csv").read_text())))
    assert {row["id"] for row in rows} == {"NaCl", "MgO"}
    assert (folder / "hits.png").stat().st_size > 1000
    again = run(*command)
    assert again.exit_code == 0 and ", 5 of them earlier" in again.stderr


def test_a_shard_without_structures_ends_the_screening_as_any_other(tmp_path):
    command = [MODEL, EXAMPLES / "NaCl.cif", "-o", tmp_path / "out", "--where", "band_gap > 1",
               "--processes", 1, "--shard"]  # fmt: skip
    assert run(*command, "1/2").exit_code == 0
    result = run(*command, "2/2")
    assert result.exit_code == 0 and "0 of 0 structures" in result.stderr
    assert "NaCl" in (tmp_path / "out" / "hits.csv").read_text()


def test_without_criteria_there_are_rows_only(tmp_path):
    result = run(MODEL, EXAMPLES / "Si.cif", "-o", tmp_path / "out", "--processes", 1)
    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "out" / "hits.csv").exists()
    (part,) = (tmp_path / "out" / "parts").iterdir()
    assert pq.read_table(part)["formula"].to_pylist() == ["Si"]


def test_where_nothing_has_a_value_the_reason_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "x", "Z": [120], "frac": [[0, 0, 0]]}\n')
    result = run(MODEL, tmp_path / "a.jsonl", "-o", tmp_path / "out", "--processes", 1)
    assert result.exit_code == 1
    assert "0 of 1 structures have values" in result.stderr and "the first: " in result.stderr
    assert "a.jsonl" in result.stderr.splitlines()[-1]
    both = run(MODEL, tmp_path / "a.jsonl", EXAMPLES / "Si.cif", "-o", tmp_path / "both")
    assert both.exit_code == 0 and "the first" not in both.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([MODEL, "absent.jsonl"], "absent.jsonl: no such file"),
        ([MODEL, "-"], "a screening reads its sources again"),
        ([MODEL, EXAMPLES, "--where", "tc > 1"], "no model predicts 'tc'"),
        ([MODEL, EXAMPLES, "--where", "band_gap ~ 1"], "expected 'TARGET in LOW:HIGH'"),
        ([MODEL, EXAMPLES, "--shard", "3/2"], "--shard 3/2: expected i/n"),
        ([MODEL, EXAMPLES, "--slurm", "gpus=1"], "--slurm 'gpus=1': expected nodes"),
        ([MODEL, EXAMPLES, "--scheduler", "tcp://a:1", "--processes", 2], "exclude each other"),
        (["mp-band-gaps", EXAMPLES], "did you mean 'mp-band-gap'?"),
        (["mlearn-si", EXAMPLES], "this model reads potentials, not structures"),
        ([MODEL, EXAMPLES, "--also", MODEL], "is given twice"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, arguments, message):
    result = run(*arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_another_screening_keeps_its_folder(tmp_path):
    command = [MODEL, EXAMPLES / "Si.cif", "-o", tmp_path / "out", "--processes", 1]
    assert run(*command).exit_code == 0
    result = run(*command, "--where", "band_gap > 1")
    assert result.exit_code == 2 and "holds another screening: where was []" in result.stderr


PROGRAM = """
import sys
from matattn.workflows.screening import engine
from matattn.workflows.screening.plan import Plan
if __name__ == "__main__":
    plan = Plan(sys.argv[1], ("mp-band-gap",), (sys.argv[2],), ("band_gap > 1",), rows=4)
    with plan.claim():
        engine.run(plan, lambda: engine.local(2))
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_loses_and_doubles_nothing(tmp_path):
    pool, program = tmp_path / "pool.jsonl", tmp_path / "program.py"
    lattice = [[0, 2.1, 2.1], [2.1, 0, 2.1], [2.1, 2.1, 0]]
    frac = [[0, 0, 0], [0.5, 0.5, 0.5]]
    rows = [{"id": str(n), "Z": [3 + n % 80, 8], "frac": frac, "lattice": lattice}
            for n in range(200)]  # fmt: skip
    pool.write_text("\n".join(map(json.dumps, rows)))
    program.write_text(PROGRAM)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(folder):
        return subprocess.Popen(
            [sys.executable, program, folder, pool], env=environment, stderr=subprocess.DEVNULL
        )

    def parts(folder):
        return sorted((folder / "parts").glob("part-*.parquet"))

    assert start(tmp_path / "whole").wait() == 0
    seed = random.randrange(1000)
    moments = random.Random(seed)
    for _ in range(3):
        process, before = start(tmp_path / "killed"), len(parts(tmp_path / "killed"))
        while len(parts(tmp_path / "killed")) == before and process.poll() is None:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(3)  # its workers end when they notice
    assert start(tmp_path / "killed").wait() == 0
    one, two = (
        [pq.read_table(path) for path in parts(tmp_path / name)] for name in ("whole", "killed")
    )
    assert len(one) == len(two) == 50
    assert all(a.equals(b) for a, b in zip(one, two, strict=True)), f"seed {seed}"
