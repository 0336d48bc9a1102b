"""MATTER's counts and vocabularies against golden numbers, and against the rule written plainly."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matattn.errors import ConfigError, DataError
from matattn.models.matter_tokenizer import (
    PREFIX,
    SPECIAL,
    WordCounts,
    adjusted_frequency,
    make_tokenizer,
    segment,
    train_vocabulary,
    word_probability,
)

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "matter" / "small_golden.json").read_text()
)
CASES = GOLDEN["cases"]


@pytest.fixture
def counts():
    counts = WordCounts()
    for row in GOLDEN["rows"]:
        counts.add(row["word"], row["prob"], row["freq"])
    return counts


@pytest.mark.parametrize("strength", CASES)
def test_golden_frequencies(counts, strength):
    adjusted = counts.adjusted(float(strength))
    assert adjusted == pytest.approx(CASES[strength]["adjusted"], abs=1e-9)


@pytest.mark.parametrize("strength", CASES)
def test_golden_vocabulary(strength):
    case = CASES[strength]
    vocabulary = train_vocabulary(case["repetitions"], GOLDEN["vocab_size"])
    assert list(vocabulary.pieces) == case["vocab"]
    found = zip(vocabulary.merges, vocabulary.merge_counts, strict=True)
    assert [[*pair, count] for pair, count in found] == [
        [left, right, count] for left, right, _, count in case["merges"]
    ]
    assert set(case["hf_always"]) <= set(vocabulary.pieces)


@pytest.mark.parametrize("strength", CASES)
def test_golden_segmentation(strength):
    case = CASES[strength]
    vocabulary = train_vocabulary(case["repetitions"], GOLDEN["vocab_size"])
    tokenizer = make_tokenizer(vocabulary)
    for word, pieces in case["segmentation"].items():
        assert segment(word, set(vocabulary.pieces)) == pieces
        assert tokenizer.encode(word, add_special_tokens=False).tokens == pieces


def test_adjusted_frequency():
    assert adjusted_frequency(7, 0.97, 1) == pytest.approx(39.333333333)
    assert adjusted_frequency(5, 0.995, 1) == pytest.approx(104)
    assert adjusted_frequency(5, 1, 2) == pytest.approx(203)
    assert adjusted_frequency(5, 0, 1) == pytest.approx(5.010101, abs=1e-6)
    values = [adjusted_frequency(3, p, 1) for p in np.linspace(0, 1, 40)]
    assert values == sorted(values)


def test_both_counts_of_a_word_are_added():
    counts = WordCounts()
    counts.add("oxide", 0.9)
    counts.add("oxide", 0.7)
    counts.add("oxide")
    assert counts.probability("oxide") == pytest.approx(0.8)
    assert counts.adjusted(0.5)["oxide"] == pytest.approx(3 + 0.5 * 0.8 / 0.2)
    assert counts.adjusted(0)["oxide"] == 3


def test_readings_of_a_words_probability():
    pieces = np.array([[0.6, 0.4], [0.1, 0.9], [0.3, 0.7]])
    assert word_probability(pieces, "paper") == (1, pytest.approx(2 / 3))
    assert word_probability(pieces, "first_label") == (0, pytest.approx((0.6 + 0.9 + 0.7) / 3))
    with pytest.raises(ConfigError, match="'last': expected one of paper, first_label"):
        word_probability(pieces, "last")


def plain_training(counts, size, min_frequency=2):
    """The rule without any bookkeeping: count all pairs anew before every merge."""
    words = sorted(counts)
    pieces = [*SPECIAL, *sorted({character for word in words for character in word})]
    spelled = {word: [c if n == 0 else PREFIX + c for n, c in enumerate(word)] for word in words}
    pieces += dict.fromkeys(p for word in words for p in spelled[word] if p not in pieces)
    while len(pieces) < size:
        pairs = Counter()
        for word in words:
            for pair in zip(spelled[word], spelled[word][1:], strict=False):
                pairs[pair] += round(counts[word] * 2**20)
        place = {piece: number for number, piece in enumerate(pieces)}
        best = min(pairs, key=lambda p: (-pairs[p], place[p[0]], place[p[1]]), default=None)
        if best is None or pairs[best] < max(1, min_frequency) * 2**20:
            break
        joined = best[0] + best[1].removeprefix(PREFIX)
        if joined not in place:
            pieces.append(joined)
        for word in words:
            old, new = spelled[word], []
            while old:
                if tuple(old[:2]) == best:
                    new, old = [*new, joined], old[2:]
                else:
                    new, old = [*new, old[0]], old[1:]
            spelled[word] = new
    return pieces


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=9), st.floats(0.1, 30), min_size=1, max_size=12
    ),
    st.integers(12, 40),
)
def test_equals_the_plain_rule(counts, size):
    assert list(train_vocabulary(counts, size).pieces) == plain_training(counts, size)


def test_order_of_words_does_not_matter():
    repetitions = CASES["1.0"]["repetitions"]
    turned = dict(reversed(repetitions.items()))
    assert train_vocabulary(turned, 90) == train_vocabulary(repetitions, 90)


def test_without_a_bonus_the_vocabulary_is_the_plain_one(counts):
    plain = Counter({row["word"]: row["freq"] for row in GOLDEN["rows"]})
    assert train_vocabulary(counts.adjusted(0), 90) == train_vocabulary(plain, 90)


def test_rare_characters_are_left_out():
    vocabulary = train_vocabulary({"aab": 9, "az": 1}, 20, limit_alphabet=2)
    assert "z" not in vocabulary.pieces and "##z" not in vocabulary.pieces
    assert make_tokenizer(vocabulary).encode("az", add_special_tokens=False).tokens == ["[UNK]"]


def test_impossible_vocabularies_are_named():
    with pytest.raises(DataError, match="the corpus holds no words"):
        train_vocabulary({}, 100)
    with pytest.raises(ConfigError, match="a vocabulary of 8 has no room for the 10 characters"):
        train_vocabulary({"abc": 3}, 8)


def test_exported_tokenizer(tmp_path):
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    vocabulary = train_vocabulary(CASES["1.0"]["repetitions"], GOLDEN["vocab_size"])
    tokenizer = make_tokenizer(vocabulary)
    encoded = tokenizer.encode("Germanium TiO₂")
    assert encoded.tokens == ["[CLS]", "germanium", "tio2", "[SEP]"]
    assert tokenizer.decode(encoded.ids) == "germanium tio2"
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode("the oxide").ids == tokenizer.encode("the oxide").ids
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary.pieces))
    bert = BertWordPieceTokenizer(str(tmp_path / "vocab.txt"))
    assert bert.encode("the oxide limits").ids == tokenizer.encode("the oxide limits").ids


def test_bpe_replays_the_merges():
    vocabulary = train_vocabulary({"abc": 10, "bc": 9, "ab": 8}, 12)
    assert make_tokenizer(vocabulary, "bpe").encode("abc", add_special_tokens=False).tokens
    with pytest.raises(ConfigError, match="'unigram': expected one of wordpiece, bpe"):
        make_tokenizer(vocabulary, "unigram")
