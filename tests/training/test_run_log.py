"""The table of metrics, through resumed epochs, and the lines of progress."""

import csv
from types import SimpleNamespace

import pytest
import torch

from matattn.training.run_log import RunLog


def run(log, epochs, begin=0, writes=True):
    """Let the log see the ends of epochs ``begin`` ... of a training."""
    trainer = SimpleNamespace(
        current_epoch=begin, max_epochs=epochs, is_global_zero=writes, callback_metrics={},
        progress_bar_callback=None,
    )  # fmt: skip
    log.on_train_start(trainer, None)
    for epoch in range(begin, epochs):
        trainer.current_epoch = epoch
        trainer.callback_metrics["train/loss"] = torch.tensor(0.5**epoch)
        if epoch % 2:
            trainer.callback_metrics["val/loss"] = torch.tensor(2.0)
        log.on_train_epoch_end(trainer, None)


def rows(path):
    with open(path, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_resumed_run_continues_its_table(tmp_path):
    first = RunLog(tmp_path / "log.csv", {})
    run(first, 3)
    state = first.state_dict()
    second = RunLog(tmp_path / "log.csv", {})
    second.load_state_dict({**state, "seconds": 100.0})
    run(second, 5, begin=2)  # the third epoch was lost, and is done again
    table = rows(tmp_path / "log.csv")
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4", "5"]
    assert [float(row["train/loss"]) for row in table] == [1, 0.5, 0.25, 0.125, 0.0625]
    assert table[0]["val/loss"] == "" and table[1]["val/loss"] == "2.0"
    assert float(table[1]["seconds"]) < 100 <= float(table[2]["seconds"]) <= second.seconds + 0.01


@pytest.mark.parametrize("epochs, shown", [(3, [1, 2, 3]), (40, [1, *range(4, 41, 4)])])
def test_about_ten_lines_of_progress(tmp_path, capsys, epochs, shown):
    run(RunLog(tmp_path / "log.csv", {"val/loss": "val {:.1f} eV", "val/none": "{}"}), epochs)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"epoch {n}/{epochs}" for n in shown]
    assert lines[-1].endswith("s  val 2.0 eV") and "eV" not in lines[0]


def test_other_processes_write_nothing(tmp_path, capsys):
    log = RunLog(tmp_path / "log.csv", {})
    run(log, 2, writes=False)
    assert len(log.rows) == 2 and not list(tmp_path.iterdir()) and not capsys.readouterr().err
