"""Run folders: whose they are, and what became of the run."""

import pytest
from filelock import FileLock

from matattn.errors import ConfigError, WriteError
from matattn.workflows import run, run_folder
from matattn.workflows.run_folder import keeping_errors, state, working_on


def test_a_folder_belongs_to_one_configuration_and_one_data_set(config, finished, table, tmp_path):
    folder, _ = finished
    with pytest.raises(ConfigError, match=r"another configuration \(optimizer.lr, seed differ\)"):
        run.run(config(table, folder, "optimizer.lr=1e-5", "seed=1"))
    more = f"; to train its model further, choose a folder and init_from={folder / 'model'}"
    with pytest.raises(ConfigError, match="trainer.max_epochs differ") as error:
        run.run(config(table, folder, "trainer.max_epochs=9"))
    assert str(error.value).endswith(more)
    theirs = tmp_path / "theirs"
    (theirs / "model").mkdir(parents=True)
    for option in ("overwrite=true", "overwrite=false"):
        with pytest.raises(ConfigError, match="is not empty and holds no run"):
            run.run(config(table, theirs, option))
        (theirs / "config.yaml").write_text("theirs: 1\n")
    assert (theirs / "model").is_dir()
    copy = tmp_path / "crystals.jsonl"
    copy.write_text(table.read_text())
    folder = tmp_path / "run"
    run.run(config(copy, folder, "trainer.max_epochs=1"))
    copy.write_text(copy.read_text().replace('"e_form": ', '"e_form": 1', 1))
    with pytest.raises(ConfigError, match="the data have changed"):
        run.run(config(copy, folder, "trainer.max_epochs=1"))


def test_a_running_run_is_seen(tmp_path):
    folder = tmp_path / "run"
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        assert state(folder) == ("running", "")
        with pytest.raises(ConfigError, match="another process is working on this run"):
            with working_on(folder):
                pass
    assert state(folder) == ("stopped", "")


def test_an_error_is_told_when_it_cannot_be_kept(tmp_path, monkeypatch):
    def full_disk(*_):
        raise WriteError("no space")

    monkeypatch.setattr(run_folder, "write_text", full_disk)
    with pytest.raises(ConfigError, match="wrong"), keeping_errors(tmp_path):
        raise ConfigError("wrong")


def test_an_error_is_kept_until_the_next_try(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ConfigError), keeping_errors(folder):
        raise ConfigError("wrong\n value")
    assert state(folder) == ("failed", "ConfigError: wrong value")
    with pytest.raises(KeyboardInterrupt), keeping_errors(folder):
        raise KeyboardInterrupt
    assert state(folder) == ("stopped", "")


def test_a_run_needs_a_folder_that_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="no such folder can be made: .*; choose another paths.o"),
        working_on(tmp_path / "file" / "below" / "run"),
    ):
        pass
