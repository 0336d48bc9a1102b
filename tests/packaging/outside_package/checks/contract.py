"""matattn's contract of networks of structures: pytest checks/contract.py."""

from matattn_schnet.network import SchNet

from matattn.testing import CrystalContract, MoleculeContract


class TestCrystals(CrystalContract):
    network_class = SchNet
    arguments = {"num_targets": 2, "dim": 8, "num_radial": 6, "cutoff": 4.0}


class TestMolecules(MoleculeContract):
    network_class = SchNet
    arguments = {"num_targets": 1, "dim": 8, "num_radial": 6, "cutoff": 4.0}
