"""The closed list of networks follows from conf/model."""

from importlib.resources import files

import pytest

from matattn import networks
from matattn.citations import bibtex, entries
from matattn.errors import BundleError
from matattn.kinds import KINDS


@pytest.mark.parametrize("name", networks.known())
def test_every_network_says_its_kind_and_what_to_cite(name):
    network = networks.find(name)
    assert network.__name__ == name and network.__module__ == networks.known()[name]
    assert network.kind in KINDS
    assert network.citations
    cited = bibtex({"network": name}).split("\n\n")
    assert cited[1:-1] == entries(network.citations)  # read from the source


def test_every_model_of_the_configuration_is_known():
    modules = set(networks.known().values())
    assert {"matattn.models.crystalformer", "matattn.models.flare"} <= modules
    for path in (files("matattn.conf") / "model").iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        for target in (line.split()[1] for line in lines if "_target_:" in line):
            module, name = target.rsplit(".", 1)
            assert networks.known()[name] == module


@pytest.mark.parametrize("name", ["os.system", "ImageRule", "crystalformer", ""])
def test_unknown_networks_are_refused(name):
    with pytest.raises(BundleError, match=f"unknown network '{name}'; known: CoulGAT, Crystal"):
        networks.find(name)
