"""Random folders, tables and configurations: errors take one line, and the rest still works."""

import csv
import io
import json
import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lightning.fabric.plugins.environments import LightningEnvironment
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typer.testing import CliRunner

from matattn import bundle
from matattn.cli import app
from matattn.composition import one_line
from matattn.conf.schema import register
from matattn.config import build
from matattn.datasets.crystals import load
from matattn.errors import MatattnError
from matattn.files import encodable
from matattn.kernels.dispatch import BackendError
from matattn.models.crystalformer import Crystalformer
from matattn.structures.files import is_structure_file
from matattn.training.optimizers import adamw, per_step
from matattn.workflows import run

# MATATTN_EXAMPLES=5000 pytest tests/cli/test_fuzz.py: a long run, other examples each time.
examples = settings(
    max_examples=int(os.environ.get("MATATTN_EXAMPLES", "100")),
    derandomize="MATATTN_EXAMPLES" not in os.environ,
    deadline=None,
)
GOOD = (Path(__file__).parents[2] / "docs/examples/NaCl.cif").read_bytes()
ROW = {
    "id": "salt", "lattice": [[4, 0, 0], [0, 4, 0], [0, 0, 4]], "Z": [11, 17],
    "frac": [[0, 0, 0], [0.5, 0.5, 0.5]], "e_form": -2.0, "split": "train",
}  # fmt: skip
SITES = [
    {"species": [{"element": element, "occu": 1}], "abc": [place] * 3}
    for element, place in (("Na", 0.0), ("Cl", 0.5))
]
PYMATGEN = {"id": "salt", "structure": {"lattice": {"matrix": ROW["lattice"]}, "sites": SITES}}
XYZ = b"""2
Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 e_form=-2.0 pbc="T T T"
Na 0.0 0.0 0.0
Cl 2.0 2.0 2.0
"""
POSCAR = b"NaCl\n1.0\n4 0 0\n0 4 0\n0 0 4\nNa Cl\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n"
MODEL = {"num_targets": 1, "dim": 8, "num_heads": 1, "num_blocks": 1, "ffn_dim": 8}
DESCRIPTION = {
    "targets": [{"name": "formation_energy_per_atom", "unit": "eV/atom"}],
    "normaliser": {"mean": [-1.0], "std": [0.5]},
    "elements": [11, 17],
}

letters = st.characters(blacklist_characters="/\0\n\r", blacklist_categories=["Cs"])
no_utf8 = st.integers(0x80, 0xFF).map(lambda byte: bytes([byte]).decode("utf-8", "surrogateescape"))
words = st.one_of(
    st.text(letters, max_size=12),
    st.sampled_from(["a b", "[a]", "*", "~", "-o", "good", "ä€", "x" * 300, "..."]),
    no_utf8,
)
starts = st.sampled_from(["", "", ".", "POSCAR", "CONTCAR_"])
endings = st.sampled_from(
    ["", ".cif", ".CIF", ".mcif", ".vasp", ".json", ".jsonl", ".jsonl.gz", ".xyz", ".extxyz"]
    + [".db", ".traj", ".txt", ".csv", ".cif.gz"]
)
names = st.builds("{}{}{}".format, starts, words, endings)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["\ud800", "1e999", "Na", "nan", "x" * 300, 1e308, 10**400, 2**63]),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def damaged_rows(draw):
    """Draw a row of JSON, or of pymatgen, with something else at one of its keys."""
    row = json.loads(json.dumps(draw(st.sampled_from([ROW, PYMATGEN, PYMATGEN["structure"]]))))
    part = row
    for _ in range(draw(st.integers(0, 4))):
        inner = part[draw(st.sampled_from(sorted(part)))] if isinstance(part, dict) else part[0]
        if not isinstance(inner, dict | list):
            break
        part = inner
    key = draw(st.sampled_from(sorted(part))) if isinstance(part, dict) else len(part) - 1
    part[key] = draw(values)
    return json.dumps(row).encode()


@st.composite
def mutated(draw):
    """Draw a good file with some bytes removed and others inserted."""
    rows = json.dumps(ROW).encode()
    content = draw(st.sampled_from([GOOD, POSCAR, XYZ, rows, json.dumps([PYMATGEN] * 2).encode()]))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        content = (
            content[:at] + draw(st.binary(max_size=3)) + content[at + draw(st.integers(0, 9)) :]
        )
    return content


contents = st.one_of(st.binary(max_size=60), mutated(), damaged_rows(), st.just(b""))
kinds = st.sampled_from(["file"] * 7 + ["folder", "lost link", "link to itself"])
folders = st.lists(st.tuples(names, kinds, contents), max_size=5)


def fill(folder, entries):
    """Make what the system lets one make: names that are too long, or twice there, stay out."""
    for name, kind, content in entries:
        path = folder / name
        if name in ("good.cif", "zz good.cif"):  # that is put there afterwards
            continue
        try:
            if kind == "folder":
                path.mkdir()
                (path / "inside.cif").write_bytes(content)
            elif kind == "file":
                path.write_bytes(content)
            else:
                path.symlink_to(path if kind == "link to itself" else "gone")
        except OSError:
            pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundle") / "model"
    bundle.save(folder, Crystalformer(**MODEL), MODEL, DESCRIPTION, "# card")
    return folder


def predict(model, *arguments):
    result = CliRunner().invoke(app, ["predict", str(model), *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def row_of(path):
    """Return the path that a table shows for a file."""
    return encodable(str(path / "inside.cif" if os.path.isdir(path) else path))


@examples
@given(entries=folders, how=st.sampled_from(["folder", "glob", "one by one", "to a file"]))
def test_folders(model, entries, how):
    with tempfile.TemporaryDirectory() as directory:
        folder, table = Path(directory) / "in put", Path(directory) / "table.jsonl"
        folder.mkdir()
        fill(folder, entries)
        assume(how != "glob" or not os.path.lexists(folder / "*"))  # that file would be meant
        lost = [path for path in folder.iterdir() if not os.path.exists(path)]
        # A name that leads nowhere is a pattern, and may mean the good file, too.
        assume(how != "one by one" or not any("*" in path.name for path in lost))
        (folder / "zz good.cif").write_bytes(GOOD)
        expected = sorted(folder.iterdir())
        if how in ("folder", "to a file"):
            expected = [path for path in expected if is_structure_file(path)]
        if how == "one by one":  # also those that cannot be there
            expected += [folder / name for name, _, _ in entries if len(name) > 255]
        inputs = {"glob": [folder / "*"], "one by one": expected}.get(how, [folder])
        result = predict(model, *inputs, *(["-o", table] if how == "to a file" else []))
        rows = list(csv.DictReader(io.StringIO(result.stdout)))
        if how == "to a file":
            rows = list(map(json.loads, table.read_text(encoding="utf-8").split("\n")[:-1]))
        if how == "glob":  # which leaves hidden files out
            expected = [path for path in expected if not path.name.startswith(".")]
        assert {row_of(path) for path in expected} <= {row["path"] for row in rows}
    assert result.exit_code == 0 and len(result.stderr.strip().splitlines()) == 1
    for row in rows:
        assert row["status"] == "ok" or row["message"] and not row["formation_energy_per_atom"]
        assert "\n" not in row["message"]
    (good,) = (row for row in rows if row["id"] == "zz good")
    assert good["formula"] == "NaCl" and float(good["formation_energy_per_atom"]) < 0


def loaded(path):
    """Return the data set of a table, or the error in one line."""
    try:
        return load("table", str(path), ["e_form"])
    except MatattnError as error:
        assert "\n" not in str(error)
        return error


cells = st.one_of(
    st.sampled_from(["salt", "good", "e_form", "-1.5", "1e999", "nan", '"', "'", "../good", "ID"]),
    st.text(max_size=6),
)
lines = st.builds(
    lambda cells, separator: separator.join(cells),
    st.lists(cells, max_size=4),
    st.sampled_from([",", ",", ",", ";", "\t"]),
)


@examples
@given(
    header=st.one_of(st.just("id,e_form"), st.just("id,e_form"), lines),
    before=st.lists(lines, max_size=3),
    entries=folders,
    content=st.one_of(st.none(), st.none(), st.none(), st.binary(max_size=60)),
    coding=st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"]),
)
def test_tables_beside_files(header, before, entries, content, coding):
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        fill(folder, entries)
        (folder / "good.cif").write_bytes(GOOD)
        named = [f"{Path(name).stem},1.0" for name, _, _ in entries if name.isprintable()]
        before = [line for line in before if line.split(",")[0].strip() != "good"]
        text = "\n".join([header, *before, *named, "good,-2.0"])
        if content is None:
            content = text.encode(coding)
        (folder / "table.csv").write_bytes(content)
        dataset = loaded(folder / "table.csv")
    if header == "id,e_form" and content in (text.encode(), text.encode("utf-8-sig")):
        assert "good" in [item.id for item in dataset.items]


@examples
@given(rows=st.lists(st.one_of(damaged_rows(), contents), max_size=4), good=st.booleans())
def test_tables_of_json_lines(rows, good):
    rows = [row.replace(b"\n", b" ").replace(b'"salt"', b'"other"') for row in rows]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "table.jsonl"
        path.write_bytes(b"\n".join([*rows, json.dumps(ROW).encode() if good else b""]))
        dataset = loaded(path)
    # Whole tables are refused for bytes that are no UTF-8, and for splits of other names.
    if good and "utf-8" not in str(dataset) and ": split is " not in str(dataset):
        (item,) = (item for item in dataset.items if item.id == "salt")
        assert item.y.item() == -2.0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lattice": None}, "rows.jsonl:2 (salt): lattice is null; a molecule has pos instead"),
        ({"Z": [10**30, 17]}, "rows.jsonl:2 (salt): atoms, coordinates or lattice are not numbers"),
        ({"Z": [1e30, 17]}, "rows.jsonl:2 (salt): atomic numbers must be whole numbers"),
        ({"frac": [[1e5, 0, 0], [0, 0, 0]]}, "rows.jsonl:2 (salt): sites 1 and 2 overlap"),
    ],
)
def test_rows_that_are_left_out(tmp_path, change, message):
    rows = [ROW | {"id": "good"}, ROW | change]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = loaded(tmp_path / "rows.jsonl")
    assert [item.id for item in dataset.items] == ["good"]
    (skipped,) = dataset.skipped
    assert message in skipped


def test_rows_with_half_characters(tmp_path):
    molecule = {"id": "a\ud800", "Z": ROW["Z"], "e_form": 1, "pos": [[0, 0, 0], [0, 0, 2]]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(molecule))
    dataset = loaded(tmp_path / "rows.jsonl")
    (item,) = dataset.items
    assert item.id == "a\\ud800" and not item.cell.any() and item.pos[1].tolist() == [0, 0, 2]
    assert dataset.fingerprint()


DATA = {
    "crystalformer": ("data=table", "data.path={}/rows.jsonl", "data.targets=[e_form]"),
    "coulgat": ("data=table", "data.path={}/rows.jsonl", "data.targets=[e_form]"),
    "crystal_text": ("data=table", "data.path={}/rows.jsonl", "data.targets=[e_form]"),
    "flare": ("data=meshes", "data.path={}", "data.targets=[p]"),
    "wavefunction": (),
    "matter": ("data=text_files", "data.corpus={}/corpus.txt", "data.labelled={}/labelled.txt"),
    "text_encoder": (
        "data=text_files", "data.corpus={}/corpus.txt", "data.labelled={}/labelled.txt"
    ),
}  # fmt: skip
LEFT_ALONE = ("data.path", "data.corpus", "data.labelled", "paths", "logger")  # files elsewhere


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Crystals, meshes and sentences, as few as each model can be trained on."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    rows = [ROW | {"id": n, "e_form": n / 9, "Z": [3 + n, 9]} for n in range(8)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for n in range(4):
        np.savez(folder / f"{n}.npz", pos=generator.random((5, 2)), p=generator.random(5))
    sentence = "films O\nof O\nZnO B-MAT\nwere O\ngrown{} O\n"
    (folder / "labelled.txt").write_text("\n".join(sentence.format(n) for n in range(60)))
    (folder / "corpus.txt").write_text("\n".join(f"films of ZnO were grown {n}" for n in range(60)))
    return folder


class Ready(Exception):
    """What a configuration describes is built and checked; training would begin."""


@pytest.fixture
def until_training(monkeypatch, tmp_path):
    def stop(config, task, held):
        raise Ready(config, task)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "_run_in", stop)
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        yield


def start(overrides):
    """Return a configuration, and the line that ``train.py`` prints before it trains, or ""."""
    config = {}
    try:
        cfg = compose("train", overrides)
        config = OmegaConf.to_container(cfg)
        try:
            run.run(cfg)
        except Ready as ready:
            begin(*ready.args)
        return config, ""
    except (MatattnError, BackendError, OmegaConfBaseException, HydraException, OSError) as error:
        line = one_line(error)
        assert line and "\n" not in line
        return config, line


def begin(config, task):
    """Build what Lightning is given when training begins."""
    plugins = [LightningEnvironment()]
    build(config.trainer, "trainer", plugins=plugins, logger=False, enable_checkpointing=False)
    if hasattr(task, "schedule"):
        optimizer = config.optimizer
        network = task.networks[0] if hasattr(task, "networks") else task.network
        made = adamw(network, optimizer.lr, optimizer.betas, optimizer.weight_decay)
        per_step(made, task.schedule, 100)


def keys(config, prefix=""):
    """Yield all keys of a configuration and its sections, without paths of other files."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name not in LEFT_ALONE:
            if prefix:
                yield name
            if isinstance(value, dict):
                yield from keys(value, f"{name}.")
            elif not prefix:
                yield name


@cache
def names(model, data):
    config, message = start([f"model={model}", *(item.format(data) for item in DATA[model])])
    assert message == ""
    return sorted(keys(config))


settings_of_all_kinds = st.one_of(
    st.sampled_from(
        ["null", "true", "0", "-1", "1", "2", "3", "0.5", "-0.5", "1e300", "1e-300", "nan", "inf"]
        + ["-inf", "1000000000", "100000000000000000000", "''", "' '", "abc", "'1'", "[]", "[1,2]"]
        + ["[nan,x]", "[[1]]", "{}", "{a: 1}", "[{a: []}]", "???", "4x4", "10000x10000", "best"]
        + ["${seed}", "${nothing}", "${", "{_target_: os.system}", "os.system", "a=b", "0,1"]
        + ["matattn.models.flare.FLARE", "lightning.Trainer", "matattn.datasets.meshes.load"]
    ),
    st.integers(-100, 100).map(str),
    st.floats().map(str),
    st.text(st.characters(codec="utf-8", exclude_characters="/\\'"), max_size=5).map("'{}'".format),
)


@pytest.mark.filterwarnings("ignore:.*samples per chain")
@settings(examples, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=st.data())
def test_configurations(until_training, data, given):
    model = given.draw(st.sampled_from(list(DATA)))
    key = st.one_of(
        st.sampled_from(names(model, data)), st.sampled_from(names(model, data)),
        st.sampled_from(["model.nothing", "+model.nothing", "+nothing", "sede", "model.dim.x"]),
    )  # fmt: skip
    changes = given.draw(st.lists(st.tuples(key, settings_of_all_kinds), min_size=1, max_size=3))
    changed = [f"{key}={value}" for key, value in changes]
    start([f"model={model}", *(item.format(data) for item in DATA[model]), *changed])


@pytest.mark.parametrize(
    "model, change, message",
    [
        ("crystalformer", "model.dim=1000000000", "the network does not fit into memory"),
        ("crystalformer", "model.num_blocks=1000000000", "parameters in 5001 tensors"),
        ("crystalformer", "model.dim=-8", "model: dim=-8: expected at least 1"),
        ("crystal_text", "model.dim=0", "model: dim=0: expected at least 1"),
        ("flare", "model.num_blocks=0", "model: num_blocks=0: expected at least 1"),
        ("crystalformer", "model.num_latents=8", "model.num_latents: there is no such key (pyth"),
        ("crystalformer", "model.dim=eight", "model.dim='eight': expected int"),
        ("crystalformer", "task.members=101", "task.members=101: expected 1 to 100"),
        ("crystalformer", "seed=100000000000000000000", "expected a number from 0 to 2^31 - 1"),
        ("crystalformer", "optimizer.betas=[a,1]", "expected two numbers from 0 to below 1"),
        ("crystalformer", "optimizer.schedule.warmup=nan", "expected a finite number"),
        ("crystalformer", "optimizer.schedule=3", "expected a section with _target_"),
        ("crystalformer", "data.note=49", "data.note=49: expected str"),
        ("coulgat", "data.units=best", "expected Mapping[str, str] | None"),
        ("flare", "model.num_latents=1000000000", "the network does not fit into memory"),
        ("wavefunction", "model.dim=1000000000", "parameters do not fit into this machine's"),
        ("wavefunction", "data.extent=2000x2000", "expected at most 4096 sites in all"),
        ("text_encoder", "task.types=true", "task.types=True: expected a list of types of spans"),
    ],
)
def test_settings_that_no_training_can_have(until_training, data, model, change, message):
    arguments = [f"model={model}", *(item.format(data) for item in DATA[model])]
    assert message in start([*arguments, change])[1]
