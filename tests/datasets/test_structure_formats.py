"""``data=table``: CSV beside structure files, extended XYZ, JSON lines; and everything broken."""

import bz2
import gzip
import json
import lzma
import os

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from matattn import cache, parallel
from matattn.datasets import crystals, structure_formats
from matattn.errors import DataError


def structure(number):
    return Structure(Lattice.cubic(4 + 0.1 * number), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def write_table(folder, lines, ids=range(6), name="table.csv", ending=".cif", **options):
    folder.mkdir(exist_ok=True)
    for number in ids:
        structure(number).to(filename=str(folder / f"s{number}{ending}"), **options)
    (folder / name).write_text("\n".join(lines))
    return str(folder / name)


def load(path, targets=("tc",), **options):
    return crystals.load("toy", path, list(targets), units={"tc": "K"}, **options)


LINES = ["id,tc,e_form", *(f"s{n},{n + 0.5},{-n}" for n in range(6))]


@pytest.mark.parametrize(
    "ending, options",
    [(".cif", {}), (".vasp", {"fmt": "poscar"}), (".json", {})],
)
def test_csv_beside_structure_files(tmp_path, ending, options):
    path = write_table(tmp_path / "d", LINES, ending=ending, **options)
    data = load(path, ["tc", "e_form"])
    assert data.labels() == pytest.approx(np.array([[n + 0.5, -n] for n in range(6)]))
    assert [item.id for item in data.items] == [f"s{n}" for n in range(6)]
    assert data.items[2].cell[0, 0, 0] == pytest.approx(4.2)
    assert data.items[0].z.tolist() == [11, 17] and data.skipped == []
    assert "Random split" in data.note
    assert load(str(tmp_path / "d"), ["tc", "e_form"]).fingerprint() == data.fingerprint()


def test_split_column_counts_when_there_is_one(tmp_path):
    lines = ["id,tc,split", "s0,1,train", "s1,2,val", "s2,3,test", "s3,4,", "s4,5,train"]
    path = write_table(tmp_path / "d", lines)
    assert load(path).split.tolist() == ["train", "val", "test", "", "train"]
    assert load(path, split="random").split.tolist().count("train") == 4
    (tmp_path / "d" / "table.csv").write_text("id,tc,split\ns0,1,training\n")
    with pytest.raises(DataError, match="split is training in some rows; use train, val and test"):
        load(path)


def test_vasp_folders_and_full_file_names(tmp_path):
    write_table(tmp_path / "d", ["id,tc", "run1,1", "POSCAR-JVASP-5.vasp,2"], ids=())
    (tmp_path / "d" / "run1").mkdir()
    structure(1).to(filename=str(tmp_path / "d" / "run1" / "POSCAR"))
    structure(2).to(filename=str(tmp_path / "d" / "POSCAR-JVASP-5.vasp"), fmt="poscar")
    data = load(str(tmp_path / "d" / "table.csv"))
    assert [item.id for item in data.items] == ["run1", "POSCAR-JVASP-5.vasp"]


def test_hostile_rows_harm_no_other(tmp_path):
    lines = ["id,tc", 's0,"1', "a" * 5000 + ",2", "s\0,3", "../../etc/passwd,4", '"s""1",5', "s1,6",
             "s2," + "9" * 200_000, "s3," + "x" * 200_000, "s5,\u2028", "s4,+1e1"]  # fmt: skip
    path = write_table(tmp_path / "d", lines)
    data = load(path)
    assert [item.id for item in data.items] == ["s1", "s4"]  # s5 has no label
    assert "table.csv:2: not a line of a CSV file: unexpected end" in "\n".join(data.skipped)
    assert all(len(reason) < 20_000 for reason in data.skipped)


def test_doubts_about_a_row_are_told_and_cached(tmp_path):
    path = write_table(tmp_path / "d", ["id,tc", "s0,1", "s1,2"])
    text = (tmp_path / "d" / "s1.cif").read_text()
    name = "_chemical_formula_sum"
    other = "\n".join(f"{name}   'Xe2'" if name in line else line for line in text.split("\n"))
    (tmp_path / "d" / "s1.cif").write_text(other)
    for _ in range(2):
        (doubt,) = load(path).doubts
        assert doubt.startswith(f"{path}:3 (s1): the formula is Xe2, and the cell holds")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pos": [[0, 0, 0], [2, 2, 2]]}, "a crystal has frac and a lattice"),
        ({"pbc": [True, True, False]}, "is periodic in some directions only (pbc T T F)"),
        ({"pbc": False}, "a crystal has frac and a lattice"),
        ({"pbc": "yes"}, "pbc is 'yes'"),
    ],
)
def test_rows_that_may_be_crystals_or_molecules(tmp_path, change, message):
    row = {"lattice": (4 * np.eye(3)).tolist(), "Z": [11, 17], "frac": [[0] * 3, [0.5] * 3]}
    rows = [row | {"id": "good", "tc": 1, "pbc": True}, row | {"id": "bad", "tc": 2} | change]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load(tmp_path / "rows.jsonl")
    assert [item.id for item in data.items] == ["good"]
    assert "rows.jsonl:2 (bad)" in data.skipped[0] and message in data.skipped[0]


def test_id_prop_has_no_header(tmp_path):
    lines = [f"s{n},{n}" for n in range(6)]
    path = write_table(tmp_path / "d", lines, name="id_prop.csv")
    assert load(path).labels()[:, 0].tolist() == list(range(6))
    assert len(load(str(tmp_path / "d")).items) == 6
    with pytest.raises(DataError, match=r"no header; give one name, .* not \['tc', 'e_form'\]"):
        load(path, ["tc", "e_form"])


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_and_a_byte_order_mark(tmp_path, separator):
    path = write_table(tmp_path / "d", ["\ufeffID;tc", "s0;1.5", "s1;2.5"])
    text = (tmp_path / "d" / "table.csv").read_text().replace(";", separator)
    (tmp_path / "d" / "table.csv").write_text(text)
    assert load(path).labels()[:, 0].tolist() == [1.5, 2.5]


def test_broken_rows_are_left_out_with_file_and_line(tmp_path):
    lines = ["id,tc", "s0,1", "s1,high", "s2", "s9,4", "s3,NA", "", "s0,7", "s4,5", "s5,6", ",8",
             "two,9"]  # fmt: skip
    path = write_table(tmp_path / "d", lines)
    (tmp_path / "d" / "s4.cif").write_text("not a CIF")
    partial = Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    partial.to(filename=str(tmp_path / "d" / "s5.cif"))
    (tmp_path / "d" / "two.json").write_text(json.dumps([structure(1).as_dict()] * 2))
    data = load(path)
    assert [item.id for item in data.items] == ["s0"]
    reasons = "\n".join(data.skipped)
    for part in (
        "table.csv:3 (s1): tc is 'high', not a number",
        "table.csv:6 (s3): has no usable value of tc",
        "table.csv:4: has 1 columns; expected 2",
        "table.csv:5 (s9): no structure file s9.cif, .vasp or .extxyz in ",
        "table.csv:8 (s0): duplicate id: only the first row is used",
        "table.csv:9 (s4): ",
        "s4.cif: is not a CIF",
        "table.csv:10 (s5): ",
        "s5.cif: Cu0 and Au1 share a place: partial occupancy",
        "table.csv:11 (): no structure file",
        "two.json: holds 2 structures; expected one",
    ):
        assert part in reasons, reasons


@pytest.mark.parametrize(
    "lines, message",
    [
        ([], "the file is empty"),
        (["id,tc"], "holds no row"),
        (
            ["name,tc", "s0,1"],
            "table.csv:1: the first line must name the columns, one of them 'id'",
        ),
        (["s0,1", "s1,2"], "table.csv:1: the first line must name the columns"),
        (["id,tc,tc", "s0,1,1"], "table.csv:1: duplicate column 'tc'; give every column"),
        (["id,gap", "s0,1"], "no column for target 'tc'; columns of the file: gap"),
        (["id;tc", "s0;1,500"], "no usable structure; first problem: .*tc is '1,500', not a num"),
        (["id,tc", "s8,1"], "holds no row; first problem: .*table.csv:2 .s8.: no structure file"),
    ],
)
def test_broken_tables(tmp_path, lines, message):
    path = write_table(tmp_path / "d", lines, ids=range(2))
    with pytest.raises(DataError, match=message) as error:
        print(load(path).labels())
    assert "\n" not in str(error.value)


LEFT_OUT = {  # a cell: why its row is left out
    "1_5": "tc is '1_5', not a number",
    "0x10": "tc is '0x10', not a number",
    "inf": "tc is 'inf', not a number",
    "True": "tc is 'True', not a number",
    '"1,5"': "tc is '1,5', not a number; write all numbers with a decimal point",
    '"1,234.5"': "tc is '1,234.5', not a number; write all numbers with a decimal point",
    "1 234": "tc is '1 234', not a number; write all numbers with a decimal point",
    "1'234": 'tc is "1\'234", not a number; write all numbers with a decimal point',
    "12 %": "tc is '12 %', not a number; write the number alone",
    "-1.5 eV": "tc is '-1.5 eV', not a number; write the number alone",
    "nan": "has no usable value of tc",
    "NA": "has no usable value of tc",
}


@pytest.mark.parametrize("cell", LEFT_OUT)
def test_cells_that_are_no_numbers(tmp_path, cell):
    data = load(write_table(tmp_path / "d", ["id,tc", f"s0,{cell}", "s1,7"]))
    assert data.labels()[:, 0].tolist() == [7]
    (message,) = data.skipped
    assert "table.csv:2 (s0): " + LEFT_OUT[cell] in message


def test_a_row_is_left_out_once(tmp_path):
    lines = ["id,tc,e_form", "s0,high,low", "s1,1,low", "s2,,", "s3,1,2"]
    data = load(write_table(tmp_path / "d", lines), ["tc", "e_form"])
    assert [item.id for item in data.items] == ["s3"] and len(data.skipped) == 3


def test_minus_signs_of_typesetters(tmp_path):
    path = write_table(tmp_path / "d", ["id,tc", "s0,\N{MINUS SIGN}1.5", "s1,2e\N{MINUS SIGN}1"])
    assert load(path).labels()[:, 0].tolist() == pytest.approx([-1.5, 0.2])


def test_dashes_of_windows_1252(tmp_path):
    path = write_table(tmp_path / "d", [])
    (tmp_path / "d" / "table.csv").write_bytes("id;tc\ns0;\u20131,5".encode("cp1252"))
    assert load(path).labels()[:, 0].tolist() == [-1.5]


@pytest.mark.parametrize("cell", ["#N/A", "-", "--", "\u2013", "n.a.", "<NA>", "?"])
def test_words_for_a_missing_number(tmp_path, cell):
    path = write_table(tmp_path / "d", ["id,tc,e_form", f"s0,{cell},1", "s1,2,3"])
    assert np.isnan(load(path, ["tc", "e_form"]).labels()[:, 0]).tolist() == [True, False]


def test_a_number_in_two_cells_is_left_out(tmp_path):
    lines = ["id,tc,,", "s0,-1,5,", "s1,7,,", "s2,\u20131,25", "s3,8,nine,"]
    data = load(write_table(tmp_path / "d", lines))
    assert [item.id for item in data.items] == ["s1", "s3"]
    assert "table.csv:2: is -1,5 one number? quote it, or" in data.skipped[0]


def test_an_empty_path_is_not_the_working_directory(tmp_path, monkeypatch):
    write_table(tmp_path / "d", LINES)
    monkeypatch.chdir(tmp_path / "d")
    with pytest.raises(DataError, match="data.path is empty; give data.path=FILE"):
        load("")


def test_the_column_that_was_named_counts(tmp_path):
    lines = ["id,e_form,formation_energy_per_atom,k_vrh,log10_bulk_modulus", "s0,1,2,100,3"]
    path = write_table(tmp_path / "d", lines)
    labels = {name: load(path, [name]).labels().item() for name in lines[0].split(",")[1:]}
    assert list(labels.values()) == [1, 2, 2, 3]


@pytest.mark.parametrize("name", ["split", "Split", "SPLIT"])
def test_the_split_in_any_case(tmp_path, name):
    path = write_table(tmp_path / "d", [f"id,tc,{name}", "s0,1,train", "s1,2,test"])
    assert load(path).split.tolist() == ["train", "test"]
    with pytest.raises(DataError, match="columns of the file: tc$"):
        load(path, ["e_form"])


@pytest.mark.parametrize(
    "cells, kept",
    [
        (["1.234", "999", "12.345", "7"], ["999", "7"]),  # points may separate thousands
        (["1.234", "1.234.567", "7"], ["7"]),
        (["1.234", "0", "2.345"], ["1.234", "0", "2.345"]),
        (["1.234", "999", "1.5"], ["1.234", "999", "1.5"]),
    ],
)
def test_points_that_may_separate_thousands(tmp_path, cells, kept):
    lines = ["id;tc", *(f"s{n};{cell}" for n, cell in enumerate([*cells, ""]))]
    path = write_table(tmp_path / "d", lines)
    data = load(path)
    assert data.labels()[:, 0].tolist() == pytest.approx(list(map(float, kept)))
    told = "(s0): tc is '1.234 or 1234', not a number" in "".join(data.skipped)
    assert told != ("1.234" in kept)


@pytest.mark.parametrize("name", ["id_prop.csv", "ID_PROP.CSV"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_without_header(tmp_path, name, separator):
    comma = "." if separator == "," else ","
    lines = [f"s0{separator}1{comma}5", f"s1{separator}-2{comma}25"]
    write_table(tmp_path / "d", lines, name=name)
    assert load(str(tmp_path / "d")).labels()[:, 0].tolist() == [1.5, -2.25]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas(tmp_path, separator, capsys):
    lines = ["id;tc;e_form", "s0;1,5;1.234", "s1;-0,25;0.5", "s2;3;2,500", "s3;1,234;", "s4;;1"]
    path = write_table(tmp_path / "d", [line.replace(";", separator) for line in lines])
    data = load(path)
    assert data.labels()[:, 0].tolist() == pytest.approx([1.5, -0.25, 3, 1.234])
    assert "tc has decimal commas: 1,5 is read as 1.5" in data.note
    assert "remark: " in capsys.readouterr().err
    other = load(path, ["e_form"])
    assert [item.id for item in other.items] == ["s1", "s4"]
    reasons = "\n".join(other.skipped)
    assert "(s0): e_form is '1.234 or 1234', not a number" in reasons
    assert "(s2): e_form is '2,500', not a number; write all numbers" in reasons


def test_commas_of_both_kinds_are_refused(tmp_path):
    path = write_table(tmp_path / "d", ["id;tc", "s0;1,5", "s1;1.5", "s2;2.000"])
    data = load(path)
    assert data.labels()[:, 0].tolist() == [1.5] and [item.id for item in data.items] == ["s1"]


@pytest.mark.parametrize(
    "lines",
    [
        [",id,tc", "0,s0,1.5", "1,s1,2.5"],
        ["Unnamed: 0,id,tc", "0,s0,1.5", "1,s1,2.5"],
        ["Unnamed: 0.1,,id,tc", "0,0,s0,1.5", "1,1,s1,2.5"],
        ["id,tc,", "s0,1.5,", "s1,2.5,"],
        ["id,tc,,", "s0,1.5", "s1,2.5,,"],
        ["id,tc", "s0,1.5,", "s1,2.5,,"],
    ],
)
def test_columns_without_a_name_are_left_out(tmp_path, lines, capsys):
    data = load(write_table(tmp_path / "d", lines))
    assert data.labels()[:, 0].tolist() == [1.5, 2.5] and data.skipped == []
    told = "no name and " in data.note
    assert told == ("no name and " in capsys.readouterr().err) == (lines[0] != "id,tc")


def test_an_index_without_a_place_in_the_header_moves_no_column(tmp_path):
    with pytest.raises(DataError, match="has 3 columns; expected 2"):
        load(write_table(tmp_path / "d", ["id,tc", "0,s0,1.5", "1,s1,2.5"]))


def test_properties_that_are_called_as_parts_of_a_structure(tmp_path):
    names = ["pos", "cell", "lattice", "Z", "frac", "structure", "sites", "natoms", "id_1"]
    lines = [f"id,tc,{','.join(names)}", *(f"s{n},{n},{'x,' * 8}{n}" for n in range(3))]
    lines[1:] = [line.replace("x", str(n), 1) for n, line in enumerate(lines[1:])]
    path = write_table(tmp_path / "d", lines)
    data = load(path)
    assert data.labels()[:, 0].tolist() == [0, 1, 2] and data.skipped == []
    assert data.items[1].cell[0, 0, 0] == pytest.approx(4.1)
    units = {"pos": "1"}
    labels = crystals.load("toy", path, ["pos"], units=units).labels()
    assert labels[:, 0].tolist() == [0, 1, 2]


def test_first_line_of_excel(tmp_path):
    path = write_table(tmp_path / "d", ["sep=;", "Id;tc", "s0;1.5"])
    assert load(path).labels()[:, 0].tolist() == [1.5]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_encodings(tmp_path, encoding):
    path = write_table(tmp_path / "d", [], ids=[0])
    (tmp_path / "d" / "table.csv").write_bytes("id\ttc\tnote\r\ns0\t1.5\té".encode(encoding))
    assert load(path).labels()[:, 0].tolist() == [1.5]


def test_quoted_cells_with_ends_of_lines(tmp_path):
    lines = [
        '"id","a ""note"",',
        '",tc',
        's0,"two',
        "",
        'lines",1',
        "s1,one,2",
        's2,"open,3',
        "s3,,4",
    ]
    data = load(write_table(tmp_path / "d", lines))
    assert [item.id for item in data.items] == ["s0", "s1", "s3"]
    assert data.labels()[:, 0].tolist() == [1, 2, 4]
    assert "table.csv:7: not a line of a CSV file" in data.skipped[0]


def test_ids_stay_text(tmp_path):
    folder = tmp_path / "d"
    path = write_table(folder, ["id,tc"], ids=())
    ids = ["00001", "1e5", "1.0", "NA", "null", "nan", "True"]
    for number, name in enumerate(ids):
        structure(number).to(filename=str(folder / f"{name}.cif"))
    (folder / "table.csv").write_text("\n".join(["id,tc", *(f"{name},1" for name in ids)]))
    assert [item.id for item in load(path).items] == ids


COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@pytest.mark.parametrize("ending", COMPRESSED)
def test_compressed_tables(tmp_path, ending):
    path = write_table(tmp_path / "d", LINES)
    with COMPRESSED[ending](f"{path}{ending}", "wb") as file:
        file.write((tmp_path / "d" / "table.csv").read_bytes())
    whole = load(path).fingerprint()
    (tmp_path / "d" / "table.csv").unlink()
    assert load(f"{path}{ending}").fingerprint() == whole == load(str(tmp_path / "d")).fingerprint()
    line = json.dumps({"id": 1, "structure": structure(1).as_dict(), "tc": 2})
    with COMPRESSED[ending](tmp_path / f"a.jsonl{ending}", "wt") as file:
        file.write("\ufeff" + line)
    assert load(str(tmp_path / f"a.jsonl{ending}")).labels().tolist() == [[2]]
    for name in (f"{path}{ending}", str(tmp_path / f"a.jsonl{ending}")):
        with open(name, "r+b") as file:
            file.truncate(30)
        with pytest.raises(DataError, match=f"{name}: cannot be read: "):
            load(name)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz", "a.jsonl.xz", "a.extxyz"])
def test_a_pointer_of_git_lfs(tmp_path, name):
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    with pytest.raises(DataError, match=f"{name}: is a pointer of Git LFS, .*: git lfs pull"):
        load(str(tmp_path / name))


@pytest.mark.parametrize(
    "value, label",
    [('"1.5"', 1.5), ('"\u22121.5"', -1.5), ("true", "True"), ('"true"', "true"), ('"1_5"', "1_5"),
     ("Infinity", "inf"), ("1e999", "inf"), ('"0x10"', "0x10"), ("NaN", None), ('"NA"', None),
     ("null", None)],
)  # fmt: skip
def test_values_of_json_lines(tmp_path, value, label):
    good = json.dumps({"id": 1, "structure": structure(1).as_dict(), "tc": 1})
    other = good.replace('"id": 1', '"id": 2').replace('"tc": 1', f'"tc": {value}')
    (tmp_path / "a.jsonl").write_text(f"{good}\n{other}")
    data = load(str(tmp_path / "a.jsonl"))
    if isinstance(label, float):
        assert data.labels()[:, 0].tolist() == [1, label]
    else:
        assert data.labels()[:, 0].tolist() == [1]
        reason = f"tc is {label!r}, not a number" if label else "has no usable value of tc"
        assert f"a.jsonl:2 (2): {reason}" in data.skipped[0]


def test_json_lines_need_an_id(tmp_path):
    good = json.dumps({"id": 1, "structure": structure(1).as_dict(), "tc": 1})
    (tmp_path / "a.jsonl").write_text(f"{good}\n" + good.replace('"id": 1', '"id": null'))
    data = load(str(tmp_path / "a.jsonl"))
    assert len(data.items) == 1 and "a.jsonl:2: not a JSON object with an id" in data.skipped[0]


def test_broken_paths(tmp_path):
    with pytest.raises(DataError, match="is a folder with no CSV file; give data.path=FILE.csv"):
        load(str(tmp_path))
    (tmp_path / "a.csv").write_bytes("id,tc\nsé,1".encode("latin-1"))
    with pytest.raises(DataError, match="a.csv:2 .sé.: no structure file"):
        load(str(tmp_path))
    (tmp_path / "b.csv").touch()
    with pytest.raises(DataError, match="is a folder with a.csv, b.csv; give data.path=FILE.csv"):
        load(str(tmp_path))
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match="a.xlsx: unknown file type; expected .jsonl"):
        load(str(tmp_path / "a.xlsx"))


def frame(number, comment=None):
    cell = " ".join(str(x) for x in ((4 + number) * np.eye(3)).ravel())
    comment = (
        comment or f'Lattice="{cell}" Properties=species:S:1:pos:R:3 tc={number}.5 id=f{number}'
    )
    return f"2\n{comment}\nNa 0 0 0\nCl 2 2 2\n"


def test_extended_xyz(tmp_path):
    path = tmp_path / "a.extxyz"
    broken = frame(3).replace("Cl 2 2 2", "Cl 2 2 x")
    flat = frame(4).replace("id=", 'pbc="T T F" id=')
    molecule = frame(5, "Properties=species:S:1:pos:R:3 tc=5.5 id=f5")
    path.write_text(frame(0) + frame(1) + broken + flat + molecule + "five\n" + frame(6))
    data = load(str(path))
    assert [item.id for item in data.items] == ["f0", "f1", "f5"]
    assert [bool(item.cell.any()) for item in data.items] == [True, True, False]
    assert data.items[2].pos[1].tolist() == pytest.approx([2, 2, 2])
    assert data.labels()[:, 0].tolist() == [0.5, 1.5, 5.5]
    assert data.items[1].pos[1].tolist() == pytest.approx([2, 2, 2])
    reasons = "\n".join(data.skipped)
    assert "a.extxyz:9 (frame 3): " in reasons
    assert "a.extxyz:13 (frame 4): is periodic in some directions only" in reasons
    assert "a.extxyz:21 (frame 6): expected a number of atoms, got 'five'" in reasons


def test_compressed_extended_xyz_whose_values_are_called_as_parts(tmp_path):
    comment = 'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 tc=1.5 pos=3 Z=2 frac=1'
    path = tmp_path / "a.extxyz.gz"
    path.write_bytes(gzip.compress((frame(0, comment) * 2).encode()))
    data = load(str(path))
    assert [item.id for item in data.items] == ["a:1", "a:2"] and data.skipped == []
    assert data.items[0].cell.any() and data.labels()[:, 0].tolist() == [1.5, 1.5]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="a.extxyz.gz: cannot be read"):
        load(str(path))
    (tmp_path / "b.xyz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match="b.xyz: .*git lfs pull"):
        load(str(tmp_path / "b.xyz"))


def test_json_lines_with_pymatgen_structures(tmp_path):
    rows = [{"id": n, "structure": structure(n).as_dict(), "tc": n} for n in range(3)]
    rows[1]["structure"]["sites"][0]["species"][0]["occu"] = 0.5
    rows.append({"id": 3, "structure": {"@module": "os", "@class": "system"}, "tc": 1})
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = load(str(path))
    assert [item.id for item in data.items] == ["0", "2"]
    assert "a.jsonl:2 (1): site 1 has partial occupancy" in data.skipped[0]
    assert "a.jsonl:4 (3): has no sites" in data.skipped[1]


@pytest.mark.parametrize("value", ["1e999", "10" * 200, "true", "[1]", '{"a": 1}', '"\\u0000"'])
def test_odd_numbers_never_stop_the_others(tmp_path, value):
    good = json.dumps({"id": 1, "structure": structure(1).as_dict(), "tc": 1})
    path = tmp_path / "a.jsonl"
    path.write_text(
        good + "\n" + good.replace('"id": 1', '"id": 2').replace('"tc": 1', f'"tc": {value}')
    )
    assert load(str(path)).labels()[0, 0] == 1


def test_many_files_are_read_in_processes(tmp_path, monkeypatch):
    path = write_table(tmp_path / "d", LINES)
    alone = load(path).fingerprint()
    monkeypatch.setattr(structure_formats, "_WORTH_A_PROCESS", 1)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    assert load(path).fingerprint() == alone


def test_cache_notices_every_change(tmp_path, monkeypatch):
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0.0)
    path = write_table(tmp_path / "d", [*LINES, "s7,1,1"])
    first = load(path, ["tc", "e_form"])
    (kept,) = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as context:
        context.setattr(crystals, "read_rows", None)  # not needed again
        again = load(path, ["tc", "e_form"])
    assert again.fingerprint() == first.fingerprint() and again.skipped == first.skipped
    structure(9).to(filename=str(tmp_path / "d" / "s1.cif"))
    assert load(path, ["tc", "e_form"]).fingerprint() != first.fingerprint()
    structure(1).to(filename=str(tmp_path / "d" / "s1.cif"))
    kept.write_bytes(kept.read_bytes()[:100])
    assert load(path, ["tc", "e_form"]).fingerprint() == first.fingerprint()
    assert kept.stat().st_size > 1000  # written anew


def test_cache_of_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0.0)
    assert len(load(write_table(tmp_path / "d", LINES)).items) == 6


def test_short_work_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MATATTN_CACHE", str(tmp_path / "cache"))
    load(write_table(tmp_path / "d", LINES))
    assert not os.path.exists(tmp_path / "cache")
