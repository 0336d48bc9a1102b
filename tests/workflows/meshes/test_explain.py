"""Explanations of meshes: probes change nothing, removal is what it says, reports are whole."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from matattn import bundle
from matattn.attention import LayerProbe, probed
from matattn.cli import app
from matattn.errors import ExplanationError
from matattn.meshes.fields import MeshSample
from matattn.meshes.files import write_vtu
from matattn.models.flare import FLARE, FullAttention
from matattn.workflows.explain import faithfulness, heads
from matattn.workflows.explain.report import write
from matattn.workflows.meshes import explain as field_explanation
from matattn.workflows.meshes.predict import FieldPredictor

CONFIG = {
    "kind": "meshes",
    "targets": [{"name": "stress", "unit": "MPa", "scaling": "standard"}],
    "coordinates": [{"name": n, "unit": "mm", "scaling": "range"} for n in "xy"],
    "inputs": [],
    "normaliser": {"mean": [3.0], "std": [2.0]},
    "input_scaling": {"shift": [0.0, 0.0], "scale": [1.0, 1.0]},
}
SIZES = {"num_inputs": 2, "dim": 16, "num_blocks": 2, "num_heads": 2}
NETWORKS = {
    "fixed queries": lambda: FLARE(**SIZES, num_latents=4, init="xavier"),
    "dynamic queries": lambda: FLARE(
        **SIZES, num_latents=4, queries="dynamic", scale="sqrt", init="xavier"
    ),
    "full attention": lambda: FullAttention(**SIZES, init="xavier"),
}


def samples() -> list[MeshSample]:
    rng = np.random.default_rng(0)
    made = []
    for number, size in enumerate((30, 21)):
        pos = rng.uniform(-1, 1, (size, 2)).astype(np.float32)
        empty = np.empty((size, 0), np.float32)
        made.append(MeshSample(f"mesh{number}", pos, empty, 3 + pos[:, :1]))
    return made


@pytest.fixture(params=NETWORKS)
def subjects(request):
    torch.manual_seed(0)
    return field_explanation.prepare(
        FieldPredictor(NETWORKS[request.param](), CONFIG), samples(), None
    )


def test_a_probe_that_does_nothing_changes_nothing(subjects):
    whole, points = subjects
    with torch.no_grad():
        plain = whole.network(whole.batch)[:, 0] * 2 + 3
        torch.testing.assert_close(whole.values(), plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(points.values(), plain[whole.explained], rtol=1e-4, atol=1e-5)
    assert plain[:30].argmax() == whole.explained[0]
    assert plain[30:].argmax() + 30 == whole.explained[1]


def test_attention_of_the_explained_points_sums_to_one(subjects):
    _, points = subjects
    for probe in points.observe():
        total = torch.zeros(2, 2).index_add(0, points.graph, probe.seen)
        torch.testing.assert_close(total, torch.ones(2, 2))


def test_a_removed_point_is_no_source(subjects):
    """Where it stands does not matter to the others any more."""
    whole, _ = subjects
    bias = torch.zeros(len(whole.graph))
    bias[4] = -torch.inf
    moved = whole.batch.inputs.clone()
    moved[4] += 0.5
    with torch.no_grad():
        before = whole.values(whole.probes(edge_bias=bias))
        other = replace(whole, batch=replace(whole.batch, inputs=moved))
        after = other.values(other.probes(edge_bias=bias))
        untouched = other.values()
    rest = torch.arange(len(bias)) != 4
    if getattr(whole.network.blocks[0].att, "dynamic", False):
        pytest.skip("dynamic queries still see the point")
    torch.testing.assert_close(before[rest], after[rest])
    assert not torch.allclose(before[4], after[4])
    assert not torch.allclose(untouched[rest], whole.values()[rest])


def test_slopes_are_the_root_mean_square_derivative(subjects, monkeypatch):
    """With many random directions, against finite differences."""
    whole, _ = subjects
    monkeypatch.setattr(field_explanation, "PROBES", 600)
    found = whole.slopes(torch.ones(2, 2))
    step = 1e-2
    for head in np.ndindex(2, 2):
        ends = []
        for sign in (1, -1):
            gate = torch.ones(2, 2)
            gate[head] += sign * step
            ends.append(whole.values(whole.gates(gate)))
        slope = whole.change(ends[0], ends[1]) / (2 * step)
        torch.testing.assert_close(found[:, *head], slope, rtol=0.15, atol=1e-3)


def test_dead_head():
    torch.manual_seed(0)
    network = NETWORKS["fixed queries"]()
    network.blocks[1].att.out_proj.weight.data[:, 8:] = 0
    whole, _ = field_explanation.prepare(FieldPredictor(network, CONFIG), samples(), None)
    found = heads.heads([whole], lambda n: None)
    assert found["importance"][1][1] == found["ablation"][1][1] == 0
    assert found["pruning"]["order"][0] == [1, 1] and found["error_increase"] is not None


def test_points_are_ordered_within_meshes(subjects):
    _, points = subjects
    rank = faithfulness.order(points, -points.length, 0)
    assert (rank[points.explained] == -1).all() and rank.max() == 28
    nearest = points.length.clone()
    nearest[points.explained] = torch.inf
    assert rank[nearest[:30].argmin()] == 0 and rank[30 + nearest[30:].argmin()] == 0


def test_report_is_whole(tmp_path):
    torch.manual_seed(0)
    predictor = FieldPredictor(NETWORKS["fixed queries"](), CONFIG)
    result = field_explanation.explain(predictor, samples())
    bundle.save(tmp_path / "model", predictor.network, {}, CONFIG, "card")
    write(tmp_path, tmp_path / "model", result, field_explanation.sections(result))
    stored = json.loads((tmp_path / "explanation.json").read_text(), parse_constant=pytest.fail)
    assert stored["unit"] == "MPa" and stored["root_mean_square_error"] > 0
    assert set(stored["faithfulness"]["orders"]) >= {"attention", "shortest first", "random"}
    assert (tmp_path / "report.html").read_text().count("<figure>") == 7
    with pytest.raises(ExplanationError, match="target strain: the model predicts stress only"):
        field_explanation.explain(predictor, samples(), "strain")


def test_command(tmp_path):
    torch.manual_seed(0)
    network = NETWORKS["fixed queries"]()
    bundle.save(tmp_path / "model", network, SIZES | {"num_latents": 4}, CONFIG, "card")
    (sample, _) = samples()
    cells = {"triangle": np.array([[0, 1, 2]])}
    write_vtu(tmp_path / "a.vtu", replace(sample, cells=cells), {"stress": sample.y[:, 0]})
    (tmp_path / "b.vtu").write_text("no mesh")
    files = [str(tmp_path / name) for name in ("a.vtu", "b.vtu")]
    out = str(tmp_path / "out")
    done = CliRunner().invoke(app, ["explain", str(tmp_path / "model"), *files, "-o", out])
    assert done.exit_code == 0, done.output
    assert "b.vtu" in done.output and "root mean square error" in done.output
    failed = CliRunner().invoke(app, ["explain", str(tmp_path / "model"), "--data", "qm7"])
    assert failed.exit_code == 2 and "need structures" in failed.output


def test_weights_of_a_mesh_cannot_be_put_in():
    torch.manual_seed(0)
    whole, _ = field_explanation.prepare(
        FieldPredictor(NETWORKS["fixed queries"](), CONFIG), samples(), None
    )
    weights = [LayerProbe(weights=torch.ones(51, 2)) for _ in whole.layers]
    with probed(whole.network, weights), pytest.raises(ValueError, match="no weights of edges"):
        whole.network(whole.batch)
