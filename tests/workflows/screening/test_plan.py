"""The folder of a screening belongs to one screening."""

import dataclasses
import json

import pytest

from matattn.errors import ConfigError, MatattnError
from matattn.workflows.screening.plan import parse_shard


def test_the_same_screening_may_go_on(plan):
    for _ in range(2):
        plan.claim().release()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"models": ("mp-formation-energy",)}, "models was .*mp-band-gap"),
        ({"where": ()}, 'where was .*"band_gap in 2:6"'),
        ({"shards": 2}, "shards was 1, and is 2"),
    ],
)
def test_another_screening_is_refused(plan, change, message):
    plan.claim().release()
    with pytest.raises(ConfigError, match=f"holds another screening: {message}"):
        dataclasses.replace(plan, **change).claim()


def test_changed_sources_are_refused(plan, pool):
    plan.claim().release()
    pool.write_text(pool.read_text() + "\n{}")
    with pytest.raises(ConfigError, match="another screening: sources"):
        dataclasses.replace(plan).claim()


def test_a_folder_with_other_things_is_refused(plan, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="is not empty, and no screening"):
        plan.claim()


def test_what_another_shard_is_writing_is_no_other_thing(plan, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".manifest.json.17.partial").write_text("")
    plan.claim().release()


def test_a_file_in_its_place_is_told(plan, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(MatattnError, match="out: cannot be used"):
        plan.claim()


def test_a_damaged_manifest_is_told(plan, tmp_path):
    plan.claim().release()
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="manifest.json: is damaged"):
        plan.claim()


def test_two_processes_do_not_share_a_shard(plan):
    with plan.claim(), pytest.raises(MatattnError, match="another process screens this shard"):
        plan.claim()


def test_the_manifest_says_what_was_screened(plan, tmp_path):
    plan.claim().release()
    written = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert written["models"][0]["model"] == "mp-band-gap"
    assert written["sources"]["files"] == 1 and written["where"] == ["band_gap in 2:6"]


def test_shards_are_counted_from_one():
    assert parse_shard("1/1") == (0, 1) and parse_shard("8/8") == (7, 8)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ConfigError, match="expected i/n"):
        parse_shard(text)
