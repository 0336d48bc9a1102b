"""Trainings of text encoders end to end, and what they learn from."""

import json

import numpy as np
import pytest

import matattn
from matattn.errors import BundleError, ConfigError
from matattn.models.matter_tokenizer import make_tokenizer, train_vocabulary
from matattn.text import Sentence
from matattn.workflows import run
from matattn.workflows.text import language_model


def test_encoder_learns_spans(labelled, assert_cleared):
    folder, metrics = labelled
    assert metrics["test"]["all types"]["span_f1"] > 0.8
    assert metrics["test"]["MAT"]["n"] == metrics["test"]["all types"]["n"]
    assert metrics["pretraining"]["epochs"] == 2 and metrics["pretraining"]["loss"] < 5
    report = (folder / "report.md").read_text()
    assert "span F1" in report and "on 8 held-out chunks of 160 corpus lines after 2 e" in report
    tagged = matattn.load(folder / "model").tokenize("films of hydroxyapatite were grown")[0]
    assert [kind for *_, kind, _ in tagged.spans] == ["MAT"]
    assert_cleared(folder)


def test_encoder_sees_every_word(labelled):
    """Words of many pieces each, far more than it reads at once."""
    model = matattn.load(labelled[0] / "model")
    text = f"films of GaAs were {34 * 'r'} . " * 15
    (tagged,) = model.tokenize([text])
    assert len(tagged.pieces) > 2 * model.network.encoder.max_length
    found = [text[start:end] for start, end, *_ in tagged.spans]
    assert found.count("GaAs") == 15


def test_masked_words_need_two_chunks(on_sentences, tmp_path):
    (tmp_path / "short.txt").write_text("films of ZnO")
    cfg = on_sentences("text_encoder", tmp_path / "run", f"data.corpus={tmp_path / 'short.txt'}",
                 "task.vocab_size=30")  # fmt: skip
    with pytest.raises(ConfigError, match="the corpus makes 1 chunk.*task.pretraining_epochs=0"):
        run.run(cfg)


def test_encoder_makes_a_vocabulary_of_its_own(on_sentences, tmp_path):
    given = ("task.vocab_size=90", "task.pretraining_epochs=0", "trainer.max_epochs=1")
    cfg = on_sentences("text_encoder", tmp_path / "run", *given)
    run.run(cfg)
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert saved["metrics"]["pretraining"]["loss"] is None
    assert saved["arguments"]["vocab_size"] == 90 and saved["vocabulary"]["from"] is None


@pytest.mark.parametrize(
    "override, message",
    [
        ("task.types=[Stoff]", "has no spans of Stoff; it has MAT"),
        ("task.vocabulary=matter", "needs task.tokenizer=RUN/model"),
        ("task.vocabulary=sage", "expected one of matter, wordpiece"),
        ("model.max_length=2", "model.max_length=2: expected at least 3"),
    ],
)
def test_mistakes_are_named(on_sentences, tmp_path, override, message):
    with pytest.raises((ConfigError, BundleError), match=message):
        run.run(on_sentences("text_encoder", tmp_path / "run", override))
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_must_be_one(on_sentences, labelled, tmp_path):
    given = (f"task.tokenizer={labelled[0] / 'model'}",)
    with pytest.raises(BundleError, match="is a TokenClassifier; task.tokenizer takes"):
        run.run(on_sentences("text_encoder", tmp_path / "run", *given))


def test_masks_hide_whole_words():
    assert language_model.MASKED == 0.15
    chunks = language_model._chunks(_Tokenizer(), ["one line"], 5)
    assert chunks == [([2, 7, 8, 9, 3], [-1, 0, 0, 1, -1]), ([2, 10, 3], [-1, 0, -1])]


class _Tokenizer:
    def token_to_id(self, name):
        return {"[CLS]": 2, "[SEP]": 3}[name]

    def encode_batch(self, lines, add_special_tokens):
        return [self]

    ids, word_ids = [7, 8, 9, 10], [0, 0, 1, 1]


def test_every_label_of_words_with_many_pieces_is_learned():
    """Parts of 128 words had up to so many pieces that the encoder never saw their last words."""
    tokenizer = make_tokenizer(train_vocabulary({"0123456789": 1}, 25))
    words = tuple(f"{n:05d}" for n in range(50))  # five pieces each
    sentence = Sentence(words, tuple((n, n + 2, "MAT") for n in range(0, 50, 5)), "train")
    found = language_model._fitting(tokenizer, 30, sentence)
    assert tuple(word for part in found for word in part.words) == words
    assert sum(len(part.spans) for part in found) == len(sentence.spans)
    labels = {"O": 0, "B-MAT": 1, "I-MAT": 2}
    learned = [language_model._collate_sentences(tokenizer, 32, labels, [part]) for part in found]
    counts = sum(np.bincount(batch["labels"][batch["labels"] >= 0], minlength=3)
                 for batch in learned)  # fmt: skip
    assert counts.tolist() == [30, 10, 10]
