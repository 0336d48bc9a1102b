"""The command behind ``train.py``: what it refuses, keeps and overwrites."""

import shutil

import pytest

from matattn.errors import ConfigError
from matattn.training import run_log
from matattn.workflows import run


class Stopped(Exception):
    pass


def test_finished_run_is_kept_unless_overwritten(config, finished, table, tmp_path, capsys):
    folder, metrics = tmp_path / "run", finished[1]
    shutil.copytree(finished[0], folder)
    before = (folder / "model" / "SHA256SUMS").stat().st_mtime_ns
    assert run.run(config(table, folder)) == metrics
    assert "holds this run, finished" in capsys.readouterr().out
    assert (folder / "model" / "SHA256SUMS").stat().st_mtime_ns == before
    again = run.run(config(table, folder, "overwrite=true"))
    assert again["test"] == metrics["test"]
    assert (folder / "model" / "SHA256SUMS").stat().st_mtime_ns > before


def test_overwriting_checks_first_and_leaves_nothing_old(config, finished, table, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    for name in ("frequencies.csv", "nonfinite_batch.json", "spectrum.png", "notes.txt"):
        (folder / name).write_text("")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events").write_text("")
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError):
        run.run(config(table, folder, "overwrite=true", "model.num_heads=3"))
    assert sorted(folder.rglob("*")) == before

    def fail(*_):
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_log.RunLog, "on_train_epoch_start", fail, raising=False)
        with pytest.raises(Stopped):
            run.run(config(table, folder, "overwrite=true"))
    left = {path.name for path in folder.iterdir()}
    assert "notes.txt" in left  # a stranger's
    assert left <= {"notes.txt", "config.yaml", "checkpoints", "error.txt"}


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.kind=meshes", "model=crystalformer needs data of kind 'structures', but data="),
        ("model._target_=os.system", "model._target_: 'os.system' is not allowed"),
        ("model.num_heads=3", "model: .*dim=16 is not a multiple of num_heads=3"),
        (
            "task.averaging_epochs=5",
            r"task.averaging_epochs=5: expected 0 to trainer.max_epochs \(4",
        ),
        ("task.batch_size=0", "task.batch_size=0: expected at least 1"),
        ("task.tolerance=0", "task.tolerance=0: expected between 0 and 1"),
        ("task.tolerance=1e-300", r"within 73\.6 Å, expected at most 50: lower model.cutoff"),
        ("task.symmetry=-1", "task.symmetry=-1: expected 0 to 0.01"),
        ("optimizer.lr=fast", "optimizer.lr='fast': expected a number above 0"),
        ("optimizer.betas=[0.9]", r"optimizer.betas=\[0.9\]: expected two numbers"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0: expected at least 1"),
        ("trainer.devices=2", "trainer.devices=2: expected 1"),
        ("trainer.accelerator=abacus", "trainer: .*abacus"),
        ("model.radial_max=0.0", "model: .*radial_max and radial_width above 0"),
        (
            "trainer.precision=16-mixed",
            "trainer.precision='16-mixed': expected one of 32-true, bf16-mi",
        ),
        ("+trainer.plugins=[]", "trainer.plugins: is set by matattn itself; leave it out"),
        ("+trainer.logger=true", r"trainer.logger: is set by matattn itself \(logger=... chooses"),
        ("+trainer.enable_progress_bar=true", "trainer.enable_progress_bar: is set by matattn"),
        ("task.workflow=foo", "task.workflow='foo': expected one of"),
        ("+foo=1", "foo: there is no such key$"),
        ("+max_epoch=1", "max_epoch: there is no such key; did you mean 'trainer.max_epochs'"),
        ("trainer.gradient_clip_val=nan", "trainer.gradient_clip_val=nan: expected a finite"),
        ("optimizer.betas=[0.9,inf]", r"optimizer.betas\[1\]=inf: expected a finite number"),
        ("task.select=lowest", "task.select='lowest': expected one of final, best"),
    ],
)
def test_inconsistent_configurations_are_refused(config, table, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message) as error:
        run.run(config(table, tmp_path, override))
    assert "\n" not in str(error.value)


def test_whether_data_may_be_fetched_does_not_change_a_run(compose):
    def folder(*overrides):
        return run.read(compose("data=jarvis_dft3d", *overrides))[0].folder()

    first = folder("seed=1")
    assert folder("seed=1", "data.download=true") == first
    assert folder("seed=1", "data.max_sites=3") != first
    assert folder("seed=2").name[6:] == first.name[6:]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["model=flare", "data=prototypes"], "model=flare needs data of kind 'meshes'"),
        (["model=crystalformer", "data=text_files", "data.corpus=a", "data.labelled=b"],
         "model=crystalformer needs data of kind 'structures', but data=text_files gives 'text'"),
    ],
)  # fmt: skip
def test_data_of_another_kind_are_refused(compose, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run.run(compose(*overrides))


def test_how_torch_is_set_does_not_matter(config, table, tmp_path, unusual_torch, assert_same_bits):
    run.run(config(table, tmp_path / "usual", "trainer.max_epochs=1"))
    with unusual_torch():
        run.run(config(table, tmp_path / "unusual", "trainer.max_epochs=1"))
    assert_same_bits(tmp_path / "usual", tmp_path / "unusual")
