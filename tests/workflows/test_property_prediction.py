"""Training runs end to end: what they write, that they repeat and resume, what stops them."""

import csv
import dataclasses
import json
import shutil
import signal
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from pymatgen.core import Structure

import matattn
from matattn import parallel
from matattn.conf.schema import register
from matattn.errors import ConfigError, TrainingError
from matattn.structures.batch import collate
from matattn.structures.derivatives import energy_forces_stress
from matattn.structures.files import read
from matattn.structures.structure import to_tensors
from matattn.training import run_log
from matattn.workflows import run as training
from matattn.workflows.structures import train

SMALL = [
    "model.dim=16",
    "model.num_heads=2",
    "model.ffn_dim=24",
    "model.num_radial=16",
    "task.batch_size=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=4",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """48 crystals in two structure types whose energy depends on elements and volume."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "crystals.jsonl"
    lines = []
    for number in range(48):
        z = generator.integers(3, 30, 2).tolist()
        a = float(generator.uniform(3.5, 6))
        frac = [[0, 0, 0], [0.5, 0.5, 0.5]] if number % 2 else [[0, 0, 0], [0.25, 0.25, 0.25]]
        energy = float(0.05 * (z[0] - z[1]) + (a - 4.5) ** 2 + 0.3 * (number % 2))
        split = "test" if number >= 40 else "val" if number >= 32 else "train"
        row = {"id": f"c{number}", "lattice": (a * np.eye(3)).tolist(), "Z": z, "frac": frac}
        row |= {"e_form": energy, "split": split}
        if number % 3:
            row["gap"] = abs(energy)
        lines.append(json.dumps(row))
    lines.append(json.dumps({"id": "bad", "lattice": [[0] * 3] * 3, "Z": [3], "frac": [[0] * 3]}))
    path.write_text("\n".join(lines))
    return path


def config(table, folder, *overrides):
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        data = ["data=crystals", f"data.path={table}", "data.targets=[e_form,band_gap]"]
        return compose("train", [*SMALL, *data, f"paths.output_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def finished(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, training.run(config(table, folder))


def test_run_folder_is_complete(finished):
    folder, metrics = finished
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "metrics.csv", "metrics.json", "predictions.csv", "report.md",
        "parity.png", "loss.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "model/model.safetensors", "model/config.json", "model/card.md", "model/SHA256SUMS",
    }  # fmt: skip
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    energy = metrics["test"]["formation_energy_per_atom"]
    assert energy["n"] == 8 and energy["unit"] == "eV/atom"
    assert set(energy["baselines"]) == {"mean", "linear_composition"}
    with open(folder / "metrics.csv") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert {"train/loss", "val/loss", "val/mae/formation_energy_per_atom"} <= set(rows[0])
    report = (folder / "report.md").read_text()
    assert "| test | band_gap |" in report and "Comparability" in report
    assert "crystals.jsonl:49 (bad)" in report  # what was left out, and why


def test_predictions_reproduce_the_metrics(finished):
    folder, metrics = finished
    with open(folder / "predictions.csv") as lines:
        rows = [row for row in csv.DictReader(lines) if row["split"] == "test" and row["true"]]
    for target in ("formation_energy_per_atom", "band_gap"):
        errors = [
            abs(float(r["true"]) - float(r["predicted"])) for r in rows if r["target"] == target
        ]
        assert len(errors) == metrics["test"][target]["n"]
        assert np.mean(errors) == pytest.approx(metrics["test"][target]["mae"], abs=1e-5)


def test_bundle_reproduces_the_predictions(finished, table):
    folder, _ = finished
    model = matattn.load(folder / "model")
    with open(folder / "predictions.csv") as lines:
        expected = {
            row["id"]: float(row["predicted"])
            for row in csv.DictReader(lines)
            if row["target"] == "formation_energy_per_atom"
        }
    from pymatgen.core import Structure

    records = [json.loads(line) for line in table.read_text().splitlines()[:48]]
    structures = [Structure(r["lattice"], r["Z"], r["frac"]) for r in records]
    for record, row in zip(records, model.predict(structures), strict=True):
        assert row["status"] == "ok"
        assert row["formation_energy_per_atom"] == pytest.approx(expected[record["id"]], abs=2e-5)


def weights(folder):
    from safetensors.torch import load_file

    return load_file(Path(folder) / "model" / "model.safetensors")


def assert_same_bits(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_two_runs_are_bit_equal(finished, table, tmp_path):
    folder, _ = finished
    training.run(config(table, tmp_path))
    assert_same_bits(folder, tmp_path)
    assert (folder / "predictions.csv").read_text() == (tmp_path / "predictions.csv").read_text()


def test_neighbour_lists_from_processes_change_nothing(finished, table, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "WORTH_A_PROCESS", 3)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    other = tmp_path / "again"
    handler = signal.getsignal(signal.SIGTERM)
    training.run(config(table, other))
    assert_same_bits(finished[0], other)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_training_on_all_atoms_gives_the_same_model_to_rounding(finished, table, tmp_path):
    """Symmetry changes the work, not the result."""
    training.run(config(table, tmp_path / "all", "task.symmetry=0"))
    ours, theirs = weights(finished[0]), weights(tmp_path / "all")
    for name in ours:
        assert torch.allclose(ours[name].float(), theirs[name].float(), rtol=0, atol=2e-3), name


def test_published_sums_train_on_boxes_made_per_batch(table, tmp_path):
    overrides = ("model.summation=published_r2", "trainer.max_epochs=1")
    assert training.run(config(table, tmp_path / "boxes", *overrides))["train_time_s"] >= 0


def test_another_seed_gives_another_model(finished, table, tmp_path):
    training.run(config(table, tmp_path, "seed=1"))
    with pytest.raises(AssertionError):
        assert_same_bits(finished[0], tmp_path)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("averaging, overwrite", [(0, "false"), (3, "false"), (0, "true")])
def test_stopped_and_resumed_equals_uninterrupted(
    table, tmp_path, monkeypatch, averaging, overwrite
):
    """Also where a finished run was to be overwritten: a requeued job has the same command."""
    # A rate at which validation gets worse: the last epoch is not the best one.
    option = [f"task.averaging_epochs={averaging}", "optimizer.lr=0.3", f"overwrite={overwrite}"]
    training.run(config(table, tmp_path / "whole", *option))
    if overwrite == "true":
        training.run(config(table, tmp_path / "cut", *option))

    begun = []

    def stop(self, trainer, pl_module):
        begun.append(trainer.current_epoch)
        if len(begun) == 3:  # in the third epoch
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(run_log.RunLog, "on_train_epoch_start", stop, raising=False)
        with pytest.raises(Stopped):
            training.run(config(table, tmp_path / "cut", *option))
        assert not (tmp_path / "cut" / "metrics.json").exists()
        training.run(config(table, tmp_path / "cut", *option))
    assert begun == [0, 1, 2, 2, 3]  # it did go on, and did not begin anew
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")
    tables = []
    for name in ("whole", "cut"):
        with open(tmp_path / name / "metrics.csv") as lines:
            rows = list(csv.DictReader(lines))
        tables.append([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    assert tables[0] == tables[1]


def test_finished_run_is_kept_unless_overwritten(finished, table, capsys):
    folder, metrics = finished
    before = (folder / "model" / "SHA256SUMS").stat().st_mtime_ns
    assert training.run(config(table, folder)) == metrics
    assert "holds this run, finished" in capsys.readouterr().out
    assert (folder / "model" / "SHA256SUMS").stat().st_mtime_ns == before
    again = training.run(config(table, folder, "overwrite=true"))
    assert again["test"] == metrics["test"]
    assert (folder / "model" / "SHA256SUMS").stat().st_mtime_ns > before


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("averaging", [0, 3])
def test_a_run_that_was_cut_while_it_wrote_its_results(table, tmp_path, averaging):
    option = f"task.averaging_epochs={averaging}"
    training.run(config(table, tmp_path / "first", option))
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "second" / "model")
    (tmp_path / "second" / "metrics.json").unlink()
    training.run(
        config(table, tmp_path / "second", option)
    )  # moved, and trained to the end already
    assert_same_bits(tmp_path / "first", tmp_path / "second")


def test_a_folder_belongs_to_one_configuration_and_one_data_set(finished, table, tmp_path):
    folder, _ = finished
    with pytest.raises(ConfigError, match=r"another configuration \(optimizer.lr, seed differ\)"):
        training.run(config(table, folder, "optimizer.lr=1e-5", "seed=1"))
    theirs = tmp_path / "theirs"
    (theirs / "model").mkdir(parents=True)
    for option in ("overwrite=true", "overwrite=false"):
        with pytest.raises(ConfigError, match="is not empty and holds no run"):
            training.run(config(table, theirs, option))
        (theirs / "config.yaml").write_text("theirs: 1\n")
    assert (theirs / "model").is_dir()
    copy = tmp_path / "crystals.jsonl"
    copy.write_text(table.read_text())
    run = tmp_path / "run"
    training.run(config(copy, run, "trainer.max_epochs=1"))
    copy.write_text(copy.read_text().replace('"e_form": ', '"e_form": 1', 1))
    with pytest.raises(ConfigError, match="the data have changed"):
        training.run(config(copy, run, "trainer.max_epochs=1"))


def test_overwriting_checks_first_and_leaves_nothing_old(finished, table, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError):
        training.run(config(table, folder, "overwrite=true", "model.num_heads=3"))
    assert sorted(folder.rglob("*")) == before

    def fail(*_):
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_log.RunLog, "on_train_epoch_start", fail, raising=False)
        with pytest.raises(Stopped):
            training.run(config(table, folder, "overwrite=true"))
    assert {path.name for path in folder.iterdir()} <= {"config.yaml", "checkpoints", "error.txt"}


def test_best_checkpoint_can_be_selected(finished, table, tmp_path):
    """With a learning rate that ruins the network in the end, the best epoch is not the last."""
    options = ["optimizer.lr=1.0", "task.select=best"]
    training.run(config(table, tmp_path, *options))
    state = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, tensor in weights(tmp_path).items():
        assert torch.equal(tensor, state[f"network.{name}"]), name
    assert "their error is optimistic" in (tmp_path / "report.md").read_text()


def test_weights_are_averaged_at_a_frozen_rate(table, tmp_path):
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
        training.run(config(table, tmp_path, *options))
    finally:
        L.Trainer.__init__ = original
    mean = torch.stack(seen).double().mean(0)
    assert (weights(tmp_path)["head.0.weight"].double() - mean).abs().max() < 1e-6
    steps = len(rates)
    assert steps == 16 and len(set(rates[steps // 2 - 1 :])) == 1
    assert rates[0] == pytest.approx(5e-4 * (4000 / 4001) ** 0.5)
    assert rates[4] == pytest.approx(5e-4 * (4000 / 4005) ** 0.5)


def test_loss_that_is_not_finite_stops_the_run(table, tmp_path, monkeypatch):
    from matattn.models.crystalformer import Crystalformer

    def broken(self, batch):
        return torch.full((batch.num_graphs, 2), float("nan"), requires_grad=True)

    monkeypatch.setattr(Crystalformer, "forward", broken)
    with pytest.raises(TrainingError, match="nan at step 0"):
        training.run(config(table, tmp_path))
    saved = json.loads((tmp_path / "nonfinite_batch.json").read_text())
    assert len(saved["ids"]) == 8 and saved["ids"][0].startswith("c")


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.kind=mesh", "model=crystalformer needs data of kind 'crystals', but data=crystals"),
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
        ("trainer.precision=bf16-mixed", "trainer.precision='bf16-mixed': expected 32-true"),
        ("task.workflow=foo", "task.workflow='foo': expected one of"),
        ("task.select=lowest", "task.select='lowest': expected final or best"),
    ],
)
def test_inconsistent_configurations_are_refused(table, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message) as error:
        training.run(config(table, tmp_path, override))
    assert "\n" not in str(error.value)


def test_predictor_gives_a_row_for_everything(finished, tmp_path):
    from pymatgen.core import Lattice, Structure

    from matattn.errors import StructureError

    model = matattn.load(finished[0] / "model")
    good = Structure(Lattice.cubic(4), ["Li", "F"], [[0] * 3, [0.5] * 3])
    strange = Structure(Lattice.cubic(4), ["U"], [[0] * 3])
    overlap = Structure(Lattice.cubic(4), ["Li", "F"], [[0] * 3, [0] * 3])
    rows = model.predict([good, overlap, StructureError("x.cif: cannot be read"), strange])
    assert [row["status"] for row in rows] == ["ok", "StructureError", "StructureError", "ok"]
    assert rows[0]["formula"] == "LiF" and rows[0]["natoms"] == 2
    assert np.isfinite(rows[0]["band_gap"]) and rows[0]["band_gap_unit"] == "eV"
    assert rows[1]["message"].startswith("structure 2: sites 1 and 2 overlap")
    assert rows[1]["band_gap"] is None
    assert "no training crystal contains U" in rows[3]["message"]
    (alone,) = model.predict(good)
    assert alone["band_gap"] == pytest.approx(rows[0]["band_gap"], abs=1e-5)
    good.to(filename=str(tmp_path / "lif.cif"))
    (from_file,) = model.predict(read(tmp_path / "lif.cif"))
    assert from_file["band_gap"] == pytest.approx(rows[0]["band_gap"], abs=1e-4)


def test_forces_of_a_saved_model_are_slopes_of_its_predictions(finished):
    """Through the normaliser and to the whole cell, as docs/forces.md shows it."""
    model = matattn.load(finished[0] / "model")
    model.network.double()
    structure = Structure(4.3 * np.eye(3), [11, 17], [[0, 0, 0], [0.42, 0.55, 0.5]])
    batch = collate([to_tensors(structure, torch.float64)], model.network.image_rule(1e-10))
    with pytest.raises(ValueError, match="no target|one target in eV/atom"):
        two = [target | {"unit": "eV"} for target in model.targets]
        dataclasses.replace(model, config=model.config | {"targets": two}).energy(batch)
    result = energy_forces_stress(model.energy, batch)
    expected = model.predict(structure)[0]["formation_energy_per_atom"]
    assert result.energy.item() / 2 == pytest.approx(expected, abs=1e-5)
    energies = []
    for step in (-1e-3, 1e-3):
        moved = dataclasses.replace(batch, pos=batch.pos + torch.tensor([[0, 0, 0], [step, 0, 0]]))
        with torch.no_grad():
            energies.append(model.energy(moved).item())
    slope = (energies[1] - energies[0]) / 2e-3
    assert abs(slope + result.forces[1, 0].item()) <= 1e-3 * abs(slope)
    assert abs(slope) > 1e-5
