"""``matattn.train`` and ``matattn.prepare``: what the command does, from Python."""

import hydra
import lightning as L
import pytest
from hydra.core.global_hydra import GlobalHydra

import matattn
from matattn.errors import ConfigError
from matattn.workflows.api import FinishedRun

SMALL = {"model.dim": 16, "model.num_heads": 2, "model.ffn_dim": 24, "model.num_radial": 16}


@pytest.fixture
def overrides(table, tmp_path):
    return [
        "model=crystalformer",
        {"data": "crystals", "data.path": table, "data.targets": ["e_form", "band_gap"], **SMALL},
        {"task.batch_size": 8, "trainer.accelerator": "cpu", "trainer.max_epochs": 4},
        {"paths.output_dir": tmp_path / "run"},
    ]


def fit(prepared):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(prepared.module, prepared.data)
    return trainer.callback_metrics


def test_train_does_what_the_command_does(overrides, finished, assert_same_bits, tmp_path):
    result = matattn.train(*overrides)
    assert isinstance(result, FinishedRun) and result.folder == tmp_path / "run"
    assert_same_bits(result.folder, finished[0])
    assert result.metrics["test"] == finished[1]["test"]
    assert result.load().predict([]) == []
    with hydra.initialize(config_path=None, version_base="1.3"):  # as in somebody's notebook
        mine = GlobalHydra.instance().hydra
        assert matattn.train(*overrides).metrics["test"] == result.metrics["test"]  # it is there
        assert GlobalHydra.instance().hydra is mine
    with pytest.raises(ConfigError, match="cannot be combined with init_from"):
        matattn.train(*overrides, {"init_from": result.folder / "model"})


def test_mistakes_are_errors_of_matattn(overrides):
    with pytest.raises(ConfigError, match="model.dimm: there is no such key; did you mean 'dim'"):
        matattn.train(*overrides, "model.dimm=3")
    with pytest.raises(ConfigError, match="model: .*dim=16 is not a multiple of num_heads=3"):
        matattn.prepare(*overrides, {"model.num_heads": 3})


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
class TestFit:
    def test_structures(self, overrides, tmp_path):
        prepared = matattn.prepare(*overrides)
        seen = fit(prepared)
        assert seen["train/loss"] > 0 and seen["val/mae/band_gap"] > 0
        assert not (tmp_path / "run").exists()

    def test_meshes(self):
        small = ["model.dim=8", "model.num_heads=2", "model.num_blocks=1", "data.sizes=[6,2,2]"]
        seen = fit(matattn.prepare("model=flare", "data=darcy", *small))
        assert seen["val/loss"] > 0

    @pytest.mark.parametrize("model", ["matter", "text_encoder"])
    def test_text(self, sentences, model):
        prepared = matattn.prepare(
            f"model={model}", "data=text_files", "model.dim=16",
            {"data.corpus": sentences / "corpus.txt", "data.labelled": sentences / "labelled.txt"},
        )  # fmt: skip
        assert fit(prepared)["train/loss"] > 0


def test_wave_functions_say_that_they_have_none():
    prepared = matattn.prepare("model=wavefunction")
    for name in ("module", "data"):
        with pytest.raises(ConfigError, match="wave function is optimised by steps of its own"):
            getattr(prepared, name)
