"""Networks, data sets and configuration files of installed packages, declared in their metadata."""

import json
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from matattn import bundle, networks, plugins
from matattn.citations import bibtex
from matattn.cli import app
from matattn.composition import composed
from matattn.config import Target, build, check_targets
from matattn.errors import BundleError, ConfigError
from matattn.models.crystalformer import Crystalformer

NETWORK = '''
import torch
from torch import nn
from matattn.structures.image_rule import ImageRule
from matattn.structures.network import StructureNetwork

class Counter(StructureNetwork):
    """Reads the number of atoms."""
    citations = ("@misc{counter, title = {Counter},}",)

    def __init__(self, num_targets: int, dim: int = 2):
        super().__init__()
        self.output = nn.Linear(1, num_targets)

    def image_rule(self, tolerance, symmetry=0.0):
        return ImageRule(3.0)

    def features(self, batch):
        return torch.bincount(batch.batch).to(batch.pos)[:, None]

    def readout(self, features):
        return self.output(features)

    def output_layer(self):
        return self.output

class NoNetwork:
    kind = "structures"
'''
DATA = "def load(name):\n    return [name]\n"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a package: metadata and modules in a folder on sys.path."""
    number = 0

    def installed(package, entry_points, version="1.0", **sources):
        nonlocal number
        number += 1
        site = tmp_path / f"site{number}"
        metadata = site / f"{package.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        )
        lines = []
        for group, entries in entry_points.items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
        (metadata / "entry_points.txt").write_text("\n".join(lines))
        for module, source in sources.items():
            path = site / f"{module.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(site)
        return site

    yield installed
    for name in ("counting", "broken_net", "strange_data", "other_net"):
        sys.modules.pop(name, None)


@pytest.fixture
def counter(install):
    return install(
        "counting-atoms", {"matattn.networks": {"Counter": "counting:Counter"}}, counting=NETWORK
    )


def saved(folder):
    network = networks.find("Counter")(num_targets=1)
    description = {
        "targets": [{"name": "band_gap", "unit": "eV"}],
        "normaliser": {"mean": [0.0], "std": [1.0]},
        "elements": [1],
    }
    bundle.save(folder, network, {"num_targets": 1}, description, "# card")
    return network


def rewrite(folder, **changes):
    from matattn.files import sha256

    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    lines = [line for line in lines if not line.endswith("config.json")]
    (folder / "SHA256SUMS").write_text("\n".join([*lines, f"{sha256(path)}  config.json\n"]))


def test_a_declared_network_is_built_saved_and_read(counter, tmp_path):
    section = {"_target_": "counting.Counter", "num_targets": 2}
    assert type(build(section, "model")).__name__ == "Counter"
    network = saved(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["package"] == {"name": "counting-atoms", "version": "1.0"}
    (loaded,), _, _ = bundle.load(tmp_path / "model")
    assert torch.equal(loaded.output.weight, network.output.weight)
    assert "@misc{counter" in bibtex(config)
    result = CliRunner().invoke(app, ["info"])
    assert "counting-atoms 1.0: network Counter" in " ".join(result.stdout.split())


def test_only_what_is_declared_is_built(counter):
    for target in ("counting.NoNetwork", "counting.torch", "json.loads"):
        with pytest.raises(ConfigError, match="not allowed; .* or be an entry point matattn.net"):
            check_targets({"model": {"_target_": target}})
    with pytest.raises(ConfigError, match="data._target_: 'counting.Counter' is not allowed"):
        check_targets({"data": {"_target_": "counting.Counter"}})


def test_declaring_imports_nothing(counter):
    """Names of networks and messages about them come from the metadata alone."""
    code = (
        "import sys\nfrom matattn import networks, plugins\n"
        "assert 'Counter' in networks.known() and plugins.summary()\n"
        "assert 'counting' not in sys.modules and 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_a_bundle_is_refused_without_its_package(counter, tmp_path, monkeypatch):
    saved(tmp_path / "model")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(counter)])
    message = (
        "config.json: the network 'Counter' is one of counting-atoms 1.0, which is not installed: "
        "install that package, if you trust it"
    )
    with pytest.raises(BundleError, match=message) as error:
        bundle.load(tmp_path / "model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "package, message",
    [
        ({"name": "evil\x1b[31m; rm -rf", "version": "1"}, "one of a package whose name cannot"),
        ({"name": "x" * 300, "version": "1"}, "one of a package whose name cannot be read"),
        ({"name": "other", "version": "1\n2"}, "is one of other, which is not installed .here it"),
        ({"name": "other", "version": "2"}, "is one of other 2, which is not installed .here it"),
        ("other", "one of a package whose name cannot be read"),
        (None, "'Counter' is one of matattn, and here of counting-atoms 1.0"),
    ],
)
def test_what_a_bundle_says_of_its_package_is_data(counter, tmp_path, package, message):
    saved(tmp_path / "model")
    rewrite(tmp_path / "model", package=package)
    with pytest.raises(BundleError, match=message) as error:
        bundle.describe(tmp_path / "model")
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_a_bundle_cannot_claim_a_network_of_matattn_for_a_package(tmp_path):
    arguments = {"num_targets": 1, "dim": 8, "num_heads": 1, "num_blocks": 1, "ffn_dim": 8}
    description = {"targets": [], "normaliser": {}, "elements": []}
    bundle.save(tmp_path / "model", Crystalformer(**arguments), arguments, description, "")
    rewrite(tmp_path / "model", package={"name": "other", "version": "1"})
    with pytest.raises(BundleError, match="is one of other 1, and here of matattn"):
        bundle.describe(tmp_path / "model")


def test_another_version_is_named_where_weights_do_not_fit(counter, tmp_path):
    saved(tmp_path / "model")
    rewrite(tmp_path / "model", package={"name": "Counting_Atoms", "version": "0.9"},
            arguments={"num_targets": 3})  # fmt: skip
    with pytest.raises(BundleError, match="written with Counting_Atoms 0.9; counting-atoms 1.0"):
        bundle.load(tmp_path / "model")


MISTAKES = {
    "broken import": (
        {"matattn.networks": {"Broken": "broken_net:Broken"}}, "model", "broken_net.Broken",
        r"bad 1.0: its network Broken \(broken_net:Broken\) cannot be imported: ZeroDivisionError",
    ),
    "no such class": (
        {"matattn.networks": {"Absent": "other_net:Absent"}}, "model", "other_net.Absent",
        "bad 1.0: its network Absent .* cannot be imported: AttributeError: .*no attribute",
    ),
    "no network": (
        {"matattn.networks": {"NoNetwork": "other_net:NoNetwork"}}, "model", "other_net.NoNetwork",
        "is no network: expected a subclass of matattn.structures.network.StructureNetwork or",
    ),
    "another name": (
        {"matattn.networks": {"My": "other_net:Counter"}}, "model", "other_net.Counter",
        "declares the network My = 'other_net:Counter': its name must be that of the class",
    ),
    "name of ours": (
        {"matattn.networks": {"CoulGAT": "other_net:CoulGAT"}}, "model", "other_net.CoulGAT",
        "bad 1.0 declares a network CoulGAT, which is the name of one of matattn's own",
    ),
    "data of ours": (
        {"matattn.datasets": {"qm9": "strange_data:load"}}, "data", "strange_data.load",
        "bad 1.0 declares a data set qm9, which is the name of one of matattn's own",
    ),
    "no data set": (
        {"matattn.datasets": {"odd": "strange_data:load"}}, "data", "strange_data.load",
        "its data set odd .strange_data:load. returned an object of type list, expected matattn.st",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_broken_package_stops_only_who_uses_it(install, mistake):
    points, section, target, message = MISTAKES[mistake]
    install("bad", points, broken_net="1 / 0", other_net=NETWORK, strange_data=DATA)
    arguments = {"name": "x"} if section == "data" else {"num_targets": 1}
    with pytest.raises(ConfigError, match=message) as error:
        build({"_target_": target, **arguments}, section)
    assert "\n" not in str(error.value)
    ours = Target("matattn.models.crystalformer.Crystalformer", {"num_targets": 1, "dim": 8})
    assert isinstance(build(ours, "model"), Crystalformer)
    assert networks.find("CoulGAT").__module__ == "matattn.models.coulgat"
    assert CliRunner().invoke(app, ["info"]).exit_code == 0


def test_two_packages_with_one_name_are_both_named(counter, install, tmp_path):
    saved(tmp_path / "model")
    install("twin", {"matattn.networks": {"Counter": "other_net:Counter"}}, other_net=NETWORK)
    message = "counting-atoms 1.0 and twin 1.0 both declare a network Counter: uninstall one"
    with pytest.raises(ConfigError, match=message):
        build({"_target_": "counting.Counter", "num_targets": 1}, "model")
    with pytest.raises(BundleError, match=message):
        bundle.load(tmp_path / "model")


CONF = {"matattn.conf": {"own": "counting.conf"}}
TINY = """# @package _global_
defaults: [/task: property, /data: prototypes, /optimizer: one_cycle, _self_]
model: {name: tiny}
"""


def test_configuration_files_of_a_package_are_choices(install):
    site = install("conf-only", CONF)
    for group, name, text in (("model", "tiny", TINY), ("data", "qm9", "name: theirs\n")):
        path = site / "counting" / "conf" / group / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (site / "counting" / "__init__.py").write_text("1 / 0")
    with composed("train", ["model=tiny"]) as config:
        assert config.model == {"name": "tiny"} and config.data.name == "prototypes"
    with composed("train", ["model=crystalformer"]):
        pass  # the other file is not used
    with pytest.raises(ConfigError, match="data=qm9: matattn and conf-only 1.0 both have a file"):
        with composed("train", ["model=coulgat", "data=qm9"]):
            pass


def test_a_folder_that_is_not_there_counts_not(install):
    install("conf-only", {"matattn.conf": {"own": "nowhere.conf", "odd": ".."}})
    assert plugins.folders() == []
    with composed("train", ["model=crystalformer"]) as config:
        assert config.model.name == "crystalformer"
