"""Sentences, spans and their scores; text files that cannot be read."""

import os
import threading

import pytest

from matattn.errors import DataError
from matattn.text import (
    Sentence,
    TextDataset,
    from_labels,
    parts,
    read_text,
    resplit,
    span_score,
    split_words,
    to_labels,
    word_score,
)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"TiO2\ncaf\xe9", r"x.txt:2: byte 0xe9 is not UTF-8; .*iconv -f latin1 -t utf-8 x.txt"),
        (b" \n\n", "x.txt: the file is empty"),
        (
            "at 5 Â°C â€“ 10 Â°C and 3 Âµm, naÃ¯ve".encode(),
            "x.txt:1: 'Â°' looks like UTF-8 read with",
        ),
    ],
)
def test_unreadable_text_is_named(tmp_path, content, message):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="gone.txt: no such file"):
        read_text(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_text(tmp_path)


def test_a_pipe_is_read_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"a\n\xff",))
    writer.start()
    with pytest.raises(DataError, match="pipe:2: byte 0xff is not UTF-8"):
        read_text(tmp_path / "pipe")
    writer.join()


def test_accents_are_no_mojibake(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("\ufeffGrünewald, Szabó, Îles, Â, 20 °C, 5 µm, Ångström – σ")
    assert read_text(path).startswith("Grünewald")


def test_words_end_at_punctuation():
    text = "LiNi0.8O2 (β-Ga2O3)"
    assert [word for word, _, _ in split_words(text)] == [
        "LiNi0", ".", "8O2", "(", "β", "-", "Ga2O3", ")",
    ]  # fmt: skip
    assert all(text[start:end] == word for word, start, end in split_words(text))


def test_labels_and_spans():
    labels = ["O", "B-MAT", "I-MAT", "B-MAT", "I-NUM", "O"]
    spans = from_labels("abcdef", labels, "here")
    assert spans == [(1, 3, "MAT"), (3, 4, "MAT"), (4, 5, "NUM")]
    assert to_labels(6, spans) == ["O", "B-MAT", "I-MAT", "B-MAT", "B-NUM", "O"]


def test_bioes_labels():
    labels = ["S-MAT", "B-MAT", "I-MAT", "E-MAT", "S-MAT", "E-NUM"]
    spans = from_labels("abcdef", labels, "here")
    assert spans == [(0, 1, "MAT"), (1, 4, "MAT"), (4, 5, "MAT"), (5, 6, "NUM")]


@pytest.mark.parametrize(
    "labels, message",
    [
        (["O"], "f:3: 2 words and 1 labels; every word needs one"),
        (["O", "MAT"], "f:3: label 'MAT' of 'b' is not O, B-"),
        (["O", "U-MAT"], "f:3: label 'U-MAT' of 'b' is not O, B-"),
        (["O", "B-"], "f:3: label 'B-' of 'b' is not"),
    ],
)
def test_wrong_labels_are_named(labels, message):
    with pytest.raises(DataError, match=message):
        from_labels(["a", "b"], labels, "f:3")


def test_longer_spans_go_first():
    sentence = Sentence(tuple("abcd"), ((1, 2, "MAT"), (0, 2, "MAT"), (1, 3, "FORM")))
    assert sentence.of() == [(0, 2, "MAT")]
    assert sentence.of({"FORM"}) == [(1, 3, "FORM")]


def test_long_sentences_in_parts():
    sentence = Sentence(tuple("abcdefgh"), ((2, 4, "MAT"), (5, 6, "MAT"), (5, 7, "FORM")), "train")
    sentences = parts(sentence, 3, ["MAT"])
    assert ["".join(part.words) for part in sentences] == ["ab", "cde", "fgh"]
    assert [part.spans for part in sentences] == [(), ((0, 2, "MAT"),), ((0, 1, "MAT"),)]
    assert all(part.split == "train" for part in sentences)
    whole = Sentence(tuple("abcdefgh"), ((0, 7, "MAT"),))
    assert [("".join(part.words), part.spans) for part in parts(whole, 3)] == [
        ("abc", ((0, 3, "MAT"),)), ("def", ((0, 3, "MAT"),)), ("gh", ((0, 1, "MAT"),)),
    ]  # fmt: skip


def test_spans_follow_words_that_are_split():
    sentence = resplit(["of", "Ti-6Al", "x"], [(1, 2, "MAT")], "train", "file")
    assert sentence.words == ("of", "Ti", "-", "6Al", "x")
    assert sentence.spans == ((1, 4, "MAT"),)


def test_scores():
    predicted, labelled = [[(0, 2, "A"), (3, 4, "A")]], [[(0, 2, "A"), (3, 5, "A"), (6, 7, "B")]]
    score = span_score(predicted, labelled)
    assert (score.precision, score.recall) == (1 / 2, 1 / 3)
    assert score.f1 == pytest.approx(2 / 5)
    assert word_score(predicted, labelled).recall == 3 / 5
    assert span_score([[]], [[]]).f1 == 0.0


def test_empty_corpus_is_refused():
    with pytest.raises(DataError, match="mine: the corpus is empty"):
        TextDataset("mine", ["", " "], [], ("MAT",), "")
