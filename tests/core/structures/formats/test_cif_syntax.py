"""Tests of matattn.structures.formats.cif_syntax."""

import pytest

from matattn.errors import StructureError
from matattn.structures.formats.cif_syntax import read_blocks

TEXT = """\
#\\#CIF_1.1
data_one  # a comment
_quoted 'it's "one"'
_In.Capitals "a # b"
_unquoted P 21/n
_empty
_field
;
data_fake
loop_
;
_field2
;one
two
;
loop_
_l.a
_l.B
1 'x, y'
# between the rows
2 ;no
_last 1.5(2)
"""


def test_items_and_loops():
    (block,) = read_blocks(TEXT)
    assert block.name == "one"
    assert block.value("_quoted") == 'it\'s "one"'
    assert block.value("_in_capitals") == "a # b"
    assert block.value("_unquoted") == "P 21/n"
    assert block.value("_empty") is None and "_empty" in block
    assert block.value("_field") == "data_fake loop_" and block.value("_field2") == "one two"
    assert block.column("_l_a") == ["1", "2"] and block.column("_l_b") == ["x, y", ";no"]
    assert block.value("_last") == "1.5(2)"
    assert block.value("_missing", "_last") == "1.5(2)"
    assert block.column("_missing") is None


def test_blocks_of_one_name_are_two():
    blocks = read_blocks("data_x\n_a 1\nDATA_x\n_a 2\ndata_\n_a 3\n")
    assert [(b.name, b.line, b.value("_a")) for b in blocks] == [
        ("x", 1, "1"), ("x", 3, "2"), ("", 5, "3")
    ]  # fmt: skip


def test_tags_before_any_block_are_a_block():
    assert [b.value("_a") for b in read_blocks("_a 1\ndata_x\n_a 2")] == ["1", "2"]


@pytest.mark.parametrize(
    "text, tag, problem",
    [
        ("data_x\n_b 1\nloop_\n_a\n_c\n1 2 3\n", "_c", "line 3: a loop has 3 values for 2 columns"),
        ("data_x\n_a 1\n_A 2\n", "_a", "line 3: _a is given twice, with different values"),
        ("data_x\n_a 'open\n_b 1\n", "_a", "line 2: a quote is not closed"),
        ("data_x\nloop_\n_a\n'x, y\n'z'\n", "_a", "line 4: a quote is not closed"),
        ("data_x\n_a\n;open\n_b 1\n", "_a", "line 3: a text field is not closed"),
    ],
)
def test_a_problem_is_told_with_its_tag(text, tag, problem):
    (block,) = read_blocks(text)
    with pytest.raises(StructureError, match=problem):
        block.value(tag)


def test_a_damaged_loop_leaves_the_others_whole():
    (block,) = read_blocks("data_x\nloop_\n_a\n_b\n1 2 3\nloop_\n_c\n4\n5\n")
    assert block.column("_c") == ["4", "5"]


def test_a_file_without_any_block_is_refused():
    for text in ("", "hello world\n", "# only a comment\n"):
        with pytest.raises(StructureError, match="no data_ block"):
            read_blocks(text)


def test_many_open_text_fields_take_no_time():
    read_blocks("data_x\n" + "_a\n;open\n" * 3000 + "'" * 3000)
