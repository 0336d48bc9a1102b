"""Configurations are composed whatever Hydra's state is, and the state stays as it is."""

from pathlib import Path

import hydra
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from matattn.composition import composed, overrides_of
from matattn.errors import ConfigError


def test_hydra_is_afterwards_as_it_was():
    ConfigStore.instance().store(name="mine", node={"a": "${when:1}"})
    OmegaConf.register_new_resolver("when", lambda value: "mine", replace=True)
    store, was = ConfigStore.instance(), GlobalHydra.instance().hydra
    for _ in range(2):
        with hydra.initialize(config_path=None, version_base="1.2"):
            mine = GlobalHydra.instance().hydra
            with composed("train", ["model=flare", "seed=3"]) as config:
                assert config.seed == 3 and "hydra" not in config
                assert "model=flare" in HydraConfig.get().overrides.task
            assert GlobalHydra.instance().hydra is mine and not HydraConfig.initialized()
            assert ConfigStore.instance() is store and "schema.yaml" not in store.repo
            assert hydra.compose("mine").a == "mine"
    assert (GlobalHydra.instance().hydra is None) == (was is None)


def test_state_is_restored_after_an_error():
    before = GlobalHydra.instance()
    with pytest.raises(ZeroDivisionError), composed("train", []):
        1 / 0  # noqa: B018
    assert GlobalHydra.instance() is before


@pytest.mark.parametrize(
    "override, message",
    [
        ("model=crystalforme", "Could not find 'model/crystalforme'"),
        ("model.dimm=3", "model.dimm: there is no such key; did you mean 'dim'"),
        ("seed=0,1", "seed=0,1: several values need -m for a sweep"),
        ("seed", "seed: expected key=value"),
        ("data=3", "Config group override"),
    ],
)
def test_mistakes_are_one_line(override, message):
    with pytest.raises(ConfigError, match=message) as error, composed("train", [override]):
        pass
    assert "\n" not in str(error.value)


VALUES = {
    "data.path": 'a "b", c=d\\e#.csv',
    "data.targets": ["e_form", "x,y"],
    "data.units": {"tc": "K"},
    "paths.output_dir": Path("~/runs"),
    "init_from": None,
    "overwrite": True,
    "optimizer.lr": 1e-5,
    "trainer.max_epochs": 2,
}


def test_values_survive_as_overrides():
    overrides = overrides_of({"model": "coulgat", "data": "table", **VALUES})
    with composed("train", overrides) as config:
        for key, value in VALUES.items():
            expected = str(value.expanduser()) if isinstance(value, Path) else value
            assert OmegaConf.select(config, key) == expected, key
        assert config.model.name == "coulgat"
