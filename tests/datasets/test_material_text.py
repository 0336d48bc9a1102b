"""Readers of labelled materials text, what they refuse, noise, and narratives."""

import json
from pathlib import Path

import numpy as np
import pytest

from matattn.datasets import narratives
from matattn.datasets.material_text import (
    _split_of_name,
    load_corpora,
    load_files,
    without_held_out,
)
from matattn.datasets.text_formats import (
    read_brat,
    read_conll,
    read_corpus,
    read_json,
    read_mulms,
    read_sofc,
)
from matattn.datasets.text_noise import FORMULA_NOISE, noisy, noisy_name
from matattn.errors import ConfigError, DataError
from matattn.text import Sentence


def spans(sentence):
    return [(" ".join(sentence.words[a:b]), kind) for a, b, kind in sentence.spans]


def test_mulms(tmp_path):
    path = tmp_path / "ne_deps_dev.conllu"
    path.write_text(
        "# text = Graphitized Carbon Nanofibers\n"
        "1\tGraphitized\t1:FORM\n2\tCarbon\t1:MAT|2:MAT\n3\tNanofibers\t3:FORM\n\n"
        "# text = 5 %\n1\t5\t1:NUM\n2\t%\tO\n"
    )
    first, second = read_mulms(path, "val")
    assert first.words == ("Graphitized", "Carbon", "Nanofibers") and first.split == "val"
    assert spans(first) == [
        ("Graphitized", "FORM"), ("Graphitized Carbon", "MAT"), ("Carbon", "MAT"),
        ("Nanofibers", "FORM"),
    ]  # fmt: skip
    assert first.of(["MAT"]) == [(0, 2, "MAT")]
    assert spans(second) == [("5", "NUM")]


@pytest.mark.parametrize(
    "row, message",
    [
        ("1\tTi", ":2: expected number, word and entities"),
        ("1\tTi\t3:MAT", ":2: not an entity: '3:MAT'"),
        ("1\tTi\t²:MAT", ":2: not an entity: '²:MAT'"),
    ],
)
def test_broken_mulms_is_named(tmp_path, row, message):
    path = tmp_path / "x.conllu"
    path.write_text(f"# text = Ti\n{row}\n")
    with pytest.raises(DataError, match=message):
        read_mulms(path, "train")


def test_conll_leaves_malformed_sentences_out(tmp_path):
    path = tmp_path / "dev.txt"
    path.write_text("Thin O\nTi-6Al B-MAT\n\nbad line here\n\nof O\nZnO B-MAT\nfilms I-MAT\n")
    skipped = []
    first, second = read_conll(path, "val", skipped)
    (message,) = skipped
    assert message.startswith(f"{path}:4: label 'here' of 'bad' is not O")
    assert message.endswith("; skipped 1 of 3 sentences")
    assert spans(first) == [("Ti - 6Al", "MAT")] and spans(second) == [("ZnO films", "MAT")]
    path.write_text("a lone line\n")
    with pytest.raises(DataError, match="label 'line' of 'a' is not O"):
        read_conll(path, "val")


def test_conll_has_no_comments(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("# O\n1 O\nZnO S-MAT\n")
    (sentence,) = read_conll(path, "train")
    assert sentence.words == ("#", "1", "ZnO") and spans(sentence) == [("ZnO", "MAT")]


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"columns": ["tokens", "labels"], "data": [3]}', "expected lists 'tokens'"),
        ('{"columns": [["x"]], "data": [[1]]}', "expected lists 'tokens'"),
        ('{"text": "a", "t_type_dict": {"T1": "M"}, "t_span_dict": {"T1": [1e999, 4]}}',
         "expected 'text', 't_span_dict'"),
        ('{"tokens": ["a", "\\ud800"], "labels": ["O", "O"]}', "character 3 is U[+]D800"),
        ('{"text": "\\ud800", "t_type_dict": {}, "t_span_dict": {}}', "character 1 is U[+]D800"),
        ('{"tokens": ["a"], "labels": ["B-\\ud800"]}', "character 5 is U[+]D800"),
    ],
)  # fmt: skip
def test_broken_json_is_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=f"a.json, record 1: {message}"):
        read_json(path, "")


def test_json(tmp_path):
    records = [
        {"tokens": ["pure", "ZnO"], "labels": ["O", "B-MAT"]},
        {"words": ["x"], "ner_tags": ["O"]},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records))
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, records)))
    assert read_json(path, "") == [
        Sentence(s.words, s.spans, s.split, "a.json") for s in read_json(lines, "")
    ]
    table = {
        "columns": ["tokens", "token_labels", "slot_labels"],
        "index": [0],
        "data": [[["The", "ceria-based", "cell"], ["O", "B-MATERIAL", "O"], ["O", "O", "O"]]],
    }
    path.write_text(json.dumps(table))  # MatSci-NLP's sofc_token.json
    (sentence,) = read_json(path, "train")
    assert sentence.words == ("The", "ceria", "-", "based", "cell")
    assert sentence.spans == ((1, 4, "MATERIAL"),)
    paper = {
        "text": "Films of TiO2 on glass.",
        "t_type_dict": {"T1": "Material", "T2": "Process"},
        "t_span_dict": {"T1": [9, 13], "T2": [0, 5]},
        "r_type_dict": {},
    }
    path.write_text(json.dumps({"data": [paper]}))  # its sc_comics.json, synthesis_procedures.json
    (sentence,) = read_json(path, "train")
    assert sorted(sentence.spans) == [(0, 1, "Process"), (2, 3, "Material")]
    path.write_text(json.dumps({"data": [paper | {"t_type_dict": {"T1": "Material"}}]}))
    with pytest.raises(DataError, match="a.json, record 1: expected 'text', 't_span_dict' and"):
        read_json(path, "")
    path.write_text(json.dumps([{"tokens": ["a", "b"], "labels": ["O"]}]))
    with pytest.raises(DataError, match="a.json, record 1: 2 words and 1 labels"):
        read_json(path, "")
    path.write_text('[{"text": 3}]')
    with pytest.raises(DataError, match="record 1: expected lists 'tokens' and 'labels'"):
        read_json(path, "")
    for content in ("{", "[" * 100_000):
        path.write_text(content)
        with pytest.raises(DataError, match="neither JSON nor JSON lines"):
            read_json(path, "")


def test_brat(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("10.1/x\nFilms of BaFeO3-δ were grown.\n")
    path.with_suffix(".ann").write_text(
        "T1\tMaterial 16 24\tBaFeO3-δ\nE1\tOperation:T2\nT2\tMaterial 7 9;12 13\tgap\n"
    )
    title, text = read_brat(path, "train")
    assert not title.spans and spans(text) == [("BaFeO3 - δ", "Material")]
    for place in ("x", "0 ²", f"0 {'9' * 5000}"):
        path.with_suffix(".ann").write_text(f"T1\tMaterial {place}\tx\n")
        with pytest.raises(DataError, match="a.ann:1: not a span"):
            read_brat(path, "train")
    path.with_suffix(".ann").write_text("")
    assert [s.spans for s in read_brat(path, "train")] == [(), ()]


def test_sofc(tmp_path):
    for folder in ("texts", "annotations/sentences", "annotations/entity_types_and_slots"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "texts/01_PMC1.txt").write_text("We know. Ni anodes work.")
    (tmp_path / "annotations/sentences/PMC1.csv").write_text("1\t0\t0\t8\n2\t1\t9\t24\n")
    (tmp_path / "annotations/entity_types_and_slots/PMC1.csv").write_text(
        "1\t1\t0\t2\tO\tO\n2\t1\t0\t2\tB-MATERIAL\tO\n2\t2\t3\t9\tI-MATERIAL\tO\n"
    )
    first, second = read_sofc(tmp_path / "texts/01_PMC1.txt", "train")
    assert not first.spans and spans(second) == [("Ni anodes", "MATERIAL")]
    for row in ("1\t0\t0\n", "1\t0\t0\t²\n"):
        (tmp_path / "annotations/sentences/PMC1.csv").write_text(row)
        with pytest.raises(DataError, match="PMC1.csv:1: expected 4 columns, numbers in 3 and 4"):
            read_sofc(tmp_path / "texts/01_PMC1.txt", "train")


LABELLED = "\n".join(f"Film{n} O\nof O\nZnO B-MAT\n" for n in range(40))


@pytest.fixture
def files(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("Films of ZnO.\nOther words.\n")
    (tmp_path / "labelled.txt").write_text(LABELLED)
    return tmp_path


def test_your_own_files(files):
    data = load_files("mine", str(files / "corpus"), str(files / "labelled.txt"))
    assert data.corpus == ["Films of ZnO.", "Other words."]
    counts = [len(data.of_split(split)) for split in ("train", "val", "test")]
    assert sum(counts) == 40 and min(counts) > 0
    assert (
        data.fingerprint()
        != load_files(
            "mine", str(files / "corpus"), str(files / "labelled.txt"), split_seed=1
        ).fingerprint()
    )


def test_file_names_give_the_split(files):
    for split in ("train", "dev", "test"):
        (files / f"{split}.txt").write_text(LABELLED)
    (files / "labelled.txt").unlink()
    (files / "test2.txt").write_bytes(b"\xff")
    given = [str(files / f"{name}.txt") for name in ("train", "dev", "test", "test2")]
    data = load_files("mine", str(files / "corpus"), given)
    assert [len(data.of_split(split)) for split in ("train", "val", "test")] == [40] * 3
    assert len(data.skipped) == 1 and "test2.txt:1: byte 0xff is not UTF-8" in data.skipped[0]


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"format": "xml"}, ConfigError, "data.format='xml': expected one of mulms, conll"),
        ({"material_types": ["Stoff"]}, DataError, "the files have MAT: give data.material_types"),
        ({"corpus": "gone.txt"}, DataError, "gone.txt: no such file"),
        ({"labelled": "gone.txt"}, DataError, "gone.txt: no such file"),
    ],
)
def test_mistakes_are_named(files, change, error, message):
    given = {"corpus": str(files / "corpus"), "labelled": str(files / "labelled.txt")} | change
    with pytest.raises(error, match=message):
        load_files("mine", **given)


def test_sentences_that_are_left_out_are_named(files):
    (files / "labelled.txt").write_text(f"{LABELLED}\na bad line\n")
    data = load_files("mine", str(files / "corpus"), str(files / "labelled.txt"))
    assert len(data.sentences) == 40
    (message,) = data.skipped
    assert "labelled.txt:161: label 'line'" in message and "skipped 1 of 41" in message


def test_slips_of_several_files_are_no_mojibake(files):
    for name in "abcde":
        (files / "corpus" / f"{name}.txt").write_text("5 Â°C")
    assert read_corpus(files / "corpus") == ["5 Â°C"] * 5


def test_empty_folder_is_named(files):
    (files / "corpus" / "a.txt").unlink()
    with pytest.raises(DataError, match="corpus: no .txt file in this folder"):
        load_files("mine", str(files / "corpus"), str(files / "labelled.txt"))


def test_held_out_sentences_leave_the_corpus():
    words = "a b c d e f g h i".split()
    held = [Sentence(tuple(words), split="test"), Sentence(tuple("xyz"), split="train")]
    lines = ["so B c d e f g h i j", "a b c d e f g", "x y z"]
    assert without_held_out(lines, held) == lines[1:]


def test_missing_corpora_are_named(tmp_path):
    with pytest.raises(DataError, match="ne_deps_train.*no such file; put the MuLMS corpus"):
        load_corpora("materials_text", str(tmp_path))


def test_published_corpora(data_dir):
    if not (data_dir / "text").is_dir():
        pytest.skip("no text data")
    data = load_corpora("materials_text", str(data_dir / "text"))
    assert len(data.of_split("val")) == 1534 and len(data.of_split("test")) == 1114
    mulms = load_corpora("materials_text", str(data_dir / "text"), procedures=False)
    entities = [span for s in mulms.sentences for span in s.spans]
    assert sum(kind == "MAT" for *_, kind in entities) == 15_593  # of 15,595; two hold no word
    assert len(mulms.types()) == 13


def test_noise_of_names():
    assert noisy_name("1,3-bis(amine)") == "x,x-bis(amine)"


def test_noise_of_formulas():
    generator = np.random.default_rng(0)
    made = {noise("TiO2", generator) for noise in FORMULA_NOISE}
    assert {"TiO(2)", "TiO22"} <= made
    assert all(noise("Ti", generator) for noise in FORMULA_NOISE)


def test_labels_follow_the_noise():
    sentence = Sentence(
        ("of", "zinc", "-", "oxide", "or", "TiO2", "."), ((1, 4, "name"), (5, 6, "formula"))
    )
    generator = np.random.default_rng(1)
    for _ in range(50):
        changed = noisy(sentence, generator)
        assert changed.words != sentence.words
        found = [kind for _, _, kind in changed.spans]
        assert found == ["name", "formula"]
        outside = list(changed.words)
        for start, end, _ in reversed(changed.spans):
            del outside[start:end]
        assert outside == ["of", "or", "."]


def test_narratives():
    data = narratives.load("narratives")
    assert len(data.sentences) == 3 * 5464
    assert data.fingerprint() == narratives.load("narratives").fingerprint()
    assert data.types() == ["formula", "name"]
    named = {
        split: {
            " ".join(s.words[start:end])
            for s in data.of_split(split)
            for start, end, kind in s.spans
            if kind == "formula" or end - start > 1
        }
        for split in ("train", "val", "test")
    }
    assert min(map(len, named.values())) > 100
    assert named["train"].isdisjoint(named["test"] | named["val"])  # but for names of elements
    assert narratives.material_name("GaAs") == "gallium arsenide"
    assert narratives.material_name("SrTiO3") == "strontium titanium oxide"
    assert narratives.material_name("Fe") == "iron"


@pytest.mark.parametrize(
    "name, split",
    [
        ("ne_deps_train1.conllu", "train"), ("ne_deps_dev.conllu", "val"), ("Test.txt", "test"),
        ("papers.valid.jsonl", "val"), ("train-2.txt", "train"), ("devices.txt", ""),
        ("testing_steel.txt", ""), ("valence.txt", ""), ("contest.txt", ""),
    ],
)  # fmt: skip
def test_split_in_the_name_of_a_file(name, split):
    assert _split_of_name(Path(name)) == split
