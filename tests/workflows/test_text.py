"""Runs on text end to end: what they write, that they resume, and how their models are used."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from pymatgen.core import Structure
from typer.testing import CliRunner

import matattn
from matattn.cli import app
from matattn.conf.schema import register
from matattn.errors import BundleError, ConfigError, DataError
from matattn.models.matter_tokenizer import WordCounts, make_tokenizer, train_vocabulary
from matattn.text import Sentence
from matattn.workflows import run as training
from matattn.workflows.text import language_model, predict, tokenization
from matattn.workflows.text.predict import MARGIN, WINDOW, TextModel, cut

NACL = Path(__file__).parents[2] / "docs" / "examples" / "NaCl.cif"
MATERIALS = ["ZnO", "TiO2", "GaAs", "germanium", "hydroxyapatite", "perovskite oxide", "CdTe"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A corpus in which materials follow certain words, and labelled sentences of the same kind."""
    folder = tmp_path_factory.mktemp("text")
    generator = np.random.default_rng(0)
    lines, rows = [], []
    for number in range(160):
        material = MATERIALS[int(generator.integers(len(MATERIALS)))]
        lines.append(f"films of {material} were grown by method {number} at high pressure here .")
        rows += ["films O", "of O"]
        parts = material.split()
        rows += [f"{part} {'I' if n else 'B'}-MAT" for n, part in enumerate(parts)]
        rows += ["were O", f"grown{number} O", ""]
    (folder / "corpus.txt").write_text("\n".join(lines))
    (folder / "labelled.txt").write_text("\n".join(rows))
    return folder


def config(files, folder, *overrides):
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        return compose("train", [
            "data=text_files", f"data.corpus={files / 'corpus.txt'}",
            f"data.labelled={files / 'labelled.txt'}", f"paths.output_dir={folder}",
            "trainer.accelerator=cpu", "task.batch_size=16", *overrides,
        ])  # fmt: skip


DETECTOR = ("model=matter", "model.dim=16", "model.hidden=16", "task.vocab_size=150",
            "task.sizes=[80]", "task.strengths=[0.5]", "optimizer.lr=1e-2")  # fmt: skip
ENCODER = ("model=text_encoder", "model.dim=16", "model.ffn_dim=32", "model.num_heads=2",
           "optimizer.lr=3e-3")  # fmt: skip


@pytest.fixture(scope="module")
def tokenized(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenized")
    metrics = training.run(config(files, folder, *DETECTOR, "trainer.max_epochs=6"))
    return folder, metrics


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


def test_run_folder_is_whole(tokenized):
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


def test_model_finds_pieces_and_spans(tokenized):
    model = matattn.load(tokenized[0] / "model")
    assert isinstance(model, TextModel)
    text = "films of GaAs were grown"
    tagged, empty = model.tokenize([text, ""])
    assert "".join(piece.removeprefix("##") for piece, _, _ in tagged.pieces) == (
        text.replace(" ", "").lower()
    )
    ((start, end, kind, probability),) = tagged.spans
    assert (text[start:end], kind) == ("GaAs", "formula") and 0.4 < probability <= 1
    assert empty.pieces == [] and empty.spans == []


def test_long_lines_are_never_cut(tokenized):
    """Words far down a long line are found as in a short one."""
    model = matattn.load(tokenized[0] / "model")
    sentence = "films of GaAs were grown here . "
    long = model.tokenize(60 * sentence)[0]
    found = [start for start, end, *_ in long.spans if long.text[start:end] == "GaAs"]
    assert found == [len(sentence) * n + len("films of ") for n in range(60)]
    assert len(long.pieces) == 60 * len(model.tokenize(sentence)[0].pieces)


@pytest.mark.parametrize("count", [1, 127, 128, 129, 300, 1000])
def test_windows_answer_for_every_word_once(count):
    owned = [place for _, _, low, high in cut([1] * count) for place in range(low, high)]
    assert owned == list(range(count))
    for start, end, low, high in cut([1] * count):
        assert start == 0 or low - start == MARGIN
        assert end == count or end - high == MARGIN


@pytest.mark.parametrize("room", [1, 2, 7, 8, 126, 1000])
def test_windows_of_pieces_show_every_word(room):
    sizes = [int(n) for n in np.random.default_rng(room).choice([0, 1, 1, 3, 40], 700)]
    windows = list(cut(sizes, room))
    assert [n for _, _, low, high in windows for n in range(low, high)] == list(range(700))
    for start, end, low, high in windows:
        assert end - start <= WINDOW and start <= low < high <= end
        assert sum(sizes[start : high - 1]) < room  # the last word's first piece is seen


def test_words_are_counted_as_the_vocabulary_sees_them(tokenized, monkeypatch):
    model = matattn.load(tokenized[0] / "model")

    def tagged(_, texts):
        return [(["O", "B-formula"], [0.9, 0.8]) for _ in texts]

    monkeypatch.setattr(tokenization, "tag", tagged)
    counts = tokenization.count_words(model, ["Thé TiO₂", "the TiO2"])
    expected = WordCounts()
    for _ in range(2):
        expected.add("the")
        expected.add("tio2", 0.8)
    assert counts.general == expected.general and counts.material == expected.material
    assert counts.probability("tio2") == pytest.approx(0.8)


def test_resumed_run_equals_an_uninterrupted_one(files, tokenized, tmp_path, monkeypatch):
    """With dropout: its random numbers depend on the epoch alone."""
    cfg = config(files, tmp_path / "run", *DETECTOR, "trainer.max_epochs=6")
    fitted = tokenization.Detection.on_train_epoch_end

    def interrupted(self):
        if self.current_epoch == 3:
            raise KeyboardInterrupt
        fitted(self)

    monkeypatch.setattr(tokenization.Detection, "on_train_epoch_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.run(cfg)
    monkeypatch.undo()
    training.run(cfg)
    for name in ("model.safetensors", "tokenizer.json"):
        ours = (tmp_path / "run" / "model" / name).read_bytes()
        assert ours == (tokenized[0] / "model" / name).read_bytes()


@pytest.fixture(scope="module")
def labelled(files, tokenized, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    given = (f"task.tokenizer={tokenized[0] / 'model'}", "task.vocabulary=matter",
             "task.pretraining_epochs=2", "trainer.max_epochs=15")  # fmt: skip
    return folder, training.run(config(files, folder, *ENCODER, *given))


def test_encoder_learns_spans(labelled):
    folder, metrics = labelled
    assert metrics["test"]["all types"]["span_f1"] > 0.8
    assert metrics["test"]["MAT"]["n"] == metrics["test"]["all types"]["n"]
    assert metrics["pretraining"]["epochs"] == 2 and metrics["pretraining"]["loss"] < 5
    report = (folder / "report.md").read_text()
    assert "span F1" in report and "on 8 held-out chunks of 160 corpus lines after 2 e" in report
    tagged = matattn.load(folder / "model").tokenize("films of hydroxyapatite were grown")[0]
    assert [kind for *_, kind, _ in tagged.spans] == ["MAT"]


def test_encoder_sees_every_word(labelled):
    """Words of many pieces each, far more than it reads at once."""
    model = matattn.load(labelled[0] / "model")
    text = f"films of GaAs were {34 * 'r'} . " * 15
    (tagged,) = model.tokenize([text])
    assert len(tagged.pieces) > 2 * model.network.encoder.max_length
    found = [text[start:end] for start, end, *_ in tagged.spans]
    assert found.count("GaAs") == 15


def test_names_of_special_tokens_are_plain_text(tokenized, labelled):
    for folder in (tokenized[0], labelled[0]):
        tagged = matattn.load(folder / "model").tokenize("of [MASK]")[0]
        assert len(tagged.pieces) > 2 and "[MASK]" not in [piece for piece, *_ in tagged.pieces]


def test_text_that_is_no_unicode_is_named(tokenized):
    with pytest.raises(DataError, match="text 2: character 1 is U[+]DCFF"):
        matattn.load(tokenized[0] / "model").tokenize(["a", "\udcff abc"])


def test_masked_words_need_two_chunks(files, tmp_path):
    (tmp_path / "short.txt").write_text("films of ZnO")
    cfg = config(files, tmp_path / "run", *ENCODER, f"data.corpus={tmp_path / 'short.txt'}",
                 "task.vocab_size=30")  # fmt: skip
    with pytest.raises(ConfigError, match="the corpus makes 1 chunk.*task.pretraining_epochs=0"):
        training.run(cfg)


def test_encoder_makes_a_vocabulary_of_its_own(files, tmp_path):
    given = ("task.vocab_size=90", "task.pretraining_epochs=0", "trainer.max_epochs=1")
    cfg = config(files, tmp_path / "run", *ENCODER, *given)
    training.run(cfg)
    saved = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert saved["metrics"]["pretraining"]["loss"] is None
    assert saved["arguments"]["vocab_size"] == 90 and saved["vocabulary"]["from"] is None


@pytest.mark.parametrize(
    "overrides, message",
    [
        ((*DETECTOR, "task.vocab_size=5"), "task.vocab_size=5: expected at least 6"),
        ((*DETECTOR, "task.strength=-1"), "task.strength=-1: expected a number from 0 on"),
        ((*DETECTOR, "task.word_probability=best"), "expected one of paper, first_label"),
        ((*DETECTOR, "task.sizes=[3]"), "task.sizes=.*expected a list of whole numbers from 6 on"),
        ((*DETECTOR, "init_from=mp-band-gap"), "init_from"),
        ((*ENCODER, "task.types=[Stoff]"), "has no spans of Stoff; it has MAT"),
        ((*ENCODER, "task.vocabulary=matter"), "needs task.tokenizer=RUN/model"),
        ((*ENCODER, "task.vocabulary=sage"), "expected one of matter, wordpiece"),
        ((*ENCODER, "model.max_length=2"), "model.max_length=2: expected at least 3"),
        (("model=crystalformer",), "needs data of kind 'crystals'"),
    ],
)
def test_mistakes_are_named(files, tmp_path, overrides, message):
    with pytest.raises((ConfigError, BundleError), match=message):
        training.run(config(files, tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


def test_too_small_a_vocabulary_is_named(files, tmp_path):
    cfg = config(files, tmp_path / "run", *DETECTOR, "task.vocab_size=20", "trainer.max_epochs=1")
    with pytest.raises(ConfigError, match="a vocabulary of 20 has no room for the 71 characters"):
        training.run(cfg)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_must_be_one(labelled, files, tmp_path):
    given = (f"task.tokenizer={labelled[0] / 'model'}",)
    with pytest.raises(BundleError, match="is a TokenClassifier; task.tokenizer takes"):
        training.run(config(files, tmp_path / "run", *ENCODER, *given))


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_damaged_files_are_refused(tokenized, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(tokenized[0] / "model", folder)
    (folder / name).write_text((folder / name).read_text() + " ")
    with pytest.raises(BundleError, match=f"{name}: checksum differs"):
        matattn.load(folder)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        matattn.load(folder)


def test_sums_name_files_of_the_folder_only(tokenized, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tokenized[0] / "model", folder)
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  ../../secret\n")
    with pytest.raises(BundleError, match="'../../secret' is no file name"):
        matattn.load(folder)


def run(*arguments, given=None):
    return CliRunner().invoke(app, list(map(str, arguments)), input=given)


def test_command_shows_pieces_and_materials(tokenized, tmp_path):
    model = tokenized[0] / "model"
    shown = run("tokenize", model, "films of GaAs were grown")
    assert shown.exit_code == 0 and "GaAs  formula" in shown.output
    path = tmp_path / "a.txt"
    path.write_text("films of ZnO\n\nfilms of CdTe\n")
    for given in (("tokenize", model, path, "--json"), ("tokenize", model, "-", "--json")):
        result = run(*given, given=path.read_text() if "-" in given else None)
        first, second = map(json.loads, result.output.splitlines())
        assert (first["line"], second["line"]) == (1, 3)
        assert second["spans"][0]["text"] == "CdTe"
        assert first["pieces"][0] == {"piece": "films", "start": 0, "end": 5}


def test_lines_end_at_newlines_only(tokenized):
    given = "films\x0bof\u2028ZnO\r\n\nCdTe\x0c"
    result = run("tokenize", tokenized[0] / "model", "-", "--json", given=given)
    found = [json.loads(line) for line in result.output.split("\n") if line]
    assert [(one["line"], one["text"]) for one in found] == [
        (1, "films\x0bof\u2028ZnO"), (3, "CdTe\x0c"),
    ]  # fmt: skip


def test_command_reads_pipes(tokenized, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("films of GaAs",))
    writer.start()
    result = run("tokenize", tokenized[0] / "model", tmp_path / "pipe", "--json")
    writer.join()
    assert json.loads(result.output)["text"] == "films of GaAs"


@pytest.mark.parametrize(
    "given, message",
    [
        ("missing.txt", "missing.txt: no such file"),
        ("Pt/C", "Pt/C: no such file; if it is a text, give it by standard input"),
        (".", ".: is a folder"),
        ("\udcff abc", "text 1: character 1 is U+DCFF"),
    ],
)
def test_command_names_what_is_no_text(tokenized, given, message):
    result = run("tokenize", tokenized[0] / "model", given)
    assert result.exit_code == 2 and message in result.stderr


def test_slashes_within_a_text(tokenized):
    assert run("tokenize", tokenized[0] / "model", "films of Pt/C").exit_code == 0


@pytest.mark.parametrize(
    "given, message",
    [(b"caf\xe9", "standard input: byte 4 is not UTF-8"), (b" \n", "no text: give a text")],
)
def test_command_names_bad_input(tokenized, given, message):
    command = [sys.executable, "-c", "from matattn.cli import main; main()", "tokenize",
               str(tokenized[0] / "model"), "-"]  # fmt: skip
    result = subprocess.run(
        command, input=given, capture_output=True, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 2
    assert message in result.stderr.decode() and "Traceback" not in result.stderr.decode()


def test_other_models_read_no_text(tokenized):
    assert run("tokenize", "mp-band-gap", "TiO2").exit_code == 2
    for command in ("predict", "explain"):
        result = run(command, tokenized[0] / "model", NACL)
        assert result.exit_code == 2


def test_a_crystal_as_text_is_predicted_like_any_other(tmp_path):
    register()
    with initialize_config_module("matattn.conf", version_base="1.3"):
        cfg = compose("train", [
            "model=crystal_text", "model.representation=cif_p1", "model.dim=16",
            "model.ffn_dim=16", "model.num_blocks=1", "task.train_rows=64", "task.calibration=0",
            "trainer.max_epochs=1",
            f"paths.output_dir={tmp_path / 'run'}",
        ])  # fmt: skip
    training.run(cfg)
    crystal = Structure.from_file(NACL)
    model = matattn.load(tmp_path / "run" / "model")
    good, long = model.predict([crystal, crystal * (2, 2, 2)])
    assert good["status"] == "ok" and good["formation_energy_per_atom"] is not None
    assert long["status"] == "StructureError" and "tokens as cif_p1" in long["message"]


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


def test_tokenizer_file_that_is_none(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="tokenizer.json: cannot be read"):
        predict.load_tokenizer(tmp_path)


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
