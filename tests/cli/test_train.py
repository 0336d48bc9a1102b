"""``train.py`` and ``matattn train`` as a user types them: a mistake is one line that helps."""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from matattn.composition import escaped, one_line

ROOT = Path(__file__).parents[2]
SMALL = [
    "model.dim=8",
    "model.num_heads=1",
    "model.num_blocks=1",
    "model.ffn_dim=8",
    "model.num_radial=4",
]


def train(folder, *arguments, entry=("train.py",)):
    command = [sys.executable, str(ROOT / entry[0]), *entry[1:], *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_help_shows_commands(tmp_path):
    result = train(tmp_path, "--help")
    assert result.returncode == 0
    for text in ("python train.py model=crystalformer", "mp2018_subset", "max_epochs: 40"):
        assert text in result.stdout


HARD = [
    "a=b",
    "e#f",
    "ü",
    "a,b",
    "[x]",
    "{x}.csv",
    "a(b)",
    "it's",
    'say "hi"',
    "C:\\data\\",
    'a\\"b',
    "~x",
]


@pytest.mark.parametrize("value", HARD)
def test_the_quotes_that_an_error_gives_are_right(value):
    try:
        OverridesParser.create().parse_overrides([f"data.path={value}"])
    except OverrideParseException as error:
        (given,) = shlex.split(one_line(error).rpartition("quote the value: ")[2] or "x")
    else:
        given = f'data.path="{escaped(value)}"'
    (override,) = OverridesParser.create().parse_overrides([given])
    assert override.value() == value


@pytest.mark.parametrize(
    "number, status, message",
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "termin")],
)
def test_a_signal_stops_the_run_so_that_it_can_resume(tmp_path, number, status, message, keyboard):
    rows = [
        {
            "id": n,
            "lattice": (4 * np.eye(3)).tolist(),
            "Z": [n % 9 + 3],
            "frac": [[0, 0, 0]],
            "e_form": n,
        }
        for n in range(20)
    ]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, str(ROOT / "train.py"), "data=crystals", "data.path=my.jsonl",
               "data.targets=[e_form]", "data.split=random", "trainer.max_epochs=100000",
               "paths.output_dir=run", *SMALL]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("epoch 1/100000"), line
        while not (checkpoint := tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.05)
        process.send_signal(number)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, rest
    assert message in rest and "the same command resumes" in rest and "Traceback" not in rest
    assert torch.load(checkpoint, weights_only=True)["epoch"] >= 0


@pytest.mark.slow
def test_sweep_over_seeds(tmp_path):
    """``-m`` runs both; every seed has a run folder of its own."""
    result = train(tmp_path, "-m", "seed=0,1", "trainer.max_epochs=1", *SMALL)
    assert result.returncode == 0, result.stderr
    runs = sorted((tmp_path / "outputs" / "crystalformer-prototypes").glob("seed*"))
    assert [run.name[:6] for run in runs] == ["seed0-", "seed1-"]
    for run in runs:
        assert (run / "metrics.json").is_file()
