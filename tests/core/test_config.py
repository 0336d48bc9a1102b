"""Typed sections, run folders, and the closed list of what a configuration may build."""

from dataclasses import FrozenInstanceError, dataclass, replace
from typing import ClassVar

import pytest
from hydra import compose, initialize_config_module

from matattn.conf.schema import register
from matattn.config import (
    Origin,
    Paths,
    RunConfig,
    Section,
    Source,
    Target,
    at_least,
    build,
    check_targets,
    config_hash,
    find_target,
    one_of,
    read_data,
    setting,
    what_matters,
)
from matattn.errors import ConfigError
from matattn.extras import import_extra


@dataclass(frozen=True)
class Toy(Section):
    key: ClassVar[str] = "task"

    count: int = at_least(3, 1)
    rate: float = setting(0.5, "a number above 0", lambda x: x > 0)
    mode: str = one_of("fast", ("fast", "exact"))
    sizes: list[int] = setting([4, 5], "whole numbers from 2 on", lambda xs: min(xs) >= 2)
    rows: int | None = setting(None, "at least 1, or null", lambda n: n is None or n >= 1)
    export: bool = False
    share: float = at_least(0, 0)


PLAIN = {
    "count": 3, "rate": 0.5, "mode": "fast", "sizes": [4, 5], "rows": None, "export": False,
    "share": 0,
}  # fmt: skip


def test_defaults_are_those_of_the_section():
    assert Toy.read(PLAIN) == Toy()
    assert Toy.read(PLAIN | {"count": 7, "rows": 2}) == Toy(count=7, rows=2)


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("count", "a", "at least 1"),
        ("count", 1.5, "at least 1"),
        ("count", True, "at least 1"),
        ("count", None, "at least 1"),
        ("count", 0, "at least 1"),
        ("rate", "0.5", "a number above 0"),
        ("rate", True, "a number above 0"),
        ("rate", float("nan"), "a number above 0"),
        ("rate", -1e-9, "a number above 0"),
        ("rate", [0.5], "a number above 0"),
        ("mode", "slow", "one of fast, exact"),
        ("mode", 1, "one of fast, exact"),
        ("sizes", 4, "whole numbers from 2 on"),
        ("sizes", [4, "5"], "whole numbers from 2 on"),
        ("sizes", [4, 5.0], "whole numbers from 2 on"),
        ("sizes", [1, 5], "whole numbers from 2 on"),
        ("rows", "all", "at least 1, or null"),
        ("rows", 0, "at least 1, or null"),
        ("share", -0.1, "0 or more"),
    ],
)
def test_wrong_values_are_named_with_what_was_expected(key, value, expected):
    with pytest.raises(ConfigError) as error:
        Toy.read(PLAIN | {key: value})
    assert str(error.value) == f"task.{key}={value!r}: expected {expected}"


@pytest.mark.parametrize("value", [1, "true", None])
def test_only_true_and_false_are_truth_values(value):
    with pytest.raises(ConfigError, match=rf"^task.export={value!r}: expected [a-z ]+$"):
        Toy.read(PLAIN | {"export": value})


def test_whole_numbers_are_numbers():
    assert Toy(rate=2).rate == 2


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(ConfigError) as error:
        Toy.read(PLAIN | {"coutn": 3})
    keys = "count, rate, mode, sizes, rows, export, share"
    expected = f"task.coutn: there is no such key in this section; it has {keys}"
    assert str(error.value) == expected
    with pytest.raises(ConfigError) as error:
        Toy.read({key: value for key, value in PLAIN.items() if key != "rate"})
    assert str(error.value) == "task.rate: cannot be left out"


def test_sections_share_no_default_and_cannot_be_changed():
    one, other = Toy(), Toy()
    one.sizes.append(6)
    assert other.sizes == Toy().sizes == [4, 5]
    with pytest.raises(FrozenInstanceError):
        one.count = 4
    with pytest.raises(ConfigError, match="task.count=0: expected at least 1"):
        replace(one, count=0)


DATA = {"_target_": "matattn.datasets.crystals.load", "name": "mine", "path": "a", "download": True}


def run_config(**changes):
    config = RunConfig(
        model_name="small",
        model=Target("matattn.models.flare.FLARE", {"dim": 8}),
        source=Source("mine", "structures"),
        data=Target.read(DATA, "data"),
        task=Toy(),
        optimizer=Toy(count=9),
        trainer=Target("lightning.Trainer", {"max_epochs": 5, "devices": 2}),
        loggers={},
        paths=Paths(data="nowhere"),
        init_from=None,
        seed=4,
        overwrite=False,
    )
    return replace(config, **changes)


def test_record_has_the_layout_of_the_configuration():
    record = run_config(init_from=Origin("mp-band-gap", "12ab")).record()
    assert record == {
        "model": {"_target_": "matattn.models.flare.FLARE", "dim": 8},
        "data": DATA,
        "task": PLAIN,
        "optimizer": PLAIN | {"count": 9},
        "trainer": {"_target_": "lightning.Trainer", "max_epochs": 5, "devices": 2},
        "paths": {"output_root": "outputs", "output_dir": None, "data": "nowhere"},
        "logger": {},
        "init_from": {"path": "mp-band-gap", "sha256": "12ab"},
        "seed": 4,
        "overwrite": False,
    }
    assert list(record) == [
        "model", "data", "task", "optimizer", "trainer", "paths", "logger", "init_from", "seed",
        "overwrite",
    ]  # fmt: skip
    logger = Target("lightning.pytorch.loggers.TensorBoardLogger", {"save_dir": "x"})
    assert run_config(loggers={"board": logger}).record()["logger"] == {"board": logger.plain()}
    assert run_config().epochs == 5 and run_config().processes == 2


def test_folder_depends_on_what_matters():
    folder = run_config().folder()
    assert folder.parts[:2] == ("outputs", "small-mine") and folder.name.startswith("seed4-")
    paths = run_config().paths
    for same in (
        {"overwrite": True},
        {"loggers": {"board": Target("lightning.pytorch.loggers.TensorBoardLogger", {})}},
        {"paths": replace(paths, data="elsewhere")},
        {"data": Target.read(DATA | {"download": False}, "data")},
        {"source": Source("mine", "structures", licence="CC0", citations=["qm9"])},
    ):
        assert run_config(**same).folder() == folder
    for other in (
        {"task": Toy(count=4)},
        {"optimizer": Toy()},
        {"data": Target.read(DATA | {"path": "b"}, "data")},
        {"init_from": Origin("mp-band-gap", "12ab")},
    ):
        changed = run_config(**other).folder()
        assert changed.parent == folder.parent and changed.name != folder.name
    assert run_config(seed=5).folder().name == folder.name.replace("seed4", "seed5")
    chosen = run_config(paths=replace(paths, output_dir="here"))
    assert str(chosen.folder()) == "here"


# Folders of runs from before the sections were typed: the same command finds them again.
FOLDERS = {
    "model=crystalformer": "crystalformer-prototypes/seed0-685acfc4",
    "model=flare": "flare-plate_with_hole/seed0-d7f1f2f6",
    "model=coulgat data=qm7": "coulgat-qm7/seed0-deb13641",
    "model=wavefunction": "wavefunction-j1j2_square_4x4_0.5/seed0-00b425bb",
    "model=matter": "matter-narratives/seed0-367959b2",
    "model=text_encoder": "text_encoder-narratives/seed0-5aad8e67",
    "experiment=crystalformer_mp_formation_energy": (
        "crystalformer_published-mp2018/seed123-b4d41b87"
    ),
}


@pytest.mark.parametrize("command", FOLDERS)
def test_folders_of_earlier_versions_are_kept(command):
    from matattn.workflows.run import read

    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        cfg = compose("train", [*command.split(), "paths.data=nowhere"])
    config, task = read(cfg)
    assert config.folder().as_posix() == f"outputs/{FOLDERS[command]}"
    assert type(config.task) is task.settings and type(config.optimizer) is task.optimizer


def test_loaders_that_moved_keep_their_folders():
    before, now = (
        what_matters({"data": {"_target_": f"matattn.datasets.{name}.load"}})
        for name in ("pde_darcy", "pde.darcy")
    )
    assert before == now


def test_hash_depends_on_content_only():
    assert config_hash({"a": 1, "b": [2]}) == config_hash({"b": [2], "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert len(config_hash({})) == 8


def test_data_say_what_they_are():
    described = {"kind": "structures", "structures": "molecules", "licence": "CC0"}
    source, target = read_data(DATA | described)
    assert source == Source("mine", "structures", "molecules", "CC0") and target.plain() == DATA
    assert target.name == "load"
    with pytest.raises(ConfigError, match="data.kind='crystals': expected one of structures, mesh"):
        read_data(DATA | {"kind": "crystals"})
    with pytest.raises(ConfigError, match="data={'name': 'x'}: expected a section with _target_"):
        read_data({"kind": "text", "name": "x"})


@pytest.mark.parametrize(
    "place, target",
    [
        ("model", "os.system"),
        ("model", "torch.os.system"),
        ("data", "matattn.models.crystalformer.Crystalformer"),
        ("trainer", "matattn.datasets.crystals.load"),
        ("paths", "matattn.datasets.crystals.load"),
        ("optimizer", "matattn.training.step_seed.torch.load"),
        ("model", "matattn.models.crystalformer.ImageRule"),
        ("trainer", "lightning.fabric.utilities.cloud_io._load"),
        ("trainer", "lightning.pytorch.callbacks.model_checkpoint.torch.load"),
        ("logger", "lightning.pytorch.cli.LightningCLI"),
    ],
)
def test_only_allowed_targets_are_built(place, target):
    with pytest.raises(ConfigError, match=rf"{place}.x\[1\]._target_: '{target}' is not allowed"):
        check_targets({place: {"x": [1, {"_target_": target}]}})
    with pytest.raises(ConfigError, match="is not allowed"):
        build({"_target_": target}, place)


def test_texts_that_would_become_targets():
    text = "${oc.create:{_target_: torch.load}}"
    with pytest.raises(ConfigError, match=r"trainer.strategy='\$\{oc.create:.*is not allowed"):
        check_targets({"trainer": {"_target_": "lightning.Trainer", "strategy": text}})


def test_wrong_arguments_are_named():
    target = "matattn.models.crystalformer.Crystalformer"
    with pytest.raises(ConfigError, match="model.widht: there is no such key"):
        build({"_target_": target, "widht": 3}, "model")


@pytest.mark.parametrize(
    "key, argument, expected",
    [
        ("dim", "a", "int"),
        ("dim", True, "int"),
        ("ffn_ratio", None, "float"),
        ("norm", 3, "str"),
    ],
)
def test_arguments_of_another_kind_are_named(key, argument, expected):
    target = Target("matattn.models.flare.FLARE", {"num_inputs": 2, key: argument})
    with pytest.raises(ConfigError) as error:
        build(target, "model")
    assert str(error.value) == f"model.{key}={argument!r}: expected {expected}"


def test_networks_that_no_memory_holds_are_refused():
    target = Target("matattn.models.flare.FLARE", {"num_inputs": 2, "dim": 8 * 10**6})
    with pytest.raises(ConfigError, match="model: the network"):
        build(target, "model")


def test_targets_are_found_by_their_names():
    assert find_target("matattn.models.flare.FLARE").__name__ == "FLARE"
    for name in ("matattn.models.flare.FLAIR", "matattn.models.gone.FLARE", "gone.FLARE", ""):
        assert find_target(name) is None


def test_a_missing_package_is_named():
    with pytest.raises(ConfigError, match=r"^gone needs the package gone: .*'matattn\[all\]'"):
        import_extra("gone")
    with pytest.raises(ModuleNotFoundError, match="matattn.gone"):
        import_extra("matattn.gone")
