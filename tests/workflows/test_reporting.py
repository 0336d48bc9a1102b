"""Templates, figures and tables of reports; every family's run renders its own."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from jinja2 import UndefinedError

from matattn.workflows import reporting

ROOT = Path(reporting.__file__).parent
REPORTS = [
    str(path.relative_to(ROOT)).removesuffix(".jinja") for path in sorted(ROOT.rglob("*.md.jinja"))
]


def test_every_family_has_a_template():
    assert {name.split("/")[0] for name in REPORTS} >= {"structures", "meshes", "spins", "text"}


@pytest.mark.parametrize("name", REPORTS)
def test_a_value_that_is_missing_is_an_error(name):
    with pytest.raises(UndefinedError, match="is undefined"):
        reporting.render(name)


def test_what_is_left_out_or_in_doubt_is_counted():
    text = SimpleNamespace(skipped=["a.txt:1: bad", "b.txt: bad"])
    table = SimpleNamespace(skipped=["a.csv:2: bad"], items=[1, 2, 3], doubts=["a.csv:3: odd"])
    assert reporting.problems(SimpleNamespace(skipped=[]), "") == []
    assert reporting.problems(None, "") == []
    assert reporting.problems(table, "more") == [
        "1 of 4 rows left out; the first: a.csv:2: bad; more",
        "1 doubts about rows; the first: a.csv:3: odd; more",
    ]
    (line,) = reporting.problems(text, "x")
    assert line.startswith("2 lines or files left out; the first: a.txt:1")


def test_a_model_card_has_no_pictures():
    assert reporting.without_pictures("# a\n\n![b](b.png)\nc\n") == "# a\n\nc\n"


def test_a_model_card_has_no_folders():
    text = (
        "- /home/me/my.data/x.jsonl:3 (a): bad\n| eV/atom / Å | https://a.org/b/c | runs/a/model |"
    )
    found = reporting.without_folders(text)
    assert found == text.replace("/home/me/my.data/", "")


def test_losses_of_several_runs_are_drawn_once_a_label():
    rows = [{"epoch": 1, "train/loss": 2.0}, {"epoch": 2, "train/loss": 1.0}]
    figure = reporting.loss_plot([rows, rows], {"train/loss": "training", "val/loss": "validation"})
    (axes,) = figure.axes
    assert len(axes.lines) == 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training"]


def test_tables_for_the_terminal_align_numbers():
    rows = [["a", "0.1", "eV"]]
    table = reporting.text_table("title", ["name", "error", "unit"], rows, left=("name", "unit"))
    assert [column.justify for column in table.columns] == ["left", "right", "left"]
    assert table.row_count == 1
