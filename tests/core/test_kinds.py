"""The kinds of networks, and what belongs to each."""

import hashlib
import importlib
import json
import shutil

import pytest

from matattn import bundle, pretrained
from matattn.errors import BundleError
from matattn.kinds import KINDS, kind_of
from matattn.workflows.task import TASKS


def test_every_kind_has_tasks_and_no_task_another_kind():
    assert {entry.kind for entry in TASKS.values()} == set(KINDS)
    assert all(kind.name == name for name, kind in KINDS.items())


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_every_kind_has_its_predictor(kind):
    module = importlib.import_module(f"matattn.workflows.{kind.name}.predict")
    assert callable(getattr(module, kind.predictor).load)


def test_a_bundle_without_a_kind_is_one_of_structures():
    assert kind_of({}) is KINDS["structures"] and kind_of({"kind": "text"}) is KINDS["text"]
    folder = pretrained.find("mp-band-gap")
    assert type(KINDS["structures"].load(folder)).__name__ == KINDS["structures"].predictor


def rewritten(folder, **changes):
    """The folder, with changes of its config.json and the right checksum."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))
    sums = folder / "SHA256SUMS"
    lines = [line for line in sums.read_text().splitlines() if not line.endswith("config.json")]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    sums.write_text("\n".join([*lines, f"{digest}  config.json"]) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(pretrained.find("mp-band-gap"), tmp_path / "model")


@pytest.mark.parametrize("kind", ["crystals", "", None, 3, ["text"]])
def test_an_unknown_kind_is_refused_with_the_known_ones(folder, kind):
    message = r"config.json: unknown kind .*; known: structures, meshes, potentials, spins, text$"
    with pytest.raises(BundleError, match=message):
        bundle.describe(rewritten(folder, kind=kind))


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_bundle_says_what_its_kind_needs(folder, kind):
    key = kind.bundle_keys[-1]
    with pytest.raises(BundleError, match=rf"config.json: lacks .*{key}"):
        bundle.describe(rewritten(folder, kind=kind.name, **{key: "gone"}))
