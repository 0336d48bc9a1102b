"""matattn: attention models of matter.

Importing this module is cheap: it loads no array library. Import what you need from the
submodules, for example ``from matattn.models.crystalformer import Crystalformer``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matattn.workflows.api import FinishedRun, Given, PreparedRun
    from matattn.workflows.meshes.predict import FieldPredictor
    from matattn.workflows.spins.predict import WaveFunction
    from matattn.workflows.structures.predict import Predictor
    from matattn.workflows.text.predict import TextModel

__version__ = "0.1.0"
__all__ = ["__version__", "load", "prepare", "train"]

# matattn/models and its siblings are symlinks to the folders beside this package. A checkout
# without symlinks (Windows, some archives) finds those folders through the parent instead.
if not (Path(__file__).parent / "models").is_dir():
    __path__.append(str(Path(__file__).resolve().parent.parent))


def load(
    model: str | Path, device: str = "cpu"
) -> Predictor | FieldPredictor | WaveFunction | TextModel:
    """Load a trained model for prediction.

    Args:
        model: the name of a model that comes with matattn (``matattn models`` lists them), or a
            bundle folder: the ``model/`` folder that every finished run writes.
        device: "cpu", "cuda", "cuda:1", ..., or "auto": a GPU if there is one. It is ignored for
            wave functions, which run where jax chooses, and for text, which runs on the CPU.

    Returns:
        A ``Predictor`` of structures, a ``FieldPredictor`` of fields on meshes, a ``WaveFunction``
        or a ``TextModel``; each is in ``predict.py`` of its folder in ``workflows/``.

    Raises:
        BundleError: there is no such model, or it is damaged. Checksums are verified, and nothing
            is ever unpickled.
        ConfigError: the device does not exist, or a package is not installed.
    """
    from matattn import pretrained

    folder = pretrained.find(model)  # before the slow import: a mistyped name fails at once
    return pretrained.kind(folder).load(folder, device)


def train(*overrides: Given) -> FinishedRun:
    """Train a model as ``python train.py`` does, and return its run.

    ``matattn.train("model=crystalformer", {"trainer.max_epochs": 2, "data.path": path})``

    A finished run is not repeated unless ``overwrite=true``, and an unfinished one goes on.

    Args:
        overrides: as on the command line, or dictionaries of keys and values, whose texts need no
            quotes. Sweeps (``-m``) are the command's alone.

    Returns:
        The run: ``folder``, ``metrics``, and ``load()`` of the model.

    Raises:
        MatattnError: whatever the command prints as one line; a ConfigError for a mistake in the
            overrides. A state of Hydra that the process has is left as it is.
    """
    from matattn.extras import import_extra

    return import_extra("matattn.workflows.api").train(*overrides)


def prepare(*overrides: Given) -> PreparedRun:
    """Prepare a training for a Trainer of Lightning: ``Trainer().fit(run.module, run.data)``.

    Args:
        overrides: as of ``train``.

    Returns:
        The prepared run: ``module``, a LightningModule with network, loss and optimiser; ``data``,
        a LightningDataModule; ``config`` and ``task``. Nothing is written.

    Raises:
        MatattnError: as ``train`` does.
    """
    from matattn.extras import import_extra

    return import_extra("matattn.workflows.api").prepare(*overrides)
