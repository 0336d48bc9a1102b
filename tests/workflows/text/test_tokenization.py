"""Trainings of tokenizers end to end: what they write, and that they resume."""

import json

import pytest

import matattn
from matattn.errors import BundleError, ConfigError
from matattn.models.matter_tokenizer import WordCounts
from matattn.workflows import run
from matattn.workflows.text import tokenization


def test_detector_beats_nothing_it_was_not_shown(tokenized):
    _, metrics = tokenized
    assert metrics["test"]["detector"]["span_f1"] > 0.9
    assert metrics["test"]["detector"]["dictionary_span_f1"] > 0.9  # a toy corpus
    assert metrics["corpus"]["material_words"] > 100


def test_every_vocabulary_is_in_the_table(tokenized):
    _, metrics = tokenized
    rows = metrics["vocabularies"]
    named = {(row["size"], row["strength"], row["encoding"]) for row in rows}
    assert named == {
        (size, strength, "wordpiece") for size in (80, 150) for strength in (0, 0.5, 1)
    } | {(size, 0, "bpe") for size in (80, 150)}
    for row in rows:
        assert row["pieces"] <= row["size"] and row["material_fertility"] >= 1
        assert (row["material_whole_words"] < 1) == (row["material_fertility"] > 1)


def test_run_folder_is_whole(tokenized, assert_cleared):
    folder, metrics = tokenized
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    report = (folder / "report.md").read_text()
    assert "dictionary" in report and "`germ" in report
    header, *rows = (folder / "frequencies.csv").read_text().splitlines()
    assert header == "word,material,probability,general,adjusted" and len(rows) > 150
    for name in ("vocabularies.png", "loss.png"):
        assert (folder / name).stat().st_size > 1000
    pieces = (folder / "model" / "vocab.txt").read_text().split("\n")[:-1]
    assert len(pieces) == metrics["vocabularies"][-1]["pieces"] and pieces[:2] == ["[PAD]", "[UNK]"]
    assert_cleared(folder)


def test_words_are_counted_as_the_vocabulary_sees_them(tokenized, monkeypatch):
    model = matattn.load(tokenized[0] / "model")

    def tagged(_, texts):
        return [(["O", "B-formula"], [0.9, 0.8], {}) for _ in texts]

    monkeypatch.setattr(tokenization, "tag", tagged)
    counts = tokenization.count_words(model, ["Thé TiO₂", "the TiO2"])
    expected = WordCounts()
    for _ in range(2):
        expected.add("the")
        expected.add("tio2", 0.8)
    assert counts.general == expected.general and counts.material == expected.material
    assert counts.probability("tio2") == pytest.approx(0.8)


def test_resumed_run_equals_an_uninterrupted_one(on_sentences, tokenized, tmp_path, monkeypatch):
    """With dropout: its random numbers depend on the epoch alone."""
    cfg = on_sentences("matter", tmp_path / "run", "trainer.max_epochs=6")
    fitted = tokenization.Detection.on_train_epoch_end

    def interrupted(self):
        if self.current_epoch == 3:
            raise KeyboardInterrupt
        fitted(self)

    monkeypatch.setattr(tokenization.Detection, "on_train_epoch_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run(cfg)
    monkeypatch.undo()
    run.run(cfg)
    for name in ("model.safetensors", "tokenizer.json"):
        ours = (tmp_path / "run" / "model" / name).read_bytes()
        assert ours == (tokenized[0] / "model" / name).read_bytes()


@pytest.mark.parametrize(
    "override, message",
    [
        ("task.vocab_size=5", "task.vocab_size=5: expected at least 6"),
        ("task.strength=-1", "task.strength=-1: expected a number from 0 on"),
        ("task.word_probability=best", "expected one of paper, first_label"),
        ("task.sizes=[3]", "task.sizes=.*expected a list of whole numbers from 6 on"),
        ("init_from=mp-band-gap", "mp-band-gap is a network of structures"),
    ],
)
def test_mistakes_are_named(on_sentences, tmp_path, override, message):
    with pytest.raises((ConfigError, BundleError), match=message):
        run.run(on_sentences("matter", tmp_path / "run", override))
    assert not (tmp_path / "run").exists()


def test_a_training_on_text_starts_from_no_other(on_sentences, tokenized, tmp_path):
    start = f"init_from={tokenized[0] / 'model'}"
    with pytest.raises(ConfigError, match="init_from cannot start a training"):
        run.run(on_sentences("matter", tmp_path / "run", start))


def test_too_small_a_vocabulary_is_named(on_sentences, tmp_path):
    cfg = on_sentences("matter", tmp_path / "run", "task.vocab_size=20", "trainer.max_epochs=1")
    with pytest.raises(ConfigError, match="a vocabulary of 20 has no room for the 71 characters"):
        run.run(cfg)
    assert not (tmp_path / "run").exists()
