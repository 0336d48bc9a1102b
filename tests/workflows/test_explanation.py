"""Explanations: probes do what they say, measures find what is put in, reports are complete."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Molecule, Structure
from torch import nn
from typer.testing import CliRunner

from matattn import bundle
from matattn.attention import AttentionRecord, LayerProbe, probed
from matattn.cli import app
from matattn.errors import ExplanationError
from matattn.models.coulgat import CoulGAT
from matattn.models.crystalformer import Crystalformer
from matattn.models.text_encoder import CrystalText
from matattn.structures.structure import to_tensors
from matattn.workflows.explain import checks, faithfulness, heads
from matattn.workflows.explain.report import write
from matattn.workflows.explain.subjects import over
from matattn.workflows.structures import explain, other_attention, standard_model
from matattn.workflows.structures.explain_sections import sections
from matattn.workflows.structures.explained import prepare
from matattn.workflows.structures.predict import Predictor

TARGETS = [{"name": "energy", "unit": "eV"}]


def predictor(network: nn.Module, kind: str) -> Predictor:
    config = {
        "targets": TARGETS,
        "normaliser": {"mean": [1.0], "std": [2.0]},
        "elements": [1, 6, 8, 11, 17],
        "structures": kind,
    }
    return Predictor(network.eval(), config)


def crystals() -> list[dict]:
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0] * 3, [0.5] * 3]
    )
    skewed = Structure(Lattice([[3, 0, 0], [0.7, 3.4, 0], [0.2, 0.5, 4]]), ["C", "O"],
                       [[0, 0, 0], [0.4, 0.55, 0.5]])  # fmt: skip
    named = {"salt": salt.get_primitive_structure(), "skewed": skewed}
    return [{"id": name, **to_tensors(s)} for name, s in named.items()]


def molecules(count: int = 4) -> list[dict]:
    rng = np.random.default_rng(0)
    items = []
    for number in range(count):
        places = np.array([[0, 0, 0], [1.2, 0, 0], [-0.6, 0.95, 0], [-0.6, -0.95, 0.1]])
        places = places + 0.1 * rng.normal(size=places.shape)
        molecule = Molecule(["C", "O", "H", "H"], places)
        items.append({"id": f"m{number}", **to_tensors(molecule), "y": torch.zeros(1, 1)})
    return items


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def coulgat(**options) -> CoulGAT:
    network = CoulGAT(dim=16, num_heads=2, num_blocks=2, ffn_dim=16, elements=[1, 6, 8, 11, 17],
                      **options)  # fmt: skip
    for parameter in network.law_parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def crystalformer(**options) -> Crystalformer:
    network = Crystalformer(dim=16, num_heads=2, num_blocks=2, ffn_dim=16, num_radial=8, **options)
    for block in network.blocks:  # as after training: widths do not depend on the batch
        block.attention.sigma_fitted.fill_(True)
    return network


CASES = {
    "coulgat on molecules": (coulgat, "molecules", molecules),
    "coulgat on crystals": (coulgat, "crystals", crystals),
    "plain coulgat": (lambda: coulgat(residual=False), "molecules", molecules),
    "law in the first softmax only": (lambda: coulgat(geom_bias=False), "molecules", molecules),
    "crystalformer": (crystalformer, "crystals", crystals),
    "dual space": (lambda: crystalformer(reciprocal="converged"), "crystals", crystals),
}


def in_double_precision(subject):
    network, batch = copy.deepcopy(subject.network).double(), subject.batch.to(dtype=torch.float64)
    return replace(subject, network=network, batch=batch, length=subject.length.double())


@pytest.fixture(params=CASES)
def subjects(request):
    make, kind, items = CASES[request.param]
    return list(prepare(predictor(make(), kind), items()))


def test_a_probe_that_does_nothing_changes_nothing(subjects):
    for subject in subjects:
        with torch.no_grad():
            plain = subject.network(subject.batch)[:, 0] * 2 + 1
            torch.testing.assert_close(subject.values(), plain, rtol=1e-5, atol=1e-6)
        assert all(layer.module.probe is None for layer in subject.layers)


def test_seen_weights_sum_to_one(subjects):
    for subject in subjects:
        for probe in subject.observe():
            total = torch.zeros(len(subject.batch.z), probe.seen.shape[1])
            total.index_add_(0, subject.batch.edge_index[1], probe.seen)
            torch.testing.assert_close(total, torch.ones_like(total))
            assert (probe.seen_size >= 0).all() and probe.seen_size.shape == probe.seen.shape


def test_own_weights_put_in_again_give_the_same_prediction(subjects):
    for subject in subjects:
        own = [LayerProbe(weights=probe.seen) for probe in subject.observe()]
        torch.testing.assert_close(subject.values(own), subject.values(), rtol=1e-5, atol=1e-6)


def test_removed_edges_are_those_of_a_graph_without_them():
    """Removal with renormalisation is what the network gives of the smaller graph."""
    (subject,) = prepare(predictor(coulgat(), "molecules"), molecules())
    gone = subject.removable & (torch.arange(len(subject.length)) % 3 == 0)
    probes = subject.probes(
        edge_bias=torch.zeros_like(subject.length).masked_fill(gone, -torch.inf)
    )
    smaller = replace(
        subject.batch,
        edge_index=subject.batch.edge_index[:, ~gone],
        image=subject.batch.image[~gone],
    )
    expected = subject.network(smaller)[:, 0] * 2 + 1
    torch.testing.assert_close(subject.values(probes), expected, rtol=1e-5, atol=1e-6)


def test_a_gate_takes_away_what_the_head_adds(subjects):
    """With all gates at zero, no atom knows of another one."""
    for subject in subjects:
        gates = torch.zeros(len(subject.layers), len(subject.layers[0].projection))
        moved = replace(subject, batch=replace(subject.batch, pos=subject.batch.pos * 1.01))
        residual = subject.network.blocks[0]
        if hasattr(residual, "conv"):  # the potential beside the heads sees distances
            continue
        torch.testing.assert_close(
            subject.values(subject.gates(gates)), moved.values(moved.gates(gates))
        )


def test_importance_is_the_derivative_by_the_gates(subjects):
    """Against finite differences, in double precision."""
    for subject in subjects:
        double = in_double_precision(subject)
        shape = (len(subject.layers), len(subject.layers[0].projection))
        found = heads.importance(double, torch.ones(shape, dtype=torch.float64))
        step = 1e-5
        for head in np.ndindex(*shape):
            ends = []
            for sign in (1, -1):
                gate = torch.ones(shape, dtype=torch.float64)
                gate[head] += sign * step
                ends.append(double.values(double.gates(gate)))
            slope = (ends[0] - ends[1]).abs() / (2 * step)
            torch.testing.assert_close(found[:, *head], slope.detach(), rtol=1e-4, atol=1e-7)


def test_a_dead_head_is_unimportant_and_pruned_first():
    network = coulgat()
    network.blocks[1].out_proj.weight.data[:, 8:16] = 0  # second head of the second layer
    (subject,) = prepare(predictor(network, "molecules"), molecules())
    found = heads.heads([subject], lambda n: None)
    assert found["importance"][1][1] == found["ablation"][1][1] == 0
    assert found["pruning"]["order"][0] == [1, 1]
    assert found["pruning"]["error"][1] == pytest.approx(found["pruning"]["error"][0], rel=1e-6)
    assert len(found["pruning"]["change"]) == 5


def test_ranks_are_within_structures_and_leave_self_edges(subjects):
    for subject in subjects:
        rank = faithfulness.order(subject, -subject.length, seed=1)
        assert (rank[~subject.removable] == -1).all()
        for graph in range(subject.count):
            inside = (subject.graph == graph) & subject.removable
            assert sorted(rank[inside].tolist()) == list(range(int(inside.sum())))
            by_rank = subject.length[inside][rank[inside].argsort()]
            assert (by_rank.diff() > -1e-5).all()


def test_the_order_by_effect_is_the_most_faithful_for_one_edge():
    """Removing the one edge whose loss changes most changes most: no method can do better."""
    (subject,) = prepare(predictor(coulgat(), "molecules"), molecules())
    edges, effect = faithfulness.left_out(subject, most=10, seed=0)
    assert len(edges) == int(subject.removable.sum())
    best = torch.zeros_like(subject.length)
    best[edges] = effect
    first = faithfulness.removal_curves(subject, faithfulness.order(subject, best, 0))[:, 0, 0, 0]
    for name, score in faithfulness.edge_scores(subject).items():
        rank = faithfulness.order(subject, score, 0)
        other = faithfulness.removal_curves(subject, rank)[:, 0, 0, 0]
        assert (other <= first + 1e-5).all(), name


def test_gradient_is_what_leaving_out_a_little_does(subjects):
    subject = in_double_precision(subjects[0])
    bias, step = torch.zeros_like(subject.length), 1e-5
    score = faithfulness.edge_scores(subject)["logit gradient"]
    for edge in subject.removable.nonzero()[:3, 0].tolist():
        ends = []
        for sign in (1, -1):
            bias[edge] = sign * step
            ends.append(subject.values(subject.probes(edge_bias=bias.clone())).sum().item())
        bias[edge] = 0
        slope = abs(ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(float(score[edge]), rel=1e-3, abs=1e-8)


def test_other_attention(subjects):
    found = other_attention.attention_matters(subjects, 0, lambda n: None)
    assert 0 < found["permuted"]["jsd"] < found["max_jsd"] == pytest.approx(np.log(2))
    assert 0 < found["adversarial"]["change"] <= found["tolerance"] == pytest.approx(0.02)
    assert found["adversarial"]["jsd"] > 0


def test_permuted_weights_are_the_same_weights():
    (subject,) = prepare(predictor(coulgat(), "molecules"), molecules())
    weights = subject.observe()[0].seen
    other = other_attention._permuted(subject, weights, seed=0)
    for atom in range(len(subject.batch.z)):
        at = subject.batch.edge_index[1] == atom
        torch.testing.assert_close(other[at].sort(0).values, weights[at].sort(0).values)
    assert not torch.equal(other, weights)


def test_shuffled_weights_leave_the_order_by_distance():
    subjects = list(prepare(predictor(coulgat(), "molecules"), molecules()))
    scores = [faithfulness.edge_scores(s) for s in subjects]
    found = checks.depends_on_weights(subjects, faithfulness.edge_scores, scores, 0, lambda n: None)
    assert found["shuffled_blocks"] == [1, 2]
    assert found["tau"]["shortest first"] == pytest.approx([1, 1])
    assert found["tau"]["logit gradient"][-1] < 0.9


def test_record_of_a_known_attention():
    record = AttentionRecord(
        target=np.array([0, 0, 1, 1]),
        source=np.array([0, 1, 0, 1]),
        length=np.array([0.0, 2.0, 2.0, 0.0]),
        weight=np.array([[[0.5, 0.5, 1.0, 0.0]]]),
        unit="Å",
    )
    assert record.entropy() == pytest.approx(np.array([[np.log(2) / 2]]))
    assert record.effective_range() == pytest.approx(np.array([[1.5]]))
    total, count = record.by_length(np.array([0.0, 1.0, 3.0]))
    assert total.tolist() == [[[0.5, 1.5]]] and count.tolist() == [2, 2]
    assert record.part(np.array([1])).weight.tolist() == [[[0.5]]]


def test_laws_that_never_moved_are_not_identified():
    """Three untrained networks: every constant stands where it began."""
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(CoulGAT(dim=16, num_heads=2, num_blocks=2, ffn_dim=16, elements=[1, 6, 8]))
    subjects = [list(prepare(predictor(n, "molecules"), molecules())) for n in networks]
    same = np.array([[0, 1], [0, 1]])
    rows = standard_model.law_table(networks, subjects[0], [same, same])
    assert len(rows) == 2 * 2 * (3 * 9 + 3)
    assert {row["verdict"] for row in rows} == {"not identified"}
    assert {row["value"] for row in rows if row["constant"] == "p"} == {1.0}
    for network in networks:
        network.blocks[0].conv.law.pairs.data[:, :, 1] = 0.4
    rows = standard_model.law_table(networks, subjects[0], [same, same])
    moved = [row for row in rows if row["verdict"] == "identified"]
    assert len(moved) == 2 * 9 and {row["constant"] for row in moved} == {"p"}
    rows = standard_model.law_table(networks[:2], subjects[0], [same])
    assert {row["verdict"] for row in rows} == {"unknown: fewer than three networks"}


def test_heads_in_another_order_are_matched_and_features_agree():
    network = coulgat()
    other = copy.deepcopy(network)
    conv, swap = other.blocks[0].conv, torch.arange(16).view(2, 8).flip(0).flatten()
    with torch.no_grad():
        conv.lin.weight.copy_(conv.lin.weight[swap])
        conv.bias.copy_(conv.bias.flip(0))
        conv.att.copy_(conv.att.flip(1))
        conv.law.pairs.copy_(conv.law.pairs.flip(-1))
        conv.law.self_term.copy_(conv.law.self_term.flip(-1))
        conv.law.first_range.copy_(conv.law.first_range.flip(0))
        columns = torch.cat([swap, torch.tensor([17, 16])])
        other.blocks[0].out_proj.weight.copy_(other.blocks[0].out_proj.weight[:, columns])
    one, two = (list(prepare(predictor(n, "molecules"), molecules())) for n in (network, other))
    torch.testing.assert_close(one[0].values(), two[0].values())
    found = standard_model.compare(one, two)
    assert found["matched_heads"] == [[1, 0], [0, 1]]
    assert np.array(found["cosine"]) == pytest.approx(np.ones((2, 2)))
    assert np.diag(found["cka"]) == pytest.approx(np.ones(2))


def test_effective_attention_is_a_share():
    subjects = list(prepare(predictor(coulgat(), "crystals"), crystals()))
    species, table = standard_model.effective_attention(subjects)
    assert species == ["C", "O", "Na", "Cl"] and table.shape == (2, 2, 4, 4)
    assert table.sum(-1) == pytest.approx(np.ones((2, 2, 4)), rel=1e-5)
    assert (table[..., :2, 2:] == 0).all()  # C and O stand in a crystal of their own


def test_first_layer_of_node_features_is_the_networks_own():
    network = coulgat()
    subjects = list(prepare(predictor(network, "molecules"), molecules()))
    found = standard_model.node_features(subjects)
    block = network.blocks[0]
    with torch.no_grad():
        x = block.norm1(network.embedding.weight.T)  # [5 elements, dim]
        value = block.conv.lin(x).view(5, 2, 8) + block.conv.bias
        expected = torch.einsum("thc,shc->hts", block.conv.att, value)[:, :3, :3]
    assert found["species"] == ["H", "C", "O"]
    assert np.array(found["table"])[0] == pytest.approx(expected.numpy(), abs=1e-6)


def test_batches_do_not_change_what_is_found(monkeypatch):
    whole = list(prepare(predictor(coulgat(), "molecules"), molecules()))
    torch.manual_seed(0)
    monkeypatch.setattr("matattn.workflows.structures.explained.EDGES_PER_BATCH", 1)
    parts = list(prepare(predictor(coulgat(), "molecules"), molecules()))
    assert (len(whole), len(parts)) == (1, 4)
    one, two = (over(s, lambda x: heads.importance(x, torch.ones(2, 2)))
                for s in (whole, parts))  # fmt: skip
    assert one == pytest.approx(two, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("readout", ["atoms", "pairs"])
def test_values_of_atoms_and_pairs(readout):
    items = molecules()
    for item in items:
        del item["y"]
        item["pair_index"] = torch.triu_indices(4, 4, 1)
    subjects = list(prepare(predictor(coulgat(readout=readout), "molecules"), items))
    with torch.no_grad():
        rows = {"atoms": 16, "pairs": 24}[readout]
        assert subjects[0].values().shape == (rows,)
        assert subjects[0].mean(subjects[0].values()).shape == (4,)
    found = heads.heads(subjects, lambda n: None)
    assert found["error_increase"] is None and np.array(found["ablation"]).min() > 0


@pytest.mark.parametrize("case", ["coulgat on molecules", "crystalformer"])
def test_report_and_json_are_whole(case, tmp_path):
    make, kind, items = CASES[case]
    trained = predictor(make(), kind)
    torch.manual_seed(1)
    others = {"other": predictor(make(), kind)}
    items = items()
    items[0]["id"] = "</script><b>&"
    advanced = []
    result, scenes = explain.structures(
        trained, items, "files", others=others, advance=advanced.append
    )
    assert sum(advanced) == explain.steps(trained)
    network = trained.network
    bundle.save(tmp_path / "model", network, {}, trained.config, "card")
    write(tmp_path, tmp_path / "model", result, sections(result), scenes)
    stored = json.loads((tmp_path / "explanation.json").read_text(), parse_constant=pytest.fail)
    assert stored["unit"] == "eV" and len(stored["model_hash"]) == len(stored["data_hash"]) == 64
    graph = stored["structures"][0]["graph"]
    assert np.shape(graph["attention"])[:2] == (2, 2)
    assert np.shape(graph["attention"])[2] == len(graph["length_A"]) <= graph["edges_in_all"]
    page = (tmp_path / "report.html").read_text()
    assert "</script><b>" not in page and "http" not in re.sub(r'"data:[^"]*"', "", page)
    inside = re.search(r'id="scenes">(.*?)</script>', page, re.DOTALL).group(1)
    assert json.loads(inside)[0]["name"].startswith("</script><b>&")
    assert page.count("<figure>") >= 8


def test_what_cannot_be_explained():
    with pytest.raises(ExplanationError, match="no structure"):
        explain.structures(predictor(coulgat(), "molecules"), [], "files")
    with pytest.raises(ExplanationError, match="CrystalText has no attention"):
        explain.steps(predictor(CrystalText(dim=8, num_blocks=1), "molecules"))
    with pytest.raises(ExplanationError, match="CrystalText has no attention"):
        list(prepare(predictor(CrystalText(dim=8, num_blocks=1), "molecules"), molecules()))
    with pytest.raises(ExplanationError, match="target gap: the model predicts energy only"):
        list(prepare(predictor(coulgat(), "molecules"), molecules(), "gap"))
    far = {"id": "far", **to_tensors(Molecule(["H", "H"], [[0, 0, 0], [9, 0, 0]]))}
    with pytest.raises(ExplanationError, match="far: no atom has another one .* reach of 6 Å"):
        list(prepare(predictor(coulgat(), "molecules"), [far]))


def test_probes_are_taken_away_after_an_error():
    network = coulgat()
    with pytest.raises(RuntimeError, match="within"):
        with probed(network, [LayerProbe(), LayerProbe()]):
            raise RuntimeError("within")
    assert all(layer.module.probe is None for layer in network.attention_layers())


def test_command(tmp_path):
    network = coulgat()
    config = predictor(network, "molecules").config
    arguments = {"dim": 16, "num_heads": 2, "num_blocks": 2, "ffn_dim": 16,
                 "elements": [1, 6, 8, 11, 17]}  # fmt: skip
    bundle.save(tmp_path / "model", network, arguments, config, "card")
    Molecule(["C", "O", "H"], [[0, 0, 0], [1.2, 0, 0], [-1, 0.3, 0]]).to(str(tmp_path / "a.xyz"))
    Molecule(["Xe", "O"], [[0, 0, 0], [2, 0, 0]]).to(str(tmp_path / "b.xyz"))
    command = ["explain", str(tmp_path / "model")]
    out = str(tmp_path / "out")
    done = CliRunner().invoke(
        app, [*command, str(tmp_path / "a.xyz"), str(tmp_path / "b.xyz"), "-o", out]
    )
    assert done.exit_code == 0, done.output
    assert "b.xyz, frame 1: contains Xe" in done.output and "shortest first" in done.output
    stored = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert [entry["id"] for entry in stored["structures"]] == ["a"]
    for extra, message in (
        ([], "give structures or meshes after the model"),
        ([str(tmp_path / "b.xyz")], "none of the structures can be read"),
        ([str(tmp_path / "a.xyz"), "--compare", "absent"], "absent: no such folder"),
    ):
        failed = CliRunner().invoke(app, [*command, *extra, "-o", out])
        assert failed.exit_code == 2 and message in failed.output, failed.output
