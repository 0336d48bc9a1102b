"""A small run on meshes."""

import numpy as np
import pytest

from matattn.workflows import run

SMALL = [
    "model.dim=16", "model.num_heads=2", "model.num_blocks=2",
    "trainer.accelerator=cpu", "trainer.max_epochs=4", "task.export=2",
]  # fmt: skip


@pytest.fixture(scope="session")
def meshes(tmp_path_factory):
    """36 meshes of 20 to 40 nodes with a field that depends on a load, and one broken file."""
    folder = tmp_path_factory.mktemp("meshes")
    generator = np.random.default_rng(0)
    rows = ["id,split"]
    for number in range(36):
        nodes = int(generator.integers(20, 41))
        pos = generator.random((nodes, 2))
        load = np.full(nodes, generator.uniform(1, 2))
        pressure = load * np.sin(3 * pos[:, 0]) + pos[:, 1]
        np.savez(folder / f"m{number:02}.npz", pos=pos, load=load, pressure=pressure)
        split = "test" if number >= 30 else "val" if number >= 24 else "train"
        rows.append(f"m{number:02},{split}")
    (folder / "broken.npz").write_bytes(b"no archive")
    (folder / "split.csv").write_text("\n".join([*rows, "broken,train"]) + "\n")
    return folder


@pytest.fixture(scope="session")
def config(compose, meshes):
    """Return a function: the configuration of a small training on ``meshes``."""

    def configure(folder, *overrides, model="flare"):
        latents = ["model.num_latents=8"] if model == "flare" else []
        return compose(
            f"model={model}", *SMALL, *latents, "data=meshes", f"data.path={meshes}",
            "data.targets=[pressure]", "data.inputs=[load]", "data.units={pressure: Pa, load: N}",
            f"paths.output_dir={folder}", *overrides,
        )  # fmt: skip

    return configure


@pytest.fixture(scope="session")
def finished(config, tmp_path_factory):
    """A finished run: its folder and metrics; to be read only."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run.run(config(folder))
