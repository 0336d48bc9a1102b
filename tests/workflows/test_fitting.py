"""One fit: it resumes, selects and averages weights, and stops at what is no number."""

import csv
import json
import shutil

import lightning as L
import numpy as np
import pytest
import torch

from matattn import files
from matattn.errors import ConfigError, TrainingError, WriteError
from matattn.models.crystalformer import Crystalformer
from matattn.training import run_log
from matattn.training.checkpoint_files import AtomicCheckpoints, read
from matattn.workflows import fitting, run


class Stopped(Exception):
    pass


@pytest.mark.parametrize("averaging, overwrite", [(0, "false"), (3, "false"), (0, "true")])
def test_stopped_and_resumed_equals_uninterrupted(
    config, assert_same_bits, table, tmp_path, monkeypatch, averaging, overwrite
):
    """Also where a finished run was to be overwritten: a requeued job has the same command."""
    # A rate at which validation gets worse: the last epoch is not the best one.
    option = [f"task.averaging_epochs={averaging}", "optimizer.lr=0.3", f"overwrite={overwrite}"]
    run.run(config(table, tmp_path / "whole", *option))
    if overwrite == "true":
        run.run(config(table, tmp_path / "cut", *option))

    begun = []

    def stop(self, trainer, pl_module):
        begun.append(trainer.current_epoch)
        if len(begun) == 3:  # in the third epoch
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(run_log.RunLog, "on_train_epoch_start", stop, raising=False)
        with pytest.raises(Stopped):
            run.run(config(table, tmp_path / "cut", *option))
        assert not (tmp_path / "cut" / "metrics.json").exists()
        run.run(config(table, tmp_path / "cut", *option))
    assert begun == [0, 1, 2, 2, 3]  # it did go on, and did not begin anew
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")
    tables = []
    for name in ("whole", "cut"):
        with open(tmp_path / name / "metrics.csv") as lines:
            rows = list(csv.DictReader(lines))
        tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    assert tables[0] == tables[1]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("averaging", [0, 3])
def test_a_run_that_was_cut_while_it_wrote_its_results(
    config, assert_same_bits, table, tmp_path, averaging
):
    option = f"task.averaging_epochs={averaging}"
    run.run(config(table, tmp_path / "first", option))
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "second" / "model")
    (tmp_path / "second" / "metrics.json").unlink()
    # Moved, and trained to the end already.
    run.run(config(table, tmp_path / "second", option))
    assert_same_bits(tmp_path / "first", tmp_path / "second")


def test_best_checkpoint_can_be_selected(config, weights, table, tmp_path):
    """With a learning rate that ruins the network in the end, the best epoch is not the last."""
    options = ["optimizer.lr=1.0", "task.select=best"]
    run.run(config(table, tmp_path, *options))
    state = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, tensor in weights(tmp_path).items():
        assert torch.equal(tensor, state[f"network.{name}"]), name
    assert "their error is optimistic" in (tmp_path / "report.md").read_text()


def test_weights_are_averaged_at_a_frozen_rate(config, weights, table, tmp_path):
    """The result is the mean of the weights after each step of the last epochs."""
    seen, rates = [], []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            if trainer.current_epoch >= 2:
                seen.append(pl_module.network.head[0].weight.detach().clone())

    original = L.Trainer.__init__

    def with_record(self, *args, callbacks, **kwargs):
        original(self, *args, callbacks=[Record(), *callbacks], **kwargs)

    L.Trainer.__init__ = with_record
    try:
        options = ["task.averaging_epochs=2", "optimizer=inverse_square_root"]
        run.run(config(table, tmp_path, *options))
    finally:
        L.Trainer.__init__ = original
    mean = torch.stack(seen).double().mean(0)
    assert (weights(tmp_path)["head.0.weight"].double() - mean).abs().max() < 1e-6
    steps = len(rates)
    assert steps == 16 and len(set(rates[steps // 2 - 1 :])) == 1
    assert rates[0] == pytest.approx(5e-4 * (4000 / 4001) ** 0.5)
    assert rates[4] == pytest.approx(5e-4 * (4000 / 4005) ** 0.5)


def test_callbacks_of_the_configuration_are_honoured(config, table, tmp_path):
    stop = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1}"
    # A rate at which validation gets worse.
    options = ["optimizer.lr=1.0", "trainer.max_epochs=50"]
    by_name = ["callbacks=early_stopping", "trainer.callbacks.early_stopping.patience=1"]
    for number, callbacks in enumerate([[f"+trainer.callbacks=[{stop}]"], by_name]):
        folder = tmp_path / str(number)
        run.run(config(table, folder, *callbacks, *options))
        epochs = len((folder / "metrics.csv").read_text().splitlines()) - 1
        assert 2 <= epochs < 50
        assert (folder / "metrics.json").exists()


def test_early_stopping_has_its_place_among_the_choices(config, table, tmp_path):
    both = config(table, tmp_path, "callbacks=[early_stopping,learning_rate]")
    assert list(both.trainer.callbacks) == ["early_stopping", "learning_rate"]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["+trainer.callbacks=[{_target_: lightning.pytorch.strategies.SingleDeviceStrategy}]"],
            r"^trainer.callbacks\[0\]: a SingleDeviceStrategy is no callback",
        ),
        (
            ["+trainer.callbacks.mine={_target_: lightning.pytorch.callbacks.Mine}"],
            r"^trainer.callbacks.mine._target_: .*Mine' is not allowed; nothing has this name",
        ),
        (
            ["callbacks=early_stopping", "+trainer.callbacks.early_stopping.patients=3"],
            "^trainer.callbacks.early_stopping.patients: there is no such key; .*'patience'",
        ),
        (["trainer.accelerator=gpu"], "^trainer: "),
        (["trainer.precision=16-bit"], "^trainer.precision='16-bit': expected one of 32-true, bf"),
        (["trainer.strategy=ddp"], "^trainer.strategy='ddp': expected a section, as trainer=ddp"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one of the cases is that there is no GPU")
def test_what_lightning_cannot_build_is_one_line(config, table, tmp_path, overrides, message):
    overrides = [item if item[0] != "t" else f"++{item}" for item in overrides]
    with pytest.raises(ConfigError, match=message) as error:
        run.run(config(table, tmp_path / "run", *overrides))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()  # nothing was written


def test_a_metric_that_nobody_logs_is_one_line(config, table, tmp_path):
    overrides = ["callbacks=early_stopping", "trainer.callbacks.early_stopping.monitor=val/los"]
    with pytest.raises(ConfigError, match="^trainer.callbacks: .*`val/los`.*any of .*`val/loss`"):
        run.run(config(table, tmp_path, *overrides))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision_is_the_trainers(config, weights, table, tmp_path, precision):
    """The errors are about those of float32; what is stored is float32."""
    expected = run.run(config(table, tmp_path / "32"))
    found = run.run(config(table, tmp_path / "run", f"trainer.precision={precision}"))
    checkpoint = read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    stored = {t.dtype for t in checkpoint["state_dict"].values() if t.is_floating_point()}
    assert stored == {torch.float64 if precision == "64-true" else torch.float32}
    assert {t.dtype for t in weights(tmp_path / "run").values() if t.is_floating_point()} == {
        torch.float32
    }
    for name, errors in expected["val"].items():
        assert found["val"][name]["mae"] == pytest.approx(errors["mae"], rel=0.05)
        assert found["val"][name]["mae"] != errors["mae"]


@pytest.mark.parametrize(
    "logger, files",
    [
        ("tensorboard", "tensorboard/version_0/events.out.tfevents.*"),
        pytest.param("wandb", "wandb/offline-run-*/*.wandb", marks=pytest.mark.slow),
        pytest.param("mlflow", "mlruns/*/*/metrics/train/loss", marks=pytest.mark.slow),
    ],
)
def test_loggers_write_into_the_run_folder(config, table, tmp_path, monkeypatch, logger, files):
    """None of them needs an account or a network."""
    pytest.importorskip(logger)
    monkeypatch.chdir(tmp_path)
    run.run(config(table, tmp_path / "run", f"logger={logger}", "trainer.max_epochs=1"))
    assert list((tmp_path / "run").glob(files))
    assert {path.name for path in tmp_path.iterdir()} == {".run.lock", "run"}


def test_on_a_gpu_losses_are_looked_at_together(tmp_path):
    """A step does not wait for its loss; the first one that is no number is told later."""

    class OnGpu:
        """A loss that says that it is elsewhere, and that must not be asked for at once."""

        device = torch.device("cuda")

        def __init__(self, value):
            self.value = torch.tensor(value)

        def detach(self):
            return self

    module = L.LightningModule()
    asked = []

    def stacked(losses):
        asked.append(len(losses))
        return torch.tensor([float(loss.value) for loss in losses])

    ids = ["a", "b", "c"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting.torch, "stack", stacked)
        for _ in range(fitting.UNCHECKED - 1):
            fitting.stop_unless_finite(OnGpu(1.0), module, tmp_path, ids, [0], "structures")
        assert not asked
        fitting.stop_unless_finite(OnGpu(1.0), module, tmp_path, ids, [0], "structures")
        assert asked == [fitting.UNCHECKED]
    for loss, rows in ((1.0, [0]), (float("nan"), [1, 2]), (float("nan"), [0])):
        module.__dict__.setdefault("unchecked_losses", []).append(
            fitting._Loss(torch.tensor(loss), tmp_path, ids, rows, "structures", 3, 40)
        )
    with pytest.raises(TrainingError, match=r"nan at step 40 \(epoch 4\); its structures are"):
        fitting.check_losses(module)
    assert json.loads((tmp_path / "nonfinite_batch.json").read_text())["ids"] == ["b", "c"]
    fitting.check_losses(module)  # they were told


def test_a_run_without_validation_rows_warns_of_nothing(config, table, tmp_path, capfd, recwarn):
    """Lightning would miss a validation loader."""
    path = tmp_path / "crystals.jsonl"
    path.write_text(table.read_text().replace('"split": "val"', '"split": "train"'))
    metrics = run.run(config(path, tmp_path / "run", "trainer.max_epochs=1"))
    assert "val" not in metrics and "test" in metrics
    *about_rows, line = capfd.readouterr().err.splitlines()
    assert all(" rows" in text for text in about_rows)
    assert line.startswith("epoch 1/1") and not recwarn.list


def test_loss_that_is_not_finite_stops_the_run(config, table, tmp_path, monkeypatch):
    def broken(self, batch):
        return torch.full((batch.num_graphs, 2), float("nan"), requires_grad=True)

    monkeypatch.setattr(Crystalformer, "forward", broken)
    with pytest.raises(TrainingError, match="nan at step 0"):
        run.run(config(table, tmp_path))
    saved = json.loads((tmp_path / "nonfinite_batch.json").read_text())
    assert len(saved["ids"]) == 8 and saved["ids"][0].startswith("c")


def test_checkpoint_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"step": 1}, path)

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_seal", full_disk)
    with pytest.raises(WriteError, match="last.ckpt: cannot be written: No space left on device"):
        AtomicCheckpoints().save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert read(path) == {"step": 1} == torch.load(path, weights_only=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_wrong_bit_in_a_checkpoint_is_refused(tmp_path):
    """PyTorch alone would read most of these files, with a wrong weight."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"weights": torch.ones(10_000)}, path)
    assert read(path)["weights"].sum() == 10_000
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(20):
        damaged = bytearray(whole)
        damaged[int(generator.integers(len(damaged)))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(TrainingError, match="last.ckpt: cannot be read"):
            read(path)
    path.write_bytes(whole[:20_000])
    with pytest.raises(TrainingError, match="last.ckpt: cannot be read"):
        read(path)
