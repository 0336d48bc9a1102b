"""The JSON-lines format and the JARVIS format, on small files that the tests write."""

import gzip
import json
import zipfile

import numpy as np
import pytest

from matattn.datasets import crystals, jarvis
from matattn.errors import DataError


def row(number, **changes):
    """A crystal of two atoms; every number gives another volume and label."""
    content = {
        "id": f"x-{number}",
        "formula": "NaCl",
        "lattice": ((4 + 0.01 * number) * np.eye(3)).tolist(),
        "Z": [11, 17],
        "frac": [[0, 0, 0], [0.5, 0.5, 1.0]],
        "split": "train" if number % 4 else "val",
        "e_form": -0.1 * number,
        "k_vrh": 10.0**number if number < 5 else -3.0,
    }
    return {key: value for key, value in (content | changes).items() if value is not None}


def write(path, rows):
    text = "\n".join(json.dumps(r) if isinstance(r, dict) else r for r in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_read(tmp_path, name):
    path = write(tmp_path / name, [row(n) for n in range(8)])
    data = crystals.load("toy", path, ["e_form", "log10_bulk_modulus"])
    assert [t.unit for t in data.targets] == ["eV/atom", "log10(GPa)"]
    assert data.items[3].id == "x-3" and data.items[3].z.tolist() == [11, 17]
    labels = data.labels()
    assert labels[:, 0] == pytest.approx(-0.1 * np.arange(8))
    assert labels[:5, 1] == pytest.approx(np.arange(5))
    assert np.isnan(labels[5:, 1]).all()  # no logarithm of a negative modulus
    assert data.rows("val").tolist() == [0, 4]
    assert data.items[1].pos.max() < 4.01  # 1.0 is wrapped to 0


def test_bad_rows_are_left_out_with_a_reason(tmp_path):
    bad = [
        "{not json",
        row(11, frac=[[0, 0, 0], [0, 0, 0]]),
        row(12, Z=None),
        row(13, lattice=np.zeros((3, 3)).tolist()),
        row(14, Z=[11, 120]),
        row(15, e_form="high"),
        row(16, frac=[[0, 0, 0], [None, 0, 0]]),
    ]
    path = write(tmp_path / "a.jsonl", [*(row(n) for n in range(1, 4)), *bad, row(20)])
    data = crystals.load("toy", path, ["e_form"])
    assert [item.id for item in data.items] == ["x-1", "x-2", "x-3", "x-20"]
    assert len(data.skipped) == len(bad)
    assert "a.jsonl:4: not a JSON object" in data.skipped[0]
    reasons = " | ".join(data.skipped)
    for part in ("(x-11): sites 1 and 2 overlap", "(x-12)", "(x-13): the cell has a volume",
                 "atomic number 120", "(x-15): e_form is 'high'", "(x-16)"):  # fmt: skip
        assert part in reasons


def test_rows_without_any_label_are_left_out(tmp_path):
    rows = [row(1), row(2, e_form=None), row(3, e_form=None, k_vrh=None), row(4, k_vrh=None)]
    path = write(tmp_path / "a.jsonl", rows)
    data = crystals.load("toy", path, ["e_form", "k_vrh"])
    assert [item.id for item in data.items] == ["x-1", "x-2", "x-4"]
    names = "formation_energy_per_atom or log10_bulk_modulus"
    assert data.skipped == [f"{path}:3 (x-3): has no usable value of {names}"]


def test_splits(tmp_path):
    rows = [row(n, Z=[n % 7 + 1, 17], split=None) for n in range(60)]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="use data.split=random"):
        crystals.load("toy", path, ["e_form"], split="official")
    assert "Random split" in crystals.load("toy", path, ["e_form"]).note  # the file has no split
    by_row = crystals.load("toy", path, ["e_form"], split="random")
    assert [len(by_row.rows(s)) for s in ("train", "val", "test")] == [48, 6, 6]
    by_formula = crystals.load("toy", path, ["e_form"], split="formula")
    places = {}
    for item, split in zip(by_formula.items, by_formula.split, strict=True):
        places.setdefault(tuple(item.z.tolist()), set()).add(split)
    assert all(len(splits) == 1 for splits in places.values())
    with pytest.raises(DataError, match="choose official, random or formula"):
        crystals.load("toy", path, ["e_form"], split="best")
    with pytest.raises(DataError, match=r"\[48, 6, 6\] rows, the benchmark has \[50, 5, 5\]"):
        crystals.load("toy", path, ["e_form"], split="random", sizes=[50, 5, 5])


@pytest.mark.parametrize(
    "content, target, message",
    [
        (None, "e_form", "no such file"),
        ("", "e_form", "the file is empty"),
        (json.dumps(row(1)), "band_gap", "no column for target 'band_gap'; columns of the file: e"),
        (json.dumps(row(1, e_form=None, gap=None, k_vrh=1)), "e_form", "no column for target"),
        (json.dumps(row(1, e_form=float("nan"))), "e_form", "every label of formation_energy"),
        (json.dumps(row(1, Z=[200, 1])), "e_form", "no usable structure; first problem: .*x-1"),
        (json.dumps(row(1)), "tc", "'tc' has no known unit"),
    ],
)
def test_bad_files(tmp_path, content, target, message):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        crystals.load("toy", str(path), [target])
    assert "\n" not in str(error.value)


def test_splits_that_are_not_ours_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(1), row(2, split="valid"), row(3, split=None)])
    with pytest.raises(DataError, match="split is valid in some rows; use train, val and test"):
        crystals.load("toy", path, ["e_form"])
    path = write(tmp_path / "b.jsonl", [row(1), row(3, split=None)])
    assert crystals.load("toy", path, ["e_form"]).split.tolist() == ["train", ""]


def test_repeated_ids_and_targets(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(1), row(2), row(2, e_form=5)])
    data = crystals.load("toy", path, "e_form")
    assert len(data.items) == 2 and "a.jsonl:3 (x-2): duplicate id: only" in data.skipped[0]
    with pytest.raises(DataError, match="names a property twice"):
        crystals.load("toy", path, ["e_form", "formation_energy_per_atom"])


def test_units_of_known_properties_cannot_be_changed(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(1, tc=4.0), row(2, tc=5.0)])
    with pytest.raises(DataError, match="'e_form' the unit 'meV/atom', but .* in eV/atom"):
        crystals.load("toy", path, ["e_form"], units={"e_form": "meV/atom"})
    assert crystals.load("toy", path, ["tc"], units={"tc": "K"}).targets[0].unit == "K"


def test_what_reports_say_of_the_split(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(n, Z=[n % 9 + 1, 17]) for n in range(60)])
    notes = {
        split: crystals.load("toy", path, ["e_form"], split=split, max_sites=2, note="A.").note
        for split in ("official", "formula")
    }
    assert notes["official"].startswith("A. Split as the file says")
    assert "no composition is in two splits" in notes["formula"]
    assert "at most 2 sites" in notes["formula"]


def test_bytes_at_the_front_and_other_formats(tmp_path):
    (tmp_path / "bom.jsonl").write_text("\ufeff" + json.dumps(row(1)))
    assert len(crystals.load("toy", str(tmp_path / "bom.jsonl"), ["e_form"]).items) == 1
    (tmp_path / "list.jsonl").write_text(json.dumps([row(1), row(2)]))
    with pytest.raises(DataError, match="holds no row; first problem: .*list.jsonl:1: not a JSON"):
        crystals.load("toy", str(tmp_path / "list.jsonl"), ["e_form"])
    (tmp_path / "jarvis.json").write_text("{}")
    with pytest.raises(DataError, match="not a list of JSON objects"):
        jarvis.load("toy", str(tmp_path / "jarvis.json"), ["e_form"])


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": 1}' * 1000)[:40])
    with pytest.raises(DataError, match="a.jsonl.gz: cannot be read"):
        crystals.load("toy", str(path), ["e_form"])


def jarvis_entry(number, cartesian=False, **changes):
    lattice = 4.0 * np.eye(3) + 0.1 * np.eye(3, k=1)
    frac = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
    atoms = {
        "lattice_mat": lattice.tolist(),
        "coords": (frac @ lattice if cartesian else frac).tolist(),
        "elements": ["Na ", "Cl"],
        "cartesian": cartesian,
    }
    entry = {"jid": f"JVASP-{number}", "atoms": atoms, "formation_energy_peratom": -0.01 * number}
    return entry | {"mbj_bandgap": "na" if number % 2 else 1.5} | changes


def test_jarvis_table(tmp_path):
    entries = [jarvis_entry(n, cartesian=n % 3 == 0) for n in range(40)]
    entries[7]["atoms"]["elements"] = ["Na", "Xx"]
    path = tmp_path / "jdft.json.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("jdft.json", json.dumps(entries))
    data = jarvis.load("jarvis", str(path), ["formation_energy_per_atom"])
    assert len(data.items) == 39 and "JVASP-7" in data.skipped[0]
    assert np.allclose(data.items[0].pos, data.items[1].pos, atol=1e-5)  # cartesian or not
    gaps = jarvis.load("jarvis", str(path), ["band_gap_mbj"], sizes=[16, 2, 2])
    assert len(gaps.items) == 20 and not np.isnan(gaps.labels()).any()
    with pytest.raises(DataError, match=r"\[0, 0, 0\] rows, the benchmark has \[60, 2, 2\]"):
        jarvis.load("jarvis", str(path), ["band_gap_mbj"], sizes=[60, 2, 2])


def test_community_split_is_the_published_rule():
    import random

    ids = list(range(100))
    random.seed(123)
    random.shuffle(ids)
    split = jarvis.community_split(100, [70, 10, 15])
    assert sorted(np.flatnonzero(split == "train")) == sorted(ids[:70])
    assert sorted(np.flatnonzero(split == "val")) == sorted(ids[-25:-15])
    assert sorted(np.flatnonzero(split == "test")) == sorted(ids[-15:])


def test_mp2018_subset(data_dir):
    path = data_dir / "crystals" / "mp2018.jsonl.gz"
    data = crystals.load("mp2018_subset", str(path), ["e_form", "k_vrh"], max_sites=12)
    assert (len(data.rows("train")), len(data.rows("val"))) == (6382, 503)
    assert data.skipped == []
    salt = next(item for item in data.items if item.id == "mp-22862")
    assert salt.y[0, 0] == pytest.approx(-2.105, abs=1e-3)


def test_jarvis_subset_has_a_split_of_each_property(tmp_path):
    codes = ["0000-00", "0110000", "1------", "", None, "2120000"]
    rows = [
        row(n, e_form=n, gap_mbj=n / 2, tc=n, split=None, split_codes=code)
        for n, code in enumerate(codes)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    data = jarvis.load_subset("toy", path, ["e_form", "gap_mbj"])
    assert data.split.tolist() == ["train", "train", "val", "", "", "test"]
    data = jarvis.load_subset("toy", path, ["gap_mbj", "e_form"])
    assert data.split.tolist() == ["", "train", "", "", "", "train"]
    with pytest.raises(DataError, match="tc has no official split; use data.split=random"):
        jarvis.load_subset("toy", path, ["tc"], units={"tc": "K"})
    assert len(jarvis.load_subset("toy", path, ["tc"], "random", units={"tc": "K"}).items) == 6


def test_jarvis_dft3d_subset(data_dir):
    path = str(data_dir / "crystals" / "jarvis_dft3d_subset.jsonl.gz")
    data = jarvis.load_subset("jarvis_dft3d_subset", path, ["e_form"])
    assert [len(data.rows(split)) for split in ("train", "val", "test")] == [587, 80, 0]
    assert len(data.skipped) == 831 - len(data.items)
    assert all("has no usable value of formation_energy_per_atom" in line for line in data.skipped)


def test_an_absent_table_names_the_download(tmp_path):
    with pytest.raises(DataError, match="python train.py data=mp2018 data.download=true .or put u"):
        jarvis.load("mp2018", str(tmp_path / "a.json.zip"), ["e_form"], url="u")


def published_splits(data_dir, name):
    with gzip.open(data_dir / "crystals" / f"{name}_splits.csv.gz", "rt") as lines:
        return dict(line.strip().split(",") for line in list(lines)[1:])


def test_published_split_of_mp2018(data_dir):
    published = published_splits(data_dir, "mp2018")
    found = list(published.values())
    assert [found.count(split) for split in ("train", "val", "test")] == [60000, 5000, 4239]
    subset = crystals.load("toy", str(data_dir / "crystals" / "mp2018.jsonl.gz"), ["e_form"])
    assert all(
        published[item.id] == split for item, split in zip(subset.items, subset.split, strict=True)
    )
    if not (official := data_dir / "jarvis" / "megnet.json.zip").is_file():
        pytest.skip("only sizes and the subset were compared: the official file is not there")
    data = jarvis.load("mp2018", str(official), ["e_form"], sizes=[60000, 5000, 4239])
    ids = [item.id for item in data.items]
    assert dict(zip(ids, data.split, strict=True)) == published


def test_published_splits_of_jarvis(data_dir):
    codes = published_splits(data_dir, "jarvis_dft3d")
    places = {"train": "0", "val": "1", "test": "2"}
    # The rule shuffles row numbers, so that targets with the same rows have the same split.
    assert all(c[0] == c[1] == c[3] and c[5] == c[6] for c in codes.values())
    if not (official := data_dir / "jarvis" / "jdft_3d-8-18-2021.json.zip").is_file():
        pytest.skip("targets were compared with each other: the official file is not there")
    data = jarvis.load("jarvis", str(official), ["e_form"], sizes=[44578, 5572, 5572])
    ids = [item.id for item in data.items]
    drawn = dict(zip(ids, data.split, strict=True))
    assert all(places[drawn[i]] == code[0] for i, code in codes.items() if code[0] != "-")
