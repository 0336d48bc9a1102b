"""Matbench's folds in one table, against runs and published predictions made up here."""

import gzip
import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from matattn.cli import app
from matattn.datasets.matbench import TASKS, folds
from matattn.errors import DataError
from matattn.workflows import leaderboard

TASK, ROWS = "jdft2d", TASKS["jdft2d"].rows
IDS = [f"mb-jdft2d-{number:03d}" for number in range(1, ROWS + 1)]


def make_runs(
    folder, chosen=range(5), seeds=(0,), noise=20.0, init_from=None, inner=False, **model
):
    """Runs of all folds, of networks that are wrong by some noise."""
    generator = np.random.default_rng(0)
    true = np.random.default_rng(7).uniform(10, 300, ROWS)
    fold_of_row = folds(ROWS)
    for fold in chosen:
        for seed in seeds:
            run = folder / f"fold{fold}-seed{seed}"
            run.mkdir(parents=True)
            config = {
                "model": {"_target_": "matattn.models.crystalformer.Crystalformer", **model},
                "data": {"_target_": leaderboard.LOADER, "name": f"matbench_{TASK}", "task": TASK,
                         "fold": fold, "inner": inner, "path": "gone.jsonl.gz"},
                "task": {"workflow": "property_prediction"}, "seed": seed, "init_from": init_from,
            }  # fmt: skip
            (run / "config.yaml").write_text(json.dumps(config))
            errors = {"exfoliation_energy_per_atom": {"mae": 1.0, "unit": "meV/atom",
                                                      "baselines": {"mean": 2.0}}}  # fmt: skip
            (run / "metrics.json").write_text(json.dumps({"train": errors, "test": errors}))
            rows = pd.DataFrame({
                "id": IDS, "target": "exfoliation_energy_per_atom", "true": true,
                "predicted": true + generator.normal(scale=noise, size=ROWS),
                "split": np.where(fold_of_row == fold, "test", "train"),
            })  # fmt: skip
            rows.to_csv(run / "predictions.csv", index=False)
    return true


def publish(path, true, shift=0, **scales):
    generator = np.random.default_rng(1)
    others = {name: true + generator.normal(scale=scale, size=ROWS) for name, scale in
              scales.items()}  # fmt: skip
    table = pd.DataFrame({"id": IDS, "fold": (folds(ROWS) + shift) % 5, **others})
    table.to_csv(path, index=False)
    return others


def test_scores_are_means_over_folds_on_the_same_rows(tmp_path):
    true = make_runs(tmp_path / "runs")
    others = publish(tmp_path / "p.csv", true, good=10.0, bad=40.0)
    scores = leaderboard.read([tmp_path / "runs"], tmp_path / "p.csv")
    assert scores.official and scores.submissions == ["good", "ours", "bad"]
    listed = leaderboard.rows(scores)
    errors = np.abs(others["good"] - true)
    expected = np.mean([errors[folds(ROWS) == fold].mean() for fold in range(5)])
    assert listed[0]["mae"] == pytest.approx(expected)
    assert listed[1]["submission"] == "ours" and listed[1]["low"] is None
    assert 0 < listed[0]["low"] < listed[0]["ours_minus_this"] < listed[0]["high"]
    assert listed[2]["high"] < 0 and listed[2]["ours_closer"] > 0.5
    assert "the official score" in leaderboard.table(scores, listed).title


def test_intervals_cover_the_true_difference():
    """Of two predictions that are equally good, 95 % of the intervals hold zero."""
    generator, inside = np.random.default_rng(5), 0
    for number in range(100):
        ours, theirs = np.abs(generator.normal(size=(2, 200)))
        table = pd.DataFrame({"id": range(200), "fold": np.arange(200) % 5, "true": 0.0,
                              "ours": ours, "theirs": theirs})  # fmt: skip
        scores = leaderboard.Scores(TASK, "ours", table, 1, {})
        _, low, high = leaderboard.difference(scores, "theirs", seed=number)
        inside += low <= 0 <= high
    assert 88 <= inside <= 100


def test_seeds_are_averaged_before_they_are_scored(tmp_path):
    make_runs(tmp_path, seeds=(0, 1, 2, 3))
    scores = leaderboard.read([tmp_path], None)
    assert (
        scores.seeds == 4 and "mean of the predictions of 4 seeds" in leaderboard.remarks(scores)[0]
    )
    alone = leaderboard.read([*tmp_path.glob("*seed0")], None)
    assert scores.by_fold("ours").mean() < 0.6 * alone.by_fold("ours").mean()


def test_what_is_no_score_is_said_or_refused(tmp_path):
    true = make_runs(tmp_path / "two", chosen=(0, 3))
    two = leaderboard.read([tmp_path / "two"], None)
    assert "no official score" in leaderboard.table(two, leaderboard.rows(two)).title
    with pytest.raises(DataError, match="all rows of five folds, and 2"):
        leaderboard.submission(two)
    make_runs(tmp_path / "two" / "other", chosen=(1,), dim=32)
    with pytest.raises(DataError, match="differ in model.dim"):
        leaderboard.read([tmp_path / "two"], None)
    publish(tmp_path / "shifted.csv", true, shift=1, good=1.0)
    make_runs(tmp_path / "five")
    with pytest.raises(DataError, match="mb-jdft2d-001 is not in it with the fold"):
        leaderboard.read([tmp_path / "five"], tmp_path / "shifted.csv")
    (tmp_path / "text.csv").write_text("hello\n")
    with pytest.raises(DataError, match="expected a CSV file with id, fold"):
        leaderboard.read([tmp_path / "five"], tmp_path / "text.csv")
    for record in (tmp_path / "five").glob("*/metrics.json"):
        record.unlink()
    with pytest.raises(DataError, match="no finished run with data=matbench"):
        leaderboard.read([tmp_path / "five"], None)


def test_a_start_from_another_model_is_no_score(tmp_path):
    origin = {"path": "mp-formation-energy", "sha256": "0" * 64}  # as runs record it
    make_runs(tmp_path, init_from=origin)
    scores = leaderboard.read([tmp_path], None)
    assert not scores.official
    assert "no official score" in leaderboard.table(scores, leaderboard.rows(scores)).title
    assert "starts from mp-formation-energy" in leaderboard.remarks(scores)[0]
    with pytest.raises(DataError, match="starts from mp-formation-energy"):
        leaderboard.submission(scores)


def test_runs_of_a_search_are_left_out(tmp_path):
    make_runs(tmp_path / "search", chosen=(0,), inner=True, dim=32)
    with pytest.raises(DataError, match="no finished run"):
        leaderboard.read([tmp_path / "search"], None)
    make_runs(tmp_path / "runs")
    assert leaderboard.read([tmp_path], None).official


def test_the_package_matbench_takes_the_submission(tmp_path):
    """It verifies the checksum, the ids of every fold and the scores (CONTRIBUTING.md)."""
    bench = pytest.importorskip("matbench.bench")
    make_runs(tmp_path / "runs")
    scores = leaderboard.read([tmp_path / "runs"], None)
    path = tmp_path / "results.json.gz"
    leaderboard.write_submission(path, leaderboard.submission(scores))
    benchmark = bench.MatbenchBenchmark.from_dict(json.loads(gzip.decompress(path.read_bytes())))
    assert benchmark.is_valid and benchmark.is_recorded
    mean = benchmark.scores[f"matbench_{TASK}"]["mae"]["mean"]
    assert mean == pytest.approx(scores.by_fold("ours").mean())


def test_submissions_with_missing_rows_are_named(tmp_path):
    true = make_runs(tmp_path / "runs")
    publish(tmp_path / "p.csv", true, good=10.0, partial=1.0)
    table = pd.read_csv(tmp_path / "p.csv")
    table.loc[3, "partial"] = np.nan
    table.to_csv(tmp_path / "p.csv", index=False)
    scores = leaderboard.read([tmp_path / "runs"], tmp_path / "p.csv")
    assert scores.submissions == ["good", "ours"]
    assert "left out, rows are missing: partial" in leaderboard.remarks(scores)


def test_folds_of_different_seeds_and_classifications_are_refused(tmp_path):
    make_runs(tmp_path / "a")
    make_runs(tmp_path / "b", chosen=(2,), seeds=(1,))
    with pytest.raises(DataError, match="fold 2 has seeds 0, 1, and fold 0 has 0"):
        leaderboard.read([tmp_path / "a", tmp_path / "b"], None)
    for record in (tmp_path / "a").glob("*/config.yaml"):
        config = json.loads(record.read_text())
        config["data"]["task"] = "mp_is_metal"
        record.write_text(json.dumps(config))
    with pytest.raises(DataError, match="mp_is_metal is scored by the AUROC"):
        leaderboard.read([tmp_path / "a"], None)


def test_the_submission_has_matbenchs_form(tmp_path):
    true = make_runs(tmp_path)
    scores = leaderboard.read([tmp_path], None, "matattn")
    content = leaderboard.submission(scores)
    task = content["tasks"]["matbench_jdft2d"]
    assert list(task["results"]) == [f"fold_{fold}" for fold in range(5)]
    for fold in range(5):
        part = task["results"][f"fold_{fold}"]
        tested = [i for i, f in zip(IDS, folds(ROWS), strict=True) if f == fold]
        assert list(part["data"]) == tested and set(part) == {
            "data",
            "parameters",
            "scores",
            "uncertainty",
        }
        assert all(isinstance(value, float) for value in part["data"].values())
        errors = np.abs(np.array(list(part["data"].values())) - true[folds(ROWS) == fold])
        assert part["scores"]["mae"] == pytest.approx(errors.mean())
    digest = content.pop("hash")
    assert hashlib.sha256(json.dumps(content).encode()).hexdigest() == digest


def test_command(tmp_path, monkeypatch):
    true = make_runs(tmp_path / "runs")
    (tmp_path / "matbench").mkdir()
    publish(tmp_path / "matbench" / f"published_{TASK}.csv.gz", true, good=10.0)
    monkeypatch.setenv("MATATTN_DATA", str(tmp_path))
    out = tmp_path / "board"
    result = CliRunner().invoke(app, ["leaderboard", str(tmp_path / "runs"), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "good" in result.output and "ours closer" in result.output
    assert {p.name for p in out.iterdir()} == {"leaderboard.csv", "leaderboard.png",
                                               "results.json.gz", "info.json"}  # fmt: skip
    saved = json.loads(gzip.decompress((out / "results.json.gz").read_bytes()))
    assert saved["benchmark_name"] == "matbench_v0.1"
    wrong = CliRunner().invoke(app, ["leaderboard", str(tmp_path / "no")])
    assert wrong.exit_code == 2
