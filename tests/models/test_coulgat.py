"""CoulGAT: contract, golden numbers, a dense twin, convergence, and what PyG does with it."""

import math
from pathlib import Path
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pytest
import torch
from torch_geometric.explain import (
    AttentionExplainer,
    CaptumExplainer,
    Explainer,
    GNNExplainer,
)

from matattn.errors import StructureError
from matattn.models.coulgat import CoulGAT, OnNodeFeatures
from matattn.models.coulomb_attention import CoulombGATConv, ScreenedCoulomb
from matattn.structures.batch import collate
from matattn.structures.image_rule import ImageRule
from matattn.testing import (
    CrystalContract,
    MoleculeContract,
    assert_close,
    random_crystal,
    random_molecule,
    random_rotation,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "coulgat"
SMALL = {"dim": 16, "num_heads": 2, "num_blocks": 2, "ffn_dim": 24}


class TestCrystals(CrystalContract):
    network_class = CoulGAT
    arguments = {**SMALL, "num_targets": 2}


class TestCrystalsByProperties(CrystalContract):
    network_class = CoulGAT
    arguments = {**SMALL, "element_features": "properties", "query": "dynamic"}


class TestPlainOnCrystals(CrystalContract):
    network_class = CoulGAT
    arguments = {**SMALL, "residual": False, "geom_bias": False}

    def test_one_atom_sees_its_lattice(self) -> None:
        """A plain stack averages equal values in a crystal of one atom: it is lattice-blind."""
        network, sample = self.network(), self.samples()[0]
        stretched = sample | {"cell": sample["cell"] * 1.05}
        assert_close(self.output(network, [stretched]), self.output(network, [sample]))


class TestMolecules(MoleculeContract):
    network_class = CoulGAT
    arguments = {**SMALL, "num_targets": 2, "readout": "sum", "elements": [1, 6, 7, 8]}


class TestAtoms(MoleculeContract):
    network_class = CoulGAT
    arguments = {**SMALL, "readout": "atoms", "query": "dynamic"}


class TestPairs(MoleculeContract):
    network_class = CoulGAT
    arguments = {**SMALL, "readout": "pairs"}


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as numbers:
        return {key: torch.from_numpy(numbers[key]) for key in numbers if key != "name"}


@pytest.mark.parametrize("name", ["single_head_n5", "no_power_n6", "molecules_n12"])
def test_published_law_has_the_golden_numbers(name):
    """A complete graph whose species are node slots; adjacencies stand in as lengths."""
    g = golden(name)
    heads, _, channels = g["a"].shape
    _, inputs, nodes = g["H"].shape
    conv = CoulombGATConv(
        inputs, channels, heads, num_species=nodes, law="reference", geom_bias=False,
        add_self_loops=False,
    ).double()  # fmt: skip
    power = g["P"].permute(1, 2, 0) if g["has_power"] else torch.ones(nodes, nodes, heads)
    with torch.no_grad():
        conv.lin.weight.copy_(g["W"].flatten(0, 1))
        conv.bias.copy_(g["b"].permute(2, 0, 1))
        conv.att.copy_(g["a"].permute(1, 0, 2))
        conv.law.power.copy_(power)
    target, source = (
        place.flatten() for place in torch.meshgrid(2 * [torch.arange(nodes)], indexing="ij")
    )
    edges, slots = torch.stack([source, target]), torch.arange(nodes)
    for number, (features, adjacency) in enumerate(zip(g["H"], g["A"], strict=True)):
        length = adjacency.flatten().rsqrt()
        out, (_, alpha) = conv(features.T, edges, length, slots, return_attention_weights=True)
        by_head = alpha.view(nodes, nodes, heads).permute(2, 0, 1)
        assert_close(by_head, g["alpha"][number], 1e-12)
        assert_close(out.relu().T, g["out_concat_relu"][number], 1e-12)
        mean = out.view(nodes, heads, channels).mean(1)
        assert_close(mean.T, g["out_mean_identity"][number], 1e-12)


def nacl_conv(g, cutoff):
    conv = CoulombGATConv(4, 3, heads=2, num_species=2, cutoff=cutoff).double()
    law = conv.law
    with torch.no_grad():
        conv.lin.weight.copy_(g["W"].flatten(0, 1))
        conv.bias.copy_(g["b"])
        conv.att.copy_(g["a_species"].permute(1, 0, 2))
        law.pairs[:, :, 1] = g["p"].permute(1, 2, 0) - 1
        reach = g["lam"].permute(1, 2, 0) - law.SHORTEST_RANGE
        law.pairs[:, :, 2] = reach.expm1().log() - law.first_range
        law.self_term.copy_(g["c_self"].T)
    return conv


def test_logarithmic_law_has_the_golden_numbers():
    g = golden("proposed_nacl_rc6")
    conv = nacl_conv(g, 6.0)
    edges, length = g["edge_index"][:, :-2], g["edge_len"][:-2]  # without the self terms
    out, (_, alpha) = conv(
        g["H_species"], edges, length, g["species"], return_attention_weights=True
    )
    assert_close(alpha, g["alpha"], 1e-12)
    assert_close(out.view(2, 2, 3), g["out"], 1e-12)
    target, source = g["species"][g["edge_index"].flip(0)]
    logits = conv.law(g["edge_len"], target, source)
    inside = g["edge_len"] < 6.0
    assert_close(logits[inside], g["logit1"][inside], 1e-12)


def test_output_converges_with_the_cutoff():
    """NaCl: what lies beyond 16 Å changes less than 1e-4; at 6 Å it does not."""
    g = golden("proposed_nacl_rc6")
    crystal = {"z": g["species"], "pos": g["pos"], "cell": g["cell"][None]}

    def output(cutoff):
        batch = collate([crystal], ImageRule(cutoff))
        own = batch.edge_index[0] == batch.edge_index[1]
        kept = ~(own & (batch.image == 0).all(1))  # the operator adds the self terms
        ends = batch.pos[batch.edge_index[0, kept]] + batch.image[kept].double() @ g["cell"]
        length = (ends - batch.pos[batch.edge_index[1, kept]]).norm(dim=1)
        conv = nacl_conv(g, cutoff)
        return conv(g["H_species"], batch.edge_index[:, kept], length, g["species"])

    with torch.no_grad():
        converged = output(26.0)
        assert (output(6.0) - converged).abs().max() > 1e-2
        assert_close(output(16.0), converged, 1e-4)


def dense(conv, x, length, species):
    """The formulas of the docstring on all pairs of nodes, a matrix at a time."""
    heads, channels = conv.heads, conv.out_channels
    value = conv.lin(x).view(-1, heads, channels) + conv.bias
    strength, power, reach, own = conv.law.tables()
    t = species
    r = length[..., None] + torch.eye(len(x), dtype=x.dtype)[..., None]
    y = (conv.law.cutoff - r).clamp(0, conv.law.switch_width) / conv.law.switch_width
    switch = 10 * y**3 - 15 * y**4 + 6 * y**5
    pair = t[:, None], t[None]
    weight = switch * strength[pair].exp() * r ** -power[pair] * (-r / reach[pair]).exp()
    diagonal = torch.eye(len(x), dtype=torch.bool)
    weight = torch.where(diagonal[..., None], own[t][:, None].exp(), weight)
    z = torch.einsum("ijh,jhc->ihc", weight / weight.sum(1, keepdim=True), value)
    score = torch.einsum("ihc,jhc->ijh", conv.att[t], z)
    alpha = weight * torch.nn.functional.leaky_relu(score, 0.2).exp()
    return torch.einsum("ijh,jhc->ihc", alpha / alpha.sum(1, keepdim=True), value).flatten(1)


def test_sparse_is_dense():
    generator = torch.Generator().manual_seed(0)
    place = 4 * torch.rand(12, 3, dtype=torch.float64, generator=generator)
    species = torch.randint(3, (12,), generator=generator)
    x = torch.randn(12, 5, dtype=torch.float64, generator=generator)
    conv = disturbed(CoulombGATConv(-1, 4, heads=3, num_species=3, cutoff=3.0), x)
    length = torch.cdist(place, place)
    target, source = ((length < 3.0) & (length > 0)).nonzero().T
    sparse = conv(x, torch.stack([source, target]), length[target, source], species)
    assert_close(sparse, dense(conv, x, length, species), 1e-12)


def disturbed(conv, x):
    """In float64, with no parameter at its initial value."""
    conv = conv.double()
    conv(x, torch.zeros(2, 0, dtype=torch.long), x.new_zeros(0), torch.zeros(len(x)).long())
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return conv


def small_graph():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    edges = torch.tensor([[0, 1, 2, 3, 0, 3], [1, 0, 3, 2, 2, 2]])
    return x, edges, torch.tensor([1.0, 1.0, 1.4, 1.4, 2.5, 3.1]), torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("query", ["static", "dynamic"])
def test_operator_is_one_of_pyg(concat, residual, query):
    x, edges, length, species = small_graph()
    conv = CoulombGATConv(-1, 8, heads=2, concat=concat, residual=residual, num_species=2,
                          query=query)  # fmt: skip
    assert str(conv) == "CoulombGATConv(-1, 8, heads=2)"
    out = conv(x, edges, length, species)
    assert out.shape == (4, 16 if concat else 8)
    again, (used, alpha) = conv(x, edges, length, species, return_attention_weights=True)
    assert torch.equal(out, again)
    assert used[:, :6].equal(edges) and used[:, 6:].equal(torch.arange(4).expand(2, 4))
    assert alpha.shape == (10, 2) and alpha.min() >= 0
    assert_close(torch.zeros(4, 2).index_add(0, used[1], alpha), torch.ones(4, 2), 1e-6)
    conv.reset_parameters()
    assert conv.law.pairs.count_nonzero() == 0


def test_isolated_nodes_and_graphs_without_edges():
    conv = CoulombGATConv(6, 8, heads=2)
    x, none = torch.randn(3, 6), torch.zeros(2, 0, dtype=torch.long)
    out = conv(x, none, torch.zeros(0), torch.zeros(3, dtype=torch.long))
    assert_close(out, conv.lin(x) + conv.bias.flatten(), 1e-6)  # an atom alone keeps its value
    assert conv(x[:0], none, torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0, 16)


def test_constants_start_from_physics_in_every_initialisation():
    law = ScreenedCoulomb(num_species=3, heads=2, cutoff=6.0, switch_width=1.0)
    strength, power, reach, own = law.tables()
    assert strength.count_nonzero() == own.count_nonzero() == 0
    assert (power == 1).all()
    assert_close(reach, torch.tensor([2.5, 3.5]).expand(3, 3, 2), 1e-6)


def test_law_and_its_slope_end_smoothly_at_the_cutoff():
    law = ScreenedCoulomb(num_species=1, heads=1, cutoff=6.0, switch_width=1.0).double()
    length = torch.tensor([4.999, 5.001, 5.9999, 6.0, 6.5], dtype=torch.float64).requires_grad_()
    zero = torch.zeros(5, dtype=torch.long)
    weight = law(length, zero, zero).exp()[:, 0]
    (slope,) = torch.autograd.grad(weight.sum(), length)
    assert slope.isfinite().all()
    assert abs(slope[0] - slope[1]) < 1e-3 and slope[2].abs() < 1e-6
    assert weight[2] < 1e-12 and weight[3:].max() < 1e-29


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_at_half_an_angstrom(dtype):
    x, edges, length, species = small_graph()
    conv = CoulombGATConv(6, 8, heads=2, num_species=2).to(dtype)
    out = conv(x.to(dtype), edges, (0.5 * length).to(dtype), species)
    assert out.dtype == dtype and out.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    x, edges, length, species = small_graph()
    x = x.double()
    conv = disturbed(CoulombGATConv(6, 2, heads=2, num_species=2, cutoff=3.5), x)
    pairs = conv.law.pairs.detach().clone().requires_grad_()

    def run(x, length, pairs):
        parameters = {"law.pairs": pairs}
        return torch.func.functional_call(conv, parameters, (x, edges, length, species))

    inputs = (x.requires_grad_(), length.double().requires_grad_(), pairs)
    assert torch.autograd.gradcheck(run, inputs)


def test_whole_network_compiles_to_one_graph():
    network, batch = trained(readout="sum")
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert_close(compiled(batch), network(batch), 1e-12)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
        torch.compiler.reset()


def trained(samples=None, **arguments):
    """A network with no parameter at its initial value, and a batch: two molecules by default."""
    torch.manual_seed(0)
    network = CoulGAT(**SMALL, **arguments).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    generator = np.random.default_rng(0)
    samples = samples or [random_molecule(generator, atoms) for atoms in (5, 3)]
    return network, collate(samples, network.image_rule(1e-3))


def crystals():
    """One of one atom, whose edges all lead to its own images."""
    generator = np.random.default_rng(0)
    return [random_crystal(generator, atoms) for atoms in (1, 4)]


@pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients")  # captum
@pytest.mark.parametrize("samples", [None, crystals()], ids=["molecules", "crystals"])
@pytest.mark.parametrize(
    "algorithm",
    [AttentionExplainer(), GNNExplainer(epochs=3), CaptumExplainer("Saliency")],
    ids=["attention", "gnn", "captum"],
)
def test_explainers_of_pyg_run(samples, algorithm):
    network, batch = trained(samples)
    explained = OnNodeFeatures(network.float())
    batch = batch.to(dtype=torch.float32)
    explainer = Explainer(
        explained,
        algorithm,
        explanation_type="model",
        node_mask_type=None if isinstance(algorithm, AttentionExplainer) else "attributes",
        edge_mask_type="object",
        model_config={"mode": "regression", "task_level": "graph", "return_type": "raw"},
    )
    x = network.embed(batch).detach()
    explanation = explainer(x, batch.edge_index, batch=batch)
    assert explanation.edge_mask.shape == (batch.edge_index.shape[1],)
    assert explanation.edge_mask.isfinite().all() and explanation.edge_mask.max() > 0
    if isinstance(algorithm, AttentionExplainer):  # alpha of the last stage, not the field's
        found = []
        for block in network.blocks:
            conv = block.conv
            hook = conv.register_propagate_forward_pre_hook(
                lambda module, inputs: found.append(inputs[-1]["alpha"])
            )
            explained(x, batch.edge_index, batch)
            hook.remove()
        assert_close(explanation.edge_mask, torch.stack(found).amax((0, 2)), 1e-6)


def test_forces_are_those_of_finite_differences():
    network, batch = trained(crystals())
    pos = batch.pos.clone().requires_grad_()
    fields = {key: getattr(batch, key) for key in batch.__dataclass_fields__}
    graph = SimpleNamespace(**fields | {"num_graphs": batch.num_graphs})

    def energy(pos):
        graph.pos = pos
        return network(graph).sum()

    (slope,) = torch.autograd.grad(energy(pos), pos)
    step = torch.zeros_like(pos)
    step[2] = 1e-5 * random_rotation()[0]
    with torch.no_grad():
        difference = (energy(pos + step) - energy(pos - step)) / 2e-5
    assert abs(difference - slope[2] @ random_rotation()[0]) < 1e-8
    assert math.isfinite(slope.sum())


def test_elements_without_constants_are_refused():
    network, batch = trained(elements=[1, 6])
    with pytest.raises(StructureError, match="no constants for atomic numbers"):
        network(collate([random_crystal(np.random.default_rng(0), 3)], ImageRule(4.0)))
    pos, cell = torch.zeros(2, 3), torch.eye(3)
    network.check(torch.tensor([6, 1]), pos, cell, "a.cif")
    with pytest.raises(StructureError, match=r"^a.cif: .*no constants for atomic numbers \[3, 8\]"):
        network.check(torch.tensor([8, 6, 3]), pos, cell, "a.cif")


def test_graphs_without_positions_are_refused():
    network, batch = trained()
    fields = {key: getattr(batch, key) for key in batch.__dataclass_fields__}
    graph = SimpleNamespace(**fields | {"pos": None, "num_graphs": 2})
    with pytest.raises(StructureError, match="no positions"):
        network(graph)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"readout": "max"}, "readout='max': choose one of mean"),
        ({"query": "x"}, "query='x': choose one of static"),
        ({"cutoff": 0.5}, "switch_width must be between 0 and cutoff"),
        ({"elements": [0]}, "expected atomic numbers"),
        ({"num_heads": 3}, "not a multiple of num_heads"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoulGAT(**{**SMALL, **arguments})
