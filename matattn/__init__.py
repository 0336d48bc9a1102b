"""matattn: attention models of matter.

Importing this module is cheap: it loads no array library. Import what you need from the
submodules, for example ``from matattn.models.crystalformer import Crystalformer``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matattn.workflows.field_prediction import FieldPredictor
    from matattn.workflows.prediction import Predictor
    from matattn.workflows.text_prediction import TextModel
    from matattn.workflows.wavefunction_prediction import WaveFunction

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

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
            bundle folder, the ``model/`` folder that every finished run writes.
        device: "cpu", "cuda", "cuda:1", ..., or "auto": a GPU if there is one.

    Returns:
        A :class:`matattn.workflows.prediction.Predictor`, or for a model of fields on meshes a
        :class:`matattn.workflows.field_prediction.FieldPredictor`, for a wave function a
        :class:`matattn.workflows.wavefunction_prediction.WaveFunction` (on jax's own choice of
        device), for a model of text a :class:`matattn.workflows.text_prediction.TextModel` (on the
        CPU). Loading verifies checksums and never unpickles. Raises BundleError, and
        ConfigError for a device that is not there.
    """
    from matattn import pretrained

    folder = pretrained.find(model)  # before the slow import: a mistyped name is told at once
    kind = pretrained.kind(folder)
    if kind == "spins":
        from matattn.workflows.wavefunction_prediction import WaveFunction

        return WaveFunction.load(folder)
    if kind == "text":
        from matattn.workflows.text_prediction import TextModel

        return TextModel.load(folder)
    if kind == "meshes":
        from matattn.workflows.field_prediction import FieldPredictor

        return FieldPredictor.load(folder, device)
    from matattn.workflows.prediction import Predictor

    return Predictor.load(folder, device)
