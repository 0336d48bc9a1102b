"""Fixtures shared by all tests. tests/kernels must run with only torch, numpy and pytest."""

import functools
import os
import signal
import sys
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
import torch

try:
    from jaxtyping import install_import_hook
except ModuleNotFoundError:  # tests/kernels alone
    pass
else:
    install_import_hook("matattn.models", "beartype.beartype")  # checks the shapes in signatures

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def pytest_collection_modifyitems(config, items):
    """Of the cases marked ``share(n)`` skip all but every n-th: the others have their days."""
    if "MATATTN_ALL_CASES" in os.environ or any("[" in argument for argument in config.args):
        return
    today, seen = date.today().toordinal(), Counter()
    for item in items:
        if mark := item.get_closest_marker("share"):
            test = item.nodeid.partition("[")[0]
            if (seen[test] + today) % mark.args[0]:
                item.add_marker(pytest.mark.skip("on another day, or with MATATTN_ALL_CASES=1"))
            seen[test] += 1


def _poisoned(allocate):
    """``allocate``, with NaN in place of whatever the memory held before."""

    @functools.wraps(allocate)
    def allocate_poisoned(*args, **kwargs):
        if torch.compiler.is_compiling():
            return allocate(*args, **kwargs)
        tensor = allocate(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if (tensor.is_floating_point() or tensor.is_complex()) and not caller.startswith("torch."):
            with torch.no_grad():
                tensor.fill_(float("nan"))
        return tensor

    return allocate_poisoned


@pytest.fixture(autouse=True)
def poison_uninitialised_memory(request, monkeypatch):
    """In tests/kernels, an output element that a kernel forgets to write is NaN, never luck."""
    if request.path.is_relative_to(Path(__file__).parent / "kernels"):
        for name in ("empty", "empty_like", "empty_strided"):
            # torch.compile lists torch's functions late, and would not know the hidden original.
            allocate = torch.compiler.allow_in_graph(getattr(torch, name))
            monkeypatch.setattr(torch, name, _poisoned(allocate))
        for name in ("new_empty", "new_empty_strided"):
            allocate = getattr(torch.Tensor, name)
            monkeypatch.setattr(torch.Tensor, name, _poisoned(allocate))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Tests neither read nor fill the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATATTN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of published data sets, $MATATTN_DATA; skips the test when it is unset."""
    folder = os.environ.get("MATATTN_DATA")
    if not folder:
        pytest.skip("MATATTN_DATA is unset; set it to the folder of published data sets")
    if not Path(folder).is_dir():
        pytest.fail(f"MATATTN_DATA={folder} is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def compose():
    """Return a function: the configuration that ``train.py`` composes from overrides."""
    import hydra

    from matattn.conf.schema import register

    def composed(*overrides, **options):
        register()
        with hydra.initialize_config_module("matattn.conf", version_base="1.3"):
            return hydra.compose("train", list(overrides), **options)

    return composed


MATERIALS = ["ZnO", "TiO2", "GaAs", "germanium", "hydroxyapatite", "perovskite oxide", "CdTe"]


@pytest.fixture(scope="session")
def sentences(tmp_path_factory):
    """A corpus in which materials follow certain words, and labelled sentences of the same kind."""
    import numpy as np

    folder = tmp_path_factory.mktemp("text")
    generator = np.random.default_rng(0)
    lines, rows = [], []
    for number in range(160):
        material = MATERIALS[int(generator.integers(len(MATERIALS)))]
        lines.append(f"films of {material} were grown by method {number} at high pressure here .")
        rows += ["films O", "of O"]
        parts = material.split()
        rows += [f"{part} {'I' if n else 'B'}-MAT" for n, part in enumerate(parts)]
        rows += ["were O", f"grown{number} O", ""]
    (folder / "corpus.txt").write_text("\n".join(lines))
    (folder / "labelled.txt").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="session")
def on_sentences(compose, sentences):
    """Return a function: the configuration of a small training on ``sentences``."""
    sizes = {
        "matter": ["model.dim=16", "model.hidden=16", "task.vocab_size=150", "task.sizes=[80]",
                   "task.strengths=[0.5]", "optimizer.lr=1e-2"],
        "text_encoder": ["model.dim=16", "model.ffn_dim=32", "model.num_heads=2",
                         "optimizer.lr=3e-3"],
    }  # fmt: skip

    def configure(model, folder, *overrides):
        return compose(
            "data=text_files", f"data.corpus={sentences / 'corpus.txt'}",
            f"data.labelled={sentences / 'labelled.txt'}", f"paths.output_dir={folder}",
            "trainer.accelerator=cpu", "task.batch_size=16", f"model={model}", *sizes[model],
            *overrides,
        )  # fmt: skip

    return configure


@pytest.fixture(scope="session")
def tokenized(on_sentences, tmp_path_factory):
    """A finished run of ``model=matter``: its folder and metrics; to be read only."""
    from matattn.workflows.run import run

    folder = tmp_path_factory.mktemp("tokenized")
    return folder, run(on_sentences("matter", folder, "trainer.max_epochs=6"))


@pytest.fixture
def keyboard():
    """Ctrl-C as in a terminal: processes that a shell puts into the background ignore it."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)
