"""``matattn relax`` from files to files, stopped and continued."""

import csv

import pytest
from pymatgen.core import Structure
from typer.testing import CliRunner

from matattn.cli import app
from matattn.workflows.potentials import relax_files
from matattn.workflows.potentials.predict import Potential


def relax(model, files, output, *options):
    loose = ["--max-force", "0.05", "--max-stress", "5", "--max-steps", "60"]
    arguments = ["relax", str(model), *files, "-o", str(output), *loose, *options]
    return CliRunner().invoke(app, arguments)


def table(folder):
    with (folder / "relaxed.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_file_has_a_row_and_every_crystal_a_cif(potential_model, silicon_files, tmp_path):
    result = relax(potential_model, silicon_files, tmp_path / "out", "--path")
    assert result.exit_code == 0, result.output
    rows = table(tmp_path / "out")
    assert [row["id"] for row in rows] == ["si0", "gold", "si1", "broken", "si2"]
    assert "Au is not among the elements" in rows[1]["message"]
    assert [row["status"] == "StructureError" for row in rows] == [False, True, False, True, False]
    for row in rows[::2]:
        relaxed = Structure.from_file(tmp_path / "out" / f"{row['id']}.cif")
        first = Structure.from_file(row["path"])
        change = relaxed.volume / first.volume - 1
        assert float(row["volume_change"]) == pytest.approx(change, abs=1e-5)
        assert float(row["energy_after_per_atom"]) <= float(row["energy_before_per_atom"]) + 1e-9
        (again,) = Potential.load(potential_model).double().predict([relaxed])
        after = float(row["energy_after_per_atom"])
        assert again["energy_per_atom"] == pytest.approx(after, abs=1e-5)
        assert (tmp_path / "out" / f"{row['id']}.extxyz").read_text().count("Lattice") == (
            int(row["steps"]) + 1
        )


def test_what_is_finished_is_not_done_again(potential_model, silicon_files, tmp_path, monkeypatch):
    relax(potential_model, silicon_files[:1], tmp_path / "out")
    before = (tmp_path / "out" / "si0.cif").stat().st_mtime_ns
    asked = []
    original = relax_files.relax

    def counted(potential, structures, *rest):
        asked.extend(structures := list(structures))
        return original(potential, structures, *rest)

    monkeypatch.setattr(relax_files, "relax", counted)
    result = relax(potential_model, silicon_files, tmp_path / "out")
    assert result.exit_code == 0 and len(asked) == 2
    assert (tmp_path / "out" / "si0.cif").stat().st_mtime_ns == before
    assert len(table(tmp_path / "out")) == 5
    relax(potential_model, silicon_files[:1], tmp_path / "out")
    assert len(table(tmp_path / "out")) == 5, "rows of other files stay"
    other = relax(potential_model, silicon_files, tmp_path / "out", "--pressure", "3")
    assert other.exit_code == 2 and "another model or other settings" in other.stderr


def test_mistakes_are_one_line(potential_model, silicon_files, tmp_path):
    for arguments, message in (
        (["relax", "mp-band-gap", *silicon_files, "-o", str(tmp_path / "x")], "reads structures"),
        (["relax", str(potential_model), str(tmp_path / "no.cif"), "-o", str(tmp_path / "y")], ""),
        (
            [
                "relax",
                str(potential_model),
                *silicon_files,
                "-o",
                str(tmp_path / "z"),
                "--max-force",
                "0",
            ],
            "above 0",
        ),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in (1, 2) and "Traceback" not in result.output
        assert message in result.stderr
