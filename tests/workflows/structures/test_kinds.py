"""Networks that are trained without a kind of structures, and the intervals that come of it."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from matattn import bundle
from matattn.errors import ConfigError
from matattn.structures.dataset import CALIBRATION
from matattn.workflows import run
from matattn.workflows.structures.kinds import groups_of, left_out
from matattn.workflows.structures.predict import Predictor, encode

OXIDES = [np.array([z, 8]) for z in (12, 20, 38, 56, 4) for _ in range(4)]
METALS = [np.array([z, 13]) for z in (26, 27, 28, 29, 22) for _ in range(4)]


def test_one_composition_is_in_one_group():
    group, others = groups_of(OXIDES + METALS, 2, METALS)
    assert (others == group[20:]).all()
    for begin in range(0, 40, 4):
        assert len(set(group[begin : begin + 4])) == 1
    assert (groups_of(OXIDES + METALS, 2)[0] == group).all()


def test_groups_are_about_as_large_as_each_other():
    generator = np.random.default_rng(0)
    numbers = [generator.integers(1, 90, 3) for _ in range(400)]
    sizes = np.bincount(groups_of(numbers, 4)[0], minlength=4)
    assert sizes.min() > 50 and sizes.sum() == 400


def test_few_compositions_make_few_groups():
    assert set(groups_of(OXIDES[:4], 4)[0]) == {0}


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """A run on 120 crystals of one structure type, and its configuration."""
    folder = tmp_path_factory.mktemp("kinds")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(120):
        z, a = generator.integers(3, 50, 2).tolist(), float(generator.uniform(3.5, 6))
        row = {"id": f"c{number}", "lattice": (a * np.eye(3)).tolist(), "Z": z,
               "frac": [[0, 0, 0], [0.5, 0.5, 0.5]], "e_form": (a - 4.5) ** 2 + 0.01 * z[0],
               "gap": abs(a - 4), "split": "test" if number > 105 else "train"}  # fmt: skip
        rows.append(json.dumps(row))
    (folder / "table.jsonl").write_text("\n".join(rows))
    changed = ["task.kinds=2", "task.kind_epochs=2", "task.calibration=0.3"]
    configured = config(folder / "table.jsonl", folder / "run", *changed, "trainer.max_epochs=3")
    run.run(configured)
    return folder / "run", configured


def test_every_group_is_left_out_once(trained):
    _, config = trained
    parsed, task = run.read(config)
    dataset = task.prepare(parsed).dataset
    parts = left_out(dataset, 2)
    held = [set(part.rows("kind").tolist()) for part in parts]
    assert held[0] | held[1] == set(dataset.rows("train").tolist()) and not held[0] & held[1]
    for part, rows in zip(parts, held, strict=True):
        assert set(part.rows("train").tolist()) == set(dataset.rows("train").tolist()) - rows
        assert set(part.rows(CALIBRATION)) < set(dataset.rows(CALIBRATION))
        assert not len(part.rows("val"))


def test_a_model_knows_new_kinds(trained):
    folder, config = trained
    parsed, task = run.read(config)
    dataset = task.prepare(parsed).dataset
    model = Predictor.load(folder / "model")
    scores = model.uncertainty.kind_scores
    assert scores.shape == (len(dataset.rows("train")), len(model.targets))
    assert (folder / "without_kind1" / "checkpoints" / "last.ckpt").exists()
    items = [dataset.items[row] for row in dataset.rows("test").tolist()]
    features = encode(model.network, items)
    known, new = (
        model.intervals(features, new=torch.full((len(items),), kinds)) for kinds in (False, True)
    )
    assert ((new[1] - new[0]) >= (known[1] - known[0]) - 1e-9).all()
    assert "kind_scores" in model.uncertainty.tensors()


@pytest.mark.parametrize(
    "changes, message",
    [
        (["task.kinds=1"], "task.kinds=1: expected 0"),
        (["task.kinds=2", "task.calibration=0"], "needs calibration rows"),
        (["task.kinds=2", "trainer=ddp", "trainer.devices=2"], "needs trainer.devices=1"),
        (["task.kinds=2", "task.spread=ensemble", "task.members=2"], "task.spread of one network"),
    ],
)
def test_what_cannot_be_left_out_is_told_before_the_training(
    trained, config, tmp_path, changes, message
):
    table = trained[0].parent / "table.jsonl"
    with pytest.raises(ConfigError, match=message):
        run.run(config(table, tmp_path / "run", "task.calibration=0.3", *changes))


def test_averaging_and_selection_are_those_of_the_main_training_only(trained, config, tmp_path):
    table = trained[0].parent / "table.jsonl"
    changes = ["task.kinds=2", "task.kind_epochs=1", "task.calibration=0.3"]
    run.run(config(table, tmp_path / "run", *changes, "task.averaging_epochs=3"))
    model = Predictor.load(tmp_path / "run" / "model")
    assert model.uncertainty.kind_scores.isfinite().all()


def test_it_resumes(trained):
    folder, config = trained
    before = (folder / "model" / "SHA256SUMS").read_text()
    (folder / "metrics.json").unlink()
    run.run(config)
    assert (folder / "model" / "SHA256SUMS").read_text() == before


def test_older_bundles_have_known_kinds_only(trained, tmp_path):
    folder, _ = trained
    (network,), config, uncertainty = bundle.load(folder / "model")
    old = dataclasses.replace(uncertainty, kind_scores=None, usual=None, distances=None)
    described = {
        k: v
        for k, v in config.items()
        if k not in ("format", "network", "arguments", "uncertainty")
    }
    bundle.save(tmp_path / "old", network, config["arguments"], described, "", old)
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    assert config["uncertainty"]["method"] == "latent_distance"
    model = Predictor.load(tmp_path / "old")
    assert model.uncertainty.kind_scores is None
    assert not model.are_new(torch.zeros(3, uncertainty.distance.center.shape[0])).any()
