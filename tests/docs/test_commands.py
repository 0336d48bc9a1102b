"""Every command and program of the documentation runs, or stands in a list with its reason."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser

from matattn.conf.schema import register
from matattn.datasets.prototypes import read_table

from .commands import (
    NOT_EXECUTED,
    OTHER,
    PACKAGE,
    PAGES,
    PARTS,
    PROGRAM,
    ROOT,
    SHELL,
    blocks,
    reason,
    training,
)

BLOCKS = blocks()
COMMANDS = [(b, c) for b in BLOCKS if b.language == SHELL for c in b.commands()]
TRAININGS = {
    c: training(c)
    for _, c in COMMANDS
    if training(c) and "..." not in c and reason(c) != PACKAGE  # its choices are not there
}

# What makes a training of the documentation one of seconds.
SPINS = ["model.dim=8", "model.num_heads=2", "model.num_layers=1", "task.samples=64",
         "task.chains=8", "task.chunk_size=64", "task.final_samples=64",
         "task.symmetrized_samples=0", "task.attention_samples=16"]  # fmt: skip
SHORT = {
    "crystalformer": ["task.calibration=0", "model.dim=16", "model.num_blocks=1"],
    "coulgat": ["task.calibration=0", "model.dim=16", "model.num_blocks=1"],
    "crystal_text": ["task.calibration=0", "model.dim=16", "model.num_blocks=1"],
    "flare": ["model.dim=16", "model.num_heads=2", "model.num_blocks=1", "task.export=1"],
    "potential": ["data.sizes=[16,2,2]", "model.dim=16", "model.channels=8", "task.physics=false"],
    "wavefunction": SPINS,
    "matter": ["data.sentences_per_crystal=1", "task.vocab_size=600"],
    "text_encoder": ["model.dim=16", "model.num_blocks=1", "data.sentences_per_crystal=1"],
}
EMBEDDED = {"crystalformer", "coulgat", "crystal_text"}  # unless data=... says otherwise
GENERATED = {"plate_with_hole", "darcy"}

# How long a page's training is does not matter here.
LENGTH = re.compile(r"'?(trainer\.max_epochs|data\.sizes)=\S+")
SEEDS = "seed=0,1,2"

# What a page takes for granted: commands, and names of its programs.
OWN_MODEL = (
    "mkdir -p 'outputs/...' && "
    f"ln -s {ROOT}/matattn/pretrained/mp-formation-energy 'outputs/.../model'"
)
BEFORE = {
    "docs/explanation.md": [
        "python train.py model=coulgat seed=0",
        "ln -s outputs/coulgat-prototypes/seed0-* RUN",
        "python train.py model=flare",
        "python train.py model=wavefunction",
    ],
    "docs/forces.md": [OWN_MODEL],
    "docs/wavefunctions.md": [
        "python train.py model=wavefunction",
        "ln -s outputs/wavefunction-j1j2_square_4x4_0.5/seed0-* RUN",
    ],
    "docs/prediction.md": [OWN_MODEL],
}
AFTER = {  # its commands, and before its programs
    "docs/fields.md": [
        "cd outputs/flare-plate_with_hole && ln -s seed0-* 'seed0-...'",
        "cp outputs/flare-plate_with_hole/seed0-.../fields/*.vtu plate.vtu",
    ],
    "docs/text.md": ["cd outputs/matter-narratives && ln -s seed0-* 'seed0-...'"],
}
STRUCTURES = (
    "from pymatgen.core import Structure\n"
    "structure = Structure.from_file('NaCl.cif')\nstructures = [structure]\n"
)
NAMES = {
    "docs/fields.md": (
        "from matattn.meshes.files import read_mesh\nsample = read_mesh('plate.vtu', 2)\n"
    ),
    "docs/explanation.md": (
        "from pymatgen.core import Structure\n"
        "from matattn.structures.structure import to_tensors\n"
        "items = [{'id': 'NaCl', **to_tensors(Structure.from_file('NaCl.cif'))}]\n"
    ),
    "docs/extending.md": STRUCTURES,
    "docs/forces.md": STRUCTURES,
    "docs/prediction.md": STRUCTURES,
}


def test_every_block_has_a_language_with_a_rule():
    known = OTHER | {SHELL, PROGRAM}
    strange = {b.name: b.language for b in BLOCKS if b.language not in known}
    assert not strange
    assert len(COMMANDS) > 50, "the documentation has commands"


def test_every_exception_is_needed():
    """A pattern that no command has any more leaves the list."""
    patterns = [pattern for group in NOT_EXECUTED.values() for pattern in group]
    commands = [command for _, command in COMMANDS]
    programs = [block.text for block in BLOCKS if block.language == PROGRAM]
    patterns += [pattern for group in PARTS.values() for pattern in group]
    unused = [p for p in patterns if not any(fnmatchcase(c, p) for c in commands + programs)]
    assert not unused


@pytest.mark.parametrize("command", TRAININGS)
def test_every_training_is_composed(command):
    """Also of those that cannot be executed here: their choices and keys exist."""
    arguments = [a for a in TRAININGS[command] if a != "-m"]
    parsed = OverridesParser.create().parse_overrides(arguments)
    overrides = []
    for text, override in zip(arguments, parsed, strict=True):
        if override.is_sweep_override():
            text = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        if not text.startswith("sweep=") and "sweeper" not in text:  # an extra that all has not
            overrides.append(text)
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        assert compose("train", overrides, return_hydra_config=True)


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == PROGRAM], ids=lambda b: b.name
)
def test_every_program_is_python(block):
    compile(block.text, block.name, "exec")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=lambda b: b.name)
def test_every_row_is_json(block):
    assert all(json.loads(line) for line in block.text.splitlines())


def shortened(command: str) -> str:
    """A training with few steps of a small network."""
    if training(command) is None:
        return command
    command = LENGTH.sub("", command).replace(SEEDS, SEEDS[:-2])
    arguments = training(command) or []
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    experiment = given.get("experiment", "").split("_")[0]
    models = given.get("model", experiment or "crystalformer").split(",")
    short = ["trainer.max_epochs=1"]
    if "init_from" not in given or models == ["wavefunction"]:
        short += [s for s in SHORT[models[0]] if len(models) == 1]
    if models[0] in EMBEDDED and "data" not in given:
        short += ["task.train_rows=128"]
    if models[0] == "flare" and given.get("data", "plate_with_hole") in GENERATED:
        short += ["data.sizes=[6,2,2]"]
    if models[0] == "wavefunction" and "init_from" in given:
        short = [s for s in short if not s.startswith("model.")]
    if "task.kinds" in given:  # it needs calibration rows
        short = [s.replace("calibration=0", "calibration=0.4") for s in short]
    short = [s for s in short if s.split("=")[0] not in given]
    return " ".join([command, *(f"'{s}'" for s in short)])


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch):
    """A checkout as a reader has it, with files of the names that the pages use."""
    for name in ("train.py", "docs", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    examples = sorted((ROOT / "docs/examples").glob("*.cif"))
    (tmp_path / "cifs").mkdir()
    for file in examples:
        shutil.copy(file, tmp_path)
        shutil.copy(file, tmp_path / "cifs")
    rows = read_table()[:60]
    (tmp_path / "my_crystals").mkdir()
    table, lines = ["id,e_form,tc,is_metal,stable"], []
    for number, row in enumerate(rows):
        row.structure.to(str(tmp_path / "my_crystals" / f"c{number}.cif"))
        table.append(
            f"c{number},{row.formation_energy_per_atom},{number},{number % 2},{number % 3 % 2}"
        )
        structure = row.structure
        lines.append(json.dumps({
            "id": f"c{number}", "lattice": structure.lattice.matrix.tolist(),
            "Z": list(structure.atomic_numbers), "frac": structure.frac_coords.tolist(),
            "e_form": row.formation_energy_per_atom,
        }))  # fmt: skip
    (tmp_path / "my_crystals" / "table.csv").write_text("\n".join(table) + "\n")
    (tmp_path / "my.jsonl").write_text("\n".join(lines) + "\n")
    with gzip.open(tmp_path / "structures.jsonl.gz", "wt") as handle:
        handle.write("\n".join(lines) + "\n")
    rows[0].structure.to(str(tmp_path / "POSCAR"), fmt="poscar")
    meshes = tmp_path / "my_meshes"
    meshes.mkdir()
    random = np.random.default_rng(0)
    for number in range(10):
        pos = random.random((40, 2))
        np.savez(meshes / f"a{number}.npz", pos=pos, pressure=pos.sum(1), permeability=pos[:, 0],
                 displacement=pos)  # fmt: skip
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Many pages compile the same small wave functions, and generate the same data.
    shared = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("MATATTN_CACHE", str(shared / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(shared / "jax"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    monkeypatch.delenv("MATATTN_DATA", raising=False)
    return tmp_path


def execute(command: list[str], folder: Path, name: str) -> None:
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400,
                         stdin=subprocess.DEVNULL)  # fmt: skip
    assert run.returncode == 0, f"{name}\n{command}\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}"


def train_once(command: str, folder: Path, page: str, done: dict[str, Path], store: Path) -> None:
    """Train in ``folder``, or copy what the same command left there for an earlier page."""
    outputs = folder / "outputs"
    before = set(outputs.glob("*/*/"))
    if command in done:
        shutil.copytree(done[command], outputs, dirs_exist_ok=True, symlinks=True)
        return
    execute(["bash", "-c", f"set -eo pipefail; {command}"], folder, page)
    kept = store / f"{len(done)}"
    for run in set(outputs.glob("*/*/")) - before:
        shutil.copytree(run, kept / run.relative_to(outputs), symlinks=True)
        done[command] = kept


@pytest.fixture(scope="session")
def done():
    """Folders of the outputs of trainings, by command."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        page if page == "README.md" else pytest.param(page, marks=pytest.mark.share(3))
        for page in PAGES
    ],
)
def test_page(page, folder, done, tmp_path_factory):
    """Its commands in their order, and then its programs, as one."""
    mine = [block for block in BLOCKS if block.page == page]
    commands = [*BEFORE.get(page, ())]
    for block in mine:
        if block.language == SHELL:
            commands += [c for c in block.commands() if reason(c) is None]
    programs = [b.text for b in mine if b.language == PROGRAM and reason(b.text, PARTS) is None]
    if not commands and not programs:
        pytest.skip("nothing to execute")
    for command in map(shortened, [*commands, *AFTER.get(page, ())]):
        if command.startswith(("python train.py model=", "python train.py experiment=")):
            train_once(command, folder, page, done, tmp_path_factory.mktemp("done"))
        else:
            execute(["bash", "-c", f"set -eo pipefail; {command}"], folder, page)
    if programs:
        code = "\n".join([NAMES.get(page, ""), *programs])
        execute([sys.executable, "-c", code], folder, page)
