"""``matattn properties`` from files to files."""

import csv

from typer.testing import CliRunner

from matattn.cli import app


def test_properties_have_a_row_and_files(potential_model, silicon_files, tmp_path):
    arguments = [
        "properties",
        str(potential_model),
        *silicon_files[1:4],
        "-o",
        str(tmp_path / "out"),
        "--elastic",
    ]
    result = CliRunner().invoke(app, arguments)
    assert "Traceback" not in result.output
    with (tmp_path / "out" / "properties.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["gold", "si1", "broken"]
    assert "Au is not among the elements" in rows[0]["message"]
    assert rows[1]["status"] in ("ok", "NotAtRest")
    refused = CliRunner().invoke(
        app, ["properties", "mp-band-gap", silicon_files[0], "-o", str(tmp_path)]
    )
    assert refused.exit_code == 2 and "reads structures" in refused.stderr
