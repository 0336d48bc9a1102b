"""Wrong use of train.py, kept as a table: every command ends with one line and exit status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.slow
def test_every_wrong_command_is_one_line(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "MATATTN_DATA"}
    environment |= {"OMP_NUM_THREADS": "1"}  # OpenMP's threads do not survive a fork
    result = subprocess.run(
        [sys.executable, str(FOLDER / "run_wrong_commands.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == len((FOLDER / "wrong_commands.txt").read_text().splitlines())
    bad = [
        row for row in rows
        if row["status"] != 2 or not row["stderr"].startswith("error: ")
        or len(row["stderr"].strip().splitlines()) != 1
    ]  # fmt: skip
    assert not bad, json.dumps(bad, indent=1)
