"""Explanations of structures are complete, in Python and from the command line."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Molecule, Structure
from typer.testing import CliRunner

from matattn import bundle
from matattn.cli import app
from matattn.errors import ExplanationError
from matattn.models.text_encoder import CrystalText
from matattn.structures.structure import to_tensors
from matattn.workflows.explain.report import write
from matattn.workflows.structures import explain
from matattn.workflows.structures.explain_sections import sections
from matattn.workflows.structures.explained import prepare


@pytest.mark.parametrize("case", ["coulgat on molecules", "crystalformer"])
def test_report_and_json_are_whole(predictor, explained_cases, case, tmp_path):
    make, kind, items = explained_cases[case]
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


def test_what_cannot_be_explained(on_molecules, coulgat, predictor, molecules):
    with pytest.raises(ExplanationError, match="no structure"):
        explain.structures(predictor(coulgat(), "molecules"), [], "files")
    with pytest.raises(ExplanationError, match="CrystalText has no attention"):
        explain.steps(predictor(CrystalText(dim=8, num_blocks=1), "molecules"))
    with pytest.raises(ExplanationError, match="CrystalText has no attention"):
        on_molecules(CrystalText(dim=8, num_blocks=1))
    with pytest.raises(ExplanationError, match="target gap: the model predicts energy only"):
        list(prepare(predictor(coulgat(), "molecules"), molecules(), "gap"))
    far = {"id": "far", **to_tensors(Molecule(["H", "H"], [[0, 0, 0], [9, 0, 0]]))}
    with pytest.raises(ExplanationError, match="far: no atom has another one .* reach of 6 Å"):
        list(prepare(predictor(coulgat(), "molecules"), [far]))


def test_command(coulgat, predictor, tmp_path):
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


def test_command_tells_remarks_and_doubts(coulgat, predictor, tmp_path):
    network = coulgat()
    config = predictor(network, "crystals").config
    arguments = {"dim": 16, "num_heads": 2, "num_blocks": 2, "ffn_dim": 16,
                 "elements": [1, 6, 8, 11, 17]}  # fmt: skip
    bundle.save(tmp_path / "model", network, arguments, config, "card")
    slab = Structure(Lattice.tetragonal(4, 25), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0]])
    slab.to(filename=str(tmp_path / "POSCAR"), fmt="poscar")
    command = ["explain", str(tmp_path / "model"), str(tmp_path / "POSCAR")]
    done = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / 'POSCAR'}: 21.7 Å of vacuum: " in done.stderr
