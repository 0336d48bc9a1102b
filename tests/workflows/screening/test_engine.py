"""Whatever ends a screening, the same command goes on, and the table is the same."""

import dataclasses
import os
import signal

import pyarrow.parquet as pq
import pytest

import matattn
from matattn.errors import MatattnError
from matattn.structures.files import entries
from matattn.workflows.screening import engine, hits, parts


@pytest.fixture
def screened(here):
    """Return a function that runs a plan: its progress, and the rows of all its parts."""
    return lambda plan: _screened(plan, here)


def _screened(plan, here):
    with plan.claim():
        progress = engine.run(plan, here)
    rows = [row for path in hits.parts_of(plan) for row in pq.read_table(path).to_pylist()]
    return progress, rows


def elsewhere(plan, tmp_path, **changes):
    return dataclasses.replace(plan, folder=str(tmp_path / "other"), **changes)


def contents(plan):
    return [path.read_bytes() for path in hits.parts_of(plan)]


def test_rows_are_those_of_predict(screened, plan, pool):
    progress, rows = screened(plan)
    assert (progress.made, progress.with_values) == (8, 6)
    found = list(entries(pool))
    expected = matattn.load("mp-band-gap").predict(
        [e.structure for e in found], [e.place for e in found]
    )
    for row, other in zip(rows, expected, strict=True):
        for key in ("formula", "natoms", "ood_flag", "status", "message", "band_gap_unit"):
            assert row[key] == other[key]
        for key in ("band_gap", "band_gap_lower", "band_gap_upper", "ood_score"):
            close = other[key] is not None and pytest.approx(other[key], rel=1e-4, abs=1e-5)
            assert row[key] == close or row[key] is other[key] is None
    assert [row["id"] for row in rows[:3]] == ["NaCl", "MgO", "doubled NaCl"]
    assert rows[0]["probability"] > 0.5 and rows[3]["probability"] is None


def test_parts_are_bounded(screened, plan):
    screened(plan)
    assert [pq.read_metadata(path).num_rows for path in hits.parts_of(plan)] == [3, 3, 2]


def test_a_screening_goes_on_where_it_was_stopped(screened, plan, tmp_path, monkeypatch):
    screened(plan)
    other = elsewhere(plan, tmp_path)
    make = parts.make

    def stopped(plan, number, pieces):
        if number == 1:
            raise KeyboardInterrupt
        return make(plan, number, pieces)

    monkeypatch.setattr(parts, "make", stopped)
    with pytest.raises(KeyboardInterrupt):
        screened(other)
    assert not hits.is_complete(other)
    written = hits.parts_of(other)
    times = [path.stat().st_mtime_ns for path in written]
    monkeypatch.setattr(parts, "make", make)
    progress, _ = screened(other)
    assert progress.earlier == 3 * len(written) and progress.earlier + progress.made == 8
    assert [path.stat().st_mtime_ns for path in written] == times, "finished parts were made anew"
    assert contents(other) == contents(plan) or _equal(other, plan)


def _equal(one, two):
    """The same rows; the fingerprints of the screenings may differ."""
    pairs = zip(hits.parts_of(one), hits.parts_of(two), strict=True)
    return all(pq.read_table(a).equals(pq.read_table(b)) for a, b in pairs)


def test_a_shard_is_not_done_before_its_parts_are(screened, plan, tmp_path, monkeypatch):
    def stopped(plan, number, pieces):
        raise KeyboardInterrupt

    shards = [elsewhere(plan, tmp_path, shard=shard, shards=2) for shard in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(parts, "make", stopped)
        with pytest.raises(KeyboardInterrupt):
            screened(shards[1])
    screened(shards[0])
    assert not hits.is_complete(shards[0])


def test_long_pieces_make_small_parts(screened, plan, monkeypatch):
    monkeypatch.setattr(engine, "_MOST_BYTES", 150)
    screened(plan)
    assert len(hits.parts_of(plan)) > 3


def test_a_worker_with_another_model_is_refused():
    with pytest.raises(MatattnError, match="mp-band-gap: this worker has another model"):
        parts.predictors(("mp-band-gap",), ("0" * 64,))


def test_the_interval_for_new_kinds_is_told_of_any_model():
    row = {"status": "ok", "ood_score": 2.0, "ood_flag": True, "message": "",
           "interval_for": "new kinds"}  # fmt: skip
    parts._join(row, row | {"interval_for": "known kinds", "ood_score": 0.1, "ood_flag": False}, "")
    assert (row["interval_for"], row["ood_score"], row["ood_flag"]) == ("new kinds", 2.0, True)


def test_a_damaged_part_is_made_again(screened, plan, tmp_path):
    screened(plan)
    whole = contents(plan)
    hits.parts_of(plan)[1].write_bytes(whole[1][: len(whole[1]) // 2])
    progress, _ = screened(plan)
    assert (progress.earlier, progress.made) == (5, 3) and contents(plan) == whole


def test_a_part_of_another_screening_is_made_again(screened, plan, tmp_path):
    screened(plan)
    other = elsewhere(plan, tmp_path, where=("band_gap > 3",))
    screened(other)
    plan.part(0).write_bytes(other.part(0).read_bytes())
    progress, rows = screened(plan)
    assert progress.made == 3 and "probability of band_gap in 2:6" in rows[0]


def test_shards_together_are_the_whole(screened, plan, tmp_path):
    screened(plan)
    shards = [elsewhere(plan, tmp_path, shard=shard, shards=2) for shard in range(2)]
    screened(shards[1])
    assert not hits.is_complete(shards[0]) and len(hits.parts_of(shards[0])) == 1
    screened(shards[0])
    assert hits.is_complete(shards[1]) and _equal(shards[0], plan)


def test_several_models_answer_together(screened, plan):
    models = ("mp-band-gap", "mp-formation-energy")
    both = ("band_gap in 2:6", "formation_energy_per_atom < -0.5")
    plan = dataclasses.replace(plan, models=models, where=both)
    _, rows = screened(plan)
    row = rows[0]
    product = row[f"probability of {both[0]}"] * row[f"probability of {both[1]}"]
    assert row["probability"] == pytest.approx(product)
    assert row["band_gap_unit"] == "eV" and row["formation_energy_per_atom_unit"] == "eV/atom"
    assert rows[3]["status"] == "StructureError" and rows[3]["message"].count("volume") <= 1


def test_two_models_of_one_target_are_refused(screened, plan, tmp_path):
    twin = tmp_path / "twin"
    twin.symlink_to(matattn.pretrained.find("mp-band-gap"))
    with pytest.raises(MatattnError, match="both predict band_gap"):
        parts.predictors(("mp-band-gap", str(twin)))


class _Killed:
    """A piece that kills the process that reads it: the first time, or always without a mark."""

    size = 0

    def __init__(self, mark, piece):
        self.mark, self.piece = mark, piece

    def entries(self):
        if self.mark is None or not self.mark.exists():
            if self.mark is not None:
                self.mark.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return self.piece.entries()


def test_a_killed_process_is_replaced(screened, plan, tmp_path, monkeypatch):
    screened(plan)
    other, read = elsewhere(plan, tmp_path), engine.pieces

    def deadly(paths):
        for number, piece in enumerate(read(paths)):
            yield _Killed(tmp_path / "killed", piece) if number == 4 else piece

    monkeypatch.setattr(engine, "pieces", deadly)
    with other.claim():
        progress = engine.run(other, lambda: engine.local(2))
    assert (tmp_path / "killed").exists() and progress.made == 8 and _equal(other, plan)


def test_a_process_that_is_killed_again_and_again_ends_the_run(plan, monkeypatch):
    read = engine.pieces

    def deadly(paths):
        for number, piece in enumerate(read(paths)):
            yield _Killed(None, piece) if number == 4 else piece

    monkeypatch.setattr(engine, "pieces", deadly)
    with plan.claim(), pytest.raises(MatattnError, match="killed 3 times at part"):
        engine.run(plan, lambda: engine.local(1))


def test_a_full_disk_is_told_and_costs_nothing(screened, plan, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", full)
        with pytest.raises(MatattnError, match="cannot be written: No space left"):
            screened(plan)
    assert screened(plan)[0].made == 8
