"""Runs with intervals on crystals, and runs on molecules."""

import json

import numpy as np
import pytest

from matattn.workflows import run

SMALL = [
    "model.dim=16",
    "model.num_heads=2",
    "model.ffn_dim=24",
    "model.num_radial=16",
]


SHORT = ["task.batch_size=16", "trainer.accelerator=cpu", "trainer.max_epochs=3"]


@pytest.fixture(scope="session")
def polymorphs(tmp_path_factory):
    """160 crystals of 80 formulas in two structure types, of light elements only."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "crystals.jsonl"
    lines = []
    for number in range(80):
        z = [3 + number % 9, 12 + number // 9]
        split = "test" if number >= 72 else "val" if number >= 64 else "train"
        for kind in (0.5, 0.25):
            a = float(generator.uniform(3.5, 6))
            row = {"id": f"c{number}-{kind}", "lattice": (a * np.eye(3)).tolist(), "Z": z}
            row |= {"frac": [[0, 0, 0], [kind] * 3], "split": split}
            row |= {"e_form": 0.05 * (z[0] - z[1]) + (a - 4.5) ** 2 + kind, "gap": a}
            lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def train_polymorphs(compose, polymorphs):
    """Return a function: the metrics of a training on ``polymorphs``."""

    def train_in(folder, *overrides, targets="e_form,band_gap"):
        data = ["data=crystals", f"data.path={polymorphs}", f"data.targets=[{targets}]"]
        return run.run(compose(*data, *SHORT, f"paths.output_dir={folder}", *overrides))

    return train_in


@pytest.fixture(scope="session")
def calibrated(train_polymorphs, tmp_path_factory):
    """A finished run with intervals: its folder and metrics; to be read only."""
    folder = tmp_path_factory.mktemp("run")
    return folder, train_polymorphs(folder, *SMALL, "task.calibration=0.3")


def bent(generator, number):
    """Water with a random angle."""
    angle = generator.uniform(1.2, 2.6)
    pos = np.array([[0, 0, 0], [0.96, 0, 0], [0.96 * np.cos(angle), 0.96 * np.sin(angle), 0]])
    return {"id": f"w{number}", "Z": [8, 1, 1], "pos": pos.tolist(), "angle": angle}


@pytest.fixture(scope="session")
def molecule_files(tmp_path_factory):
    """The same 40 molecules as a table, with values of atoms, and with values of pairs."""
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = [bent(generator, number) for number in range(40)]
    lines = [json.dumps(row | {"heat_of_formation": 10 * row["angle"]}) for row in rows]
    (folder / "whole.jsonl").write_text("\n".join(lines))
    nmr = [{"name": row["id"], "symbols": ["O", "H", "H"], "pos": row["pos"],
            "sigma_ppm": [[300 + row["angle"]], [30], [30]]} for row in rows]  # fmt: skip
    (folder / "atoms.json").write_text(json.dumps(nmr))
    pairs = [{"name": row["id"], "z": row["Z"], "pos": row["pos"], "converged": True,
              "J_hz": [[0, -80, -80], [-80, 0, row["angle"]], [-80, row["angle"], 0]]}
             for row in rows]  # fmt: skip
    (folder / "pairs.json").write_text(json.dumps(pairs))
    water = "3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"
    (folder / "water.xyz").write_text(water)
    return folder


@pytest.fixture(scope="session")
def molecule_config(compose, molecule_files):
    """Return a function: the configuration of a small training on one kind of values."""
    data = {
        "whole": ["data=table", "data.targets=[heat_of_formation]", "data.path={}/whole.jsonl"],
        "atoms": ["data=qm9nmr", "data.path={}/atoms.json"],
        "pairs": ["data=qm7_couplings", "data.path={}/pairs.json"],
    }
    small = ["model.dim=8", "model.num_heads=2", "model.num_blocks=1", "model.ffn_dim=8"]
    short = ["task.batch_size=8", "trainer.accelerator=cpu", "trainer.max_epochs=2"]

    def configure(kind, folder, *overrides, model="coulgat", sizes=small):
        files = [text.format(molecule_files) for text in data[kind]]
        output = f"paths.output_dir={folder}"
        return compose(f"model={model}", *sizes, *short, *files, output, *overrides)

    return configure


@pytest.fixture(scope="session")
def molecule_runs(molecule_config, tmp_path_factory):
    """Finished runs by kind of values: their folders and metrics; to be read only."""
    runs = {}
    for kind in ("whole", "atoms", "pairs"):
        folder = tmp_path_factory.mktemp(kind)
        runs[kind] = folder, run.run(molecule_config(kind, folder))
    return runs
