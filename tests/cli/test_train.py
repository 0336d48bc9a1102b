"""``train.py`` and ``matattn train`` as a user types them: a mistake is one line that helps."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def train(folder, *arguments, entry=("train.py",)):
    command = [sys.executable, str(ROOT / entry[0]), *entry[1:], *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["trainer.max_epoch=3"], ["trainer.max_epoch: there is no such key", "'max_epochs'"]),
        (["sede=1"], ["sede: there is no such key", "did you mean 'seed'?"]),
        (["model=crystalfromer"], ["Could not find 'model/crystalfromer'", "crystalformer"]),
        (["data=crystals"], ["data.path", "Missing mandatory value"]),
        (["data=crystals", "data.path=my.jsonl", "data.targets=[gap]"], ["my.jsonl: no such file"]),
        (["data=mp2018_subset"], ["mp2018.jsonl.gz: no such file", "MATATTN_DATA"]),
        (["data.targets=[band_gap]"], ["prototypes has no target 'band_gap'"]),
        (["data.targets=[tc]"], ["'tc' has no known unit"]),
        (["model.num_heads=7"], ["model: ", "num_heads=7"]),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, parts):
    monkeypatch.delenv("MATATTN_DATA", raising=False)
    result = train(tmp_path, *arguments)
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for part in parts:
        assert part in lines[0]


def test_help_shows_commands(tmp_path):
    result = train(tmp_path, "--help")
    assert result.returncode == 0
    for text in ("python train.py model=crystalformer", "mp2018_subset", "max_epochs: 40"):
        assert text in result.stdout


@pytest.mark.slow
def test_sweep_over_seeds(tmp_path):
    """``-m`` runs both; every seed has a run folder of its own."""
    small = ["model.dim=8", "model.num_heads=1", "model.num_blocks=1", "model.ffn_dim=8",
             "model.num_radial=4", "trainer.max_epochs=1"]  # fmt: skip
    result = train(tmp_path, "-m", "seed=0,1", *small)
    assert result.returncode == 0, result.stderr
    runs = sorted((tmp_path / "outputs" / "crystalformer-prototypes").iterdir())
    assert [run.name[:6] for run in runs] == ["seed0-", "seed1-"]
    for run in runs:
        assert (run / "metrics.json").is_file()
