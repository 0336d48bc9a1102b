"""Wrong use of train.py, kept as a table: a command ends with one line and exit status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def run_all(file, folder, timeout):
    """Rows of run_wrong_commands.py in ``folder``, without the data of this machine."""
    environment = {k: v for k, v in os.environ.items() if k != "MATATTN_DATA"}
    environment |= {"OMP_NUM_THREADS": "1"}  # OpenMP's threads do not survive a fork
    command = [sys.executable, str(FOLDER / "run_wrong_commands.py"), str(file)]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.share(3)
@pytest.mark.parametrize("part", range(3))
def test_wrong_commands_are_one_line(tmp_path, part):
    commands = (FOLDER / "wrong_commands.txt").read_text().splitlines()[part::3]
    file = tmp_path / "commands.txt"
    file.write_text("\n".join(commands))
    rows = run_all(file, tmp_path, timeout=1500)
    assert len(rows) == len(commands)
    bad = [
        row for row in rows
        if row["status"] != 2 or not row["stderr"].startswith("error: ")
        or len(row["stderr"].strip().splitlines()) != 1
    ]  # fmt: skip
    assert not bad, json.dumps(bad, indent=1)


MISTAKES = {
    "trainer.max_epoch=3": ["trainer.max_epoch: there is no such key", "'max_epochs'"],
    "sede=1": ["sede: there is no such key", "did you mean 'seed'?"],
    "model=crystalfromer": ["Could not find 'model/crystalfromer'", "crystalformer"],
    "-m hydra/sweeper=absent": ["hydra/sweeper=absent: not ", "'matattn[optuna]'", "basic"],
    "-m hydra/launcher=absent": ["hydra/launcher=absent: not ", "'matattn[cluster]'", "slurm"],
    "data=crystals": ["data.path: has no value; give data.path=..."],
    "data=crystals data.path=my.jsonl data.targets=[gap]": ["my.jsonl: no such file"],
    "data=mp2018_subset": ["mp2018.jsonl.gz: no such file", "MATATTN_DATA"],
    "data.targets=[band_gap]": ["prototypes has no target 'band_gap'"],
    "data.targets=[tc]": ["'tc' has no known unit"],
    "model.num_heads=7": ["model: ", "num_heads=7"],
    "~optimizer.lr": ["error: optimizer.lr: cannot be left out"],
    "+foo=1": ["error: foo: there is no such key"],
    "++max_epoch=1": ["max_epoch: there is no such key; did you mean 'trainer.max_epochs'?"],
    "+trainer.max_epoch=1": ["trainer.max_epoch: there is no such key; did you mean 'max_epochs'"],
    "+hydra.foo=1": ["error: foo: there is no such key"],
    "~foo": ["foo: there is no such key"],
    "foo": ["foo: expected key=value"],
    "data=table data.path=a=b": ["quote the value: 'data.path=\"a=b\"'"],
    "data=table data.path=e#f": ["quote the value: 'data.path=\"e#f\"'"],
    "data=table data.path=~/no/x.csv data.targets=[e_form]": ["/no/x.csv: no such file"],
    "data=table data.path=2024 data.targets=[e_form]": [
        "data.path=2024: expected str; quote a text that looks like a number: 'data.path=\"01\"'"
    ],
    "data.targets=[a=b]": ["data.targets=[a=b]: is no list that can be read; quote the texts"],
    "seed=0,1": ["seed=0,1: several values need -m for a sweep", "'seed=\"0,1\"'"],
    "trainer.gradient_clip_val=nan": ["trainer.gradient_clip_val=nan: expected a finite number"],
    "optimizer.betas=[0.9,inf]": ["optimizer.betas[1]=inf: expected a finite number"],
    "model=wavefunction task.samples=1000000000": [
        "task.samples=1000000000: these take at least",
        "more than this machine has",
    ],
}


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    """Exit status and standard error of every one of ``MISTAKES``, run by one process."""
    folder = tmp_path_factory.mktemp("mistakes")
    file = folder / "commands.txt"
    file.write_text("\n".join(MISTAKES))
    return {row["command"]: row for row in run_all(file, folder, timeout=300)}


@pytest.mark.parametrize("command", MISTAKES)
def test_mistakes_are_one_line(messages, command):
    lines = messages[command]["stderr"].strip().splitlines()
    assert messages[command]["status"] == 2
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    for part in MISTAKES[command]:
        assert part in lines[0]
