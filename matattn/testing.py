"""Contracts that every network passes.

A new network is one file and one test class:

.. code-block:: python

    class TestMyNetwork(CrystalContract):
        network_class = MyNetwork
        arguments = {"num_targets": 2, "dim": 16}

All comparisons run in float64.
"""

from __future__ import annotations

import copy
import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any, cast

import jaxtyping
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from matattn import bundle, citations, networks
from matattn.attention import LayerProbe, probed
from matattn.kinds import KINDS
from matattn.meshes.batch import MeshBatch
from matattn.structures.batch import CrystalBatch, collate
from matattn.structures.structure import tensors_from_arrays

TOLERANCE = 1e-12  # smallest weight of an image that the contracts sum
EXACT = 1e-9  # largest difference of outputs that should be equal


class ModelContract:
    """The contract of every network whose input is a list of samples.

    Subclasses set ``network_class`` and ``arguments``, and define ``samples`` and ``batch``; also
    ``rows`` where the output has more than one row per sample.
    """

    network_class: type[Any]
    arguments: dict[str, Any]

    def samples(self) -> list[Any]:
        """Return the samples that the network is tested with."""
        raise NotImplementedError

    def batch(self, network: Any, samples: list[Any]) -> Any:
        """Return a batch of samples that the network takes."""
        raise NotImplementedError

    def rows(self, samples: list[Any]) -> list[int]:
        """Return the number of output rows of each sample."""
        return [1] * len(samples)

    def network(self) -> Any:
        """Return a float64 network with no parameter at its initial value, as after training."""
        torch.manual_seed(0)
        contract: Any = type(self)
        return copy.deepcopy(_network(contract, json.dumps(self.arguments)))

    def output(self, network: Any, samples: list[Any]) -> Tensor:
        """Return the output for samples, without gradients."""
        with torch.no_grad():
            return network(self.batch(network, samples))

    def targets(self) -> int:
        """Return the number of columns of the output."""
        return self.arguments.get("num_targets", 1)

    def test_output_has_the_rows_of_its_samples(self) -> None:
        """Check the shape of the output, and that it is finite."""
        output = self.output(self.network(), self.samples())
        assert output.shape == (sum(self.rows(self.samples())), self.targets())
        assert output.isfinite().all()

    def test_outputs_differ_between_samples(self) -> None:
        """Check that the network tells samples apart."""
        output = self.output(self.network(), self.samples())
        assert output.std(0).min() > 1e-3

    def test_batch_equals_loop(self) -> None:
        """Check that a batch gives what its samples give one by one."""
        network, samples = self.network(), self.samples()
        single = torch.cat([self.output(network, [sample]) for sample in samples])
        assert_close(self.output(network, samples), single)

    def test_order_of_samples_does_not_matter(self) -> None:
        """Check that the order of samples in a batch does not matter."""
        network, samples = self.network(), self.samples()
        parts = self.output(network, samples[::-1]).split(self.rows(samples[::-1]))
        assert_close(self.output(network, samples), torch.cat(parts[::-1]))

    def test_same_input_gives_the_same_bits(self) -> None:
        """Check that a forward pass is deterministic, to the bit."""
        network, samples = self.network(), self.samples()
        assert torch.equal(self.output(network, samples), self.output(network, samples))

    def test_every_parameter_gets_a_finite_gradient(self) -> None:
        """Check that every parameter has a finite gradient other than zero."""
        network = self.network().train()
        network(self.batch(network, self.samples())).square().sum().backward()
        for name, parameter in network.named_parameters():
            if parameter.numel():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().max() > 0, name

    def test_arguments_survive_json(self) -> None:
        """Check that a network can be rebuilt from its stored arguments."""
        rebuilt = self.network_class(**json.loads(json.dumps(self.arguments)))
        shapes = {name: tensor.shape for name, tensor in self.network().state_dict().items()}
        assert {name: tensor.shape for name, tensor in rebuilt.state_dict().items()} == shapes

    def test_bundle_is_bit_equal(self, tmp_path: Path) -> None:
        """Check that a saved network has the weights that were saved."""
        network = self.network().float()
        description = {"kind": network.kind, **dict.fromkeys(KINDS[network.kind].bundle_keys, [])}
        bundle.save(tmp_path / "model", network, self.arguments, description, "card")
        (loaded,), _, _ = bundle.load(tmp_path / "model")
        ours, theirs = network.state_dict(), loaded.state_dict()
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), name

    def test_a_copy_is_independent(self) -> None:
        """Check that a deep copy shares no memory with its original."""
        network = self.network()
        twin = copy.deepcopy(network)
        with torch.no_grad():
            next(twin.parameters()).zero_()
        assert next(network.parameters()).abs().max() > 0

    def test_autocast(self) -> None:
        """Check that bfloat16 (``trainer.precision=bf16-mixed``) gives about the same output.

        Every parameter gets a finite float32 gradient.
        """
        network = self.network().float().train()
        batch = self.batch(network, self.samples())
        for name, value in vars(batch).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(batch, name, value.float())
        expected = network(batch)
        with torch.autocast("cpu", torch.bfloat16):
            output = network(batch).float()
        assert (output - expected).norm() < 0.1 * expected.norm()
        output.square().sum().backward()
        for name, parameter in network.named_parameters():
            if parameter.numel():
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
                assert parameter.grad.dtype == torch.float32, name

    def test_compiles(self) -> None:
        """Check that ``torch.compile`` does not change the output."""
        jaxtyping.config.update("jaxtyping_disable", True)  # TorchDynamo cannot trace its checks
        try:
            network, samples = self.network(), self.samples()
            compiled = cast(nn.Module, torch.compile(network, backend="aot_eager"))
            assert_close(self.output(compiled, samples), self.output(network, samples))
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)
            torch.compiler.reset()


@cache
def _network(contract: type[ModelContract], arguments: str) -> Any:
    """Return the network of a contract, which is made once for all of its tests."""
    tests = contract()
    tests.arguments = json.loads(arguments)
    network = tests.network_class(**tests.arguments).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        network.train()(tests.batch(network, tests.samples()))
    return network.eval()


class StructureContract(ModelContract):
    """The contract of networks of atoms: the output does not depend on position and orientation.

    Also that the members of ``matattn.structures.network.StructureNetwork`` do what they say.
    """

    def batch(self, network: Any, samples: list[dict[str, Tensor]]) -> CrystalBatch:
        """Return a batch with the neighbour lists that the network asks for."""
        return collate(samples, network.image_rule(TOLERANCE))

    def assert_same(self, change: Any) -> None:
        """Assert that ``change(sample)`` of every sample leaves the output as it is."""
        network, samples = self.network(), self.samples()
        changed = [change(dict(sample)) for sample in samples]
        assert_close(self.output(network, changed), self.output(network, samples))

    def test_output_is_a_readout_of_features(self) -> None:
        """Check that ``forward`` is ``readout(features(batch))``."""
        network, samples = self.network(), self.samples()
        with torch.no_grad():
            features = network.features(self.batch(network, samples))
            assert features.shape[0] == sum(self.rows(samples)) and features.ndim == 2
            read = network.readout(features)
            assert_close(network.readout(features[1:]), read[1:])
        assert torch.equal(read, self.output(network, samples))

    def test_class_says_what_it_is(self) -> None:
        """Check what the class says of its input, its kernels and its sources."""
        network = self.network_class
        assert network.kind == "structures" and network.reads_molecules in (True, False)
        for operator in network.operators:
            importlib.import_module(f"matattn.kernels.{operator}")
        assert_cited(network)

    def test_level_says_what_a_row_is(self) -> None:
        """Check that there is a row for every structure, atom or pair, as ``level`` says."""
        samples = self.samples()
        rows: dict[str, Any] = {
            "structure": lambda sample: 1,
            "atom": lambda sample: len(sample["z"]),
            "pair": lambda sample: sample["pair_index"].shape[1],
        }
        assert self.rows(samples) == [rows[self.network().level](sample) for sample in samples]

    def test_image_rule_follows_the_tolerance(self) -> None:
        """Check that a smaller tolerance sums more images, and symmetry is used on request."""
        network = self.network()
        coarse, fine = network.image_rule(1e-3), network.image_rule(TOLERANCE)
        assert coarse.cutoff <= fine.cutoff and coarse.box == fine.box
        assert coarse.symmetry == fine.symmetry == 0
        assert network.image_rule(1e-3, symmetry=1e-4).symmetry in (0, 1e-4)

    def test_output_layer_is_the_last_one(self) -> None:
        """Check that the output layer has a row per target, and nothing follows it."""
        network, samples = self.network(), self.samples()
        before, layer = self.output(network, samples), network.output_layer()
        assert layer.weight.shape[0] == self.targets()
        shift = torch.arange(1.0, 1 + self.targets(), dtype=torch.float64)
        with torch.no_grad():
            layer.bias += shift
        assert_close(self.output(network, samples), before + shift)

    def test_check_lets_the_samples_pass(self) -> None:
        """Check that ``check`` refuses none of the samples."""
        network = self.network()
        for sample in self.samples():
            network.check(sample["z"], sample["pos"], sample["cell"], "here")

    def test_element_constants_belong_to_their_elements(self) -> None:
        """Check that a constant moves the output where its element is, and nowhere else."""
        network, samples = self.network(), self.samples()
        constants = network.element_constants
        if constants is None:
            return
        assert constants.shape[1] == self.targets()
        before = self.output(network, samples[:2])
        numbers = torch.cat([sample["z"] for sample in samples[:2]])
        absent = next(z for z in range(1, len(constants) + 1) if z not in numbers)
        with torch.no_grad():
            constants[absent - 1] += 1
            assert torch.equal(self.output(network, samples[:2]), before)
            constants[int(numbers[0]) - 1] += 1
        assert (self.output(network, samples[:2]) - before).abs().max() > 1e-3

    def test_attention_can_be_looked_into(self) -> None:
        """Check that probes see the weights of every edge, and change nothing."""
        network = self.network()
        batch = self.batch(network, self.samples())
        probes = [LayerProbe() for _ in network.attention_layers()]
        assert_probed(network, batch, probes, batch.edge_index.shape[1])

    def test_rotation(self) -> None:
        """Check that a rotation of all samples does not change the output."""
        self.assert_same(lambda sample: turned(sample, random_rotation()))

    def test_reflection(self) -> None:
        """Check that the mirror images of all samples have the same output."""
        self.assert_same(lambda sample: turned(sample, -random_rotation()))

    def test_translation(self) -> None:
        """Check that a translation of all samples does not change the output."""
        shift = torch.tensor([0.3, -1.7, 2.9], dtype=torch.float64)
        self.assert_same(lambda sample: sample | {"pos": sample["pos"] + shift})


class CrystalContract(StructureContract):
    """The contract of networks of crystals: the output depends on the infinite crystal alone.

    The choice of the cell, the order of the atoms, position and orientation have no influence.
    """

    def samples(self) -> list[dict[str, Tensor]]:
        """Return crystals of random atoms in random cells."""
        generator = np.random.default_rng(7)
        return [random_crystal(generator, atoms) for atoms in (1, 2, 5, 3)]

    def test_atoms_may_stand_in_any_cell(self) -> None:
        """Check that atoms may be shifted by lattice vectors."""

        def move(sample: dict[str, Tensor]) -> dict[str, Tensor]:
            number = torch.arange(len(sample["z"]), dtype=torch.float64)
            images = torch.stack([number % 3 - 1, -(number % 2), number % 4], 1)
            return sample | {"pos": sample["pos"] + images @ sample["cell"][0]}

        self.assert_same(move)

    def test_permutation_of_atoms(self) -> None:
        """Check that the order of the atoms does not matter."""

        def permute(sample: dict[str, Tensor]) -> dict[str, Tensor]:
            order = torch.arange(len(sample["z"]) - 1, -1, -1)
            return sample | {"z": sample["z"][order], "pos": sample["pos"][order]}

        self.assert_same(permute)

    def test_supercell(self) -> None:
        """Check that a doubled cell gives the same output."""

        def repeat(sample: dict[str, Tensor]) -> dict[str, Tensor]:
            cell = sample["cell"].clone()
            pos = torch.cat([sample["pos"], sample["pos"] + cell[0, 1]])
            cell[0, 1] *= 2
            return {"z": sample["z"].repeat(2), "pos": pos, "cell": cell}

        self.assert_same(repeat)

    def test_other_basis_of_the_same_lattice(self) -> None:
        """Check that the choice of lattice vectors does not matter."""
        basis = torch.tensor([[1, 1, 0], [0, 1, -1], [0, 0, 1]], dtype=torch.float64)

        def change(sample: dict[str, Tensor]) -> dict[str, Tensor]:
            cell = basis @ sample["cell"][0]
            frac = sample["pos"] @ torch.linalg.inv(cell)
            return sample | {"pos": (frac - frac.floor()) @ cell, "cell": cell[None]}

        self.assert_same(change)

    def test_equivalent_atoms_may_stand_as_one(self) -> None:
        """Check the batches of training: one row per orbit, one neighbour per distance."""
        network = self.network()
        rule = network.image_rule(TOLERANCE, symmetry=1e-6)
        if not rule.symmetry:
            return  # the network sees more than distances
        samples = [rutile_supercell(), *self.samples()]
        reduced, full = collate(samples, rule), self.batch(network, samples)
        assert len(reduced.z) == len(full.z) - 10
        with torch.no_grad():
            assert_close(network(reduced), network(full))

    def test_one_atom_sees_its_lattice(self) -> None:
        """Check that the periodic images count, also those of a single atom."""
        network = self.network()
        sample = self.samples()[0]
        stretched = sample | {"cell": sample["cell"] * 1.05}
        difference = self.output(network, [stretched]) - self.output(network, [sample])
        assert difference.abs().max() > 1e-4


class MoleculeContract(StructureContract):
    """The contract of networks of molecules.

    The argument ``readout`` says whether a row is a molecule, an atom or a pair.
    """

    def samples(self) -> list[dict[str, Tensor]]:
        """Return molecules of random atoms."""
        generator = np.random.default_rng(7)
        return [random_molecule(generator, atoms) for atoms in (2, 9, 5, 3)]

    def rows(self, samples: list[Any]) -> list[int]:
        """Return one row for a molecule, or one for each atom or pair."""
        kind = self.arguments.get("readout")
        counted = {"atoms": "z", "pairs": "pair_index"}.get(str(kind))
        return [sample[counted].shape[-1] if counted else 1 for sample in samples]

    def test_permutation_of_atoms(self) -> None:
        """Check that rows of atoms follow their atoms, and rows of pairs keep their order."""
        network, samples = self.network(), self.samples()
        expected = list(self.output(network, samples).split(self.rows(samples)))
        turned = []
        for number, sample in enumerate(samples):
            order = torch.arange(len(sample["z"]) - 1, -1, -1)
            new = sample | {"z": sample["z"][order], "pos": sample["pos"][order]}
            turned.append(new | {"pair_index": order[sample["pair_index"]]})
            if self.arguments.get("readout") == "atoms":
                expected[number] = expected[number][order]
        assert_close(self.output(network, turned), torch.cat(expected))

    def test_a_molecule_is_a_crystal_in_a_large_cell(self) -> None:
        """Check that a cell does not matter if it is large enough."""
        network, samples = self.network(), self.samples()
        large = [sample | {"cell": 60 * torch.eye(3)[None].double()} for sample in samples]
        assert_close(self.output(network, large), self.output(network, samples))

    def test_every_atom_matters(self) -> None:
        """Check that a move of any atom changes the output."""
        network, sample = self.network(), self.samples()[1]
        output = self.output(network, [sample])
        for atom in range(len(sample["z"])):
            moved = sample["pos"].clone()
            moved[atom] *= 1.05
            change = self.output(network, [sample | {"pos": moved}]) - output
            assert change.abs().max() > 1e-9, atom


class MeshContract(ModelContract):
    """The contract of networks of fields on meshes: one row per node, in the nodes' order.

    Also that the members of ``matattn.meshes.network.MeshNetwork`` do what they say.
    """

    def samples(self) -> list[Any]:
        """Return clouds of random nodes, two of them of one size."""
        generator = torch.Generator().manual_seed(7)
        inputs = self.arguments["num_inputs"]
        return [
            2 * torch.rand(nodes, inputs, generator=generator, dtype=torch.float64) - 1
            for nodes in (9, 1, 30, 30)
        ]

    def rows(self, samples: list[Any]) -> list[int]:
        """Return the number of nodes of each sample."""
        return [len(sample) for sample in samples]

    def batch(self, network: Any, samples: list[Any]) -> MeshBatch:
        """Return a batch of meshes from their scaled inputs."""
        dtype = next(network.parameters()).dtype
        ends = torch.tensor([0, *self.rows(samples)]).cumsum(0)
        return MeshBatch(torch.cat(samples).to(dtype), ends, torch.empty(0))

    def test_permutation_of_nodes(self) -> None:
        """Check that outputs follow their nodes."""
        network, sample = self.network(), self.samples()[2]
        order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(1))
        permuted = self.output(network, [sample[order]])
        assert_close(permuted, self.output(network, [sample])[order])

    def test_features_belong_to_the_meshes(self) -> None:
        """Check that features come with the same fields, one row a mesh in any order of nodes."""
        network, samples = self.network(), self.samples()
        with torch.no_grad():
            fields, features = network.with_features(self.batch(network, samples))
            assert_close(fields, self.output(network, samples))
            if features is None:
                return
            turned = self.batch(network, [sample.flip(0) for sample in samples])
            assert features.shape[0] == len(samples)
            assert_close(network.with_features(turned)[1], features)

    def test_every_node_sees_the_whole_mesh(self) -> None:
        """Check that a move of one node changes the output at all nodes."""
        network, sample = self.network(), self.samples()[2]
        moved = sample.clone()
        moved[-1] += 0.5
        difference = (self.output(network, [moved]) - self.output(network, [sample])).abs().amax(1)
        assert difference.min() > 1e-9

    def test_class_says_what_it_is(self) -> None:
        """Check what the class says of its input and its sources."""
        assert self.network_class.kind == "meshes"
        assert_cited(self.network_class)

    def test_one_process_may_share_nodes_with_itself(self) -> None:
        """Check that a network whose nodes can be shared gives the same fields afterwards."""
        network, samples = self.network(), self.samples()
        assert network.can_share_nodes in (True, False)
        if not network.can_share_nodes:
            return
        before = self.output(network, samples)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            network.share_nodes()
            assert_close(self.output(network, samples), before)
        finally:
            dist.destroy_process_group()

    def test_spectrum_belongs_to_the_nodes(self) -> None:
        """Check the shapes of eigenvalues and eigenvectors, of a network that has them."""
        network, sample = self.network(), self.samples()[2]
        spectrum = network.spectrum(self.batch(network, [sample]))
        if spectrum is None:
            return
        values, vectors = spectrum
        layers, heads, modes = values.shape
        assert layers == len(network.attention_layers())
        assert [v.shape for v in vectors] == [(heads, len(sample), modes)] * layers

    def test_attention_can_be_looked_into(self) -> None:
        """Check that probes see the weights of every node, and change nothing."""
        network, samples = self.network(), self.samples()
        first = torch.cat([torch.zeros(1), torch.tensor(self.rows(samples)).cumsum(0)[:-1]]).long()
        probes = [LayerProbe(rows=first) for _ in network.attention_layers()]
        assert_probed(network, self.batch(network, samples), probes, sum(self.rows(samples)))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    """Assert that no element differs by more than ``tolerance``."""
    difference = (actual - expected).abs().max().item()
    assert difference <= tolerance, f"differs by {difference:.2e} (tolerance {tolerance:.0e})"


def assert_cited(network: type[Any]) -> None:
    """Assert that a network of ``conf/model`` says what to cite for it."""
    if network.__name__ in networks.known():
        assert network.citations and citations.entries(network.citations)


def assert_probed(network: Any, batch: Any, probes: list[LayerProbe], edges: int) -> None:
    """Assert that probes without a change record weights [edges, H] and leave the output."""
    layers = network.attention_layers()
    assert all(layer.module.probe is None for layer in layers)
    with torch.no_grad():
        expected = network(batch)
        with probed(network, probes):
            assert_close(network(batch), expected)
    for layer, probe in zip(layers, probes, strict=True):
        assert layer.module.probe is None and layer.projection.ndim == 3
        assert probe.seen is not None and len(probe.seen) == edges
        assert probe.seen.shape[1] <= len(layer.projection)  # heads without edges are not seen


def random_crystal(generator: np.random.Generator, atoms: int) -> dict[str, Tensor]:
    """Return a triclinic crystal in float64, 15 Å^3 per atom, without close contacts."""
    while True:
        cell = np.eye(3) + 0.25 * generator.standard_normal((3, 3))
        cell *= np.cbrt(15 * atoms / abs(np.linalg.det(cell)))
        frac = generator.random((atoms, 3))
        difference = frac[:, None] - frac[None]
        difference = (difference - np.round(difference)) @ cell
        distance = np.linalg.norm(difference, axis=-1) + 9 * np.eye(atoms)
        if distance.min() > 1.2:
            break
    z = generator.integers(1, 60, atoms)
    return tensors_from_arrays(z, frac, cell, torch.float64)


def random_molecule(generator: np.random.Generator, atoms: int) -> dict[str, Tensor]:
    """Return a molecule of H, C, N and O in float64 with all pairs; the origin is outside."""
    size = 1.6 * np.cbrt(atoms)
    while True:
        pos = size * generator.random((atoms, 3)) + 5.0
        distance = np.linalg.norm(pos[:, None] - pos[None], axis=-1) + 9 * np.eye(atoms)
        if distance.min() > 0.8:
            break
    tensors = tensors_from_arrays(generator.choice([1, 6, 7, 8], atoms), pos, None, torch.float64)
    pairs = torch.triu_indices(atoms, atoms, 1)
    return tensors | {"pair_index": pairs}


def rutile_supercell() -> dict[str, Tensor]:
    """Return TiO2, twice its primitive cell along c: 12 atoms in 2 orbits, float64."""
    u = 0.305
    titanium = [[0.0, 0, 0], [0.5, 0.5, 0.5]]
    oxygen = [[u, u, 0], [-u, -u, 0], [0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]]
    frac = np.array(titanium + oxygen)
    frac = np.concatenate([frac, frac + [0, 0, 1]]) / [1, 1, 2]
    z = [22, 22, 8, 8, 8, 8] * 2
    return tensors_from_arrays(z, frac, np.diag([4.594, 4.594, 2 * 2.959]), torch.float64)


def turned(sample: dict[str, Tensor], matrix: Tensor) -> dict[str, Tensor]:
    """Return a structure after an orthogonal transformation."""
    return sample | {key: sample[key] @ matrix.T for key in ("pos", "cell")}


def random_rotation() -> Tensor:
    """Return a rotation by a fixed random matrix."""
    generator = torch.Generator().manual_seed(3)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    return q * torch.linalg.det(q)
